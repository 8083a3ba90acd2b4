"""A prompt: everything that a template is given before an answer begins, for whatever engine it is sent to.

In: a conversation's messages, its tools, and the setting in which its row was proven. Out: the text by a template, or
the body of a request as clients of OpenAI-compatible servers write it.
"""

from dataclasses import dataclass
from typing import Any

from tunewright.chat.conversation import Message, messages_from_json
from tunewright.chat.forms import PLAIN, Form
from tunewright.chat.template import ChatTemplate, parse_tools
from tunewright.chat.variables import Variables

# How clients write messages: arguments of calls are JSON text (https://platform.openai.com/docs/api-reference/chat).
REQUEST_FORM = Form(text_arguments=True)


@dataclass(frozen=True)
class Prompt:
    """What inference is asked.

    Attributes:
        messages: everything before the answer.
        tools: the exact JSON text of the list of tools.
        variables: what the template is told beside the messages.
        form: in which the template is given the messages.
    """

    messages: tuple[Message, ...]
    tools: str | None = None
    variables: Variables = ()
    form: Form = PLAIN

    def text(self, template: ChatTemplate) -> str:
        """What `template` makes of it, ending where the answer begins."""
        messages = self.form.apply(self.messages)
        return template.render(messages, True, tools=self.tools, variables=dict(self.variables))

    def request(self) -> dict[str, Any]:
        """`messages`, and where there are any, `tools` and `chat_template_kwargs`, as a client sends them."""
        body: dict[str, Any] = {"messages": [message.for_template() for message in REQUEST_FORM.apply(self.messages)]}
        if self.tools is not None:
            body["tools"] = parse_tools(self.tools)
        if self.variables:
            body["chat_template_kwargs"] = dict(self.variables)
        return body

    def as_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"messages": [message.as_json() for message in self.messages]}
        if self.tools is not None:
            data["tools"] = self.tools
        if self.variables:
            data["variables"] = dict(self.variables)
        if self.form != PLAIN:
            data["form"] = vars(self.form)
        return data


def prompt_from_json(data: dict[str, Any]) -> Prompt:
    """What `Prompt.as_json` gave; further keys are passed over."""
    return Prompt(
        messages_from_json(data["messages"]),
        data.get("tools"),
        tuple(data.get("variables", {}).items()),
        Form(**data.get("form", {})),
    )

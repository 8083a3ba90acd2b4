"""A chat template: messages in, the prompt text that the model was made for out.

The template is the base's own Jinja text, rendered in the sandbox that transformers keeps for it. Nothing here knows a
family of models.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError

from tunewright.chat.conversation import Message, messages_for_template
from tunewright.errors import RenderError

NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template with the special tokens that it may name.

    Attributes:
        source: the Jinja text.
        special_tokens: `bos_token`, `eos_token` and the like, as the tokenizer defines them.
    """

    source: str
    special_tokens: dict[str, str] = field(default_factory=dict)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        *,
        tools: str | None = None,
        variables: Mapping[str, Any] = NO_VARIABLES,
    ) -> str:
        """The text of `messages`; with `add_generation_prompt` it ends where the assistant's answer begins.

        Args:
            tools: the exact JSON text of the list of tools.
            variables: further values that the template may read.

        Raises:
            RenderError: the template refuses the messages, or is not valid Jinja.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            # The stub of this function says that it gives one text; it gives the texts and the generation spans.
            rendered: Any = render_jinja_template(
                conversations=[messages_for_template(tuple(messages))],
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                tools=None if tools is None else json.loads(tools),
                **{**self.special_tokens, **variables},
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise RenderError(
                "chat template",
                f"it refuses the messages ({type(error).__name__}: {error})",
                mend="Change the rows to what the base's template takes, or choose another base.",
            ) from None
        return str(rendered[0][0])


def chat_template_of(tokenizer: Any, where: str) -> ChatTemplate:
    """The chat template that a tokenizer carries; `RenderError` if it carries none."""
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        raise RenderError(
            where,
            "the base has no chat template",
            expected="a chat_template in tokenizer_config.json or chat_template.jinja",
            mend="Choose the instruct variant of the base.",
        )
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return ChatTemplate(str(source), tokens)

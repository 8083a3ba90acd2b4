"""A chat template: messages in, the prompt text that the model was made for out.

The template is the base's own Jinja text, rendered in a sandbox with limits (`sandbox.py`). Always: the same template,
messages and date give the same text, byte for byte the one of transformers' `apply_chat_template`; whatever a template
does, what comes out is a text or a `RenderError`. Nothing here knows a family of models.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from jinja2.exceptions import SecurityError, TemplateSyntaxError

from tunewright.chat.budget import Limits
from tunewright.chat.conversation import Message, messages_for_template
from tunewright.chat.named import named_source, template_names, validate_tokens
from tunewright.chat.sandbox import CompiledTemplate, Rendered, compiled
from tunewright.errors import RenderError

# A template that asks for the date is told this one, so that a row is the same text on every day.
DEFAULT_TODAY = date(2025, 1, 1)
DEFAULT_LIMITS = Limits()
WHERE = "chat template"
LONGEST_MESSAGE = 300
NO_VARIABLES: Mapping[str, Any] = {}


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template with the special tokens that it may name.

    Attributes:
        source: the Jinja text.
        special_tokens: `bos_token`, `eos_token` and the like, as the tokenizer defines them.
        today: the date that the template is told when it asks (`strftime_now`), at midnight.
        limits: what one rendering may use.
    """

    source: str
    special_tokens: dict[str, str] = field(default_factory=dict)
    today: date = DEFAULT_TODAY
    limits: Limits = DEFAULT_LIMITS

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
            tools: the exact JSON text of a list. Integers keep every digit and keys their order. A number with a point
                or exponent becomes a float, as it does at every server that reads a request: `1.10` is written `1.1`.
            variables: further names, such as `enable_thinking`; they win over special tokens.

        Raises:
            RenderError: the template refuses the messages, is not valid Jinja, or goes beyond a limit.
        """
        return self.rendered(messages, add_generation_prompt, tools=tools, variables=variables).text

    def rendered(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        *,
        tools: str | None = None,
        variables: Mapping[str, Any] = NO_VARIABLES,
    ) -> Rendered:
        """As `render`, with what else is known: `{% generation %}` blocks, and whether the clock was read."""
        names = {
            **self.special_tokens,
            **plain_variables(variables),
            "messages": with_reasoning_names(messages_for_template(tuple(messages))),
            "tools": None if tools is None else parse_tools(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        template = self._compiled()
        try:
            return template.render(names, self.today)
        except Exception as error:  # a template is a program of strangers: it may end in any exception of Python
            raise refusal(error, template.line_of(error)) from None

    @property
    def may_read_clock(self) -> bool:
        """Whether some messages could make the template ask for the date; `rendered` says whether one text did."""
        return self._compiled().may_read_clock

    def _compiled(self) -> CompiledTemplate:
        try:
            return compiled(self.source, self.limits)
        except Exception as error:
            raise invalid(error) from None


def refusal(error: Exception, line: int | None) -> RenderError:
    """What an exception while rendering means to the user."""
    where = WHERE if line is None else f"{WHERE}, line {line}"
    if isinstance(error, SecurityError):
        return RenderError(where, f"it was stopped: {error}", mend="Choose a base with another template, or mend it.")
    if isinstance(error, RecursionError):
        return RenderError(where, "it was stopped: it calls itself too often", mend="Mend the template.")
    if isinstance(error, MemoryError):
        return RenderError(where, "it was stopped: there is no memory left", mend="Mend the template.")
    said = " ".join(str(error).split())[:LONGEST_MESSAGE]
    return RenderError(
        where,
        f"it refuses the messages ({type(error).__name__}: {said})",
        mend="Change the rows to what the base's template takes, or choose another base.",
    )


def invalid(error: Exception) -> RenderError:
    """What an exception while compiling means to the user."""
    line = getattr(error, "lineno", None) if isinstance(error, TemplateSyntaxError) else None
    message = error.message if isinstance(error, TemplateSyntaxError) else str(error)
    if isinstance(error, RecursionError):
        message = "it is nested too deeply"
    where = WHERE if line is None else f"{WHERE}, line {line}"
    return RenderError(where, f"it is not valid Jinja ({message or type(error).__name__})", mend="Mend the template.")


def with_reasoning_names(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reasoning under both names that templates read, in the order of transformers."""
    return [
        {"thinking": message["reasoning_content"], **message} if "reasoning_content" in message else message
        for message in messages
    ]


def parse_tools(text: str) -> list[Any]:
    try:
        tools = json.loads(text, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise RenderError("tools", f"not valid JSON ({error})", expected="a JSON list of tools") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RenderError("tools", "not a list of objects", expected="a JSON list of tools")
    return tools


def finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that JSON can hold")
    return number


def plain_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """A copy made of plain JSON values, which have no methods that a template should not reach."""
    try:
        copied = json.loads(json.dumps(dict(variables), allow_nan=False)) if variables else {}
    except (TypeError, ValueError) as error:
        raise RenderError("template variables", f"not plain JSON values ({error})") from None
    return dict(copied)


def chat_template_of(tokenizer: Any, where: str, named: str | None = None, *, with_tools: bool = False) -> ChatTemplate:
    """The chat template that the recipe names, else the one that the tokenizer carries.

    Args:
        where: the base's name, for messages.
        named: one of `template_names()`, or a file; it takes the place of the tokenizer's own.
        with_tools: of several templates take the one for tools, where there is one.

    Raises:
        RenderError: there is none, or the tokenizer lacks a token that it needs.
        RecipeError: there is none of that name.
    """
    if named is None:
        source = own_source(tokenizer, where, with_tools)
    else:
        source = named_source(named)
        validate_tokens(source, tokenizer, where)
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return ChatTemplate(source, tokens)


def own_source(tokenizer: Any, where: str, with_tools: bool) -> str:
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = (source.get("tool_use") if with_tools else None) or source.get("default")
    if source:
        return str(source)
    raise RenderError(
        where,
        "the base has no chat template",
        expected="a chat_template in tokenizer_config.json or chat_template.jinja",
        mend=f"Choose the instruct variant of the base, or set chat_template: {' | '.join(template_names())} | FILE.",
    )

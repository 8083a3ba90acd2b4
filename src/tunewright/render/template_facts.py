"""What the served model needs to know of the prompt that it was trained with: `tokens/template.json`."""

from typing import Any

from tunewright.chat.conversation import Message
from tunewright.chat.supervise import Supervisor
from tunewright.chat.template import ChatTemplate
from tunewright.errors import RenderError


def describe_template(supervisor: Supervisor, longest_row: int, shared_system_prompt: str | None) -> dict[str, Any]:
    template, stops = supervisor.template, sorted(supervisor.stop_ids)
    return {
        "chat_template": template.source,
        "special_tokens": template.special_tokens,
        "stop_ids": stops,
        "stop_tokens": supervisor.tokenizer.convert_ids_to_tokens(stops),
        "longest_row_tokens": longest_row,
        "shared_system_prompt": shared_system_prompt,
        "default_system_prompt": default_system_prompt(template),
    }


def default_system_prompt(template: ChatTemplate) -> str | None:
    """The system prompt that the template puts in by itself where a conversation has none, or None.

    Found by comparing the rendering without a system message with the one that has a marker as its system message:
    what stands in the marker's place is the default.
    """
    user = Message("user", "\u2402user\u2402")
    marker = "\u2401system\u2401"
    try:
        with_system = template.render([Message("system", marker), user])
        without = template.render([user])
    except RenderError:
        return None
    before, separator, after = with_system.partition(marker)
    if not separator or not without.startswith(before) or not without.endswith(after):
        return None
    middle = without[len(before) : len(without) - len(after)]
    return middle or None

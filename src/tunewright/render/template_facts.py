"""What the served model needs to know of the prompt that it was trained with: `tokens/template.json`."""

from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from tunewright.chat.conversation import Conversation, Message
from tunewright.chat.files import read_conversations
from tunewright.chat.supervise import Supervisor
from tunewright.chat.template import ChatTemplate
from tunewright.chat.trained import template_as_json
from tunewright.errors import RenderError
from tunewright.evidence import Evidence, equal

ROWS_COMPARED = 50


def describe_template(
    supervisor: Supervisor, template: ChatTemplate, longest_row: int, shared_system_prompt: str | None
) -> dict[str, Any]:
    """What is served, as data; `template` is the supervisor's with everything pinned that it was told."""
    stops = sorted(supervisor.stop_ids)
    return {
        **template_as_json(template),
        "stop_ids": stops,
        "stop_tokens": supervisor.tokenizer.convert_ids_to_tokens(stops),
        "longest_row_tokens": longest_row,
        "shared_system_prompt": shared_system_prompt,
        "default_system_prompt": default_system_prompt(template),
    }


def check_pinned(supervisor: Supervisor, template: ChatTemplate, conversations: Path) -> list[Evidence]:
    """That the served template, told nothing, gives the rows of the trained one; nothing where it is the same."""
    if template.source == supervisor.template.source:
        return []
    served = Supervisor(supervisor.tokenizer, template, supervisor.stop_ids)
    compared = differing = 0
    for conversation in islice(read_conversations(conversations), ROWS_COMPARED):
        with suppress(RenderError):
            trained = [row.ids.tolist() for row in supervisor.rows(conversation)]
            compared += 1
            differing += trained != ids_served(served, conversation)
    detail = f"{compared} conversations rendered by the served template, which has pinned what the base's own was told."
    return [equal("served_template_differs", differing, 0, detail)]


def ids_served(served: Supervisor, conversation: Conversation) -> list[list[int]] | None:
    try:
        return [row.ids.tolist() for row in served.rows(conversation)]
    except RenderError:
        return None


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

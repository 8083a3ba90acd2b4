"""The names by which rows call who speaks.

Each way of writing messages has names of its own. A name of another way is understood too, but that is a repair.
"""

from collections.abc import Mapping

from tunewright.chat.conversation import Role
from tunewright.data.exact_json import Json
from tunewright.data.faults import RowError, json_kind
from tunewright.data.formats.reading import Reading

CALLS = frozenset({"function_call", "tool_call"})  # these turns are calls, written as JSON text
OPENAI: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SHAREGPT: Mapping[str, Role] = {
    **OPENAI,
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
KNOWN: Mapping[str, Role] = {**SHAREGPT, "developer": "system", "ipython": "tool", "prompter": "user"}


def read_role(name: Json, where: str, own: Mapping[str, Role], reading: Reading) -> Role:
    """The role that a row's name means: the recipe's reading of it, the format's own, or a known one as a repair."""
    if isinstance(name, str):
        if name in reading.roles:
            return reading.roles[name]
        if name in own:
            return own[name]
        if name in KNOWN:
            reading.repair(f"role {name} read as {KNOWN[name]}", where)
            return KNOWN[name]
    found = repr(name) if isinstance(name, str) else json_kind(name)
    mend = f"Name it in the recipe, such as `roles: {{{name}: user}}`." if isinstance(name, str) and name else ""
    raise RowError("unknown role", f"found {found}; expected system, user, assistant or tool", where, mend)

"""Conversation trees, as OpenAssistant publishes them: a prompt with replies that have replies.

In: one tree a row (`*.trees.jsonl`), its root under `prompt` or the row itself. Out: one conversation for each leaf,
from the root down. Every answer is learned once: in the first conversation that has it; in the others it is context.
Left out, and named as repairs, are messages that were deleted or failed review, with everything below them, and turns
of the user that nobody answered.

Source: https://projects.laion.ai/Open-Assistant/docs/data/schemas
"""

from dataclasses import dataclass, field

from tunewright.data.exact_json import Json
from tunewright.data.faults import RowError, a_kind
from tunewright.data.formats.reading import Dialogue, Reading, RowObject, Turn
from tunewright.data.formats.roles import OPENAI, read_role

OASST = {**OPENAI, "prompter": "user"}
USED = frozenset({"role", "text", "content", "replies", "deleted", "review_result"})


@dataclass(slots=True, eq=False)
class Node:
    """A message of a tree that was kept, with the answers to it."""

    turn: Turn
    replies: list["Node"] = field(default_factory=list)


def is_tree(value: Json) -> bool:
    return isinstance(value, dict) and "replies" in value


def read_tree(root: RowObject, where: str, reading: Reading) -> list[Dialogue]:
    """The conversations of a tree; at least one."""
    top: list[Node] = []
    waiting: list[tuple[Json, str, list[Node]]] = [(root, where, top)]
    order: list[tuple[Node, list[Node]]] = []
    while waiting:  # not recursive: a tree may be deeper than Python's stack
        message, path, siblings = waiting.pop()
        node = read_node(message, path, reading)
        if node is None:
            continue
        siblings.append(node)
        order.append((node, siblings))
        replies = reading.list_of(message.get("replies") or [], within(path, "replies"), "messages")
        for number in reversed(range(len(replies))):
            waiting.append((replies[number], f"{within(path, 'replies')}[{number}]", node.replies))
    for node, siblings in reversed(order):
        if node.turn.role != "assistant" and not node.replies:
            siblings.remove(node)
            reading.repair("turn without an answer left out", node.turn.path)
    if not top:
        raise RowError("no answer", "no path through the tree ends with an assistant's turn that may be kept", where)
    return paths_of(top[0])


def within(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def read_node(message: Json, path: str, reading: Reading) -> Node | None:
    """A message of the tree; None if it was deleted or failed review."""
    if not isinstance(message, dict):
        raise RowError("unknown shape", f"{path} is {a_kind(message)}; expected a message of the tree", path)
    if message.get("deleted") is True or message.get("review_result") is False:
        deleted = message.get("deleted") is True
        reading.repair("deleted message left out" if deleted else "message that failed review left out", path)
        return None
    role = read_role(message.get("role"), within(path, "role"), OASST, reading)
    unused = {f"replies[].{name}" for name in message.keys() - USED}
    if path and not unused.issubset(reading.ignored):
        reading.ignore(*sorted(unused))
    key = "text" if "text" in message else "content"
    return Node(Turn(role, message.get(key), path, within(path, key)))


def paths_of(root: Node) -> list[Dialogue]:
    """One dialogue from the root to each leaf, in the order of the leaves."""
    found: list[Dialogue] = []
    learned: set[int] = set()
    waiting: list[tuple[Node, tuple[Node, ...]]] = [(root, ())]
    while waiting:
        node, before = waiting.pop()
        path = (*before, node)
        waiting.extend((reply, path) for reply in reversed(node.replies))
        if not node.replies:
            found.append(Dialogue([turn_once(step, learned) for step in path]))
            learned.update(map(id, path))
    return found


def turn_once(node: Node, learned: set[int]) -> Turn:
    turn = node.turn
    return Turn(turn.role, turn.value, turn.path, turn.field, train=id(node) not in learned)

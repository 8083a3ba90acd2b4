"""A Jinja chat template as a Go template for Ollama, where it can be one, and the proof that both give the same text.

In goes a ChatTemplate. Its pieces (`go_pieces.py`) are put around the messages' contents by a Go template
(`go_text.py`). It comes out only if it gives the Jinja template's text for every conversation in `proof_conversations`;
otherwise `ExportError` says where the two part. Always: a chat of a kind that was not proven ends in an error of
Ollama's that names it, never in another prompt than the trained one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from tunewright.chat.conversation import Message
from tunewright.chat.template import ChatTemplate
from tunewright.errors import ExportError
from tunewright.export.go_engine import GoTemplate
from tunewright.export.go_pieces import (
    ALTERNATIVE,
    THOUGHT_END,
    WHERE,
    PlainPrompts,
    PromptPieces,
    derive_pieces,
    plain_prompts,
)
from tunewright.export.go_text import Thoughts, write_go_template


@dataclass(frozen=True)
class GoTemplateProof:
    """A proven Go template.

    Attributes:
        text: the template.
        conversations: for how many it gave the Jinja template's text.
        takes_system: whether it takes a system message.
        notes: sentences on the plain chats that it refuses, and on what to send in their place. Chats with tools are
            always refused: Ollama sorts and drops keys of tools and arguments before any template sees them.
    """

    text: str
    conversations: int
    takes_system: bool
    notes: tuple[str, ...]


def go_template(template: ChatTemplate, added_bos: str = "") -> str:
    """The text of `proven_go_template`."""
    return proven_go_template(template, added_bos).text


def proven_go_template(template: ChatTemplate, added_bos: str = "") -> GoTemplateProof:
    """The Go template that Ollama needs to send what was trained.

    Args:
        template: the trained template.
        added_bos: the BOS text that the engine puts before the prompt by itself, which the template must not repeat.

    Raises:
        ExportError: the Jinja template cannot be expressed in this way.
    """
    prompts = plain_prompts(template)
    pieces = derive_pieces(prompts, added_bos)
    conversations = proof_conversations(pieces.takes_system)
    with_thoughts = [*conversations, *thinking_conversations()]
    ways: tuple[Thoughts, ...] = ("kept", "cut")
    for thoughts in ways:
        text = write_go_template(pieces, thoughts)
        if not first_difference(prompts, text, with_thoughts, added_bos):
            return proof_of(pieces, text, len(with_thoughts), thoughts)
    text = write_go_template(pieces, "refused")
    if found := first_difference(prompts, text, conversations, added_bos):
        raise ExportError(WHERE, found, mend=ALTERNATIVE)
    return proof_of(pieces, text, len(conversations), "refused")


def proof_of(pieces: PromptPieces, text: str, conversations: int, thoughts: Thoughts) -> GoTemplateProof:
    notes = []
    if not pieces.takes_system:
        notes.append("A system message is an error in Ollama: the trained template takes none.")
    if thoughts == "refused":
        notes.append(f"An earlier answer with {THOUGHT_END} in it is an error in Ollama: send it without its thought.")
    return GoTemplateProof(text, conversations, pieces.takes_system, tuple(notes))


def first_difference(
    prompts: PlainPrompts, text: str, conversations: Sequence[Sequence[Message]], added_bos: str = ""
) -> str:
    """Where the Go template and the Jinja template part, in words; "" where they do not."""
    template = GoTemplate(text)
    for messages in conversations:
        expected = prompts.text(messages)
        found = added_bos + template.execute(data_of(messages))
        if found != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
            shape = ", ".join(message.role for message in messages)
            return (
                f"for the turns {shape} the Jinja template writes {expected[at : at + 40]!r} where the Go template "
                f"would write {found[at : at + 40]!r}"
            )
    return ""


def data_of(messages: Sequence[Message]) -> dict[str, object]:
    """What a Go template is given for a chat, as far as the templates that are written here read it."""
    return {
        "Messages": [
            {
                "Role": message.role.encode(),
                "Content": (message.content or "").encode(),
                "ToolCalls": message.tool_calls,
            }
            for message in messages
        ]
    }


# --- what is proven ---

TEXTS = (
    ("What is 2 + 2?", "It is 4."),
    ("Grüße aus Köln, 你好, 👩‍👩‍👧 \u200bzero width", 'She said "yes", it\'s `fine` \\ \\n'),
    ('{"a": {"b": [1, 2]}} {{ .System }} {% if x %} }} {#', "line one\n\nline three\n\tindented {{"),
    ("\n  spaces around \t", " \u3000wide\xa0and narrow\n\n"),
)
SYSTEMS = (
    "You are terse.",
    'Answer in JSON: {"intent": "…"}.\nNever say """why""" or {{ .Prompt }}.',
    "\n Spaces around. ",
)
THOUGHTS = (
    "<think>\ntwo and two\n</think>\n\nIt is 4.",
    "<think>\n\n</think>\n\n\n 4 \n",
    "a <think>b</think> c <think>d</think>e",
)


def proof_conversations(with_system: bool) -> list[list[Message]]:
    """Conversations that end with the user, as a prompt does: one to four turns, and texts that break escaping."""
    conversations = []
    for start in range(len(TEXTS)):
        rotated = TEXTS[start:] + TEXTS[:start]
        for turns in range(len(TEXTS)):
            plain = [*history_of(rotated[:turns]), Message("user", rotated[turns][0])]
            conversations.append(plain)
            if with_system:
                conversations.append([Message("system", SYSTEMS[(start + turns) % len(SYSTEMS)]), *plain])
    return conversations


def thinking_conversations() -> list[list[Message]]:
    """Conversations with thoughts in their earlier answers."""
    pairs = [(question, answer) for (question, _), answer in zip(TEXTS, THOUGHTS, strict=False)]
    asked = Message("user", "And 3 + 3?")
    return [[*history_of(chosen), asked] for chosen in ([pairs[0]], [pairs[1]], [pairs[2]], pairs)]


def history_of(pairs: Sequence[tuple[str, str]]) -> list[Message]:
    turns = ((Message("user", question), Message("assistant", answer)) for question, answer in pairs)
    return list(chain.from_iterable(turns))

"""What a Jinja chat template does with a plain conversation, as pieces that another template language can put together.

In goes a ChatTemplate. It is rendered with marks in the place of the messages, for one to four turns with and without a
system message: the text before each mark, by what is known of that message's place. Out come `PromptPieces`, or an
`ExportError` that says why the template is not made of such pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.chat.conversation import Message
from tunewright.chat.forms import PLAIN, Form
from tunewright.chat.template import ChatTemplate
from tunewright.errors import ExportError, RenderError

WHERE = "Ollama template"
ALTERNATIVE = "Serve it with `tunewright serve` or llama-server, which render the Jinja template itself."
SYSTEM_MARK = "Zq0system0qZ"
THOUGHT_END = "</think>"
SHORTEST, LONGEST = 1, 4
WHITESPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
FORMS = (PLAIN, Form(parts=True))

# Whether the message is the first of its role; whether there is a system message; whether it is the last of its role.
Place = tuple[bool, ...]


@dataclass(frozen=True)
class Trimmed:
    """The characters that a template cuts from the two ends of a content."""

    left: str = ""
    right: str = ""


@dataclass(frozen=True)
class PromptPieces:
    """The text that a template writes around the contents of a conversation, which ends with the user.

    Attributes:
        before_user: before a user's text, by its place; where the system message stands is `SYSTEM_MARK`.
        before_answer: before an earlier answer, by its place.
        generation: after the last user's text, with and without a system message.
        trimmed: what is cut from the contents of each role.
        trimmed_after_thought: what is cut from an earlier answer whose thought was cut.
        takes_system: whether a system message is accepted and stands in the text.
        empty_system_is_none: whether an empty system message gives the text of none at all.
    """

    before_user: dict[Place, str]
    before_answer: dict[Place, str]
    generation: dict[bool, str]
    trimmed: dict[str, Trimmed]
    trimmed_after_thought: Trimmed
    takes_system: bool
    empty_system_is_none: bool


@dataclass(frozen=True)
class PlainPrompts:
    """A template with the form of messages that it takes."""

    template: ChatTemplate
    form: Form

    def text(self, messages: Sequence[Message]) -> str:
        try:
            rendered = self.template.rendered(self.form.apply(messages), add_generation_prompt=True)
        except RenderError as error:
            found = f"the Jinja template refuses a plain conversation ({error.found})"
            raise ExportError(WHERE, found, mend=ALTERNATIVE) from None
        if rendered.read_clock:
            raise ExportError(WHERE, "the Jinja template reads the clock", mend=ALTERNATIVE)
        return rendered.text

    def takes(self, *messages: Message) -> bool:
        """Whether all of the messages stand in the text."""
        try:
            text = self.text(messages)
        except ExportError:
            return False
        return all(message.text in text for message in messages)

    @property
    def takes_system(self) -> bool:
        return self.takes(Message("system", SYSTEM_MARK), Message("user", user_mark(0)))


def plain_prompts(template: ChatTemplate) -> PlainPrompts:
    """`template` with the first form of messages of which it loses none."""
    asked = Message("user", user_mark(0))
    form = next((form for form in FORMS if PlainPrompts(template, form).takes(asked)), PLAIN)
    return PlainPrompts(template, form)


def user_mark(turn: int) -> str:
    return f"Zq1user{turn}q1Z"


def answer_mark(turn: int) -> str:
    return f"Zq2answer{turn}q2Z"


def marked_turns(turns: int) -> list[Message]:
    """A conversation of `turns` questions that ends with the last of them."""
    pairs = [(Message("user", user_mark(turn)), Message("assistant", answer_mark(turn))) for turn in range(turns)]
    return [message for pair in pairs for message in pair][:-1]


def derive_pieces(prompts: PlainPrompts, added_bos: str = "") -> PromptPieces:
    """The pieces of a template, without the BOS text that the engine puts before the prompt by itself.

    Raises:
        ExportError: the template is not made of such pieces.
    """
    takes_system = prompts.takes_system
    trimmed = derive_trimming(prompts, takes_system)
    after_thought = trimming_of(prompts, marked_turns(2), 1, prefix=f"<think>\nhm\n{THOUGHT_END}")
    pieces = PromptPieces({}, {}, {}, trimmed, after_thought, takes_system, is_none(prompts))
    for with_system in (False, True)[: 1 + takes_system]:
        for turns in range(SHORTEST, LONGEST + 1):
            collect(pieces, prompts, turns, with_system, added_bos)
    return pieces


def is_none(prompts: PlainPrompts) -> bool:
    asked = Message("user", user_mark(0))
    try:
        return prompts.text([Message("system", ""), asked]) == prompts.text([asked])
    except ExportError:
        return False


def collect(pieces: PromptPieces, prompts: PlainPrompts, turns: int, with_system: bool, added_bos: str) -> None:
    """Add what a conversation of `turns` questions shows."""
    messages = marked_turns(turns)
    system = [Message("system", SYSTEM_MARK)] if with_system else []
    first, *others, generation = split_around(prompts.text([*system, *messages]), messages)
    gaps = [without_bos(first, added_bos), *others]
    for index, gap in enumerate(gaps):
        turn = index // 2
        table, last = (pieces.before_answer, turns - 2) if index % 2 else (pieces.before_user, turns - 1)
        place = (turn == 0, with_system, turn == last)
        if table.setdefault(place, gap) != gap:
            raise ExportError(WHERE, f"the Jinja template writes another text in turn {turn + 1}", mend=ALTERNATIVE)
    if pieces.generation.setdefault(with_system, generation) != generation:
        raise ExportError(WHERE, "what opens the answer depends on the number of turns", mend=ALTERNATIVE)


def split_around(text: str, messages: Sequence[Message]) -> list[str]:
    """The text before, between and after the messages' contents, each of which must stand there once and in order."""
    pieces = []
    for message in messages:
        before, mark, text = text.partition(message.text)
        if not mark or message.text in text:
            found = f"the Jinja template loses or repeats a {message.role} message, or moves it"
            raise ExportError(WHERE, found, mend=ALTERNATIVE)
        pieces.append(before)
    return [*pieces, text]


def without_bos(text: str, added_bos: str) -> str:
    if not text.startswith(added_bos):
        raise ExportError(
            WHERE,
            f"the engine would put {added_bos!r} before the prompt, and the Jinja template does not",
            mend="Set add_bos_token to false in the base's tokenizer_config.json.",
        )
    return text[len(added_bos) :]


def derive_trimming(prompts: PlainPrompts, takes_system: bool) -> dict[str, Trimmed]:
    """What is cut from the contents of each role: each kind of whitespace is put before and after a mark."""
    system = [Message("system", SYSTEM_MARK)] if takes_system else []
    messages = [*system, *marked_turns(2)]
    shown = {"system": 0, "user": len(system), "assistant": len(system) + 1}
    if not takes_system:
        del shown["system"]
    return {role: trimming_of(prompts, messages, index) for role, index in shown.items()}


def trimming_of(prompts: PlainPrompts, messages: Sequence[Message], index: int, prefix: str = "") -> Trimmed:
    """What is cut around the content of one message, which has `prefix` before it."""
    mark = messages[index].text

    def around(text: str) -> tuple[str, str]:
        changed = [*messages[:index], Message(messages[index].role, prefix + text), *messages[index + 1 :]]
        before, _, after = prompts.text(changed).partition(mark)
        return before, after

    before, after = around(mark)
    padded = {character: around(f"{character}{mark}{character}") for character in WHITESPACE}
    left = "".join(character for character, found in padded.items() if found[0] == before)
    right = "".join(character for character, found in padded.items() if found[1] == after)
    return Trimmed(left, right)

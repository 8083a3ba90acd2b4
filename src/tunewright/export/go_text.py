"""The pieces of a prompt as a Go template over Ollama's `.Messages`.

In go `PromptPieces`; out comes the text, without any whitespace of its own. Always: a message of a kind that the pieces
do not know of ends the chat with an error that names it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from tunewright.export.go_engine import go_string
from tunewright.export.go_pieces import SYSTEM_MARK, THOUGHT_END, PromptPieces, Trimmed

# What happens to an earlier answer that has a thought in it: nothing, it is cut off, or the chat is refused.
Thoughts = Literal["kept", "cut", "refused"]
END = "{{ end }}"


def write_go_template(pieces: PromptPieces, thoughts: Thoughts = "kept") -> str:
    """The Go template that puts `pieces` around the contents of a chat."""
    definitions = Definitions()
    system = call(definitions.trimming(pieces.trimmed.get("system", Trimmed())), "$system")
    question = call(definitions.trimming(pieces.trimmed["user"]), ".Content")
    answer = definitions.answer(thoughts, pieces.trimmed["assistant"], pieces.trimmed_after_thought)
    before_question = choice(pieces.before_user, ("not $asked", "$hasSystem", "$last"), system)
    before_answer = choice(pieces.before_answer, ("not $answered", "$hasSystem", "$nextLast"), system)
    generation = choice({(key,): text for key, text in pieces.generation.items()}, ("$hasSystem",), system)
    on_question = before_question + question + when("$last", generation) + act("$asked = true")
    # An answer at the end of a chat is the begin of the one that is asked for: `generation` stands before it.
    # One before the first question is left out: Ollama drops the oldest messages of a chat that does not fit, and tries
    # the template on every end of a chat while it looks for the longest that fits.
    on_answer = when("$end", act(".Content"), before_answer + call(answer, ".Content")) + act("$answered = true")
    refused_answer = when(".ToolCalls", refuse("a call of a tool"))
    refused_system = when("$i", refuse("a system message behind the first message"))
    return (
        definitions.text
        + "".join(act(f"${name} := false") for name in ("hasSystem", "system", "asked", "answered"))
        + act("range $i, $m := .Messages")
        + act("$end := eq (len (slice $.Messages $i)) 1")
        + act("$last := le (len (slice $.Messages $i)) 2")
        + act("$nextLast := le (len (slice $.Messages $i)) 3")
        + (act('if eq .Role "system"') + refused_system + on_system(pieces))
        + (act('else if eq .Role "user"') + on_question)
        + (act('else if eq .Role "assistant"') + refused_answer + when("$asked", on_answer))
        + (act("else") + refuse("a message of another role than system, user and assistant") + END)
        + (END + when("not $asked", refuse("a chat without a question")))
    )


def on_system(pieces: PromptPieces) -> str:
    if not pieces.takes_system:
        return refuse("a system message")
    told = act("$hasSystem = true") + act("$system = .Content")
    return when(".Content", told) if pieces.empty_system_is_none else told


def act(code: str) -> str:
    return f"{{{{ {code} }}}}"


def when(condition: str, then: str, otherwise: str = "") -> str:
    if then == otherwise:
        return then
    return act(f"if {condition}") + then + (act("else") + otherwise if otherwise else "") + END


def refuse(kind: str) -> str:
    """An action that ends the chat with an error that names `kind`: Go knows no template of that name."""
    return act(f"template {go_string(f'the model was not trained with {kind}')} .")


def choice(table: Mapping[tuple[bool, ...], str], conditions: Sequence[str], system: str) -> str:
    """The text of `table` by its conditions; what no conversation has shown is free."""
    texts = set(table.values())
    if len(texts) <= 1:
        return system.join(literal(part) for part in next(iter(texts), "").split(SYSTEM_MARK))
    condition, *others = conditions
    yes, no = ({key[1:]: text for key, text in table.items() if key[0] is side} for side in (True, False))
    return when(condition, choice(yes or no, others, system), choice(no or yes, others, system))


def literal(text: str) -> str:
    """`text` as it must stand in a Go template to come out unchanged."""
    # Two braces would open an action, and so would one at the end together with the next action's.
    written = act(go_string("{{")).join(text.split("{{"))
    return written[:-1] + act(go_string("{")) if text.endswith("{") and not text.endswith("{{") else written


def call(name: str, value: str) -> str:
    return act(f"template {go_string(name)} {value}" if name else value)


class Definitions:
    """What Go's templates have no function for, defined by recursion: they can look at bytes, and call themselves."""

    def __init__(self) -> None:
        self._named: dict[tuple[str, ...], tuple[str, str]] = {}

    @property
    def text(self) -> str:
        return "".join(text for _, text in self._named.values())

    def trimming(self, trimmed: Trimmed) -> str:
        """The name of what cuts these characters from a text; "" where nothing is cut."""
        right = self._define("right", trimmed.right, "")
        return self._define("left", trimmed.left, right)

    def answer(self, thoughts: Thoughts, trimmed: Trimmed, after_thought: Trimmed) -> str:
        """The name of what writes an earlier answer; what stands before the end of a thought is treated as said."""
        plain = self.trimming(trimmed)
        if thoughts == "kept":
            return plain
        cut = call(self.trimming(after_thought), "$rest")
        body = without_thought(call(plain, "."), cut if thoughts == "cut" else refuse("a thought in an earlier answer"))
        self._named[thoughts, plain] = "answer", act(f"define {go_string('answer')}") + body + END
        return "answer"

    def _define(self, side: str, characters: str, then: str) -> str:
        if not characters:
            return then
        key = (side, characters, then)
        if key not in self._named:
            name = f"{side}{len(self._named)}"
            body = trim_left if side == "left" else trim_right
            text = act(f"define {go_string(name)}") + body(name, characters, call(then, ".")) + END
            self._named[key] = name, text
        return self._named[key][0]


def trim_left(name: str, characters: str, then: str) -> str:
    tests = [
        when(f"ge (len .) {length}", when(f"eq (slice . 0 {length}) {texts}", act(f"$n = {length}")))
        for length, texts in by_length(characters)
    ]
    return act("$n := 0") + "".join(tests) + when("$n", call(name, "(slice . $n)"), then)


def trim_right(name: str, characters: str, then: str) -> str:
    tests = [
        when(
            f"ge (len .) {length}",
            act(f"$m := len (slice . {length})") + when(f"eq (slice . $m) {texts}", act("$n = $m")),
        )
        for length, texts in by_length(characters)
    ]
    return act("$n := len .") + "".join(tests) + when("lt $n (len .)", call(name, "(slice . 0 $n)"), then)


def by_length(characters: str) -> Iterator[tuple[int, str]]:
    """The characters as Go literals, by their length in bytes."""
    for length in sorted({len(each.encode()) for each in characters}):
        yield length, " ".join(go_string(each) for each in characters if len(each.encode()) == length)


def without_thought(plain: str, with_thought: str) -> str:
    """Write `plain`, or `with_thought` where the text has the end of a thought; `$rest` is what follows the last."""
    length = len(THOUGHT_END.encode())
    found = act("$found = true") + act(f"$rest = slice $tail {length}")
    return (
        act("$found := false")
        + act("$rest := .")
        + act("range $i := len .")
        + act("$tail := slice $ $i")
        + when(f"ge (len $tail) {length}", when(f"eq (slice $tail 0 {length}) {go_string(THOUGHT_END)}", found))
        + END
        + when("$found", with_thought, plain)
    )

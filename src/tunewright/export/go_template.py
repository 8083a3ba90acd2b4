"""A Jinja chat template as a Go template for Ollama, where it can be one, and the proof that both give the same text.

In goes a ChatTemplate. It is rendered with marked messages, and the text around the marks becomes six pieces; the Go
template puts them around the messages' contents. It comes out only if it gives the Jinja template's text for every
conversation in `proof_conversations`; otherwise `ExportError` says where the two part.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.chat.conversation import Message
from tunewright.chat.template import ChatTemplate
from tunewright.errors import ExportError, RenderError

MARKS = {"system": "Zq0system0qZ", "user": "Zq1user1qZ", "assistant": "Zq2answer2qZ", "next": "Zq3next3qZ"}
WHERE = "Ollama template"
ALTERNATIVE = "Serve it with `tunewright serve` or llama-server, which render the Jinja template itself."
OPEN_RANGE = "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)
# Braces that a Go template would take for the begin of an action, alone or together with one that follows.
BRACES = re.compile(r"\{{2,}|\{$")


@dataclass(frozen=True)
class PromptPieces:
    """The text that a template writes around the contents of a conversation.

    Attributes:
        opening: before the first user's text where there is no system message.
        before_system, after_system: around the system message; None where the template takes none.
        generation: after the last user's text, up to where the answer begins.
        answer_opening: between an earlier user's text and its answer.
        after_answer: between an answer and the next user's text.
    """

    opening: str
    before_system: str | None
    after_system: str | None
    generation: str
    answer_opening: str
    after_answer: str


def go_template(template: ChatTemplate, added_bos: str = "") -> str:
    """The Go template that Ollama needs to send what was trained.

    Args:
        template: the trained template.
        added_bos: the BOS text that the engine puts before the prompt by itself, which the template must not repeat.

    Raises:
        ExportError: the Jinja template cannot be expressed in this way.
    """
    if "strftime_now" in template.source:
        raise ExportError(WHERE, "the Jinja template reads the clock", mend=ALTERNATIVE)
    text = write_go_template(derive_pieces(template, added_bos))
    validate_same_text(template, text, added_bos)
    return text


def derive_pieces(template: ChatTemplate, added_bos: str = "") -> PromptPieces:
    system, user, answer = (Message(role, MARKS[role]) for role in ("system", "user", "assistant"))
    following = Message("user", MARKS["next"])
    opening, generation = split_around(render(template, [user]), [user])
    turns = [user, answer, following]
    _, answer_opening, after_answer, _ = split_around(render(template, turns), turns)
    before_system, after_system = None, None
    if takes_system(template):
        before, after_system, _ = split_around(render(template, [system, user]), [system, user])
        before_system = without_bos(before, added_bos)
    opening = without_bos(opening, added_bos)
    return PromptPieces(opening, before_system, after_system, generation, answer_opening, after_answer)


def takes_system(template: ChatTemplate) -> bool:
    """Whether a system message is accepted and stands in the text."""
    try:
        text = template.render([Message("system", MARKS["system"]), Message("user", MARKS["user"])], True)
    except RenderError:
        return False
    return MARKS["system"] in text


def render(template: ChatTemplate, messages: Sequence[Message]) -> str:
    try:
        return template.render(messages, add_generation_prompt=True)
    except RenderError as error:
        raise ExportError(
            WHERE, f"the Jinja template refuses a plain conversation ({error})", mend=ALTERNATIVE
        ) from None


def split_around(text: str, messages: Sequence[Message]) -> list[str]:
    """The text before, between and after the messages' contents, each of which must stand there once and in order."""
    pieces = []
    for message in messages:
        before, mark, text = text.partition(message.text)
        if not mark or message.text in text:
            raise ExportError(
                WHERE, f"the Jinja template loses or repeats a {message.role} message, or moves it", mend=ALTERNATIVE
            )
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


def write_go_template(pieces: PromptPieces) -> str:
    """The pieces as a Go template over Ollama's `.Messages`, without any whitespace of its own."""
    opening, generation = literal(pieces.opening), literal(pieces.generation)
    answer_opening, after_answer = literal(pieces.answer_opening), literal(pieces.after_answer)
    if pieces.before_system is None or pieces.after_system is None:
        system = opening
    else:
        system = f"{literal(pieces.before_system)}{{{{ .Content }}}}{literal(pieces.after_system)}"
    after_user = generation
    if generation != answer_opening:
        after_user = f"{{{{ if $last }}}}{generation}{{{{ else }}}}{answer_opening}{{{{ end }}}}"
    return (
        f'{OPEN_RANGE}{{{{ if eq .Role "system" }}}}{system}'
        f'{{{{ else if eq .Role "user" }}}}{{{{ if eq $i 0 }}}}{opening}{{{{ end }}}}{{{{ .Content }}}}{after_user}'
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{{{{ if not $last }}}}{after_answer}{{{{ end }}}}'
        "{{ end }}{{ end }}"
    )


def literal(text: str) -> str:
    """`text` as it must stand in a Go template to come out unchanged."""
    return BRACES.sub(lambda match: f'{{{{ "{match.group()}" }}}}', text)


def evaluate_go_template(text: str, messages: Sequence[Message]) -> str:
    """What Ollama makes of a template that `write_go_template` wrote: only the actions used there are understood."""
    body = text.removeprefix(OPEN_RANGE).removesuffix("{{ end }}")
    if len(body) != len(text) - len(OPEN_RANGE) - len("{{ end }}"):
        raise ExportError(WHERE, "the text is not of the shape that is written here")
    last = len(messages) - 1
    return "".join(_evaluate_body(body, message, index, index == last) for index, message in enumerate(messages))


def _evaluate_body(body: str, message: Message, index: int, is_last: bool) -> str:
    conditions = {"eq $i 0": index == 0, "$last": is_last, "not $last": not is_last}
    conditions |= {f'eq .Role "{role}"': message.role == role for role in ("system", "user", "assistant")}
    written: list[str] = []
    # One entry for each open `if`: whether the branch is taken, and whether any branch was.
    open_ifs: list[tuple[bool, bool]] = []
    for position, part in enumerate(ACTION.split(body)):
        active = all(taken for taken, _ in open_ifs)
        if position % 2 == 0:
            written += [part] if active else []
        elif part.startswith("if "):
            truth = conditions[part.removeprefix("if ")]
            open_ifs.append((truth, truth))
        elif part.startswith("else"):
            _, done = open_ifs.pop()
            truth = not done and (part == "else" or conditions[part.removeprefix("else if ")])
            open_ifs.append((truth, done or truth))
        elif part == "end":
            open_ifs.pop()
        elif active:
            written.append(message.text if part == ".Content" else part.strip('"'))
    return "".join(written)


def proof_conversations(with_system: bool) -> list[list[Message]]:
    """Conversations that end with the user, as a prompt does: one to three turns, and texts that break escaping."""
    texts = [
        ("What is 2 + 2?", "It is 4."),
        ("Grüße aus Köln, 你好, 👩‍👩‍👧 \u200bzero width", 'She said "yes", it\'s `fine` \\ \\n'),
        ('{"a": {"b": [1, 2]}} {{ .System }} {% if x %} }} {#', "line one\n\nline three\n\tindented {{"),
    ]
    systems = ["You are terse.", 'Answer in JSON: {"intent": "…"}.\nNever say """why""" or {{ .Prompt }}.']
    conversations = []
    for start in range(3):
        rotated = texts[start:] + texts[:start]
        for turns in range(3):
            history = [
                Message(*pair) for user, answer in rotated[:turns] for pair in (("user", user), ("assistant", answer))
            ]
            plain = [*history, Message("user", rotated[turns][0])]
            conversations.append(plain)
            if with_system:
                conversations.append([Message("system", systems[(start + turns) % 2]), *plain])
    return conversations


def validate_same_text(template: ChatTemplate, text: str, added_bos: str) -> None:
    for messages in proof_conversations(takes_system(template)):
        expected = render(template, messages)
        found = added_bos + evaluate_go_template(text, messages)
        if found != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
            shape = ", ".join(message.role for message in messages)
            raise ExportError(
                WHERE,
                f"for the turns {shape} the Jinja template writes {expected[at : at + 40]!r} where the Go template "
                f"would write {found[at : at + 40]!r}",
                mend=ALTERNATIVE,
            )


def trims_contents(template: ChatTemplate) -> bool:
    """Whether the Jinja template cuts whitespace around a message, which no Go template of Ollama's can do."""
    return "  Zq4spaces4qZ  " not in render(template, [Message("user", "  Zq4spaces4qZ  ")])

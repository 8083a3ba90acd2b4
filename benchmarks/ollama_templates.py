"""Every template of the battery as a Go template, its texts compared with a real Ollama's, as a Markdown table.

usage: TUNEWRIGHT_OLLAMA=/path/to/ollama python benchmarks/ollama_templates.py > docs/ollama-templates.md

The battery is at TUNEWRIGHT_BATTERY, or beside the project. TUNEWRIGHT_OLLAMA has to be a binary: the server is started
here, with a log that has the text of each prompt; without it only the proof by the project's own engine for Go is made.
The model is a tiny random one.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.chat.conversation import Message
from tunewright.chat.prompt import Prompt
from tunewright.chat.template import ChatTemplate
from tunewright.chat.trained import pinned
from tunewright.engines.ollama import OllamaEngine
from tunewright.engines.ollama_server import ModelSource
from tunewright.engines.ollama_template import guess_template, temporary_model
from tunewright.errors import ExportError
from tunewright.events import Events
from tunewright.export.converter import convert_to_gguf
from tunewright.export.go_pieces import plain_prompts
from tunewright.export.go_template import proof_conversations, proven_go_template, thinking_conversations

HEAD = """# Ollama templates

Made by `benchmarks/ollama_templates.py`. {templates} real chat templates: {proven} have a Go template that gives the
Jinja template's text, {refused} are refused with a reason. {real}

A Go template is derived from the Jinja template by rendering it with marks (`export/go_pieces.py`); nothing knows a
family by name. It is proven on plain conversations of one to four turns, with and without a system message, with texts
that break escaping, with whitespace at both ends, and with thoughts in earlier answers. Go templates have no function
that cuts text, but they can look at bytes and call themselves, so trimming and cutting thoughts are expressed too.
Templates that read the clock have the trained date pinned first, as every run does.

**What cannot be expressed is an error, never another prompt.** The Go template ends a chat with a message of another
role, a call of a tool, a second system message, or a system message where none was trained, with an error of Ollama's
that says so; a request with tools is refused by Ollama itself, since the template names none. Tools are left out on
purpose: before any template sees them, Ollama drops unknown keys of a tool's schema, sorts its properties by name, adds
empty descriptions, and sorts the keys of arguments, so the trained text cannot be restored. The alternative that works
for tools, and for the refused templates with the messages that they do take, is `tunewright serve` or llama-server with
the same GGUF: both render the Jinja template itself, which the GGUF carries.

What no template can see: Ollama joins neighbouring messages of one role with an empty line; a `thinking` field of an
earlier answer is not shown to the model; a chat longer than `num_ctx` loses its oldest messages, and an answer that
then comes first is left out.

*Left alone* says what this Ollama does with the GGUF if no TEMPLATE is sent, as it answered itself: it puts a template
of its own in the place of the trained one, or uses none at all. So a TEMPLATE is always sent.

| template | Go template | in Ollama | left alone |
|---|---|---|---|"""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
N_CTX = 16384
# The real Ollama is asked one in so many of a proof's conversations, others for each template.
ONE_IN = 4
# A tiny model gains nothing from more, and threads that wait for each other take long on a busy machine.
ONE_THREAD = {"num_thread": 1}


@dataclass(frozen=True)
class Row:
    """What was seen of one template; `asked` prompts were rendered by Ollama, `same` of them as by Jinja."""

    name: str
    verdict: str
    is_proven: bool
    left_alone: str
    asked: int = 0
    same: int = 0

    def as_text(self) -> str:
        in_ollama = f"{self.same} of {self.asked} the same" if self.asked else ""
        cells = (self.name.replace("_", "\\_"), self.verdict, in_ollama, self.left_alone)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from battery_chats import templates
    from real_ollama import VARIABLE, real_ollama

    asks = bool(os.environ.get(VARIABLE))
    battery = Path(os.environ.get("TUNEWRIGHT_BATTERY") or Path(__file__).parents[2] / "shared" / "battery")
    with tempfile.TemporaryDirectory() as scratch, real_ollama(Path(scratch)) if asks else nullcontext() as real:
        gguf = tiny_gguf(Path(scratch)) if real else None
        rows = [row_of(path, gguf, real, number % ONE_IN) for number, path in enumerate(templates(battery))]
        said = in_words(rows, real.server.version()) if real else "A real Ollama was not asked in this run."
    proven = sum(row.is_proven for row in rows)
    print(HEAD.format(templates=len(rows), proven=proven, refused=len(rows) - proven, real=said))
    print("\n".join(row.as_text() for row in rows))


def in_words(rows: list[Row], version: str) -> str:
    asked, same = (sum(getattr(row, name) for row in rows) for name in ("asked", "same"))
    return (
        f"{same} of {asked}\n"
        f"prompts that a real Ollama {version} rendered are the Jinja template's text, character for character."
    )


def tiny_gguf(directory: Path) -> Path:
    from tiny_model import write_tiny_base
    from tunewright.artifacts import read_json, write_json

    base = write_tiny_base(directory / "base")
    write_json(base / "config.json", {**read_json(base / "config.json"), "max_position_embeddings": N_CTX})
    convert_to_gguf(base, directory / "tiny.gguf", "q8_0", Events())
    return directory / "tiny.gguf"


def row_of(path: Path, gguf: Path | None, real: Any, first: int) -> Row:
    template = pinned(ChatTemplate(path.read_text(encoding="utf-8"), TOKENS), [()])
    left_alone = ""
    if real:
        guess = guess_template(real.server, template.source)
        left_alone = f"its own, {len(guess.template)} characters" if guess.is_replaced else "none"
    try:
        proof = proven_go_template(template)
    except ExportError as error:
        return Row(path.stem, f"refused: {error.found}", False, left_alone)
    verdict = " ".join([f"proven on {proof.conversations}.", *proof.notes])
    if gguf is None:
        return Row(path.stem, verdict, True, left_alone)
    conversations = [*proof_conversations(proof.takes_system), *thinking_conversations()][: proof.conversations]
    same = list(same_in_ollama(template, proof.text, conversations[first::ONE_IN], gguf, real))
    return Row(path.stem, verdict, True, left_alone, len(same), sum(same))


def same_in_ollama(
    template: ChatTemplate, text: str, conversations: list[list[Message]], gguf: Path, real: Any
) -> Iterator[bool]:
    """For each conversation, whether Ollama's prompt is the Jinja template's text."""
    prompts = plain_prompts(template)
    with temporary_model(real.server, ModelSource(gguf, text, parameters=ONE_THREAD)) as model:
        engine = OllamaEngine(real.server, model, model, N_CTX)
        before = len(real.prompts())
        for messages in conversations:
            engine.answer(Prompt(tuple(messages)), 1)
        rendered = real.prompts()[before:]
        engine.close()
    yield from (found == prompts.text(messages) for found, messages in zip(rendered, conversations, strict=True))


if __name__ == "__main__":
    main()

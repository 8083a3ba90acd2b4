"""Which template an Ollama server uses for a model: the one that was sent, or one that it would put in its place.

Where a model comes without a TEMPLATE, Ollama compares the GGUF's chat template with a list of its own. If one is
within an edit distance of 100, its own Go template takes the place of the trained one; else chats get no template at
all. The list differs from version to version, so the server that is there is asked: a model of nothing but that chat
template is made, read back and deleted.
"""

import json
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.chat.prompt import Prompt
from tunewright.engines.ollama import OllamaEngine
from tunewright.engines.ollama_server import ModelSource, OllamaServer
from tunewright.errors import TunewrightError
from tunewright.evidence import Evidence, equal

# What Ollama shows for a model that has no template: the text of the chat, without any mark between the turns.
NO_TEMPLATE = "{{ .Prompt }}"


@dataclass(frozen=True)
class Guess:
    """What a server does with a GGUF's chat template when it is told nothing.

    Attributes:
        version: of the server.
        template: the Go template that it would use.
        parameters: what comes with it, such as stop words, as the server writes them.
    """

    version: str
    template: str
    parameters: str

    @property
    def is_replaced(self) -> bool:
        """Whether a template of Ollama's own takes the trained one's place."""
        return self.template.strip() not in ("", NO_TEMPLATE)

    def in_words(self, effect: tuple[int, int] | None = None) -> str:
        """What would happen and why the template is sent; `effect` as `effect_on_count` gives it."""
        would = (
            f"puts a template of its own ({len(self.template)} characters) in the place of the trained one"
            if self.is_replaced
            else "knows no template like the trained one and sends chats without any"
        )
        told = ""
        if effect is not None:
            sent, guessed = effect
            told = f" A chat that has {sent} tokens as it was trained would have {guessed}."
        return f"Left alone, Ollama {self.version} {would}.{told} So the template is always sent."


def guess_template(server: OllamaServer, chat_template: str) -> Guess:
    """What `server` would do with a GGUF that has this Jinja template; nothing is left on the server.

    Raises:
        EnvironmentLackError, EngineError: the server is not there, or refuses the probe.
    """
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.gguf"
        write_probe(probe, chat_template)
        with temporary_model(server, ModelSource(probe)) as model:
            shown = server.show(model)
    return Guess(server.version(), str(shown.get("template", "")), str(shown.get("parameters", "")))


def write_probe(path: Path, chat_template: str) -> None:
    """The smallest GGUF that Ollama takes: an architecture, a chat template, no tensors."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_chat_template(chat_template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def temporary_model(server: OllamaServer, source: ModelSource) -> Iterator[str]:
    """The name of a model of `source` that is deleted at the end."""
    model = f"tunewright-probe-{uuid.uuid4().hex[:12]}"
    try:
        server.create(model, source)
        yield model
    finally:
        with suppress(TunewrightError):  # it may never have been made, and what went wrong is told already
            server.delete(model)


def effect_on_count(server: OllamaServer, source: ModelSource, prompt: Prompt, n_ctx: int) -> tuple[int, int]:
    """The tokens of `prompt` with the template of `source`, and with the one that Ollama would choose."""
    guessed = ModelSource(source.gguf_path, system=source.system, parameters=source.parameters)
    sent_count, guessed_count = (count_tokens(server, each, prompt, n_ctx) for each in (source, guessed))
    return sent_count, guessed_count


def count_tokens(server: OllamaServer, source: ModelSource, prompt: Prompt, n_ctx: int) -> int:
    with temporary_model(server, source) as model:
        engine = OllamaEngine(server, model, model, n_ctx)
        try:
            return engine.prompt_tokens(prompt)
        finally:
            engine.close()


def check_created(server: OllamaServer, model: str, source: ModelSource) -> list[Evidence]:
    """That `server` shows for `model` what was sent: template, system prompt and parameters."""
    shown = server.show(model)
    sent = {"template": source.template or "", "system": source.system or ""}
    evidence = []
    for name, text in sent.items():
        found = str(shown.get(name) or "")
        detail = f"Ollama shows the {name} that was sent, {len(text)} characters."
        if found != text:
            detail = f"Ollama shows another {name} than was sent: {found[:80]!r}. Chats would not be what was trained."
        evidence.append(equal(f"ollama_{name}", found == text, True, detail))
    other = other_parameters(str(shown.get("parameters") or ""), source.parameters or {})
    detail = f"Ollama shows {'; '.join(other)}." if other else "Ollama shows every parameter as it was sent."
    return [*evidence, equal("ollama_parameters", len(other), 0, detail)]


def other_parameters(shown: str, sent: dict[str, Any]) -> list[str]:
    """The parameters that Ollama shows otherwise than they were sent: a line for each value, its name first."""
    there: dict[str, list[Any]] = {}
    for line in shown.splitlines():
        name, _, value = line.partition(" ")
        there.setdefault(name, []).append(parameter_value(value.strip()))
    wanted = {name: value if isinstance(value, list) else [value] for name, value in sent.items()}
    return [
        f"{name} as {there.get(name, 'nothing')}, sent was {values}"
        for name, values in wanted.items()
        if there.get(name) != values
    ]


def parameter_value(text: str) -> Any:
    """A value as Ollama shows it: numbers as they are, texts between quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text

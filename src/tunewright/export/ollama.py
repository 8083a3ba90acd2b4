"""A run's GGUF as a model of a running Ollama server, and the proof that the server has what was sent.

In go a finished export and a server; out come the model and evidence. Always: template, system prompt, stop tokens,
context and temperature are said, so that Ollama guesses nothing, and all of them are read back.
"""

from dataclasses import replace
from pathlib import Path

from tunewright.artifacts import RunDirectory
from tunewright.engines.ollama_server import OllamaServer
from tunewright.engines.ollama_template import check_created
from tunewright.errors import ArtifactError
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.export.go_template import proven_go_template
from tunewright.export.modelfile import OllamaModel
from tunewright.export.stage import added_bos_text, served_model, trained_in
from tunewright.models.gguf_file import read_gguf_facts
from tunewright.recipe import ExportKeys


def create_in_ollama(
    config: ExportKeys, run: RunDirectory, server: OllamaServer, name: str, events: Events
) -> tuple[OllamaModel, list[Evidence]]:
    """Make or replace the model `name` of the run's first GGUF.

    Returns:
        What the server was told, and evidence that it shows the same.

    Raises:
        ExportError: the trained template cannot be said in Ollama's language.
        EngineError, EnvironmentLackError: the server refuses, or is not there.
    """
    path = exported_gguf(config, run)
    gguf = read_gguf_facts(path)
    trained = trained_in(config, run)
    proof = proven_go_template(trained.template, added_bos_text(gguf))
    model = replace(served_model(config, run, trained, gguf), template=proof.text)
    events.note(f"Making {name} in Ollama at {server.url}")
    source = model.as_source(path.parent)
    server.create(name, source, events)
    return model, check_created(server, name, source)


def exported_gguf(config: ExportKeys, run: RunDirectory) -> Path:
    """The first GGUF of the run, having seen that it is the one that was exported."""
    manifest = run.require_manifest("export")
    path = run / "export" / f"model-{config.export_formats[0]}.gguf"
    changed = [text for text in run.differences(manifest) if f"export/{path.name} " in text]
    if changed:
        raise ArtifactError(str(path), changed[0], mend="Run `tunewright export` again.")
    return path

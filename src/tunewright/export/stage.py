"""Export: the merged checkpoint to GGUF, with an Ollama Modelfile.

In: `merged/` and `tokens/template.json`.
Out, below `export/`: `model-FORMAT.gguf` for each format, `Modelfile` where the template can be one.
Always: each GGUF was read back and compared with the merged checkpoint, evidence of formats behind the first with their
names at its end; the Modelfile's template was proven to give the Jinja template's text.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, StageResult, read_json, sha256_of_json, write_text
from tunewright.chat.template import ChatTemplate
from tunewright.chat.trained import template_from_json
from tunewright.errors import ExportError
from tunewright.events import Events
from tunewright.evidence import Evidence, Verdict
from tunewright.export.converter import convert_to_gguf, converter_identity, read_vocabulary, validate_formats
from tunewright.export.go_template import proven_go_template
from tunewright.export.license import base_license
from tunewright.export.modelfile import OllamaModel, planned_context, served_system_prompt
from tunewright.models.gguf_file import GgufFacts, check_gguf, read_gguf_facts
from tunewright.recipe import ExportKeys


def inputs(config: ExportKeys) -> dict[str, str]:
    return {"converter": converter_identity(), "license": sha256_of_json(base_license(config))}


@dataclass(frozen=True)
class Trained:
    """What the served model has to reproduce, from `tokens/template.json`."""

    template: ChatTemplate
    facts: dict[str, Any]
    system: str | None

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(self.facts["stop_ids"])


def run(config: ExportKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    validate_formats(config.export_formats)
    trained = trained_in(config, run)
    export = out / "export"
    evidence: list[Evidence] = []
    for name, converted in convert_all(config.export_formats, run / "merged", export, events):
        found = check_gguf(
            converted,
            chat_template=trained.template.source,
            stop_ids=trained.stop_ids,
            merged_directory=run / "merged",
        )
        evidence += found if not evidence else [replace(item, name=f"{item.name}_{name}") for item in found]
    first = export / f"model-{config.export_formats[0]}.gguf"
    gguf = read_gguf_facts(first)
    model = served_model(config, run, trained, gguf)
    evidence.append(write_modelfile(model, trained, gguf, export / "Modelfile"))
    sizes = {name: (export / f"model-{name}.gguf").stat().st_size for name in config.export_formats}
    served = {"system": model.system, "stop": model.stop_tokens, **model.numbers}
    facts = {"formats": config.export_formats, "bytes": sizes, "num_ctx": model.num_ctx, "modelfile": served}
    return StageResult(evidence, {**facts, "license": base_license(config)})


def trained_in(config: ExportKeys, run: RunDirectory) -> Trained:
    facts = read_json(run / "tokens/template.json")
    return Trained(template_from_json(facts), facts, served_system_prompt(config.system_prompt, facts))


def served_model(config: ExportKeys, run: RunDirectory, trained: Trained, gguf: GgufFacts) -> OllamaModel:
    """The model of a GGUF as Ollama is told of it, but for its template, which has to be proven."""
    longest = trained.facts["longest_row_tokens"]
    context = planned_context(config.num_ctx, longest, gguf.context_length or facts_context(run))
    stops = trained.facts["stop_tokens"]
    return OllamaModel(gguf.header.path.name, "", trained.system, stops, context, config.temperature)


def facts_context(run: RunDirectory) -> int:
    return int(read_json(run / "tokens/lengths.json")["context"])


def convert_all(names: list[str], merged: Path, export: Path, events: Events) -> Iterator[tuple[str, Path]]:
    """Each format with its file as soon as it is written; the tokenizer is read once for all."""
    vocabulary = read_vocabulary(merged)
    for name in names:
        events.note(f"Converting to {name}")
        path = export / f"model-{name}.gguf"
        convert_to_gguf(merged, path, name, events, vocabulary=vocabulary)
        yield name, path


def write_modelfile(model: OllamaModel, trained: Trained, gguf: GgufFacts, path: Path) -> Evidence:
    """Write the Modelfile, or say why there is none."""
    try:
        proof = proven_go_template(trained.template, added_bos_text(gguf))
        text = replace(model, template=proof.text).as_text()
    except ExportError as error:
        return Evidence("ollama_template", False, "= True", "warn", f"No Modelfile was written. {error}")
    write_text(path, text)
    detail = f"The Modelfile's template gives the trained template's text for {proof.conversations} conversations."
    verdict: Verdict = "warn" if proof.notes else "pass"
    return Evidence("ollama_template", True, "= True", verdict, " ".join([detail, *proof.notes]))


def added_bos_text(gguf: GgufFacts) -> str:
    """The BOS that the engine puts before each prompt, as text; empty where it puts none."""
    return gguf.tokens[gguf.bos_id] if gguf.adds_bos and gguf.bos_id is not None else ""

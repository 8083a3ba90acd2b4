"""Export: the merged checkpoint to GGUF, with an Ollama Modelfile and a model card.

In: `merged/`, `tokens/template.json`, and for the card what the earlier stages recorded.
Out, below `export/`: `model-FORMAT.gguf` for each format, `Modelfile` where the template can be one, `README.md`.
Always: each GGUF was read back and compared with the merged checkpoint; the Modelfile's template was proven to give the
Jinja template's text.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, StageResult, read_json, record_of_file, write_text
from tunewright.chat.conversation import Message
from tunewright.chat.template import ChatTemplate
from tunewright.chat.trained import template_from_json
from tunewright.errors import EnvironmentLackError, ExportError, ModelError, ModelNotFoundError, RenderError
from tunewright.events import Events
from tunewright.evidence import Evidence, Verdict
from tunewright.export.card import Card, stated_license
from tunewright.export.converter import convert_to_gguf, converter_identity, validate_formats
from tunewright.export.go_template import proven_go_template
from tunewright.export.modelfile import OllamaModel, planned_context, served_system_prompt
from tunewright.models.base import find_base
from tunewright.models.gguf_file import GgufFacts, check_gguf, read_gguf_facts
from tunewright.recipe import ExportKeys

EXAMPLE_QUESTION = "(the user's message)"


def inputs(config: ExportKeys) -> dict[str, str]:
    return {"converter": converter_identity(), "license": base_license(config) or ""}


def base_license(config: ExportKeys) -> str | None:
    """The base's licence, or None where it states none or is no longer at hand: the export does not need the base."""
    try:
        return stated_license(find_base(config).path)
    except (ModelNotFoundError, ModelError, EnvironmentLackError):
        return None


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
    for name in config.export_formats:
        events.note(f"Converting to {name}")
        evidence += export_gguf(name, run / "merged", export, trained, events, first=name == config.export_formats[0])
    first = export / f"model-{config.export_formats[0]}.gguf"
    gguf = read_gguf_facts(first)
    model = served_model(config, run, trained, gguf)
    evidence.append(write_modelfile(model, trained, gguf, export / "Modelfile"))
    sizes = {name: (export / f"model-{name}.gguf").stat().st_size for name in config.export_formats}
    write_card(config, run, export, trained, model.num_ctx)
    served = {"system": model.system, "stop": model.stop_tokens, **model.numbers}
    facts = {"formats": config.export_formats, "bytes": sizes, "num_ctx": model.num_ctx, "modelfile": served}
    return StageResult(evidence, facts)


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


def export_gguf(name: str, merged: Path, export: Path, trained: Trained, events: Events, first: bool) -> list[Evidence]:
    """Convert to one format and check it; further formats carry their name in that of the evidence."""
    path = export / f"model-{name}.gguf"
    convert_to_gguf(merged, path, name, events)
    evidence = check_gguf(
        path, chat_template=trained.template.source, stop_ids=trained.stop_ids, merged_directory=merged
    )
    return evidence if first else [replace(item, name=f"{item.name}_{name}") for item in evidence]


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


def write_card(config: ExportKeys, run: RunDirectory, export: Path, trained: Trained, context: int) -> None:
    adapter_config = run / "adapter/adapter_config.json"
    names = [*(f"model-{name}.gguf" for name in config.export_formats), "Modelfile"]
    card = Card(
        name=run.path.resolve().name,
        model=config.model,
        license=base_license(config),
        data_facts=stage_facts(run, "data"),
        train_facts=stage_facts(run, "train"),
        adapter_config=read_json(adapter_config) if adapter_config.is_file() else {},
        example=example_prompt(trained),
        system=trained.system,
        num_ctx=context,
        has_modelfile=(export / "Modelfile").is_file(),
        files={name: record_of_file(export / name) for name in names if (export / name).is_file()},
    )
    write_text(export / "README.md", card.as_text())


def stage_facts(run: RunDirectory, stage: str) -> dict[str, Any]:
    manifest = run.manifest(stage)
    return manifest.facts if manifest is not None else {}


def example_prompt(trained: Trained) -> str:
    """A prompt as the model sees it, up to where its answer begins; no row of the data is shown."""
    question = Message("user", EXAMPLE_QUESTION)
    if trained.system is not None:
        try:
            return trained.template.render([Message("system", trained.system), question], True)
        except RenderError:
            pass  # a template that takes no system message
    return trained.template.render([question], True)

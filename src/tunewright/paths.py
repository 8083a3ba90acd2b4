"""Single stages on plain paths, and what can be said of finished runs."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts import RunDirectory, publish_directory, read_json
from tunewright.certificate import check_certificate
from tunewright.errors import ArtifactError, TunewrightError, UsageError
from tunewright.events import Events
from tunewright.evidence import Evidence, equal, failed
from tunewright.pipeline import STAGE_NAMES
from tunewright.recipe import ModelKeys, VerifyKeys, read_recipe

if TYPE_CHECKING:
    from tunewright.models.base import Base


def merge_paths(base_name: str, adapter: Path, out: Path, dtype: str, events: Events) -> list[Evidence]:
    """Merge `adapter` into the base and write the checkpoint to `out`, whole or not at all."""
    from tunewright.merge.provenance import validate_sixteen_bits
    from tunewright.merge.stage import merge
    from tunewright.models.dequantized import choose_base
    from tunewright.models.merge_check import check_merged
    from tunewright.models.merge_dtype import HALF_DTYPES

    if dtype not in {"auto", *HALF_DTYPES}:
        raise UsageError("--dtype", f"found {dtype!r}", expected=" | ".join(["auto", *HALF_DTYPES]))
    if out.exists():
        raise UsageError(str(out), "it exists already", mend="Name a directory that does not exist yet.")
    base = trained_base(base_name, adapter, events)
    validate_sixteen_bits(base)
    unfinished = out.with_name(f".{out.name}.merging")
    chosen = choose_base(adapter, "auto")
    merge(base, adapter, unfinished, dtype, events, quantized=chosen.quantized)
    evidence = [*check_merged(base.path, adapter, unfinished, events, chosen.quantized), *chosen.evidence]
    if any(item.verdict == "fail" for item in evidence):
        shutil.rmtree(unfinished)
    else:
        publish_directory(unfinished, out)
    return evidence


def export_path(model_directory: Path, out: Path, gguf_format: str, events: Events) -> list[Evidence]:
    """Convert a 16-bit checkpoint directory to the GGUF file `out` and check it."""
    from tunewright.export.converter import convert_to_gguf, validate_formats
    from tunewright.models.base import load_tokenizer, stop_token_ids
    from tunewright.models.gguf_file import check_gguf

    validate_formats([gguf_format])
    if not (model_directory / "config.json").is_file():
        raise UsageError(str(model_directory), "there is no config.json in it", expected="a checkpoint directory")
    convert_to_gguf(model_directory, out, gguf_format, events)
    tokenizer = load_tokenizer(model_directory)
    return check_gguf(
        out,
        chat_template=str(tokenizer.chat_template or ""),
        stop_ids=stop_token_ids(model_directory, tokenizer),
        merged_directory=model_directory,
    )


def export_adapter_paths(base_name: str, adapter: Path, out: Path, gguf_format: str, events: Events) -> list[Evidence]:
    """Convert `base` with `adapter` merged to the GGUF file `out` in one pass, and check what it says of itself."""
    from tunewright.export.converter import validate_formats
    from tunewright.export.one_pass import export_adapter
    from tunewright.merge.provenance import validate_sixteen_bits
    from tunewright.models.base import load_tokenizer, stop_token_ids
    from tunewright.models.dequantized import choose_base
    from tunewright.models.gguf_file import check_gguf

    validate_formats([gguf_format])
    base = trained_base(base_name, adapter, events)
    validate_sixteen_bits(base)
    export_adapter(base, adapter, out, gguf_format, events, quantized=choose_base(adapter, "auto").quantized)
    tokenizer = load_tokenizer(base.path)
    return check_gguf(
        out,
        chat_template=str(tokenizer.chat_template or ""),
        stop_ids=stop_token_ids(base.path, tokenizer),
        merged_directory=None,
    )


def trained_base(name: str, adapter: Path, events: Events) -> "Base":
    """The base of that name; refused if the adapter says that it was trained on another."""
    from tunewright.models.base import find_base, validate_same_base

    if not (adapter / "adapter_config.json").is_file():
        raise UsageError(str(adapter), "there is no adapter_config.json in it", expected="a peft adapter's directory")
    base = find_base(ModelKeys(model=name), events)
    if (adapter / "base.json").is_file():
        validate_same_base(base, read_json(adapter / "base.json")["files"])
    return base


def verify_run(path: Path, events: Events) -> list[Evidence]:
    """Every check of the verify stage again, then each artifact against its hash, then the certificate."""
    from tunewright.verify.stage import verify

    run = RunDirectory(path)
    run.require_manifest("export")
    recipe = read_recipe(run / "recipe.yaml", {})
    events.stage = "verify"
    evidence, _ = verify(recipe.section(VerifyKeys), run, events)
    evidence += check_manifests(run)
    if (run / "certificate.json").exists() or run.manifest_path("report").exists():
        evidence += check_certificate(run)
    return evidence


def check_manifests(run: RunDirectory) -> list[Evidence]:
    """That every file of every stage is still what the stage wrote."""
    evidence = []
    for stage in STAGE_NAMES:
        try:
            manifest = run.manifest(stage)
        except ArtifactError as error:
            evidence.append(failed(f"{stage}_files_unchanged", False, "= True", str(error)))
            continue
        if manifest is not None:
            differences = run.differences(manifest)
            detail = (
                "; ".join(differences) or f"{len(manifest.files)} files have the size and SHA-256 that were written."
            )
            evidence.append(equal(f"{stage}_files_unchanged", not differences, True, detail))
    return evidence


def verify_checkpoint(directory: Path) -> list[Evidence]:
    """Whether a directory is a 16-bit checkpoint that transformers, vLLM and llama.cpp's converter take."""
    from tunewright.models.checkpoint_check import check_checkpoint

    if not (directory / "config.json").is_file():
        raise UsageError(
            str(directory), "neither a run directory nor a checkpoint", expected="manifests/ or config.json"
        )
    return check_checkpoint(directory, turn_ends)


def turn_ends(tokenizer: Any) -> frozenset[int]:
    """The ids on which a tokenizer's own chat template ends a turn; none where it has no template."""
    from tunewright.chat.encoding import Encoder
    from tunewright.chat.stops import end_of_turn_ids
    from tunewright.chat.template import chat_template_of

    if not tokenizer.chat_template:
        return frozenset()
    return end_of_turn_ids(Encoder(tokenizer), chat_template_of(tokenizer, str(tokenizer.name_or_path)))


def list_runs(directory: Path) -> list[dict[str, Any]]:
    """What is known of each run below `directory`, by name; a run that cannot be read says why."""
    if not directory.is_dir():
        raise UsageError(str(directory), "there is no such directory", expected="a directory that holds runs")
    return [describe_run(RunDirectory(path.parent)) for path in sorted(directory.glob("*/recipe.yaml"))]


def describe_run(run: RunDirectory) -> dict[str, Any]:
    done = [stage for stage in STAGE_NAMES if run.manifest_path(stage).exists()]
    try:
        verdict = read_json(run / "certificate.json")["verdict"] if "report" in done else "unfinished"
    except (TunewrightError, KeyError):
        verdict = "damaged"
    return {"name": run.path.name, "path": str(run.path), "last_stage": done[-1] if done else None, "verdict": verdict}

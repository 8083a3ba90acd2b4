"""What a run made: each artifact with its verdict, its files with their hashes to take along, and further formats."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from tunewright.report import numbers
from tunewright.web.pages.frame import Center, View, page
from tunewright.web.runs import NAME

RunName = Annotated[str, Path(pattern=NAME)]
# What verify calls an artifact, by the stage and the directory that it stands in.
ARTIFACTS = (
    ("adapter", "Adapter", "adapter/", "What was trained: an adapter, for peft and vLLM, or every weight."),
    ("merged", "Merged checkpoint", "merged/", "Base and adapter in one, in 16 bits, for transformers and vLLM."),
)
FORMATS = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "f16", "bf16")
RANKS = ("pass", "warn", "fail")


def artifact_routes(center: Center) -> APIRouter:
    router = APIRouter()

    @router.get("/runs/{name}/artifacts")
    def artifacts(name: RunName) -> Response:
        summary = center.runs.summary(name)
        return page(
            "artifacts.html.j2",
            f"Artifacts of {name}",
            "/runs",
            name=name,
            stages=summary.stages,
            **artifacts_view(center, name, summary.stages),
        )

    return router


def artifacts_view(center: Center, name: str, stages: Sequence[str]) -> View:
    files = {path: record for stage in stages for path, record in center.runs.files_of(name, stage).items()}
    evidence = center.runs.evidence_of(name, "verify")
    there = [path.removeprefix("export/model-").removesuffix(".gguf") for path in files if path.endswith(".gguf")]
    ggufs = [(form, f"GGUF {form}", f"export/model-{form}.gguf", "For llama.cpp and Ollama.") for form in there]
    known = [*ARTIFACTS, *ggufs]
    views = [artifact_view(key, title, place, words, files, evidence) for key, title, place, words in known]
    shown = {file["path"] for view in views for file in view["files"]}
    rest = [file_view(path, record) for path, record in files.items() if path not in shown]
    return {
        "artifacts": [view for view in views if view["files"]],
        "rest": rest,
        "formats": [form for form in FORMATS if form not in there] if "export" in stages else [],
        "total": numbers.size(sum(record["bytes"] for record in files.values())),
    }


def artifact_view(
    key: str, title: str, place: str, words: str, files: dict[str, Any], evidence: list[dict[str, Any]]
) -> View:
    own = [item for item in evidence if is_of(key, item["name"])]
    verdicts = [item["verdict"] for item in own if item["limit"]]
    return {
        "title": title,
        "words": words,
        "verdict": max(verdicts, key=RANKS.index) if verdicts else "",
        "checks": [(item["name"].removeprefix(f"{key}_").replace("_", " "), item) for item in own if item["limit"]],
        "files": [file_view(path, record) for path, record in files.items() if path.startswith(place)],
    }


def is_of(key: str, name: str) -> bool:
    """Whether a piece of evidence is about the artifact; `merged_in_float32_...` is about another one."""
    return name.startswith(f"{key}_") and not name.startswith(f"{key}_in_")


def file_view(path: str, record: dict[str, Any]) -> View:
    return {"path": path, "size": numbers.size(record["bytes"]), "sha256": record["sha256"]}

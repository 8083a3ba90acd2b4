"""Verify: every artifact has to be what it claims to be, and to say what the trained model said.

In: `tokens/`, `adapter/`, `merged/`, `export/` and the base. Out: `verify.json`.
Two kinds of proof: the files themselves (base, adapter, merged tensors, tokenizer, template, stop tokens, GGUF), each
failure naming its cause; then the canaries, answered by each artifact in its engine and compared with what was recorded
while the trained model was in memory.
"""

from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, StageResult, write_json
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.models.base import find_base
from tunewright.recipe import VerifyKeys
from tunewright.verify.files import check_files
from tunewright.verify.parity import check_parity, compare_artifacts


def inputs(config: VerifyKeys) -> dict[str, str]:
    return {"base": find_base(config).identity}


def run(config: VerifyKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    evidence, results = verify(config, run, events)
    write_json(out / "verify.json", results)
    return StageResult(evidence, {"engines": [entry["engine"] for entry in results["engines"]]})


def verify(config: VerifyKeys, run: RunDirectory, events: Events) -> tuple[list[Evidence], dict[str, Any]]:
    """All evidence, and the content of `verify.json`.

    If a file is not what it claims to be, the engines are not asked: their answers would say less than the cause that
    is known by then.
    """
    base = find_base(config, events)
    evidence = check_files(run, base, events)
    if any(item.verdict == "fail" for item in evidence):
        return evidence, {"engines": [], "canaries": []}
    results = compare_artifacts(config, run, base, events)
    return [*evidence, *check_parity(results)], results

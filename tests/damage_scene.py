"""What the tests of damages share: ways to change a finished run's files, and to see what `verify` says of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from tunewright.artifacts import write_json
from tunewright.events import Events
from tunewright.evidence import as_verdict
from tunewright.merge.stage import merge
from tunewright.models.base import Base
from tunewright.paths import verify_run

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Path], object]
# What is done, the evidence that has to fail first, and words of the cause.
Case = tuple[Damage, str, str]

MERGED = "merged/model.safetensors"
Q_PROJ, V_PROJ = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.v_proj.weight"
UP_PROJ, GATE_PROJ = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"
FIRST_UP_PROJ = "model.layers.0.mlp.up_proj.weight"
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"


def assert_cause_is_named(run: Path, case: Case) -> None:
    """That the damage is found, and that what fails first names its cause."""
    damage, name, cause = case
    damage(run)
    found = as_verdict(verify_run(run, Events()))
    failures = [item["name"] for item in found["evidence"] if item["verdict"] == "fail"]
    assert failures[:1] == [name], found["cause"]
    assert cause in found["cause"]


def rewrite_tensors(path: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_merged(run: Path, change: Callable[[Tensors, Tensors], object]) -> None:
    """Change the merged tensors, with the base's at hand."""
    base = load_file(base_of(run) / "model.safetensors")
    rewrite_tensors(run / MERGED, lambda merged: change(merged, base))


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; None takes a key away."""
    data = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {key: value for key, value in data.items() if value is not None})


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def base_of(run: Path) -> Path:
    return Path(yaml.safe_load((run / "recipe.yaml").read_text())["model"])


def use_base(run: Path, change: Callable[[Path], object]) -> None:
    """Point the run to a copy of its base that was changed."""
    copy = run.parent / "base"
    shutil.copytree(base_of(run), copy)
    change(copy)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "model": str(copy)}))


def merge_again(run: Path, base: Path, adapter: Path) -> None:
    """Put another merge in the place of the run's; its chat template stays."""
    template = (run / "merged/chat_template.jinja").read_bytes()
    unfinished = run.parent / "merging"
    merge(Base("other", base, {}), adapter, unfinished, "auto", Events())
    shutil.rmtree(run / "merged")
    unfinished.rename(run / "merged")
    (run / "merged/chat_template.jinja").write_bytes(template)


def merge_with(run: Path, **changes: Any) -> None:
    """Merge again with other settings of the adapter; the run's own adapter stays."""
    adapter = run.parent / "adapter"
    shutil.copytree(run / "adapter", adapter)
    edit_json(adapter / "adapter_config.json", **changes)
    merge_again(run, base_of(run), adapter)

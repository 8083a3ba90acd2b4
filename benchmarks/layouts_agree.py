"""The losses of a training in every layout, step by step against padded rows.

usage: python benchmarks/layouts_agree.py RECIPE [KEY=VALUE...]

Trains the recipe once in each layout, 50 steps unless `max_steps` says otherwise, through the same stages as any run.
A layout that the recipe or the base does not allow ends the benchmark with its reason.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from tunewright.artifacts import RunDirectory, read_json
from tunewright.events import Events
from tunewright.layouts.layout import Kind
from tunewright.pipeline import run_pipeline
from tunewright.recipe import parse_override, read_recipe

STEPS = 50


def losses_of(recipe: Path, overrides: dict[str, Any], layout: Kind, directory: Path) -> tuple[list[float], float]:
    """The loss of each step, and the smallest norm of a gradient."""
    settings = {"max_steps": STEPS, "sample_prompts": 0, "canaries": 1, "canary_tokens": 8, **overrides}
    run = RunDirectory(directory / layout)
    run_pipeline(read_recipe(recipe, {**settings, "layout": layout}), run, Events(), until="train")
    steps = read_json(run / "adapter" / "training.json")["steps"]
    return [step["loss"] for step in steps], min(step["grad_norm"] for step in steps)


def main(recipe: Path, overrides: dict[str, Any]) -> None:
    print("| layout | steps | first loss | last loss | last and largest difference to padded | least gradient norm |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        reference: list[float] = []
        for layout in get_args(Kind):
            losses, norm = losses_of(recipe, overrides, layout, Path(directory))
            reference = reference or losses
            apart = [abs(ours - theirs) for ours, theirs in zip(losses, reference, strict=True)]
            found = f"{losses[0]:.5f} | {losses[-1]:.5f} | {apart[-1]:.1e}, {max(apart):.1e}"
            print(f"| {layout} | {len(losses)} | {found} | {norm:.3f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), dict(map(parse_override, sys.argv[2:])))

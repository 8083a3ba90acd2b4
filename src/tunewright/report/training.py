"""The sections about training: what was trained, and how it went.

In goes what the run holds, out come plain dictionaries for the page, with the charts drawn.
"""

from pathlib import Path
from typing import Any

from tunewright.report import charts, numbers
from tunewright.report.charts import Point, Series
from tunewright.report.contents import Contents
from tunewright.report.head import base_name

View = dict[str, Any]
LORA_KEYS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora")
OPTIMIZER_KEYS = ("learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_grad_norm", "seed")


def trained_view(contents: Contents) -> View:
    """Groups of (name, value, note) about base, data, what was trained, optimizer, machine and versions."""
    train = contents.manifest("train").facts
    plan = contents.json("plan", "plan.json")
    training = contents.json("train", "adapter/training.json")
    base = contents.json("train", "adapter/base.json")
    recipe = contents.recipe
    return {
        "groups": [
            ("Base and data", _base_rows(contents, base, training)),
            _trained_rows(recipe),
            ("Machine and layout", _machine_rows(plan, training, train)),
            ("Versions", [(name, str(version), "") for name, version in (train.get("versions") or {}).items()]),
        ]
    }


def _base_rows(contents: Contents, base: View, training: View) -> list[tuple[str, str, str]]:
    data = contents.facts("data")
    files = [Path(name).name for name in contents.recipe.get("data") or []]
    held_out = [Path(name).name for name in contents.recipe.get("eval_data") or []]
    trainable, total = training["trainable_parameters"], training["total_parameters"]
    return [
        ("base", base_name(contents), str(base["name"])),
        ("identity", str(base["identity"])[:16], f"SHA-256 over {numbers.plural(len(base['tensors']), 'tensor')}"),
        ("training rows", numbers.count(data.get("train_rows")), ", ".join(files)),
        (
            "held-out rows",
            numbers.count(data.get("eval_rows")),
            ", ".join(held_out) or str(data.get("held_out_by", "")),
        ),
        ("trained parameters", numbers.count(trainable), f"{numbers.percent(trainable / total)} of {total:,}"),
    ]


def _trained_rows(recipe: View) -> tuple[str, list[tuple[str, str, str]]]:
    optimizer = _recipe_rows(recipe, OPTIMIZER_KEYS)
    if recipe.get("finetuning_type") == "full":
        return "Optimizer", [("trained", "every weight", "finetuning_type full"), *optimizer]
    return "Adapter and optimizer", [*_recipe_rows(recipe, LORA_KEYS), *optimizer]


def _recipe_rows(recipe: View, keys: tuple[str, ...]) -> list[tuple[str, str, str]]:
    return [(key, _recipe_value(recipe[key]), "") for key in keys if key in recipe]


def _recipe_value(value: Any) -> str:
    """As one would write it into a recipe."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else numbers.figure(value)


def _machine_rows(plan: View, training: View, facts: View) -> list[tuple[str, str, str]]:
    saved = f"{numbers.count(plan['tokens_per_epoch'])} tokens an epoch; {plan['tokens_per_epoch_padded']:,} if padded"
    return [
        ("device", str(training["device"]), ""),
        ("dtype", str(training["dtype"]), ""),
        ("layout", str(plan["layout"]).replace("_", " "), str(plan["layout_reason"])),
        ("tokens", saved, ""),
        ("rows per step", numbers.count(plan["effective_batch_size"]), ""),
        ("peak memory, planned", numbers.size(plan["peak_bytes"]), f"of {numbers.size(plan['budget_bytes'])}"),
        ("peak memory, measured", numbers.size(facts.get("peak_memory_bytes")), _kind_of_memory(training)),
        ("speed", f"{numbers.decimal(facts.get('tokens_per_second'), 3)} tokens/s", _other_speeds(facts)),
        (
            "training time",
            numbers.duration(facts.get("seconds")),
            f"{numbers.duration(plan['seconds'])} were planned",
        ),
    ]


def _kind_of_memory(training: View) -> str:
    return "tensors" if training["device"] == "cuda" else "the whole process, libraries and all"


def _other_speeds(facts: View) -> str:
    learned, whole = (
        numbers.decimal(facts.get(f"{kind}_tokens_per_second"), 3) for kind in ("supervised", "equivalent")
    )
    return f"through the model; {learned} learned/s; as much as {whole}/s of rows computed whole"


def loss_view(contents: Contents) -> View:
    """Loss, learning rate and gradient norm over the steps, and the answers at each evaluation."""
    training = contents.json("train", "adapter/training.json")
    steps, evaluations = training["steps"], training["evaluations"]
    loss = _points(steps, "loss")
    reach = max(1, len(loss) // 20)
    mean = charts.smoothed(charts.finite(loss), reach)
    measured = _points(evaluations, "eval_loss")
    return {
        "chart": charts.curves(
            "loss",
            "Loss over steps",
            f"Training loss from {_first(loss)} to {_last(loss)}, held-out loss from {_first(measured)} to "
            f"{_last(measured)}, over {numbers.plural(len(steps), 'step')}.",
            [
                Series("train", charts.thinned(loss), "thin"),
                Series("train, mean", charts.thinned(mean), "smooth"),
                Series("held-out", measured, "held-out", dots=True),
            ],
        ),
        "smoothed_over": 2 * reach + 1,
        "rate_chart": _small(steps, "learning_rate", "Learning rate"),
        "norm_chart": _small(steps, "grad_norm", "Gradient norm"),
        "evaluations": [_evaluation_row(one, dict(mean), steps) for one in evaluations],
        "samples": _samples(evaluations),
        "last": {"train": _last(mean), "held_out": _last(measured)},
    }


def _small(steps: list[View], key: str, title: str) -> Any:
    points = charts.thinned(_points(steps, key))
    description = f"{title} over {numbers.plural(len(steps), 'step')}, from {_first(points)} to {_last(points)}."
    return charts.curves(key, title, description, [Series(title.lower(), points, "smooth")], small=True)


def _points(items: list[View], key: str) -> list[Point]:
    return [(float(item["step"]), float(item[key])) for item in items if item.get(key) is not None]


def _first(points: list[Point]) -> str:
    return numbers.decimal(points[0][1], 3) if points else numbers.NONE


def _last(points: list[Point]) -> str:
    return numbers.decimal(points[-1][1], 3) if points else numbers.NONE


def _evaluation_row(evaluation: View, mean: dict[float, float], steps: list[View]) -> View:
    step = evaluation["step"]
    epoch = next((item["epoch"] for item in reversed(steps) if item["step"] <= step), 0.0)
    return {
        "step": step,
        "epoch": f"{epoch:.2f}",
        "train": numbers.decimal(mean.get(float(step)), 3),
        "held_out": numbers.decimal(evaluation["eval_loss"], 3),
    }


def _samples(evaluations: list[View]) -> list[View]:
    """Each fixed prompt once, with its answers in the order of the steps."""
    samples: dict[str, View] = {}
    for evaluation in evaluations:
        for one in evaluation.get("samples") or []:
            known = {"id": one["id"], "prompt": one["prompt"], "target": one["target"], "answers": []}
            samples.setdefault(one["id"], known)["answers"].append((evaluation["step"], one["answer"]))
    return list(samples.values())

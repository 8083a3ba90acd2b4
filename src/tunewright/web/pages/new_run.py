"""A new run: a form and the YAML of the same recipe, its plan in plain words, and its command line."""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic.fields import FieldInfo

from tunewright.errors import JobNotFoundError, TunewrightError
from tunewright.recipe import Recipe, build_recipe
from tunewright.report import numbers
from tunewright.web.looks import ID, Look
from tunewright.web.pages.data import bases_used
from tunewright.web.pages.frame import Center, View, page, part
from tunewright.web.review.finish import finished
from tunewright.web.review.reviews import ID as REVIEW
from tunewright.web.runs import NAME

LookId = Annotated[str, Path(pattern=ID)]
ChosenLook = Annotated[str | None, Query(pattern=ID)]
ChosenReview = Annotated[str | None, Query(pattern=REVIEW)]
ChosenRun = Annotated[str | None, Query(pattern=NAME)]
Kind = Literal["text", "number", "list", "long", "choice"]

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "try": ("Try it: 30 steps", {"max_steps": 30, "evaluate_rows": 20}),
    "standard": ("Standard: 3 epochs", {}),
    "thorough": ("Thorough: 5 epochs, rank 32", {"num_train_epochs": 5, "lora_r": 32, "lora_alpha": 64}),
}
GROUPS: tuple[tuple[str, tuple[tuple[str, Kind, str], ...]], ...] = (
    (
        "What",
        (
            ("data", "list", "Rows"),
            ("model", "text", "Base model"),
            ("name", "text", "Name"),
            ("system_prompt", "long", "System prompt"),
        ),
    ),
    (
        "How long, how strongly",
        (
            ("num_train_epochs", "number", "Epochs"),
            ("max_steps", "number", "Steps, in place of epochs"),
            ("learning_rate", "number", "Learning rate"),
            ("lora_r", "number", "LoRA rank"),
            ("lora_alpha", "number", "LoRA alpha"),
            ("per_device_train_batch_size", "number", "Rows per micro-batch"),
            ("gradient_accumulation_steps", "number", "Micro-batches per step"),
        ),
    ),
    (
        "Rows",
        (
            ("max_length", "number", "Longest row in tokens"),
            ("on_long_row", "choice", "Longer rows"),
            ("on_bad_row", "choice", "Rows that cannot be read"),
            ("export_formats", "list", "GGUF formats"),
        ),
    ),
)


def new_run_routes(center: Center) -> APIRouter:
    router = APIRouter()

    @router.get("/new")
    def new_run(check: ChosenLook = None, run: ChosenRun = None, review: ChosenReview = None) -> Response:
        keys = keys_of_review(center, review) if review is not None else keys_to_begin_with(center, check, run)
        presets = {name: given for name, (_, given) in PRESETS.items()}
        return page(
            "new.html.j2",
            "New run",
            "/new",
            keys=json.dumps(keys),
            presets=json.dumps(presets),
            preset_words={name: words for name, (words, _) in PRESETS.items()},
            groups=[(title, [field_view(*field) for field in fields]) for title, fields in GROUPS],
            bases=bases_used(center),
        )

    @router.get("/parts/plan/{look}")
    def plan(look: LookId) -> Response:
        found = center.looks.look(look)
        return part("plan.html.j2", look=found, plan=plan_view(found, center.looks.result(look)))

    return router


def keys_to_begin_with(center: Center, check: str | None, run: str | None) -> dict[str, Any]:
    """The keys of a check or of another run; a check's rows that cannot be read stay out of the run."""
    if check is not None:
        look = center.looks.look(check)
        left_out = {} if center.looks.result(check).get("rejected") else {"on_bad_row"}
        return {key: value for key, value in look.recipe.items() if key not in left_out}
    if run is not None:
        try:
            recipe = build_recipe(center.runs.recipe(run), run)
        except TunewrightError:
            raise JobNotFoundError(f"run {run}", "there is no such run, or its recipe cannot be read") from None
        return recipe.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    return {}


def keys_of_review(center: Center, number: str) -> dict[str, Any]:
    """The file that a review was finished with, and how its rows are read."""
    with center.reviews.held(number) as review:
        found = finished(review)
        if found is None:
            raise JobNotFoundError(f"review {number}", "it is not finished", mend="Finish it first.")
        return {"data": [found.path], **review.facts.keys}


def field_view(key: str, kind: Kind, label: str) -> View:
    field = Recipe.model_fields[key]
    default = field.get_default(call_default_factory=True)
    return {
        "key": key,
        "kind": kind,
        "label": label,
        "default": ", ".join(default) if isinstance(default, list) else "" if default is None else str(default),
        "hint": field.description or "",
        "choices": choices_of(field) if kind == "choice" else [],
    }


def choices_of(field: FieldInfo) -> list[str]:
    return list(getattr(field.annotation, "__args__", ()))


def plan_view(look: Look, result: dict[str, Any]) -> View | None:
    """What `tunewright plan --json` says, in sentences; None before it has said it."""
    if look.state != "done" or "fits" not in result:
        return None
    return {
        "fits": result["fits"],
        "peak": numbers.size(result["peak_bytes"]),
        "budget": numbers.size(result["budget_bytes"]),
        "sentences": sentences_of(result),
        "warnings": [item for item in result["evidence"] if item["verdict"] != "pass"],
    }


def sentences_of(facts: dict[str, Any]) -> list[str]:
    steps, seconds = facts["optimizer_steps"], facts["seconds_per_step"]
    where = "the GPU" if facts["device"] == "cuda" else "the processor"
    epoch = facts["steps_per_epoch"]
    return [
        f"{numbers.plural(steps, 'step')} of {numbers.plural(facts['effective_batch_size'], 'row')}, "
        f"{numbers.plural(epoch, 'step')} an epoch.",
        f"About {numbers.duration(steps * seconds)} of training on {where} in {facts['dtype']}, "
        f"{numbers.duration(seconds)} a step.",
        facts["layout_reason"],
    ]

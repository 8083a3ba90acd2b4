"""Which layout the rows get, and why: the one that computes the fewest tokens among those that are exact.

In: the recipe, the base's configuration and the rows. Out: a `PlannedLayout`. Nothing is computed: tokens are counted
over the first steps of the first epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunewright.chat.order import Schedule, plan_schedule, split_by_length
from tunewright.chat.rows import TokenRow, TokenRows
from tunewright.errors import RecipeError
from tunewright.layouts.layout import Kind
from tunewright.layouts.packing import pack, plan_packs
from tunewright.recipe import PlanKeys

STEPS_COUNTED = 64
LEAST_SAVING = 0.02  # Below it the parts of the attention cost as much as the tokens that they save.
KINDS: tuple[Kind, ...] = ("padded", "packed", "shared_prefix")


@dataclass(frozen=True)
class PlannedLayout:
    """A layout and the reason for it.

    Attributes:
        kind: which one.
        reason: a sentence for a person.
        pack_tokens: tokens of a pack: as many as a padded micro-batch of the longest rows has.
        keeps_prefix: whether a prefix's keys and values can be kept for several packs.
        epoch_tokens: tokens that each kind computes in an epoch.
        schedule: the steps.
    """

    kind: Kind
    reason: str
    pack_tokens: int
    keeps_prefix: bool
    epoch_tokens: Mapping[Kind, int]
    schedule: Schedule


def choose_layout(config: PlanKeys, base_config: Any, rows: TokenRows) -> PlannedLayout:
    """The cheapest layout that is exact for this base and recipe, or the one that the recipe asks for.

    Raises:
        RecipeError: the recipe asks for one that cannot be had.
    """
    schedule = plan_schedule(config, len(rows))
    pack_tokens = config.per_device_train_batch_size * max(rows.lengths)
    tokens = {kind: epoch_tokens(kind, config, rows, schedule, pack_tokens) for kind in KINDS}
    obstacles = {"packed": packing_obstacle(base_config, max(rows.lengths))}
    obstacles["shared_prefix"] = obstacles["packed"] or sharing_obstacle(config)
    kind, reason = _kind(config, tokens, obstacles)
    return PlannedLayout(
        kind, reason, pack_tokens, not (config.gradient_checkpointing or config.fsdp), tokens, schedule
    )


def _kind(config: PlanKeys, tokens: Mapping[Kind, int], obstacles: Mapping[str, str]) -> tuple[Kind, str]:
    if config.layout != "auto":
        if obstacles.get(config.layout):
            raise RecipeError("layout", f"{config.layout} cannot be had: {obstacles[config.layout]}")
        return config.layout, "The recipe asks for it."
    saved = {kind: 1 - tokens[kind] / tokens["padded"] for kind in KINDS}
    shared_over_packed = 1 - tokens["shared_prefix"] / tokens["packed"]
    if obstacles["packed"]:
        return "padded", f"Packing would save {saved['packed']:.0%} of the tokens, but {obstacles['packed']}."
    if shared_over_packed < LEAST_SAVING:
        return "packed", f"Rows have little in common; laid end to end they need {saved['packed']:.0%} fewer tokens."
    if obstacles["shared_prefix"]:
        found = f"Computing what rows have in common once would save {shared_over_packed:.0%} of the tokens"
        return "packed", f"{found}, but {obstacles['shared_prefix']}."
    return "shared_prefix", (
        "What rows of a step begin with in common is computed once, and nothing is padded: "
        f"{saved['shared_prefix']:.0%} fewer tokens."
    )


def packing_obstacle(base_config: Any, longest: int) -> str:
    """Why rows of this base cannot be laid end to end; empty if they can."""
    config = base_config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if others := kinds - {"full_attention", "sliding_attention"}:
        return f"the base has layers of other kinds ({', '.join(sorted(others))})"
    if window and longest > window and (kinds != {"full_attention"} or not getattr(config, "layer_types", None)):
        return f"rows of {longest} tokens are longer than the base's sliding window of {window}"
    if getattr(config, "attn_logit_softcapping", None):
        return "the base caps its attention"
    if getattr(config, "attention_dropout", 0.0):
        return "the base has dropout in its attention"
    return ""


def sharing_obstacle(config: PlanKeys) -> str:
    return "LoRA dropout would fall alike on all rows that share them" if config.lora_dropout else ""


def epoch_tokens(kind: Kind, config: PlanKeys, rows: TokenRows, schedule: Schedule, pack_tokens: int) -> int:
    """Tokens of an epoch in a layout, padding among them, from the epoch's first steps."""
    steps = range(min(STEPS_COUNTED, schedule.steps, -(-len(rows) // config.effective_batch_size)))
    counted = [[rows[index] for index in schedule.rows_of_step(step)] for step in steps]
    found = sum(step_tokens(kind, step, config.per_device_train_batch_size, pack_tokens) for step in counted)
    return round(found * len(rows) / sum(len(step) for step in counted))


def step_tokens(kind: Kind, rows: list[TokenRow], batch_size: int, pack_tokens: int) -> int:
    if kind == "padded":
        return sum(len(each) * max(len(row.ids) for row in each) for each in split_by_length(rows, batch_size))
    if kind == "packed":
        return sum(len(row.ids) for row in rows)
    return sum(pack(part).tokens for part in plan_packs(rows, pack_tokens))

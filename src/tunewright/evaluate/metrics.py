"""Metrics: what an answer is worth beside its target.

In: the targets, from which the kind of task and its fields are read. Out: a `Task` with its metrics, each a function
of a target and an answer to a score from 0 to 1.
Always: pure; the same targets give the same metrics in the same order, and an answer equal to its target scores 1.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NoReturn

from tunewright.artifacts import canonical_json

MOST_TARGETS = 0.8
MOST_VALUES = 20
VALUES_PER_ROW = 0.1
LABEL_WORDS = 3
# Chinese and Japanese are written without spaces: each of their characters counts as a word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
MISSING = "(missing)"

Kind = Literal["category", "text"]
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        name: as in `exact:intent`.
        kind: `category` if an answer is right or wrong, `text` if it can be partly right.
        score: target text, answer text → 0 to 1.
        value_of: the target's value, for counts by value; None where such counts say nothing.
    """

    name: str
    kind: Kind
    score: Callable[[str, str], float]
    value_of: Callable[[str], str] | None = None


@dataclass(frozen=True)
class Task:
    """What the targets ask for.

    Attributes:
        kind: `json` if the targets are JSON objects, else `text`.
        metrics: in the order in which they are shown.
        headline: name of the metric that stands for all.
    """

    kind: Literal["json", "text"]
    metrics: tuple[Metric, ...]
    headline: str

    def applies_to(self, target: str) -> bool:
        """Whether a row is measured: in a `json` task a target that is no JSON object is not."""
        return self.kind == "text" or parse_object(target) is not None


def describe_task(targets: Sequence[str], held_out: Sequence[str]) -> Task:
    """The task that most of `targets` (training and held-out rows) belong to.

    Args:
        targets: every target that is known.
        held_out: the targets that will be measured; without a JSON object among them the task is `text`.
    """
    objects = [parsed for target in targets if (parsed := parse_object(target)) is not None]
    if len(objects) >= MOST_TARGETS * len(targets) and any(parse_object(target) is not None for target in held_out):
        return _json_task(objects)
    return _text_task(targets)


@lru_cache(maxsize=4096)
def parse_object(text: str) -> JsonObject | None:
    """The JSON object that `text` is, whitespace around it aside; None if it is anything else."""
    try:
        parsed = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def token_f1(target: str, answer: str) -> float:
    """Harmonic mean of precision and recall over casefolded Unicode words, each counted as often as it stands there.

    As in SQuAD's evaluation (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250), but with no articles dropped.
    """
    wanted, given = (Counter(WORD.findall(text.casefold())) for text in (target, answer))
    if not wanted or not given:
        return float(target.strip() == answer.strip())
    common = (wanted & given).total()
    return 2 * common / (wanted.total() + given.total())


def _json_task(objects: Sequence[JsonObject]) -> Task:
    fields = _common_fields(objects)
    categories = [name for name in fields if is_category([item[name] for item in objects if name in item])]
    metrics = [Metric("valid_json", "category", lambda _, answer: float(parse_object(answer) is not None))]
    metrics += [_exact_field(name) if name in categories else _text_field(name) for name in fields]
    if len(categories) > 1:
        metrics.append(Metric("exact:all categories", "category", _all_fields_score(categories)))
    if not fields:
        metrics.append(Metric("exact", "category", _object_score))
    headline = f"exact:{categories[0]}" if categories else metrics[1].name
    return Task("json", tuple(metrics), headline)


def _common_fields(objects: Sequence[JsonObject]) -> list[str]:
    """The keys that most objects have, in the order in which they first appear."""
    counts = Counter(name for item in objects for name in item)
    return [name for name, count in counts.items() if count >= MOST_TARGETS * len(objects)]


def is_category(values: Sequence[Any]) -> bool:
    """Whether the values of a field are a choice: few different ones, which come back or are only a few words long."""
    different = {value_text(value) for value in values}
    if len(different) > max(MOST_VALUES, VALUES_PER_ROW * len(values)):
        return False
    return 2 * len(different) <= len(values) or all(len(text.split()) <= LABEL_WORDS for text in different)


def value_text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _field(text: str, name: str) -> Any:
    parsed = parse_object(text)
    return MISSING if parsed is None or name not in parsed else parsed[name]


def _same_field(target: str, answer: str, name: str) -> bool:
    """Whether the field is equal, in value and in type, or missing in both although the answer is an object."""
    if parse_object(answer) is None:
        return False
    return canonical_json(_field(target, name)) == canonical_json(_field(answer, name))


def _exact_field(name: str) -> Metric:
    return Metric(
        f"exact:{name}",
        "category",
        lambda target, answer: float(_same_field(target, answer, name)),
        lambda target: value_text(_field(target, name)),
    )


def _text_field(name: str) -> Metric:
    def score(target: str, answer: str) -> float:
        if MISSING in (_field(target, name), _field(answer, name)):
            return float(_same_field(target, answer, name))
        return token_f1(value_text(_field(target, name)), value_text(_field(answer, name)))

    return Metric(f"f1:{name}", "text", score)


def _all_fields_score(names: Sequence[str]) -> Callable[[str, str], float]:
    return lambda target, answer: float(all(_same_field(target, answer, name) for name in names))


def _object_score(target: str, answer: str) -> float:
    return float(canonical_json(parse_object(target)) == canonical_json(parse_object(answer)))


def _text_task(targets: Sequence[str]) -> Task:
    metrics = [
        Metric("exact", "category", lambda target, answer: float(target.strip() == answer.strip())),
        Metric("f1", "text", token_f1),
    ]
    if not _are_labels(targets):
        return Task("text", tuple(metrics), "f1")
    return Task("text", (Metric("label", "category", _label_score, label_of), *metrics), "label")


def _are_labels(targets: Sequence[str]) -> bool:
    short = all(0 < len(target.split()) <= LABEL_WORDS for target in targets)
    return short and bool(targets) and is_category([label_of(target) for target in targets])


def label_of(text: str) -> str:
    """A label without regard to case, outer whitespace and a full stop at its end."""
    return text.strip().removesuffix(".").casefold()


def _label_score(target: str, answer: str) -> float:
    return float(label_of(target) == label_of(answer))

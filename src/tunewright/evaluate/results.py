"""Results: every answer scored, every metric with its interval, in the form that the report reads.

In: rows, the answers of each engine, the task. Out: `Results`, which is written as `evaluate/results.json` (what the
report shows) and `evaluate/answers.jsonl` (everything about each row).
Always: a row that the task does not measure keeps a score, but enters no metric.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunewright.evaluate.answers import Answer
from tunewright.evaluate.intervals import Bootstrap, Interval, bootstrap
from tunewright.evaluate.metrics import Metric, Task
from tunewright.evaluate.questions import Question

BASE = "base"
TUNED = "merged"


@dataclass(frozen=True)
class Results:
    """All that was measured on the held-out rows.

    Attributes:
        rows: the questions, R of them.
        answers: R answers of each engine, by its label.
        task: what the targets ask for.
        max_new_tokens: the longest answer that was allowed.
        measured: indices of the rows that enter the metrics.
        intervals: over the measured rows, metrics and engines in the order of `task.metrics` and `answers`.
    """

    rows: Sequence[Question]
    answers: dict[str, list[Answer]]
    task: Task
    max_new_tokens: int
    measured: list[int]
    intervals: Bootstrap

    @property
    def labels(self) -> list[str]:
        return list(self.answers)

    def interval(self, metric: str, label: str) -> Interval:
        return self.intervals.interval(self._metric_index(metric), self.labels.index(label))

    def difference(self, metric: str, label: str = TUNED, baseline: str = BASE) -> Interval:
        """Of one engine minus another, paired by row."""
        labels = self.labels
        return self.intervals.difference(self._metric_index(metric), labels.index(label), labels.index(baseline))

    def _metric_index(self, name: str) -> int:
        return [metric.name for metric in self.task.metrics].index(name)

    def row_scores(self, index: int, label: str) -> dict[str, float]:
        """Each metric of one row; whether the texts are equal, where the task does not measure the row."""
        target, answer = self.rows[index].target, self.answers[label][index].text
        if not self.task.applies_to(target):
            return {"exact": float(target.strip() == answer.strip())}
        return {metric.name: metric.score(target, answer) for metric in self.task.metrics}

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": len(self.rows),
            "max_new_tokens": self.max_new_tokens,
            "kind": self.task.kind,
            "metrics": [self._metric_as_json(metric) for metric in self.task.metrics],
            "headline": self.task.headline,
            "engines": {
                label: {
                    "unfinished": sum(not answer.finished for answer in answers),
                    "degenerate": sum(answer.degenerate is not None for answer in answers),
                }
                for label, answers in self.answers.items()
            },
            "answers": [self._row_as_json(index) for index in range(len(self.rows))],
        }

    def _metric_as_json(self, metric: Metric) -> dict[str, Any]:
        return {
            "name": metric.name,
            "kind": metric.kind,
            "scores": {label: self.interval(metric.name, label).as_json() for label in self.labels},
            "difference": self.difference(metric.name).as_json(),
            "values": self._counts_by_value(metric),
        }

    def _counts_by_value(self, metric: Metric) -> list[dict[str, Any]]:
        """For each value that targets have: in how many rows, and in how many each engine is right."""
        if metric.value_of is None:
            return []
        rows_by_value: dict[str, list[int]] = {}
        for index in self.measured:
            rows_by_value.setdefault(metric.value_of(self.rows[index].target), []).append(index)
        return [
            {
                "value": value,
                "rows": len(indices),
                "right": {label: self._right(metric, label, indices) for label in self.labels},
            }
            for value, indices in sorted(rows_by_value.items())
        ]

    def _right(self, metric: Metric, label: str, indices: list[int]) -> int:
        given = self.answers[label]
        return sum(int(metric.score(self.rows[index].target, given[index].text)) for index in indices)

    def _row_as_json(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {
            "id": row.id,
            "prompt": row.last_user_text,
            "target": row.target,
            "answers": {label: self.answers[label][index].text for label in self.labels},
            "score": {label: row_score(self.row_scores(index, label)) for label in self.labels},
        }

    def answers_as_json(self) -> list[dict[str, Any]]:
        """One object per row, with its whole prompt and everything that was measured on it."""
        return [
            {
                **self._row_as_json(index),
                **row.prompt.as_json(),
                "metrics": {label: self.row_scores(index, label) for label in self.labels},
                "finished": {label: self.answers[label][index].finished for label in self.labels},
                "degenerate": {label: self.answers[label][index].degenerate for label in self.labels},
            }
            for index, row in enumerate(self.rows)
        ]


def measure(
    rows: Sequence[Question], answers: dict[str, list[Answer]], task: Task, max_new_tokens: int, seed: int
) -> Results:
    """Score the answers of every engine; at least one row has to be one that the task measures."""
    measured = [index for index, row in enumerate(rows) if task.applies_to(row.target)]
    scores_MER = np.array(
        [
            [[metric.score(rows[index].target, given[index].text) for index in measured] for given in answers.values()]
            for metric in task.metrics
        ]
    )
    return Results(rows, answers, task, max_new_tokens, measured, bootstrap(scores_MER, seed))


def empty_results() -> dict[str, Any]:
    """`results.json` of an evaluation without rows."""
    empty: dict[str, Any] = {"metrics": [], "headline": "", "engines": {}, "answers": []}
    return {"rows": 0, "max_new_tokens": 0, "kind": "text", **empty}


def row_score(scores: dict[str, float]) -> float:
    """The mean of a row's metrics, by which the best and the worst rows are found."""
    return round(sum(scores.values()) / len(scores), 6)

"""Answers: what each engine says to the held-out prompts, one engine in memory at a time.

In: questions and, for each engine, how to open it. Out: one answer per engine and question.
Always: an engine is closed before the next one is opened, also when it fails; each artifact renders the
prompt with its own template, because that is what it will be sent when it serves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tunewright.chat.degenerate import is_degenerate
from tunewright.engines.interface import Engine
from tunewright.evaluate.questions import Question
from tunewright.events import Events, Progress

Engines = Mapping[str, Callable[[], Engine]]


@dataclass(frozen=True)
class Answer:
    """One engine's answer to one prompt.

    Attributes:
        text: without special tokens.
        finished: whether it ended by itself, before `max_new_tokens`.
        degenerate: why the text is degenerate, or None.
    """

    text: str
    finished: bool
    degenerate: str | None


@dataclass(frozen=True)
class AnswerLimits:
    """How answers are made: their longest length in tokens, the ids that end one, and prompts per batch."""

    max_new_tokens: int
    stop_ids: frozenset[int]
    batch_size: int


def answer_with_all(
    engines: Engines, questions: Sequence[Question], limits: AnswerLimits, events: Events
) -> dict[str, list[Answer]]:
    """The greedy answers of each engine to each question, in their order."""
    progress = events.progress("answers", len(engines) * len(questions))
    answers: dict[str, list[Answer]] = {}
    for label, open_engine in engines.items():
        engine = open_engine()
        try:
            answers[label] = answer_questions(engine, questions, limits, progress)
        finally:
            engine.close()
    return answers


def answer_questions(
    engine: Engine, questions: Sequence[Question], limits: AnswerLimits, progress: Progress
) -> list[Answer]:
    """The answers of one engine; questions of about the same length share a batch."""
    prompts = [engine.prompt_ids(question.prompt) for question in questions]
    order = sorted(range(len(questions)), key=lambda index: len(prompts[index]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), limits.batch_size):
        batch = order[start : start + limits.batch_size]
        answered = engine.greedy([prompts[index] for index in batch], limits.max_new_tokens)
        for index, ids in zip(batch, answered, strict=True):
            answers[index] = _answer(engine, ids, questions[index], limits)
        progress.advance(len(batch))
    return [answers[index] for index in range(len(questions))]


def _answer(engine: Engine, ids: Sequence[int], question: Question, limits: AnswerLimits) -> Answer:
    stopped = bool(ids) and ids[-1] in limits.stop_ids
    text = engine.decode(ids[:-1] if stopped else ids)
    # A target that looks degenerate itself, such as a drawing, asks for just that.
    reason = None if is_degenerate(question.target) else is_degenerate(text)
    return Answer(question.shown(text), stopped or len(ids) < limits.max_new_tokens, reason)

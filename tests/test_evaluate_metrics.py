import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.evaluate.metrics import Task, describe_task, is_category, parse_object, token_f1

INTENTS = ("refund", "login", "delivery", "other")


def triage_target(index: int) -> str:
    summary = f"Customer {index} wants help with matter number {index * 7} in good time."
    return json.dumps({"intent": INTENTS[index % 4], "urgent": index % 2 == 0, "summary": summary})


TRIAGE = [triage_target(index) for index in range(40)]


def scores(task: Task, target: str, answer: str) -> dict[str, float]:
    return {metric.name: metric.score(target, answer) for metric in task.metrics}


def test_json_targets_give_a_metric_for_each_field_in_key_order() -> None:
    task = describe_task(TRIAGE, TRIAGE[:4])
    assert task.kind == "json"
    assert [(metric.name, metric.kind) for metric in task.metrics] == [
        ("valid_json", "category"),
        ("exact:intent", "category"),
        ("exact:urgent", "category"),
        ("f1:summary", "text"),
        ("exact:all categories", "category"),
    ]
    assert task.headline == "exact:intent"


def test_json_answer_is_scored_field_by_field() -> None:
    task = describe_task(TRIAGE, TRIAGE)
    answer = json.dumps({"intent": "refund", "urgent": "true", "summary": "Customer 0 wants money"})
    assert scores(task, TRIAGE[0], answer) == {
        "valid_json": 1.0,
        "exact:intent": 1.0,
        "exact:urgent": 0.0,
        "f1:summary": pytest.approx(2 * 3 / (11 + 4)),
        "exact:all categories": 0.0,
    }


@pytest.mark.parametrize(
    "answer",
    [
        "Here you go: {}",
        "```json\n{}\n```",
        "[1]",
        '{"a": 1} {"b": 2}',
        '{"a": NaN}',
        "",
        "[" * 100_000,
        '{"a": ' + "1" * 5000 + "}",
    ],
)
def test_answer_that_is_not_one_json_object_is_not_valid(answer: str) -> None:
    assert parse_object(answer) is None
    assert set(scores(describe_task(TRIAGE, TRIAGE), TRIAGE[1], answer).values()) == {0.0}


def test_whitespace_around_a_json_object_is_free() -> None:
    assert parse_object('\n {"a": 1}\n') == {"a": 1}


def test_field_missing_in_target_and_answer_is_right() -> None:
    targets = [*TRIAGE[:9], '{"intent": "refund", "urgent": true}']
    task = describe_task(targets, targets)
    assert scores(task, targets[9], '{"urgent": true, "intent": "refund"}')["f1:summary"] == 1.0
    assert scores(task, targets[9], targets[0])["f1:summary"] == 0.0
    assert scores(task, targets[0], targets[9])["f1:summary"] == 0.0


def test_field_of_few_targets_has_no_metric() -> None:
    targets = [*(['{"label": "spam"}'] * 30), *(['{"label": "ham", "note": "see above"}'] * 10)]
    assert [metric.name for metric in describe_task(targets, targets).metrics] == ["valid_json", "exact:label"]


def test_objects_without_a_common_field_are_compared_whole() -> None:
    targets = [json.dumps({f"key {index}": index, "x" * (index + 1): 0}) for index in range(10)]
    task = describe_task(targets, targets)
    assert (task.kind, task.headline) == ("json", "exact")
    assert scores(task, '{"a": 1, "b": 2}', '{"b": 2, "a": 1}') == {"valid_json": 1.0, "exact": 1.0}
    assert scores(task, '{"a": 1}', '{"a": 2}') == {"valid_json": 1.0, "exact": 0.0}


@pytest.mark.parametrize(("json_rows", "kind"), [(8, "json"), (7, "text")])
def test_four_in_five_targets_decide_the_kind(json_rows: int, kind: str) -> None:
    targets = [*TRIAGE[:json_rows], *(["I cannot read this message at all."] * (10 - json_rows))]
    assert describe_task(targets, TRIAGE[:1]).kind == kind


def test_held_out_rows_without_json_are_measured_as_text() -> None:
    assert describe_task([*TRIAGE, "a sentence of some length"], ["a sentence of some length"]).kind == "text"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["refund", "login"] * 20, True),
        ([True, False, None], True),
        ([f"code {index}" for index in range(20)], True),
        ([f"code {index}" for index in range(21)], False),
        ([f"code {index % 25}" for index in range(250)], True),
        ([f"A whole sentence about matter {index}." for index in range(6)], False),
        ([f"A whole sentence about matter {index}." for index in (1, 2, 1, 2)], True),
    ],
)
def test_field_is_a_category_if_its_values_are_few(values: list[object], expected: bool) -> None:
    assert is_category(values) is expected


def test_short_targets_that_come_back_are_labels() -> None:
    task = describe_task(["spam", "ham", "spam", "not sure"], ["spam"])
    assert (task.kind, task.headline) == ("text", "label")
    assert scores(task, "spam", " Spam.\n") == {"label": 1.0, "exact": 0.0, "f1": 1.0}
    assert scores(task, "spam", "spam mail") == {"label": 0.0, "exact": 0.0, "f1": pytest.approx(2 / 3)}


def test_prose_is_measured_by_exact_text_and_token_f1() -> None:
    task = describe_task(["The lamp is on the table.", "Nobody came to the harbour."], ["x"])
    assert [metric.name for metric in task.metrics] == ["exact", "f1"]
    assert task.headline == "f1"


@pytest.mark.parametrize(
    ("target", "answer", "expected"),
    [
        ("The cat sat", "the CAT, sat!", 1.0),
        ("the cat sat", "the the dog", 1 / 3),
        ("Straße", "STRASSE", 1.0),
        ("今日は晴れ", "今日は雨", 2 * 3 / 9),
        ("one", "two", 0.0),
        ("", "", 1.0),
        ("", "word", 0.0),
        ("!?", "!?", 1.0),
        ("!?", "..", 0.0),
    ],
)
def test_token_f1_counts_common_words(target: str, answer: str, expected: float) -> None:
    assert token_f1(target, answer) == pytest.approx(expected)


@given(st.text(), st.text())
def test_token_f1_is_symmetric_and_one_for_equal_texts(first: str, second: str) -> None:
    assert token_f1(first, second) == token_f1(second, first)
    assert 0 <= token_f1(first, second) <= 1
    assert token_f1(first, first) == 1


VALUES = st.one_of(st.text(max_size=8), st.integers(), st.booleans(), st.none(), st.lists(st.integers(), max_size=2))
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES).map(json.dumps)


@given(st.lists(st.one_of(OBJECTS, st.text(max_size=20)), min_size=1, max_size=12))
def test_answer_equal_to_its_target_is_right_in_every_metric(targets: list[str]) -> None:
    task = describe_task(targets, targets)
    for target in filter(task.applies_to, targets):
        assert set(scores(task, target, target).values()) == {1.0}

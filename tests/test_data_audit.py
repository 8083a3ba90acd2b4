import json
from pathlib import Path
from typing import Any

import pytest

from data_rows import Outcome, good_pairs, pair, run_data, write_rows
from tunewright.data.audit.run import CHECKS
from tunewright.errors import RecipeError

ARTICLE = (
    "The city archive has opened the boxes of the old shipyard, and with them the pay books of 1911 to 1934. "
    "They show what a riveter earned, how often the men were hurt, and that in the winter of 1929 every second "
    "one was sent home."
)
LONG = "a sentence that is long enough to be compared with others"


def audit(directory: Path, rows: list[Any], good: int = 40, **keys: Any) -> Outcome:
    """The stage on good rows followed by `rows`, nothing held out unless `keys` say so."""
    path = write_rows(directory / "rows.jsonl", [*good_pairs(good), *rows])
    return run_data(directory, [path], **{"eval_rows": 0, **keys})


def ids(first: int, count: int) -> list[str]:
    return [f"rows.jsonl:{number}" for number in range(first, first + count)]


def test_nothing_is_found_in_good_rows_with_a_system_prompt(tmp_path: Path) -> None:
    outcome = audit(tmp_path, [], system_prompt="You know the news.", eval_rows=4)
    assert {item.name for item in outcome.result.evidence} == {*(check.name for check in CHECKS), "held_out_rows"}
    assert [item for item in outcome.result.evidence if item.verdict != "pass"] == []


@pytest.mark.parametrize(
    ("check", "target"),
    [
        ("ellipsis_targets", "The ferry was late because..."),
        ("ellipsis_targets", "The ferry was late because… \n"),
        ("ellipsis_targets", json.dumps({"a": "done", "b": [{"c": "cut off..."}]})),
        ("copied_prefix_targets", ARTICLE[:100]),
        ("copied_prefix_targets", ARTICLE[:100] + "..."),
        ("copied_prefix_targets", ARTICLE + "..."),
        ("copied_prefix_targets", json.dumps({"summary": ARTICLE[:100], "topic": "archive"})),
        ("bare_scalar_targets", "0"),
        ("bare_scalar_targets", "-1.5e3"),
        ("bare_scalar_targets", "True"),
        ("bare_scalar_targets", "null"),
        ("mojibake", "Die BÃ¼cherei Ã¶ffnet."),
        ("control_tokens", "Done.<|im_end|>"),
    ],
)
def test_a_bad_target_fails_its_check(tmp_path: Path, check: str, target: str) -> None:
    outcome = audit(tmp_path, [pair(ARTICLE, target)], audit={check: "gate"})
    assert outcome.evidence(check).verdict == "fail"
    assert outcome.rows_found_by(check) == ["rows.jsonl:41"]
    assert "rows.jsonl:41" in outcome.evidence(check).detail


@pytest.mark.parametrize(
    ("check", "target"),
    [
        ("ellipsis_targets", "Wait... there is more."),
        ("ellipsis_targets", json.dumps({"a...": 1})),
        ("copied_prefix_targets", ARTICLE),
        ("copied_prefix_targets", ARTICLE[:39]),
        ("copied_prefix_targets", ARTICLE[5:100]),
        ("near_copy_fields", json.dumps({"a": "sport", "b": "sport"})),
        ("near_copy_fields", json.dumps([{"a": LONG}, {"a": LONG}])),
        ("bare_scalar_targets", "3 boats"),
        ("mojibake", "„Spaß“ kostet 3 €: « à » – der Umlaut „Ä“, NÃO, Citroën, 5×…"),
    ],
)
def test_a_good_target_passes(tmp_path: Path, check: str, target: str) -> None:
    assert audit(tmp_path, [pair(ARTICLE, target)]).evidence(check).value in (0, 0.0)


def test_a_share_within_the_limit_passes_and_is_still_shown(tmp_path: Path) -> None:
    rows = [pair(f"Note {number} by {number * 31}?", f"Done by number {number}.") for number in range(160)]
    outcome = audit(tmp_path, [*rows, pair(ARTICLE, "cut...")])
    item = outcome.evidence("ellipsis_targets")
    assert (item.verdict, item.value, item.limit) == ("pass", round(1 / 201, 4), "<= 0.01")
    assert outcome.rows_found_by("ellipsis_targets") == ["rows.jsonl:201"]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (LONG, LONG + "!"),
        (ARTICLE, f"In short: {ARTICLE[:100]} and so on, at a length of its own."),
    ],
)
def test_fields_that_nearly_copy_one_another_fail_above_five_percent(tmp_path: Path, left: str, right: str) -> None:
    bad = pair("News?", json.dumps({"summary": left, "detailed_analysis": right}))
    outcome = audit(tmp_path, [{**bad, "prompt": f"News {n}?"} for n in range(3)])
    item = outcome.evidence("near_copy_fields")
    assert (item.verdict, item.value) == ("fail", round(3 / 43, 4))
    assert "(3 × summary and detailed_analysis)" in item.detail
    (tmp_path / "fewer").mkdir()
    assert audit(tmp_path / "fewer", [bad]).evidence("near_copy_fields").verdict == "pass"


def test_bare_scalars_only_warn_where_all_targets_are_labels(tmp_path: Path) -> None:
    rows = [pair(f"Is {number} {number * 7} even?", str(number % 2)) for number in range(30)]
    assert audit(tmp_path, rows, good=0).evidence("bare_scalar_targets").verdict == "warn"


@pytest.mark.parametrize(("same", "verdict"), [(20, "pass"), (21, "warn"), (40, "fail")])
def test_a_target_of_most_rows_warns_and_of_all_rows_fails(tmp_path: Path, same: int, verdict: str) -> None:
    rows = [{**row, "completion": "Yes."} if n < same else row for n, row in enumerate(good_pairs(40))]
    assert audit(tmp_path, rows, good=0).evidence("dominating_target").verdict == verdict


def test_targets_off_the_schema_of_most_are_named(tmp_path: Path) -> None:
    usual = [{**row, "completion": json.dumps({"a": n, "b": f"text {n}"})} for n, row in enumerate(good_pairs(30))]
    outcome = audit(
        tmp_path, [*usual, pair("x?", '{"a": 1}'), pair("y?", '{"b": "c", "a": 2}'), pair("z?", "text")], good=0
    )
    item = outcome.evidence("schema_outliers")
    assert (item.verdict, item.value) == ("fail", round(2 / 33, 4))
    assert "rows.jsonl:31 (without b); rows.jsonl:33 (no JSON)" in item.detail


def test_targets_without_a_common_schema_only_warn(tmp_path: Path) -> None:
    rows = [{**row, "completion": json.dumps({f"key{n}": n})} for n, row in enumerate(good_pairs(30))]
    assert audit(tmp_path, rows, good=0).evidence("schema_outliers").verdict == "warn"
    (tmp_path / "text").mkdir()
    assert audit(tmp_path / "text", rows[:5]).evidence("schema_outliers").verdict == "pass"


def test_duplicates_near_duplicates_and_conflicts_are_told_apart(tmp_path: Path) -> None:
    first = good_pairs(1)[0]
    near = [pair(ARTICLE, "One."), pair(ARTICLE.replace("home", "away"), "Two.")]
    outcome = audit(tmp_path, [first, {**first, "completion": "Another answer."}, *near])
    assert outcome.rows_found_by("duplicate_rows") == ["rows.jsonl:41"]
    assert outcome.rows_found_by("conflicting_answers") == ["rows.jsonl:1", "rows.jsonl:41", "rows.jsonl:42"]
    assert outcome.rows_found_by("near_duplicate_prompts") == ["rows.jsonl:43", "rows.jsonl:44"]
    for name in ("duplicate_rows", "conflicting_answers", "near_duplicate_prompts"):
        assert outcome.evidence(name).verdict == "warn"


def test_the_same_question_under_another_system_prompt_is_no_conflict(tmp_path: Path) -> None:
    rows = [{**pair("What now?", f"As {name} says."), "system": f"You are {name}."} for name in ("A", "B")]
    assert audit(tmp_path, rows).evidence("conflicting_answers").value == 0


def test_the_same_question_with_other_tools_is_no_conflict(tmp_path: Path) -> None:
    def asked(tool: str) -> dict[str, Any]:
        turns = [{"role": "user", "content": "Book me a table."}, {"role": "assistant", "content": f"By {tool}."}]
        return {"messages": turns, "tools": [{"type": "function", "function": {"name": tool, "parameters": {}}}]}

    assert audit(tmp_path, [asked("phone"), asked("mail")]).evidence("conflicting_answers").value == 0
    (tmp_path / "same").mkdir()
    same = [asked("phone"), {**asked("mail"), "tools": asked("phone")["tools"]}]
    assert audit(tmp_path / "same", same).evidence("conflicting_answers").value == 2


def test_the_language_of_a_json_target_is_that_of_its_sentences(tmp_path: Path) -> None:
    rows = [
        {**row, "completion": json.dumps({"kind": "a", "summary": f"The ferry number {n} sails to the island."})}
        for n, row in enumerate(good_pairs(30))
    ]
    rows[7]["completion"] = json.dumps({"kind": "a", "summary": "Die Fähre fährt heute leider nicht zu der Insel."})
    assert audit(tmp_path, rows, good=0).rows_found_by("language_outliers") == ["rows.jsonl:8"]


def test_held_out_prompts_that_are_trained_on_fail(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "rows.jsonl", [*good_pairs(40), pair(ARTICLE, "One.")])
    same, near = {**good_pairs(1)[0], "completion": "Else."}, pair(ARTICLE.replace("home", "away"), "Two.")
    held_out = write_rows(tmp_path / "eval.jsonl", [same, near, pair("Something else?", "Yes, three.")])
    outcome = run_data(tmp_path, [train], eval_data=[str(held_out)])
    item = outcome.evidence("leakage")
    assert (item.verdict, item.value) == ("fail", 2)
    assert "(1 word for word)" in item.detail
    assert outcome.rows_found_by("leakage") == ["eval.jsonl:1", "eval.jsonl:2"]
    assert "eval.jsonl:2 (like rows.jsonl:41:" in item.detail


@pytest.mark.parametrize(
    ("rows", "verdict", "limit"), [(4, "fail", ">= 5"), (5, "warn", ">= 20"), (20, "pass", ">= 20")]
)
def test_too_few_rows_to_train_on(tmp_path: Path, rows: int, verdict: str, limit: str) -> None:
    item = audit(tmp_path, [], good=rows).evidence("too_few_rows")
    assert (item.value, item.verdict, item.limit) == (rows, verdict, limit)


def test_missing_system_prompts_are_counted_apart_from_none_at_all(tmp_path: Path) -> None:
    some = audit(tmp_path, [{**pair("x?", "The x."), "system": "S"}], good=30).evidence("no_system_prompt")
    assert (some.value, some.verdict) == (30, "warn")
    assert "30 of 31 rows have no system prompt, while 1 have one" in some.detail
    (tmp_path / "none").mkdir()
    none = audit(tmp_path / "none", [], good=30).evidence("no_system_prompt")
    assert (none.value, none.verdict) == (30, "warn")
    assert "which is all of them" in none.detail


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to a.b@firma.de today", "e-mail address a.b@"),
        ("key sk-ant-abcdefghij0123456789xyz", "API key sk-a"),
        ("AKIAABCDEFGHIJKLMNOP", "API key AKIA"),
        ("ghp_" + "a1" * 18, "API key ghp_"),
        ("-----BEGIN RSA PRIVATE KEY-----", "private key ----"),
        ("4111 1111 1111 1111.", "card number 4111"),
        ("3782-822463-10005", "card number 3782"),
    ],
)
def test_secrets_are_found_and_shown_masked(tmp_path: Path, text: str, kind: str) -> None:
    outcome = audit(tmp_path, [pair("What was it?", f"It was: {text}")])
    item = outcome.evidence("secrets")
    assert (item.value, item.verdict) == (1, "warn")
    assert f"({kind}******** at character " in item.detail
    assert text not in (tmp_path / "out" / "data" / "audit.json").read_text()


def test_the_repair_of_mojibake_is_offered(tmp_path: Path) -> None:
    detail = audit(tmp_path, [pair("Was?", "Die BÃ¼cherei")]).evidence("mojibake").detail
    assert '("Die BÃ¼cherei" should read "Die Bücherei")' in detail


@pytest.mark.parametrize(
    ("check", "level", "verdict"),
    [
        ("ellipsis_targets", "warn", "warn"),
        ("ellipsis_targets", "gate", "fail"),
        ("duplicate_rows", "gate", "fail"),
        ("duplicate_rows", "warn", "warn"),
    ],
)
def test_the_recipe_sets_the_level_of_a_check(tmp_path: Path, check: str, level: str, verdict: str) -> None:
    rows = [pair("Why?", "Because..."), pair("Why?", "Because...")]
    assert audit(tmp_path, rows, audit={check: level}).evidence(check).verdict == verdict


def test_a_check_that_is_off_is_left_out(tmp_path: Path) -> None:
    outcome = audit(tmp_path, [pair("Why?", "Because...")], audit={"ellipsis_targets": "off"})
    assert "ellipsis_targets" not in [item.name for item in outcome.result.evidence]


def test_an_unknown_check_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unknown check 'elipsis_target'; expected 'ellipsis_targets'"):
        audit(tmp_path, [], audit={"elipsis_target": "off"})


def test_turns_that_are_not_trained_are_no_targets(tmp_path: Path) -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "cut...", "train": False},
        {"role": "user", "content": "Second?"},
        {"role": "assistant", "content": "A whole answer."},
    ]
    assert audit(tmp_path, [{"messages": turns}]).evidence("ellipsis_targets").value == 0.0
    del turns[1]["train"]
    (tmp_path / "trained").mkdir()
    assert audit(tmp_path / "trained", [{"messages": turns}]).evidence("ellipsis_targets").verdict == "fail"

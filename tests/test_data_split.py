import random
from pathlib import Path

import pytest

from data_rows import NOUNS, Outcome, good_pairs, pair, run_data, write_rows
from tunewright.errors import DataError, RecipeError, UsageError


def eval_rows(outcome: Outcome) -> set[str]:
    return {line["sha256"] for line in outcome.lines("ledger.jsonl") if line["split"] == "eval"}


@pytest.mark.parametrize(("rows", "held_out"), [(9, 0), (10, 1), (19, 1), (40, 4)])
def test_one_row_in_ten_is_held_out(tmp_path: Path, rows: int, held_out: int) -> None:
    outcome = run_data(tmp_path, [write_rows(tmp_path / "rows.jsonl", good_pairs(rows))])
    assert (outcome.facts["train_rows"], outcome.facts["eval_rows"]) == (rows - held_out, held_out)
    assert outcome.facts["held_out_by"] == "split"
    assert outcome.evidence("held_out_rows").verdict == ("pass" if held_out else "warn")


def test_at_most_two_hundred_rows_are_held_out(tmp_path: Path) -> None:
    rows = [pair(f"{noun} {number}", f"{number}-{noun}") for noun in NOUNS for number in range(200)]
    assert run_data(tmp_path, [write_rows(tmp_path / "rows.jsonl", rows)]).facts["eval_rows"] == 200


def test_the_seed_decides_who_is_held_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", good_pairs(60))
    chosen = []
    for number, seed in enumerate((1, 1, 2)):
        (tmp_path / str(number)).mkdir()
        chosen.append(eval_rows(run_data(tmp_path / str(number), [path], seed=seed)))
    assert chosen[0] == chosen[1] != chosen[2]


def test_duplicates_and_near_duplicates_fall_on_one_side(tmp_path: Path) -> None:
    rng = random.Random(0)  # noqa: S311
    rows = []
    for _ in range(20):
        words = [rng.choice("abcdefghijklmnopqrstuvwxyz") * rng.randint(2, 9) for _ in range(40)]
        rows += [pair(" ".join(words), "x"), pair(" ".join(words), "x"), pair(" ".join([*words[:-1], "other"]), "y")]
    outcome = run_data(tmp_path, [write_rows(tmp_path / "rows.jsonl", rows)], eval_rows=9)
    sides = [line["split"] for line in outcome.lines("ledger.jsonl")]
    assert all(len(set(sides[n : n + 3])) == 1 for n in range(0, 60, 3))
    assert sides.count("eval") == 9
    assert outcome.evidence("leakage").verdict == "pass"


def test_rows_too_much_alike_to_part_are_not_held_out_and_that_is_said(tmp_path: Path) -> None:
    rows = [pair("Write a poem.", f"Poem {number}") for number in range(30)]
    outcome = run_data(tmp_path, [write_rows(tmp_path / "rows.jsonl", rows)])
    assert outcome.facts["eval_rows"] == 0
    item = outcome.evidence("held_out_rows")
    assert (item.verdict, item.limit) == ("warn", ">= 3")
    assert "too much alike" in item.detail


def test_files_of_eval_data_are_held_out_whole(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    train = write_rows(tmp_path / "rows.jsonl", good_pairs(40)[:30])
    held_out = write_rows(tmp_path / "eval" / "rows.jsonl", good_pairs(40)[30:])
    outcome = run_data(tmp_path, [train], eval_data=[str(held_out)])
    assert outcome.facts["held_out_by"] == "eval_data"
    assert [line["id"] for line in outcome.lines("eval.jsonl")] == [f"eval/rows.jsonl:{n}" for n in range(1, 11)]
    assert outcome.facts["train_rows"] == 30


def test_eval_rows_must_leave_rows_to_train_on(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", good_pairs(8))
    with pytest.raises(UsageError, match="eval_rows: found 8; expected fewer than the 8 usable rows"):
        run_data(tmp_path, [path], eval_rows=8)


def test_eval_rows_beside_eval_data_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", good_pairs(8))
    with pytest.raises(RecipeError, match="set beside eval_data"):
        run_data(tmp_path, [path], eval_rows=2, eval_data=[str(path)])


def test_files_without_a_usable_row_are_refused_with_the_reasons(tmp_path: Path) -> None:
    good, bad = write_rows(tmp_path / "a.jsonl", good_pairs(8)), write_rows(tmp_path / "b.jsonl", [{"x": 1}])
    for train, held_out, key in ((bad, good, "data"), (good, bad, "eval_data")):
        with pytest.raises(DataError, match=f"^{key}: all 1 rows were rejected\n  b.jsonl:1: unknown shape"):
            run_data(tmp_path, [train], eval_data=[str(held_out)])

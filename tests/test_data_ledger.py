import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_rows import accounts_of, good_pairs, pair, run_data, write_rows
from tunewright.data.account import Account
from tunewright.data.ledger import Totals, ledger_line, validate_balance
from tunewright.data.spool import PER_ROW, Spool
from tunewright.errors import DataError

LINES = st.one_of(
    st.sampled_from(
        [
            '{"prompt": "a", "completion": "b"}',
            '{"prompt": "a", "completion": 3}',
            '{"prompt": "a", "completion": null}',
            '{"messages": [{"role": "user", "content": "a"}, {"role": "model", "content": "b"}]}',
            '{"prompt": "a"',
            '{"x": NaN}',
            "",
            "  ",
        ]
    ),
    st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(LINES))
def test_every_row_that_is_not_blank_has_one_account(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    content = "\n".join(['{"first": 1}', *lines]).encode()
    path.write_bytes(content)
    accounts = accounts_of(path)
    raw_lines = [line for line in content.split(b"\n") if line.strip()]
    assert [account.row.record.raw for account in accounts] == [line.rstrip(b"\r") for line in raw_lines]
    assert all((account.fault is None) == (account.fate != "rejected") for account in accounts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(LINES, max_size=8), LINES, st.data())
def test_a_row_more_changes_the_account_of_no_other(
    tmp_path: Path, lines: list[str], added: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(lines)))

    def accounts(rows: list[str]) -> list[tuple[str, Any]]:
        path = tmp_path / "rows.jsonl"
        path.write_bytes("\n".join(['{"first": 1}', *rows, '{"last": 1}']).encode())
        places = {"row", "line", "byte_offset"}
        return [
            (account.row.sha256, {key: value for key, value in account.as_json().items() if key not in places})
            for account in accounts_of(path)
        ]

    with_it, without_it = accounts([*lines[:place], added, *lines[place:]]), accounts(lines)
    before = sum(bool(line.encode().strip()) for line in lines[:place]) + 1  # A line of nothing but "\x1f" is a row.
    assert with_it[:before] == without_it[:before]
    assert with_it[len(with_it) - len(without_it) + before :] == without_it[before:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.permutations(range(12)))
def test_the_order_of_rows_changes_neither_their_fate_nor_their_side(tmp_path: Path, order: list[int]) -> None:
    rows = [*good_pairs(10), pair("a", 3), pair("a", None)]

    def fates(directory: Path, numbers: list[int]) -> dict[str, tuple[str, str]]:
        path = write_rows(tmp_path / "rows.jsonl", [rows[number] for number in numbers])
        lines = run_data(directory, [path]).lines("ledger.jsonl")
        (directory / "out").rename(directory / f"done-{len(list(directory.iterdir()))}")
        return {line["sha256"]: (line["fate"], line["split"]) for line in lines}

    assert fates(tmp_path, order) == fates(tmp_path, list(range(12)))


def totals_of(accounts: list[Account]) -> Totals:
    totals = Totals()
    for account in accounts:
        totals.add(account, source=0)
    return totals


def test_a_row_that_comes_twice_or_out_of_order_stops(tmp_path: Path) -> None:
    first, second, third = accounts_of(write_rows(tmp_path / "rows.jsonl", good_pairs(3)))
    for accounts in ([first, first], [first, third, second]):
        with pytest.raises(DataError, match="expected every row once, in order"):
            totals_of(accounts)
    merged = totals_of([first, second])
    with pytest.raises(DataError, match="expected every row once, in order"):
        merged.merge(totals_of([second, third]))


def test_a_ledger_with_a_line_too_few_stops(tmp_path: Path) -> None:
    accounts = accounts_of(write_rows(tmp_path / "rows.jsonl", good_pairs(3)))
    with Spool(tmp_path) as spool:
        counts = np.ones(2, dtype=np.uint16)
        spool.append(b"".join(map(ledger_line, accounts[:2])), b"", {"key": counts[:0], PER_ROW: counts})
        spool.flush()
        validate_balance(totals_of(accounts[:2]), spool)
        with pytest.raises(DataError, match="3 rows were read"):
            validate_balance(totals_of(accounts), spool)


def test_the_ledger_says_everything_about_each_row(tmp_path: Path) -> None:
    rows = [*good_pairs(9), pair("How many?", 3), pair("How many?", None)]
    outcome = run_data(tmp_path, [write_rows(tmp_path / "rows.jsonl", rows)], eval_rows=0)
    lines = outcome.lines("ledger.jsonl")
    assert [line["fate"] for line in lines] == [*["kept"] * 9, "repaired", "rejected"]
    raw = (tmp_path / "rows.jsonl").read_bytes().splitlines()
    assert [line["byte_offset"] for line in lines] == [sum(len(r) + 1 for r in raw[:n]) for n in range(11)]
    assert {key: lines[9][key] for key in lines[9] if key not in {"sha256", "byte_offset"}} == {
        "row": "rows.jsonl:10",
        "file": "rows.jsonl",
        "line": 10,
        "split": "train",
        "fate": "repaired",
        "format": "prompt_completion",
        "repairs": [{"what": "number written as JSON text", "where": "completion"}],
        "reason": None,
        "field": None,
        "system_prompt": "none",
        "uncertain": None,
        "conversations": 1,
    }
    assert {key: lines[10][key] for key in ("split", "reason", "field", "system_prompt")} == {
        "split": None,
        "reason": "empty content: completion of the assistant is null",
        "field": "completion",
        "system_prompt": None,
    }
    assert outcome.facts["rows_in"] == 11
    assert outcome.facts["repairs"] == {"number written as JSON text": 1}
    assert outcome.facts["rejections"] == {"empty content": 1}
    assert outcome.facts["formats"] == {"prompt_completion": 11}


def with_system(text: str | None) -> dict[str, Any]:
    return {**good_pairs(1)[0], "system": text} if text else good_pairs(1)[0]


@pytest.mark.parametrize(
    ("keys", "counts", "systems", "shared"),
    [
        ({}, (1, 0, 2), ["Own.", None, None], None),
        ({"system_prompt": "R."}, (1, 2, 0), ["Own.", "R.", "R."], None),
        ({"system_prompt": "R.", "system_prompt_for": "all"}, (0, 3, 0), ["R.", "R.", "R."], "R."),
        ({"system_prompt": "Own."}, (1, 2, 0), ["Own.", "Own.", "Own."], "Own."),
    ],
)
def test_the_system_prompt_is_the_rows_or_the_recipes(
    tmp_path: Path, keys: dict[str, str], counts: tuple[int, int, int], systems: list[str | None], shared: str | None
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [with_system("Own."), with_system(None), with_system("")])
    outcome = run_data(tmp_path, [path], **keys)
    assert outcome.facts["system_prompts"] == dict(zip(("row", "recipe", "none"), counts, strict=True))
    assert outcome.facts["shared_system_prompt"] == shared
    first = [line["messages"][0] for line in outcome.lines("train.jsonl")]
    assert [message["content"] if message["role"] == "system" else None for message in first] == systems


def test_a_replaced_system_prompt_is_a_repair_and_an_added_one_is_not(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [with_system("Own."), with_system(None), with_system("R.")])
    outcome = run_data(tmp_path, [path], system_prompt="R.", system_prompt_for="all")
    assert [line["fate"] for line in outcome.lines("ledger.jsonl")] == ["repaired", "kept", "kept"]
    assert outcome.facts["repairs"] == {"system prompt replaced": 1}


def test_stop_counts_all_bad_rows_and_shows_the_first_twenty(tmp_path: Path) -> None:
    rows = [*good_pairs(2), *[pair("How many?", None)] * 24, ["x"]]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        run_data(tmp_path, [path], on_bad_row="stop")
    message = str(caught.value)
    assert message.startswith("data: 25 of 27 rows cannot be used\n  rows.jsonl:3: empty content: completion of the")
    assert message.count("\n  rows.jsonl:") == 20
    assert "\n  and 5 more\nIn all: 24 × empty content, 1 × unknown shape." in message
    assert message.endswith("pass --on-bad-row reject to leave them out.")
    assert not (tmp_path / "out").exists()


def test_a_ledger_line_is_json_even_where_a_key_is_half_a_surrogate_pair(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*map(json.dumps, good_pairs(3)), '{"\\ud800": 1}', '{"\\ud800": 1, "\\ud800": 2}']))
    reasons = [line["reason"] for line in run_data(tmp_path, [path]).lines("ledger.jsonl")[3:]]
    assert reasons[0].startswith(r"unknown shape: found the keys '\ud800'; expected")
    assert reasons[1] == r"duplicate key: the key '\ud800' appears twice in one object"

"""The command `render` on plain rows: its JSON contract, what it shows, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_rows import good_pairs, pair, write_rows
from test_cli import message_of, tunewright
from tunewright.data.read import read_all_blocks
from tunewright.masks import work
from tunewright.masks.request import job_for
from tunewright.masks.show import LEARNED, LEARNED_SPECIAL, PLAIN, SPECIAL, row_text
from tunewright.models.base import load_tokenizer
from tunewright.parallel import Workers
from tunewright.targets import recipe_for


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", [*good_pairs(3), pair("What?", None)])


@pytest.fixture(scope="module")
def printed(rows: Path, tiny_base: Path) -> list[dict[str, Any]]:
    result = tunewright("render", rows, "--tokenizer", tiny_base, "--json")
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_json_has_one_object_a_line_with_the_keys_of_the_contract(printed: list[dict[str, Any]]) -> None:
    assert [list(row) for row in printed[:3]] == [["row", "text", "input_ids", "assistant_mask", "proof"]] * 3
    assert printed[3] == {
        "row": "rows.jsonl:4",
        "refused": printed[3]["refused"],
        "claim": "data",
    }
    assert printed[3]["refused"].startswith("empty content")
    for row in printed[:3]:
        assert len(row["assistant_mask"]) == len(row["input_ids"])
        assert set(row["assistant_mask"]) == {0, 1}
        assert [row["proof"][claim]["verdict"] for claim in "abcdef"] == ["proven"] * 6


def test_what_is_learned_is_the_answer_and_its_end_of_turn(printed: list[dict[str, Any]], tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    for row, given in zip(printed, good_pairs(3), strict=False):
        learned = [token for token, mask in zip(row["input_ids"], row["assistant_mask"], strict=True) if mask]
        answer, end = tokenizer.decode(learned[:-1]), tokenizer.convert_ids_to_tokens(learned[-1])
        assert (answer, end) == (given["completion"], "<|im_end|>")
        assert tokenizer.decode(row["input_ids"]) == row["text"]


def test_several_processes_give_the_same_lines(rows: Path, tiny_base: Path) -> None:
    job = job_for(recipe_for([str(rows)], {}), tiny_base, None)
    with Workers(0, work.start, (job,), work.PRELOAD) as alone, Workers(2, work.start, (job,), work.PRELOAD) as two:
        blocks = list(read_all_blocks(job.sources)) * 3
        assert list(two.map(work.prove_block, blocks)) == list(alone.map(work.prove_block, blocks))


def test_the_terminal_tells_learned_and_special_tokens_apart(printed: list[dict[str, Any]], tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    shown = row_text(printed[0], tokenizer)
    styles = {str(span.style): shown.plain[span.start : span.end] for span in shown.spans}
    assert {LEARNED, LEARNED_SPECIAL, PLAIN, SPECIAL} <= styles.keys()
    assert styles[LEARNED] == good_pairs(1)[0]["completion"]
    assert styles[LEARNED_SPECIAL] == "<|im_end|>"
    assert row_text(printed[3], tokenizer).plain.startswith("rows.jsonl:4\nrefused: empty content")


def test_rows_beyond_those_shown_are_counted(rows: Path, tiny_base: Path) -> None:
    shown = tunewright("render", rows, "--model", tiny_base, "--rows", "1").stdout
    assert "rows.jsonl:1 " in shown
    assert "rows.jsonl:2 " not in shown
    assert "3 rows proven, 1 refused." in shown


def test_a_template_of_ones_own_takes_the_place_of_the_tokenizers(rows: Path, tiny_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        encoding="utf-8",
    )
    result = tunewright("render", rows, "--tokenizer", tiny_base, "--template", path, "--json")
    assert json.loads(result.stdout.splitlines()[0])["text"].startswith("user: ")


def test_what_makes_no_sense_is_refused(rows: Path, tiny_base: Path, tmp_path: Path) -> None:
    assert "there is no tokenizer in it" in message_of(tunewright("render", rows, "--tokenizer", tmp_path), 2)
    both = tunewright("render", rows, "--tokenizer", tiny_base, "--model", tiny_base)
    assert "--model and --tokenizer were given" in message_of(both, 2)
    assert "the file does not exist" in message_of(tunewright("render", tmp_path / "no.jsonl", "-m", tiny_base), 2)

"""What `check` shows to people: the terminal and the page; and what a base adds to both."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_rows import good_pairs, pair, write_rows
from test_check import evidence_of
from test_cli import tunewright
from test_report_page import Outline
from tiny_rows import tiny_rows
from tunewright.check.look import look
from tunewright.check.page import render_page
from tunewright.events import Events
from tunewright.targets import recipe_for


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [*good_pairs(40), pair("How is Ann?", "She says..."), pair("<script>alert(1)</script>", {"a": 1}), {"no": 1}]
    rows += [pair("Whose card?", "The number is 4111 1111 1111 1111.")]
    return write_rows(tmp_path_factory.mktemp("faulty") / "rows.jsonl", rows)


@pytest.fixture(scope="module")
def shown(faulty: Path) -> str:
    result = tunewright("check", faulty, "--html", faulty.with_name("page.html"))
    assert result.returncode == 3
    return result.stdout


def test_terminal_output_is_plain_text_of_eighty_columns_where_there_is_no_terminal(shown: str) -> None:
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert not re.search(r" $", shown, re.MULTILINE)


def test_terminal_says_what_was_read_and_what_became_of_it(shown: str) -> None:
    words = " ".join(shown.split())
    assert "44 rows in 43 kept 1 of the kept ones repaired 1 × object written as JSON text rows.jsonl:42" in words
    assert "0 truncated 1 rejected" in words
    assert "System prompts: 0 from the row, 0 from the recipe, 43 none." in words


def test_terminal_shows_the_worst_first_with_figure_limit_row_and_what_to_do(shown: str) -> None:
    found = shown[shown.index("What was found, worst first") :]
    assert found.index("✗ ellipsis_targets = 0.0233 (limit ≤ 0.01)") < found.index("! rejected_rows = 1 (limit = 0)")
    assert 'rows.jsonl:41: ends in "She says..."' in found
    assert "→ The model would learn to break off" in found


def test_terminal_ends_with_the_verdict(shown: str) -> None:
    assert shown[shown.rindex("✗") :].startswith("✗ 1 gate failed and ")


def test_page_loads_nothing_and_escapes_the_rows(shown: str, faulty: Path) -> None:
    html = faulty.with_name("page.html").read_text(encoding="utf-8")
    page = Outline(html)
    assert not {"link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    assert page.attribute("src") == []
    assert all(link.startswith("#") for link in page.attribute("href"))
    assert html.count("<script>") == 1
    assert "<script>alert(1)" not in html
    sections = re.findall(r'<section id="(\w+)"', html)
    assert sections == ["files", "fates", "findings", "rows"]


def test_page_shows_the_rows_that_the_findings_name_but_no_secret(shown: str, faulty: Path) -> None:
    html = faulty.with_name("page.html").read_text(encoding="utf-8")
    assert '<code>rows.jsonl:41</code> <span class="aside">ellipsis_targets' in html
    assert "4111 1111" not in html
    assert "1 not shown here, because of what looks like a secret in them." in html


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("tiny") / "rows.jsonl", tiny_rows()[:30])


def looked(path: Path, base: Path, **overrides: Any) -> dict[str, Any]:
    """What `--json` says with a base, found in this process."""
    recipe = recipe_for([str(path)], {"model": str(base), "on_bad_row": "reject", **overrides})
    with look(recipe, None, Events()) as found:
        return found.outcome.as_json()


def test_a_base_adds_lengths_and_what_a_limit_would_cut(tiny_base: Path, tiny_data: Path) -> None:
    whole = looked(tiny_data, tiny_base)
    lengths = whole["lengths"]
    assert list(lengths) == [
        *("rows", "longest", "percentiles", "max_length", "max_length_from", "context", "would_cut"),
        "smallest_that_cuts_nothing",
    ]
    assert list(lengths["percentiles"]) == ["50", "90", "95", "99"]
    assert lengths["max_length"] == lengths["longest"] == lengths["smallest_that_cuts_nothing"]
    assert lengths["would_cut"] == {"rows": 0, "tokens": 0, "supervised_tokens": 0, "supervised_share": 0.0}
    assert evidence_of(whole, "rows_without_mask_proof")["verdict"] == "pass"


def test_truncated_rows_are_counted_apart_from_the_kept(tiny_base: Path, tiny_data: Path) -> None:
    limit = looked(tiny_data, tiny_base)["lengths"]["longest"] - 2
    found = looked(tiny_data, tiny_base, max_length=limit, on_long_row="truncate")
    assert found["truncated"] > 0
    assert found["kept"] + found["truncated"] + found["rejected"] == found["rows_in"] == 30
    assert found["lengths"]["would_cut"]["rows"] >= found["truncated"]
    assert len(evidence_of(found, "truncated_rows")["rows"]) == found["truncated"]
    rejecting = looked(tiny_data, tiny_base, max_length=limit)
    assert rejecting["rejections"] == {"too long": rejecting["rejected"]}


def test_a_gate_of_the_data_does_not_keep_the_tokens_from_being_counted(tiny_base: Path, tmp_path: Path) -> None:
    rows = [*tiny_rows()[:30], pair("How is the hen?", "She is in the..."), pair("And the cat?", "He is at the...")]
    found = looked(write_rows(tmp_path / "r.jsonl", rows), tiny_base)
    assert evidence_of(found, "ellipsis_targets")["verdict"] == "fail"
    assert found["lengths"]["rows"] == 32


def test_page_shows_the_mask_and_the_lengths_where_a_base_is_named(tiny_base: Path, tiny_data: Path) -> None:
    with look(recipe_for([str(tiny_data)], {"model": str(tiny_base)}), None, Events()) as found:
        html = render_page(found, "today")
    Outline(html)
    assert re.findall(r'<section id="(\w+)"', html) == ["files", "fates", "findings", "lengths", "rows"]
    masked = html.split('class="masked"')[1]
    learned = re.sub("<[^>]+>", "", "".join(re.findall("<mark>(.*?)</mark>", masked, re.DOTALL)))
    rows = [json.loads(line) for line in tiny_data.read_text().splitlines()]
    answers = {f"{row['messages'][1]['content']}&lt;|im_end|&gt;" for row in rows}
    assert learned in answers

"""The review of answers over the network, and the new file at its end."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs_bench import wait_until
from review_rows import chat, lines_of, review_of, written
from test_web_pages import HOSTILE, read, words
from tunewright.artifacts import write_json
from tunewright.errors import JobError, JobNotFoundError, UsageError
from tunewright.recipe import Recipe
from tunewright.web.looks import Look
from tunewright.web.review.finish import finish
from tunewright.web.review.process import chosen
from tunewright.web.review.reviews import Review, Reviews
from web_bench import Site, site_of


@pytest.fixture
def site(tmp_path: Path) -> Site:
    found = site_of(tmp_path)
    found.board.update()
    return found


@pytest.fixture
def review(tmp_path: Path) -> Review:
    return review_of(tmp_path, lines_of([chat(number) for number in range(1, 6)]))


# The end


def test_what_is_kept_is_byte_for_byte_and_what_is_edited_keeps_its_other_values(tmp_path: Path) -> None:
    kept = '{ "prompt":"a", "completion" : "b", "id": 1e2, "big": 12345678901234567890123 }'
    edited = '{"prompt":"\\u00e4","completion":"b","score":0.10,"odd":"\\ud800","list":[1.0,{"x":null}]}'
    review = review_of(tmp_path, f"{kept}\n{edited}\n")
    review.decide(2, "accept", 0, "c")
    assert written(review) == [
        kept, '{"prompt": "ä", "completion": "c", "score": 0.10, "odd": "\\ud800", "list": [1.0, {"x": null}]}',
    ]  # fmt: skip


def test_finish_says_exactly_what_became_of_the_rows(tmp_path: Path) -> None:
    rows = [*(chat(number) for number in range(1, 7)), {"text": "no roles"}]
    review = review_of(tmp_path, lines_of(rows) + "{broken\n")
    for row, wish in ((1, "accept"), (2, "accept"), (3, "reject")):
        review.decide(row, wish, 0)  # type: ignore[arg-type]
    review.decide(4, "accept", 0, '{"kind": "wish", "id": 4}')
    private = tmp_path / ".service"
    for keep, left in ((True, 6), (False, 3)):
        found = finish(Reviews(private), review.facts.id, private / "files", keep)
        counts = [found.accepted, found.edited, found.rejected, found.undecided, found.unreadable]
        assert (counts, found.rows, found.kept_undecided) == ([2, 1, 1, 3, 1], left, keep)
        assert len(Path(found.path).read_bytes().splitlines()) == left
        assert Path(found.path) == private / "files" / found.sha256 / "rows.jsonl"


def test_a_review_in_which_nothing_stays_makes_no_file(review: Review) -> None:
    private = review.directory.parents[1]
    with pytest.raises(JobError, match="no row would be left"):
        finish(Reviews(private), review.facts.id, private / "files", keep_undecided=False)
    assert list((private / "files").iterdir()) == []


EDITS = st.sampled_from(['{"kind": "bug", "id": 0}', "{}", "plain", "ä\u2028\ttab", '{"kind": 1, "id": 1e400}'])
STEPS = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from(["accept", "reject", "undo", "edit"]), EDITS), max_size=12
)


@given(STEPS, st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_decided_the_new_file_has_exactly_that(
    review: Review, steps: list[tuple[int, str, str]], keep: bool
) -> None:
    review.journal.path.unlink(missing_ok=True)
    review = Review(review.directory)
    stacks: dict[int, list[str | None]] = {row: [] for row in range(1, 6)}
    for row, wish, text in steps:
        if wish == "undo" and not stacks[row]:
            continue
        version = review.journal.version(row)
        if wish == "undo":
            review.decide(row, "undo", version)
            stacks[row].pop()
        elif wish == "edit":
            review.decide(row, "accept", version, text, anyway=True)
            stacks[row].append(text)
        else:
            review.decide(row, "accept" if wish == "accept" else "reject", version)
            stacks[row].append(
                None if wish == "reject" else json.loads(lines_of([chat(row)]))["messages"][1]["content"]
            )
    expected = []
    for row, stack in stacks.items():
        if stack and stack[-1] is not None:
            expected.append(
                {**chat(row), "messages": [chat(row)["messages"][0], {"role": "assistant", "content": stack[-1]}]}
            )
        elif not stack and keep:
            expected.append(chat(row))
    review = Review(review.directory)
    if not expected:
        with pytest.raises(JobError, match="no row would be left"):
            written(review, keep)
    else:
        assert [json.loads(line) for line in written(review, keep)] == expected


# Over the network


def decide(site: Site, review: Review, row: int, **body: Any) -> Any:
    return site.ask("POST", f"/api/v1/reviews/{review.facts.id}/rows/{row}/decisions", json=body)


def test_the_api_lists_reads_decides_and_finishes(site: Site, review: Review) -> None:
    base = f"/api/v1/reviews/{review.facts.id}"
    assert [one["id"] for one in site.ask("GET", "/api/v1/reviews").json()] == [review.facts.id]
    row = site.ask("GET", f"{base}/rows/2").json()
    assert (row["answer"], row["version"], row["is_object"]) == ('{"kind": "bug", "id": 2}', 0, True)
    assert (row["previous"], row["next"], row["turns"][0]["text"]) == (1, 3, "Ticket 2")
    answer = decide(site, review, 2, decision="accept", version=0, text='{"kind": "wish", "id": 2}')
    assert (answer.status_code, answer.json()["state"]) == (201, "edited")
    assert decide(site, review, 2, decision="reject", version=0).status_code == 409
    assert decide(site, review, 9, decision="reject", version=0).status_code == 404
    assert decide(site, review, 1, decision="reject", version=0).json()["version"] == 1
    assert site.ask("GET", base).json()["decided"] == 2
    listed = site.ask("GET", f"{base}/rows?state=edited").json()
    assert (listed["total"], listed["rows"][0]["excerpt"]) == (1, '{"kind": "wish", "id": 2}')
    made = site.ask("POST", f"{base}/finish", json={"undecided": "leave out"})
    assert (made.status_code, made.json()["rows"]) == (201, 1)
    assert made.json()["path"] in read(site, f"/new?review={review.facts.id}")


def test_a_review_that_is_not_there_is_not_found_on_any_route(site: Site) -> None:
    base = f"/api/v1/reviews/{'0' * 32}"
    asked = [site.ask("GET", path) for path in (base, f"{base}/rows", f"{base}/rows/1", f"/reviews/{'0' * 32}/next")]
    asked.append(site.ask("POST", f"{base}/finish", json={"undecided": "keep"}))
    asked.append(site.ask("GET", f"/new?review={'0' * 32}"))
    assert {answer.status_code for answer in asked} == {404}
    with pytest.raises(JobNotFoundError), Reviews(site.store.private).held("../../etc"):
        pass


def test_from_a_check_to_its_rows(site: Site, tmp_path: Path) -> None:
    """The whole way, with both processes."""
    path = tmp_path / "rows.jsonl"
    path.write_text(lines_of([{"prompt": f"{HOSTILE} {number}", "completion": HOSTILE} for number in range(12)]))
    check = site.ask("POST", "/api/v1/checks", json={"recipe": {"data": str(path)}, "title": HOSTILE}).json()["id"]
    assert site.ask("POST", "/api/v1/reviews", json={"check": check}).status_code == 409
    wait_until(lambda: site.ask("GET", f"/api/v1/looks/{check}").json()["state"] == "done")
    assert f'data-body=\'{{"check": "{check}", "file": "rows.jsonl"}}\'' in read(site, f"/data/{check}")
    look = site.ask("POST", "/api/v1/reviews", json={"check": check, "file": "rows.jsonl"}).json()["id"]
    wait_until(lambda: site.ask("GET", f"/api/v1/looks/{look}").json()["state"] in {"done", "failed"})
    found = site.ask("GET", f"/api/v1/looks/{look}").json()
    assert (found["state"], found["problem"], found["result"]["rows"]) == ("done", "", 12)
    number = found["result"]["review"]
    assert f'data-go href="/reviews/{number}"' in read(site, f"/opening/{look}")
    assert f"/reviews/{number}" in read(site, "/data")
    html = read(site, f"/reviews/{number}?state=noted")
    assert "dominating target" in words(html)


def test_a_check_of_several_files_asks_which_one_is_meant(site: Site, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.jsonl", "two.jsonl")]
    for path in paths:
        path.write_text(lines_of([chat(1)]))
    look = Look(f"{0:013d}-00000000", "check", "", {}, 0.0, "done")
    directory = site.store.private / "looks" / look.id
    write_json(directory / "look.json", asdict(look))
    write_json(directory / "result.json", {"files": [{"file": path.name} for path in paths]})
    head = {"verdict": "pass", "glyph": "", "word": "", "sentence": "", "figures": []}
    write_json(directory / "head.json", head)
    html = read(site, f"/data/{look.id}")
    assert "<option>one.jsonl</option><option>two.jsonl</option>" in html
    recipe = Recipe(data=[str(path) for path in paths])
    assert chosen(recipe, "two.jsonl").path == paths[1]
    with pytest.raises(UsageError, match=r"names 2 files; expected one of one\.jsonl, two\.jsonl"):
        chosen(recipe, "")


PAGES = ("", "?state=accepted", "/rows/1", "/rows/3", "/finish")


@pytest.mark.parametrize("path", PAGES)
def test_a_review_shows_hostile_rows_as_words(site: Site, tmp_path: Path, path: str) -> None:
    hostile = f"</textarea></script>{HOSTILE}"
    rows = [{"prompt": hostile, "completion": hostile}, {"prompt": "a", "completion": '{"a": 1}'}, {hostile: hostile}]
    review = review_of(tmp_path, lines_of(rows), f"{HOSTILE}.jsonl")
    review.decide(1, "accept", 0, f"\n{hostile} edited")
    finish(Reviews(site.store.private), review.facts.id, site.store.private / "files", True)
    html = read(site, f"/reviews/{review.facts.id}{path}")
    assert "<img" not in html
    assert re.findall(r"<style|\sstyle=|<script(?![^>]*\bsrc=)", html) == []


def test_a_row_is_shown_with_its_answer_as_it_stands_and_what_can_be_done(site: Site, tmp_path: Path) -> None:
    review = review_of(tmp_path, lines_of([chat(1), chat(2), {"prompt": "a", "chosen": "b", "rejected": "c"}]))
    review.decide(1, "accept", 0, "\n{}", anyway=True)
    html = read(site, f"/reviews/{review.facts.id}/rows/1")
    assert re.search(r"<textarea[^>]*>\n\n\{\}</textarea>", html)
    assert "1 of 3 decided" in words(html)
    assert "Undo: row 1 edited" in words(html)
    assert '<label for="answer">' in html
    pair = read(site, f"/reviews/{review.facts.id}/rows/3")
    assert "<textarea" not in pair
    assert "The answer cannot be changed here; the row can be kept or rejected." in words(pair)
    following = site.ask("GET", f"/reviews/{review.facts.id}/next?after=3")
    assert (following.status_code, following.headers["location"]) == (303, f"/reviews/{review.facts.id}/rows/2")


def test_a_page_tells_of_a_decision_that_was_torn_off(site: Site, review: Review) -> None:
    review.decide(1, "reject", 0)
    with review.journal.path.open("ab") as file:
        file.write(b'{"number": 2')
    html = read(site, f"/reviews/{review.facts.id}")
    assert "1 of 5 decided" in words(html)
    assert "was torn off, and is not kept" in words(html)


def test_the_page_of_the_end_says_the_counts_and_leads_on(site: Site, review: Review) -> None:
    review.decide(1, "reject", 0)
    number = review.facts.id
    assert "4 rows are undecided" in words(read(site, f"/reviews/{number}/finish"))
    made = site.ask("POST", f"/api/v1/reviews/{number}/finish", json={"undecided": "keep"}).json()
    html = read(site, f"/reviews/{number}/finish")
    counts = "Of 5 rows: 0 kept as they are, 0 edited, 1 rejected, 4 undecided (kept as they were)."
    assert f"{counts} The new file has 4 rows." in words(html)
    assert f"/new?review={number}" in html
    assert made["path"] in html
    assert "further decisions" not in html
    decide(site, review, 2, decision="reject", version=0)
    assert "there were further decisions since then" in read(site, f"/reviews/{number}/finish")

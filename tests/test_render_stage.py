"""The render stage: what a row limit cuts and says so, the ledger's balance, and rows of several conversations."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from render_rows import Row, asked, conversation, run_render, write_data
from test_chat_supervise import THINKING_STRIPPED, with_template
from tunewright.artifacts import RunDirectory
from tunewright.chat.conversation import Conversation, Message
from tunewright.chat.files import conversation_line
from tunewright.chat.supervise import Supervisor
from tunewright.errors import RenderError
from tunewright.render.outcomes import fit, outcome_from_json
from tunewright.render.tally import Tally
from tunewright.render.work import Job, RenderedBlock, open_supervisor, render_block

# The tiny base's tokenizer has one token for each digit.
DIALOGUE = conversation(
    "rows.jsonl:7",
    ("system", "1111"),
    ("user", "2222222222"),
    ("assistant", "33333"),
    ("user", "44"),
    ("assistant", "5555555"),
)


@pytest.fixture(scope="module")
def supervisor(tiny_base: Path) -> Supervisor:
    return open_supervisor(Job(tiny_base, "tiny", 0, "stop"))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def length_of(supervisor: Supervisor, row: Conversation) -> int:
    return sum(len(each.ids) for each in supervisor.rows(row))


def lost(supervisor: Supervisor, row: Conversation, limit: int) -> dict[tuple[int | None, str], tuple[int, int, bool]]:
    _, outcome = fit(row, supervisor.rows(row), limit, "truncate")
    return {
        (entry["message"], entry["role"]): (entry["tokens"], entry["of"], entry["supervised"]) for entry in outcome.lost
    }


def test_each_lost_token_is_counted_to_its_message(supervisor: Supervisor) -> None:
    (row,) = supervisor.rows(DIALOGUE)
    total = len(row.ids)
    # The end of the text: seven digits, the end of turn, and the template's newline.
    assert lost(supervisor, DIALOGUE, total - 9) == {
        (4, "assistant"): (8, 8, True),
        (None, "template"): (1, total - 4 - 10 - 6 - 2 - 8, False),
    }
    assert lost(supervisor, DIALOGUE, total - 5) == {
        (4, "assistant"): (4, 8, True),
        (None, "template"): (1, total - 4 - 10 - 6 - 2 - 8, False),
    }
    assert lost(supervisor, DIALOGUE, total - 1) == {(None, "template"): (1, total - 30, False)}
    assert lost(supervisor, DIALOGUE, total) == {}


def test_a_cut_in_an_earlier_message_names_all_later_ones(supervisor: Supervisor) -> None:
    (row,) = supervisor.rows(DIALOGUE)
    limit = row.ids.tolist().index(supervisor.tokenizer.convert_tokens_to_ids("3")) + 2
    found = lost(supervisor, DIALOGUE, limit)
    assert list(found) == [(2, "assistant"), (3, "user"), (4, "assistant"), (None, "template")]
    assert found[2, "assistant"] == (4, 6, True)
    assert found[3, "user"] == (2, 2, False)
    assert sum(tokens for tokens, _, _ in found.values()) == len(row.ids) - limit


def test_a_message_that_reads_like_the_template_is_found_where_it_stands(supervisor: Supervisor) -> None:
    row = conversation("r:1", ("system", "system"), ("user", "user"), ("assistant", "11111"))
    places = supervisor.rows(row)[0].places
    assert places is not None
    text = supervisor.template.render(row.messages)
    spans = [span for span in places.messages if span]
    assert [text[start:end] for start, end in spans] == ["system", "user", "11111"]
    assert [text[start - 1] for start, _ in spans] == ["\n", "\n", "\n"]


def test_whitespace_around_a_message_belongs_to_it(supervisor: Supervisor) -> None:
    row = conversation("r:1", ("user", "  22  "), ("assistant", "3"))
    places = supervisor.rows(row)[0].places
    assert places is not None
    assert places.tokens_of(0) == len(supervisor.tokenizer("  22  ")["input_ids"])


TURNS = st.tuples(st.text("12 ab", min_size=1, max_size=8), st.text("34cd", min_size=1, max_size=8))


@settings(max_examples=30, deadline=None)
@given(turns=st.lists(TURNS, min_size=1, max_size=3), limit=st.integers(1, 80))
def test_kept_and_lost_tokens_are_all_tokens_and_none_is_learned_twice(
    supervisor: Supervisor, turns: list[tuple[str, str]], limit: int
) -> None:
    messages = [message for user, answer in turns for message in (("user", user), ("assistant", answer))]
    row = conversation("r:1", *messages)
    if not all(user.strip() for user, _ in turns):
        return
    (whole,) = supervisor.rows(row)
    kept, outcome = fit(row, [whole], limit, "truncate")
    if outcome.rejected:
        assert not whole.mask[:limit].any()
        assert kept == []
        return
    assert outcome.tokens + outcome.lost_tokens == len(whole.ids)
    assert kept[0].ids.tolist() == whole.ids[:limit].tolist()
    learned = sum(entry["tokens"] for entry in outcome.lost if entry["supervised"])
    assert outcome.supervised + learned >= int(whole.mask.sum())
    assert outcome == outcome_from_json(json.loads(json.dumps(outcome.as_json())))


def test_without_a_limit_the_longest_row_and_the_max_length_that_cuts_nothing_are_named(
    run: RunDirectory, tiny_base: Path, supervisor: Supervisor
) -> None:
    long = asked("rows.jsonl:2", "1" * 50, "2")
    write_data(run, [asked("rows.jsonl:1", "1", "2"), long], [asked("rows.jsonl:3", "3", "4")])
    outcome = run_render(run, tiny_base)
    longest = outcome.evidence("longest_row_tokens")
    assert longest.value == length_of(supervisor, long)
    assert f"The longest row, rows.jsonl:2, has {longest.value} tokens: max_length = {longest.value}" in longest.detail
    again = run_render(run, tiny_base, max_length=longest.value)
    assert again.evidence("rows_over_max_length").verdict == "pass"
    shorter = run_render(run, tiny_base, max_length=longest.value - 1)
    assert shorter.evidence("rows_over_max_length").value == 1


def test_rows_over_max_length_stop_the_run_and_the_figures_say_what_is_lost(
    run: RunDirectory, tiny_base: Path, supervisor: Supervisor
) -> None:
    short, long = asked("rows.jsonl:1", "1", "222"), asked("rows.jsonl:2", "1", "2" * 40)
    write_data(run, [short, long])
    outcome = run_render(run, tiny_base, max_length=length_of(supervisor, long) - 11)
    gate = outcome.evidence("rows_over_max_length")
    assert (gate.value, gate.verdict) == (1, "fail")
    assert "such as rows.jsonl:2. Raise max_length, or set on_long_row" in gate.detail
    assert outcome.evidence("tokens_over_max_length").value == 11
    # Nine digits and the end of turn, of three, forty and two ends of turn; the last token is the template's newline.
    assert outcome.evidence("supervised_share_over_max_length").value == round(10 / 45, 4)
    over = outcome.json("lengths.json")["over"]
    assert over == {
        "rows": 1,
        "tokens": 11,
        "supervised_tokens": 10,
        "supervised_share": 0.2222,
        "examples": ["rows.jsonl:2"],
    }


def test_long_rows_are_rejected_where_the_recipe_says_so(
    run: RunDirectory, tiny_base: Path, supervisor: Supervisor
) -> None:
    short, long = asked("rows.jsonl:1", "1", "2"), asked("rows.jsonl:2", "1" * 50, "2")
    limit = length_of(supervisor, short)
    write_data(run, [short, long])
    outcome = run_render(run, tiny_base, max_length=limit, on_long_row="reject")
    assert outcome.evidence("rows_over_max_length").verdict == "warn"
    kept, rejected = outcome.ledger
    assert (kept["fate"], kept["tokens"], kept["supervised_tokens"]) == ("kept", limit, 2)
    assert (rejected["fate"], rejected["tokens"]) == ("rejected", None)
    assert rejected["reason"] == f"too long: {length_of(supervisor, long)} tokens are more than {limit}"
    assert outcome.rows.lengths == [limit]
    assert outcome.json("index.json") == {"train": ["rows.jsonl:1"], "eval": []}


def test_a_truncated_row_says_in_the_ledger_what_it_lost(
    run: RunDirectory, tiny_base: Path, supervisor: Supervisor
) -> None:
    total = length_of(supervisor, DIALOGUE)
    write_data(run, [DIALOGUE], repaired=[DIALOGUE.id])
    outcome = run_render(run, tiny_base, max_length=total - 5, on_long_row="truncate")
    (line,) = outcome.ledger
    assert (line["fate"], line["lost_tokens"], line["tokens"]) == ("truncated", 5, total - 5)
    assert line["repairs"] == [{"what": "mended", "where": ""}]
    assert line["lost"] == [
        {"message": 4, "role": "assistant", "tokens": 4, "of": 8, "supervised": True},
        {"message": None, "role": "template", "tokens": 1, "of": total - 30, "supervised": False},
    ]
    assert outcome.evidence("truncated_rows").value == 1
    assert outcome.facts["fates"] == {"kept": 0, "repaired": 0, "truncated": 1, "rejected": 0}


def test_a_row_that_is_cut_before_its_answer_is_never_trained_on(run: RunDirectory, tiny_base: Path) -> None:
    write_data(run, [asked("rows.jsonl:1", "1", "2"), asked("rows.jsonl:2", "1" * 90, "2")])
    outcome = run_render(run, tiny_base, max_length=60, on_long_row="truncate")
    line = outcome.ledger[1]
    assert line["fate"] == "rejected"
    assert line["reason"].startswith("nothing left to learn: the first 60 of ")
    assert len(outcome.rows) == 1
    gate = outcome.evidence("rows_cut_before_their_answer")
    assert (gate.value, gate.verdict) == (1, "warn")
    assert "rows.jsonl:2: nothing left to learn" in gate.detail


def test_a_row_without_a_proof_is_rejected_with_its_reason(run: RunDirectory, tiny_base: Path) -> None:
    unlearned = Conversation("a#3.jsonl:2", (Message("user", "1"), Message("assistant", "2", train=False)))
    write_data(run, [asked("a#3.jsonl:1", "1", "2"), unlearned])
    outcome = run_render(run, tiny_base)
    assert outcome.ledger[1]["reason"].startswith("no proof: no assistant's turn is to be learned")
    assert outcome.evidence("rows_without_mask_proof").value == 1
    assert "a#3.jsonl:2: no proof: no assistant's turn" in outcome.evidence("rows_without_mask_proof").detail
    assert outcome.ledger[0]["tokens"] == outcome.rows.lengths[0], "a # in a file's name is no turn"


def test_no_row_left_is_an_error_that_names_the_first_reason(run: RunDirectory, tiny_base: Path) -> None:
    write_data(run, [asked("rows.jsonl:1", "1" * 50, "2")])
    with pytest.raises(
        RenderError, match=r"no row is left .* rows\.jsonl:1: too long: .*The longest row, rows\.jsonl:1"
    ):
        run_render(run, tiny_base, max_length=20)


def test_every_row_has_one_fate_and_one_line_in_the_order_of_the_input(run: RunDirectory, tiny_base: Path) -> None:
    rows: list[Row] = [
        asked("f:1", "1", "2"),
        "bad: not an object",
        asked("f:3", "1" * 90, "2"),
        asked("f:4", "1", "2" * 90),
    ]
    write_data(run, rows, [asked("g:1", "1", "2")], repaired=["f:1"])
    outcome = run_render(run, tiny_base, max_length=60, on_long_row="truncate")
    assert [line["fate"] for line in outcome.ledger] == ["repaired", "rejected", "rejected", "truncated", "kept"]
    assert outcome.ledger[1]["reason"] == "bad: not an object"
    assert outcome.facts["fates"] == {"kept": 1, "repaired": 1, "truncated": 1, "rejected": 2}
    balance = outcome.evidence("rows_accounted_for")
    assert (balance.value, balance.verdict) == (5, "pass")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda lines: lines[:-1], "f:2 of train has no line"),
        (lambda lines: [lines[1], lines[0]], "found f:1 in the place of f:2"),
        (lambda lines: [*lines, lines[1]], "f:2 has 1 conversations, 0 were rendered"),
    ],
    ids=["line missing", "order", "line doubled"],
)
def test_a_ledger_that_does_not_balance_stops_the_run(
    run: RunDirectory, tiny_base: Path, damage: Any, found: str
) -> None:
    write_data(run, [asked("f:1", "1", "2"), asked("f:2", "1", "2")])
    path = run / "data" / "ledger.jsonl"
    path.write_text("".join(damage(path.read_text().splitlines(keepends=True))))
    with pytest.raises(RenderError, match=found):
        run_render(run, tiny_base)


def test_a_rejected_row_missing_from_the_ledger_stops_the_run(run: RunDirectory, tiny_base: Path) -> None:
    write_data(run, [asked("f:1", "1", "2"), "bad: not an object"])
    path = run / "data" / "ledger.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(RenderError, match=r"2 rows came in and \{'kept': 1\} are accounted for"):
        run_render(run, tiny_base)


def test_a_row_of_several_conversations_has_one_line_with_their_sums(run: RunDirectory, tiny_base: Path) -> None:
    tree = [asked("f:1", "1", "2"), asked("f:1/2", "1", "333")]
    write_data(run, [tree, asked("f:2", "1", "2")])
    outcome = run_render(run, tiny_base)
    assert [(line["row"], line["fate"]) for line in outcome.ledger] == [("f:1", "kept"), ("f:2", "kept")]
    assert outcome.ledger[0]["tokens"] == sum(outcome.rows.lengths[:2])
    assert outcome.ledger[0]["supervised_tokens"] == 2 + 4
    assert outcome.json("index.json")["train"] == ["f:1", "f:1/2", "f:2"]


def test_a_row_that_loses_one_of_its_conversations_is_truncated_and_names_it(
    run: RunDirectory, tiny_base: Path
) -> None:
    whole, cut, gone = asked("f:1", "1", "2"), asked("f:1/2", "1", "2" * 90), asked("f:1/3", "1" * 90, "2")
    write_data(run, [[whole, cut, gone], [asked("f:2", "1" * 90, "2"), asked("f:2/2", "1" * 91, "2")]])
    outcome = run_render(run, tiny_base, max_length=60, on_long_row="truncate")
    first, second = outcome.ledger
    assert first["fate"] == "truncated"
    assert {entry["conversation"] for entry in first["lost"]} == {"f:1/2"}
    assert [entry["conversation"] for entry in first["rejected_conversations"]] == ["f:1/3"]
    assert first["rejected_conversations"][0]["reason"].startswith("nothing left to learn")
    assert second["fate"] == "rejected"
    assert [entry["conversation"] for entry in second["rejected_conversations"]] == ["f:2", "f:2/2"]


def test_turns_that_become_rows_of_their_own_lose_tokens_by_row(supervisor: Supervisor) -> None:
    stripping = with_template(supervisor, THINKING_STRIPPED)
    row = conversation("f#1:1", ("user", "1"), ("assistant", "<think>9</think>2"), ("user", "3"), ("assistant", "444"))
    first, second = stripping.rows(row)
    assert [(each.conversation, each.message, each.id) for each in (first, second)] == [
        ("f#1:1", 1, "f#1:1#1"),
        ("f#1:1", 3, "f#1:1#3"),
    ]
    kept, outcome = fit(row, [first, second], len(second.ids) - 3, "truncate")
    assert [each.id for each in kept] == ["f#1:1#1", "f#1:1#3"]
    assert {entry["row"] for entry in outcome.lost} == {"f#1:1#3"}
    alone, outcome = fit(row, [first, second], second.last_prompt_length, "truncate")
    assert [each.id for each in alone] == ["f#1:1#1"]
    assert outcome.lost_tokens == len(second.ids), "a row without a learned token is lost whole"


def test_a_system_prompt_that_takes_more_than_half_of_max_length_is_named(run: RunDirectory, tiny_base: Path) -> None:
    write_data(run, [asked("f:1", "1", "2", system="7"), asked("f:2", "1", "2", system="7" * 31)])
    outcome = run_render(run, tiny_base, max_length=60, on_long_row="reject")
    share = outcome.evidence("system_prompt_share")
    assert (share.value, share.limit, share.verdict) == (round(31 / 60, 4), "<= 0.5", "warn")
    assert "The largest system prompt, of f:2, has 31 tokens; max_length = 60." in share.detail
    assert "1 rows have more than half of their room taken, such as f:2." in share.detail
    assert outcome.json("lengths.json")["system_prompt"]["examples"] == ["f:2"]
    assert run_render(run, tiny_base, max_length=62).evidence("system_prompt_share").verdict == "pass"


def test_without_a_system_prompt_its_share_is_not_measured(run: RunDirectory, tiny_base: Path) -> None:
    write_data(run, [conversation("f:1", ("user", "1"), ("assistant", "2"))])
    assert "system_prompt_share" not in run_render(run, tiny_base).names


def test_the_first_rows_are_kept_as_segments_for_people(run: RunDirectory, tiny_base: Path) -> None:
    write_data(run, [asked(f"f:{number}", "1", str(number)) for number in range(1, 8)])
    examples = run_render(run, tiny_base).json("example_rows.json")
    assert [example["id"] for example in examples] == ["f:1", "f:2", "f:3", "f:4", "f:5"]
    segments = examples[1]["segments"]
    assert [segment["supervised"] for segment in segments] == [False, True, False]
    assert segments[1]["text"] == "2<|im_end|>"


LINES = [
    conversation_line(row).encode()
    for row in (
        DIALOGUE,
        asked("f:1", "1", "2"),
        asked("f:2", "1" * 60, "2"),
        asked("f:3", "1", "2" * 60, system="7" * 40),
        Conversation("f:4", (Message("user", "1"), Message("assistant", "2", train=False))),
    )
]


def merged(blocks: list[RenderedBlock]) -> Tally:
    tally = Tally()
    for block in blocks:
        tally.merge(block.tally)
    return tally


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(LINES), cuts=st.tuples(st.integers(0, 5), st.integers(0, 5)), limit=st.sampled_from([50, 70])
)
def test_how_rows_fall_into_blocks_changes_nothing(
    supervisor: Supervisor, order: list[bytes], cuts: tuple[int, int], limit: int
) -> None:
    first, second = sorted(cuts)
    parts = [order[:first], order[first:second], order[second:]]
    whole = render_block(order, supervisor, limit, "truncate")
    blocks = [render_block(part, supervisor, limit, "truncate") for part in parts]
    assert merged(blocks) == whole.tally
    assert [name for block in blocks for name in block.names] == whole.names
    assert [count for block in blocks for count in block.supervised] == whole.supervised
    assert [each for block in blocks for each in block.outcomes] == whole.outcomes
    assert b"".join(block.rows.ids.tobytes() for block in blocks) == whole.rows.ids.tobytes()


@pytest.mark.slow
def test_worker_processes_give_the_same_files(
    run: RunDirectory, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(run, [asked(f"f:{n}", "1" * (n % 90 + 1), str(n)) for n in range(300)], [DIALOGUE])

    def files(processes: int) -> dict[str, bytes]:
        monkeypatch.setattr("tunewright.render.work.processes_for", lambda *_: processes)
        monkeypatch.setattr("tunewright.render.stage.BLOCK_BYTES", 2000)
        outcome = run_render(run, tiny_base, max_length=100, on_long_row="truncate")
        return {path.name: path.read_bytes() for path in outcome.directory.iterdir()}

    assert files(0) == files(2)


def test_lengths_and_learned_tokens_are_listed_row_by_row(run: RunDirectory, tiny_base: Path) -> None:
    write_data(run, [asked("f:1", "1", "2"), asked("f:2", "1", "2345")], [asked("f:3", "1", "23")])
    outcome = run_render(run, tiny_base)
    lengths = outcome.json("lengths.json")
    assert lengths["train"] == outcome.rows.lengths
    assert lengths["eval"] == [lengths["train"][0] + 1]
    assert lengths["supervised"] == [2, 5]
    assert (lengths["max_length"], lengths["max_length_from"]) == (max(lengths["train"]), "longest row")

"""The checks of all rows together, on a corpus that is held in memory."""

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_rows import good_pairs
from tunewright.chat.conversation import Conversation, Message
from tunewright.data import groups as data_groups
from tunewright.data.audit import columns
from tunewright.data.audit.answers import check_target_diversity, differences
from tunewright.data.audit.findings import Finding
from tunewright.data.audit.language import language_of
from tunewright.data.audit.relations import COMPARED_AT_MOST, check_leakage
from tunewright.data.audit.rows import AuditRow
from tunewright.data.audit.run import RowChecks, audit
from tunewright.recipe import DataKeys

CONFIG = DataKeys(data=["rows.jsonl"])


@dataclass(frozen=True)
class Item:
    """A row, with the name of the cluster that its prompt is in."""

    prompt: str
    target: str
    system: str | None = None
    held_out: bool = False
    cluster: str | None = None


def number_of(text: str | None) -> int:
    return 0 if text is None else zlib.crc32(text.encode()) + 1


class SmallCorpus:
    """What `tunewright.data.corpus.Corpus` is, in memory; rows of one named cluster are alike if their prompts are."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.size = len(items)
        self.compared = 0

    def row(self, index: int) -> AuditRow:
        item = self.items[index]
        system = () if item.system is None else (Message("system", item.system),)
        turns = (*system, Message("user", item.prompt), Message("assistant", item.target))
        return AuditRow(Conversation(self.id(index), turns))

    def id(self, index: int) -> str:
        return f"rows.jsonl:{index + 1}"

    def column(self, name: str) -> NDArray[Any]:
        texts: dict[str, Any] = {
            "messages": lambda row: f"{row.context} {row.target}",
            "context": lambda row: str(row.context),
            "prompt": lambda row: row.prompt.casefold(),
            "target": lambda row: row.target,
            "system": lambda row: row.system,
            "schema": lambda row: row.schema,
        }
        numbers: dict[str, Any] = {
            "target_characters": lambda row: len(row.target),
            "target_language": lambda row: language_of(row.target),
            "prompt_language": lambda row: language_of(row.prompt),
        }
        rows = [self.row(index) for index in range(self.size)]
        if name in numbers:
            return np.array([numbers[name](row) for row in rows], dtype=np.uint32)
        return np.array([number_of(texts[name](row)) for row in rows], dtype=np.uint64)

    def is_eval(self) -> NDArray[np.bool_]:
        return np.array([item.held_out for item in self.items], dtype=np.bool_)

    def first_equal(self, column: str) -> NDArray[np.int32]:
        first: dict[int, int] = {}
        values = self.column(column).tolist()
        return np.array([n if not v else first.setdefault(v, n) for n, v in enumerate(values)], dtype=np.int32)

    def most_frequent(self, column: str) -> tuple[int, int]:
        counts = Counter(self.column(column).tolist())
        return max(counts.items(), key=lambda item: (item[1], -item[0]))

    def clusters(self) -> NDArray[np.int32]:
        first: dict[str, int] = {}
        names = (item.cluster or item.prompt.casefold() for item in self.items)
        return np.array([first.setdefault(name, n) for n, name in enumerate(names)], dtype=np.int32)

    def alike(self, left: int, right: int) -> bool:
        self.compared += 1
        return self.items[left].prompt[:5] == self.items[right].prompt[:5]


def findings(items: Sequence[Item], **levels: Any) -> dict[str, Finding]:
    corpus = SmallCorpus(items)
    checks = RowChecks(levels)
    for index in range(corpus.size):
        checks.look(corpus.row(index))
    config = DataKeys(data=["rows.jsonl"], audit=levels)
    return {finding.evidence.name: finding for finding in audit(checks.tally, corpus, config)}


def good(count: int) -> list[Item]:
    return [Item(row["prompt"], row["completion"], "You know the news.") for row in good_pairs(count)]


def with_targets(*targets: Any) -> list[Item]:
    texts = [target if isinstance(target, str) else json.dumps(target) for target in targets]
    return [Item(f"{number} {number * 7}?", text, "S") for number, text in enumerate(texts)]


def rows_of(finding: Finding) -> list[str]:
    return [example.row.removeprefix("rows.jsonl:") for example in finding.examples]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_groups, "ROWS_AT_A_TIME", 3)


def test_nothing_is_found_in_good_rows() -> None:
    assert [name for name, finding in findings(good(40)).items() if finding.evidence.verdict != "pass"] == []


def test_leakage_tells_word_for_word_and_whole_conversations() -> None:
    items = [*good(20), Item("Who?", "Me."), Item("Near one", "A."), Item("Far one", "B.", cluster="c")]
    held_out = [
        Item("who?", "Else.", held_out=True),
        Item("Who?", "Me.", held_out=True),
        Item("Near two", "A.", held_out=True, cluster="Near one".casefold()),
        Item("Unlike two", "B.", held_out=True, cluster="c"),
    ]
    found = findings(items + held_out)["leakage"]
    assert (found.evidence.verdict, found.evidence.value) == ("fail", 3)
    assert "(2 word for word, 1 with the same answer)" in found.evidence.detail
    assert rows_of(found) == ["24", "25", "26"]
    assert found.examples[2].excerpt == 'like rows.jsonl:22: "Near two"'


def test_a_held_out_row_is_compared_with_few_rows_of_its_cluster() -> None:
    items = [Item(f"Row {n % 100}", "A.", cluster="c") for n in range(300)]
    corpus = SmallCorpus([*items, Item("Other", "B.", held_out=True, cluster="c")])
    assert check_leakage(corpus, CONFIG).evidence.value == 0
    assert corpus.compared == COMPARED_AT_MOST


def test_prompts_of_the_same_words_are_not_near_but_the_same() -> None:
    items = [Item("Who are you?", "Me."), Item("who are you?", "Me too.")]
    found = findings([*good(20), *items])
    assert found["near_duplicate_prompts"].evidence.value == 0
    items = [Item("Who are you?", "Me.", cluster="c"), Item("Who are you now?", "Me too.", cluster="c")]
    near = findings([*good(20), *items])["near_duplicate_prompts"]
    assert [example.excerpt for example in near.examples] == [
        'like rows.jsonl:22: "Who are you?"',
        'like rows.jsonl:21: "Who are you now?"',
    ]


def test_answers_that_conflict_late_are_shown_where_they_part() -> None:
    begun = "The bus of Norby leaves from the harbour on every working day, and then at "
    items = [Item("When?", begun + "nine.", "S"), Item("When?", begun + "ten.", "S")]
    found = findings([*good(20), *items])["conflicting_answers"]
    assert [example.excerpt for example in found.examples] == [
        '"When?" is answered …"ng day, and then at nine."',
        '"When?" is answered …"ng day, and then at ten."',
    ]


def test_labels_want_eight_rows_each() -> None:
    items = [Item(f"Text {n} of {n * 7}", f"label_{n % 10}", "S") for n in range(60)]
    evidence = findings(items)["too_few_rows"].evidence
    assert (evidence.verdict, evidence.value, evidence.limit) == ("warn", 60, ">= 80")
    assert "with 10 labels to tell apart" in evidence.detail
    assert findings([*items, *(Item(f"{n}?", f"label_{n % 10}") for n in range(20))])[
        "too_few_rows"
    ].evidence.verdict == ("pass")


@pytest.mark.parametrize(("single", "verdict"), [(2, "pass"), (8, "warn"), (30, "pass")])
def test_single_words_are_a_fault_only_among_longer_answers(single: int, verdict: str) -> None:
    words = [Item(f"{n} {n * 7}?", f"Word{n}", "S") for n in range(single)]
    assert findings([*good(30), *words])["one_token_targets"].evidence.verdict == verdict


def test_single_words_are_no_fault_where_they_are_labels() -> None:
    items = [Item(f"{n}?", ("yes", "not at all", "not at all")[n % 3], "S") for n in range(30)]
    evidence = findings(items)["one_token_targets"].evidence
    assert (evidence.value, evidence.verdict) == (round(10 / 30, 4), "pass")
    assert evidence.detail.endswith("That is the task here.")


USUAL = {"a": "text", "b": 1, "c": ["x"], "d": {"e": "y"}}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({**USUAL, "b": "1"}, "b is text, elsewhere number"),
        ({**USUAL, "c": "x"}, "c is text, elsewhere a list"),
        ({**USUAL, "c": [1]}, "c[] is number, elsewhere text"),
        ({**USUAL, "d": {}}, "without d.e"),
        ({"a": "text", "f": 1}, "without b; without c; without d; with f"),
        ([USUAL], "it is a list, elsewhere an object"),
        ("text", "no JSON"),
    ],
)
def test_a_target_of_another_shape_says_how_it_differs(target: Any, said: str) -> None:
    found = findings(with_targets(*[USUAL] * 40, target))["schema_outliers"]
    assert (found.evidence.verdict, rows_of(found)) == ("fail", ["41"])
    assert found.examples[0].excerpt == said


@pytest.mark.parametrize("target", [{**USUAL, "a": None}, {**USUAL, "c": []}, {**USUAL, "a": ""}, {**USUAL, "b": 0.5}])
def test_an_empty_field_is_no_other_shape(target: Any) -> None:
    assert findings(with_targets(*[USUAL] * 40, target))["schema_outliers"].evidence.value == 0.0


def test_a_schema_that_recurs_is_a_second_task_and_no_outlier() -> None:
    evidence = findings(with_targets(*[USUAL] * 40, *[{"label": "x"}] * 10, {"else": 1}))["schema_outliers"].evidence
    assert (evidence.value, evidence.verdict) == (round(1 / 51, 4), "fail")
    assert "1 further shapes" in evidence.detail


def test_differences_go_through_lists_of_lists() -> None:
    assert list(differences([["text"]], [["number"]])) == ["[][] is text, elsewhere number"]
    assert list(differences([], ["text"])) == list(differences(["text"], [])) == []


def test_a_field_that_nearly_all_fill_is_missed_where_it_is_empty() -> None:
    filled = [{"a": f"text {n}", "often": "" if n % 2 else "x"} for n in range(60)]
    found = findings(with_targets(*filled, {"a": "", "often": "x"}, {"a": None, "often": ""}))["empty_fields"]
    assert (found.evidence.value, found.evidence.verdict) == (round(2 / 62, 4), "warn")
    assert "(2 × a)" in found.evidence.detail
    assert rows_of(found) == ["61", "62"]


ENGLISH = "The ferry of {} has a new owner, and everybody in the town is glad about it."
GERMAN = "Die Fähre von {} hat einen neuen Besitzer, und alle in der Stadt freuen sich darüber."


def test_answers_in_another_language_than_the_data_are_found() -> None:
    items = [Item(f"What is new in {n}?", ENGLISH.format(n), "S") for n in range(30)]
    odd = [
        Item("And there?", GERMAN.format("Norby"), "S"),
        Item("Say it in German.", GERMAN.format("Elling"), "S"),
        Item("And there?", GERMAN.format("Lerey"), "Your task is to translate."),
    ]
    found = findings([*items, *odd])["language_outliers"]
    assert (found.evidence.verdict, rows_of(found)) == ("warn", ["31"])
    assert found.examples[0].excerpt.startswith('German: "Die Fähre')
    assert "than the data, which is English" in found.evidence.detail


def test_where_the_data_has_two_languages_an_answer_is_held_to_its_prompt() -> None:
    english = [Item(f"Please tell me what is new with the ferry of {n}", ENGLISH.format(n), "S") for n in range(20)]
    german = [Item(f"Bitte sage mir, was es Neues von der Fähre {n} gibt", GERMAN.format(n), "S") for n in range(20)]
    odd = Item("Bitte sage mir, was es Neues vom Bus in Norby gibt", ENGLISH.format("Norby"), "S")
    found = findings([*english, *german, odd])["language_outliers"]
    assert rows_of(found) == ["41"]
    assert "than their prompt" in found.evidence.detail


def test_two_thousand_generic_rows_warn_of_little_to_learn() -> None:
    generic = (
        "Thank you for your message. We have read it with care and will come back to you about {} as soon as we can."
    )
    items = [Item(f"Question {n}", generic.format(f"case {n}")) for n in range(2000)]
    evidence = check_target_diversity(SmallCorpus(items), CONFIG).evidence
    assert (evidence.verdict, evidence.limit) == ("warn", ">= 0.05")
    assert isinstance(evidence.value, float)
    assert evidence.value < 0.05
    assert evidence.detail.startswith("2000 of 2000 targets differ; each says at most ")


def test_labels_are_no_sign_of_little_to_learn() -> None:
    items = [Item(f"Question {n}", "complaint" if n % 3 else "praise") for n in range(500)]
    evidence = check_target_diversity(SmallCorpus(items), CONFIG).evidence
    assert evidence.verdict == "pass"
    assert "They are 2 labels." in evidence.detail


def test_a_check_of_all_rows_can_be_off_or_a_gate() -> None:
    items = [*good(30), *good(1)]
    assert findings(items)["duplicate_rows"].evidence.verdict == "warn"
    assert findings(items, duplicate_rows="gate")["duplicate_rows"].evidence.verdict == "fail"
    assert "duplicate_rows" not in findings(items, duplicate_rows="off")


TARGETS = st.sampled_from(
    ["A.", "B.", "7", "cut...", '{"a": 1}', '{"a": "x"}', '{"a": ""}', '{"b": [1]}', ENGLISH, GERMAN]
)
ITEMS = st.builds(
    Item,
    st.sampled_from(["Who?", "Who", "Where?", ENGLISH, GERMAN]),
    TARGETS,
    st.sampled_from([None, "S"]),
    st.booleans(),
    st.sampled_from([None, "c"]),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(ITEMS, min_size=1, max_size=30), st.data())
def test_the_order_of_rows_changes_no_figure(items: list[Item], data: st.DataObject) -> None:
    def figures(rows: Sequence[Item]) -> dict[str, Any]:
        return {name: (found.evidence.value, found.evidence.verdict) for name, found in findings(rows).items()}

    assert figures(items) == figures(data.draw(st.permutations(items)))


@given(st.lists(st.integers(0, 4), max_size=20), st.lists(st.integers(0, 6), max_size=8), st.data())
def test_the_first_row_with_a_value_is_found(values: list[int], wanted: list[int], data: st.DataObject) -> None:
    among = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    expected = [next((n for n, v in enumerate(values) if v == w and among[n]), -1) for w in wanted]
    found = columns.find_first(
        np.array(values, dtype=np.uint64), np.array(wanted, dtype=np.uint64), np.array(among, dtype=np.bool_)
    )
    assert found.tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=20))
def test_groups_with_differences_are_those_with_two_values(rows: list[tuple[int, int]]) -> None:
    first: dict[int, int] = {}
    groups = np.array([first.setdefault(group, n) for n, (group, _) in enumerate(rows)], dtype=np.int32)
    values = np.array([value for _, value in rows], dtype=np.uint64)
    mixed = {group for group, _ in rows if len({v for g, v in rows if g == group}) > 1}
    found = columns.groups_with_differences(groups, values)
    assert columns.members(groups, found).tolist() == [group in mixed for group, _ in rows]
    assert int(found.sum()) == len(mixed)

import json
import os
import pickle
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from account_rows import SOURCE, account_of, dialogue, repairs_of
from tunewright.chat.files import conversation_from_line, conversation_line
from tunewright.data.account import Account, account_for
from tunewright.data.faults import Repair, RowError
from tunewright.data.read import Record, Row, plan_sources, read_rows
from tunewright.recipe import DataKeys

PAIR = {"prompt": "Hi", "completion": "Hello"}
DATASETS = Path(os.environ.get("TUNEWRIGHT_BATTERY", "../shared/battery")) / "datasets"


def test_the_ledgers_line_says_everything_about_a_repaired_row() -> None:
    line = account_of({**PAIR, "completion": 3, "answer": "x"}).as_json()
    assert len(line.pop("sha256")) == 64
    assert line == {
        "row": "rows.jsonl:7",
        "file": "rows.jsonl",
        "line": 7,
        "byte_offset": 100,
        "fate": "repaired",
        "format": "prompt_completion",
        "repairs": [{"what": "number written as JSON text", "where": "completion"}],
        "reason": None,
        "field": None,
        "system_prompt": "none",
        "uncertain": "the keys fit prompt_completion and prompt_answer; read as prompt_completion",
        "conversations": 1,
    }


def test_the_ledgers_line_says_why_a_row_was_rejected() -> None:
    line = account_of({**PAIR, "completion": None}).as_json()
    wanted = {
        "fate": "rejected",
        "reason": "empty content: completion of the assistant is null",
        "field": "completion",
        "system_prompt": None,
        "conversations": 0,
    }
    assert {key: line[key] for key in wanted} == wanted


def test_a_row_that_could_not_be_parsed_is_rejected_with_its_repairs() -> None:
    fault = RowError("broken JSON", "Expecting value at column 3")
    record = Record(1, 0, b"{,}", fault=fault, repairs=(Repair("byte order mark removed", "file"),))
    account = account_for(Row("rows.jsonl:1", SOURCE, record, "0" * 64), DataKeys())
    assert (account.fate, account.format, account.fault) == ("rejected", "unknown", fault)
    assert repairs_of(account) == [("byte order mark removed", "file")]


def test_accounts_and_their_faults_survive_pickling() -> None:
    for account in (account_of(PAIR), account_of({"text": "x"})):
        again: Account = pickle.loads(pickle.dumps(account))  # noqa: S301
        assert (again.as_json(), again.conversations) == (account.as_json(), account.conversations)


@pytest.mark.parametrize(
    ("own", "keys", "system", "source", "fate"),
    [
        ("Own.", {}, "Own.", "row", "kept"),
        (None, {}, None, "none", "kept"),
        ("", {}, None, "none", "kept"),
        ("Own.", {"system_prompt": "R."}, "Own.", "row", "kept"),
        (None, {"system_prompt": "R."}, "R.", "recipe", "kept"),
        ("Own.", {"system_prompt": "R.", "system_prompt_for": "all"}, "R.", "recipe", "repaired"),
        ("R.", {"system_prompt": "R.", "system_prompt_for": "all"}, "R.", "recipe", "kept"),
    ],
)
def test_the_system_prompt_is_the_rows_or_the_recipes(
    own: str | None, keys: dict[str, str], system: str | None, source: str, fate: str
) -> None:
    account = account_of({**PAIR, "system": own}, **keys)
    assert (account.conversations[0].system, account.system_prompt, account.fate) == (system, source, fate)


def test_every_conversation_of_a_tree_gets_the_recipes_system_prompt() -> None:
    leaves = [{"role": "assistant", "text": text, "replies": []} for text in "AB"]
    account = account_of({"prompt": {"role": "prompter", "text": "Q", "replies": leaves}}, system_prompt="R.")
    assert [conversation.system for conversation in account.conversations] == ["R.", "R."]


@pytest.mark.parametrize(
    ("row", "name", "stratum"),
    [
        ({**PAIR, "lang": "de"}, "lang", "de"),
        ({**PAIR, "n": 1.50}, "n", "1.5"),
        ({**PAIR, "meta": {"lang": "de"}}, "meta.lang", "de"),
        ({**PAIR, "completion": {"lang": "de", "n": [1]}}, "lang", "de"),
        ({**PAIR, "completion": '{"n": [1, 2]}'}, "n", "[1, 2]"),
        ({**PAIR, "completion": "{broken"}, "n", None),
        ({**PAIR, "lang": None}, "lang", None),
        (PAIR, "lang", None),
        (PAIR, "completion", "Hello"),
    ],
)
def test_the_stratum_is_a_field_of_the_row_or_of_a_json_target(
    row: dict[str, Any], name: str, stratum: str | None
) -> None:
    assert account_of(row, stratify_by=name).stratum == stratum


def test_without_a_field_to_stratify_by_there_is_no_stratum() -> None:
    assert account_of(dialogue(*({"role": r, "content": "x"} for r in ("user", "assistant")))).stratum is None


TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "Ann"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "content": "4", "tool_call_id": "1"},
    {"role": "assistant", "content": "<think>Hm</think>Hello", "reasoning": "Hm", "weight": 1},
]
WHOLE: list[dict[str, Any]] = [
    {"messages": TURNS, "tools": [{"name": "f"}], "id": "x"},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name": "f"}'}]},
    {"prompt": "Hi", "input": "x", "completion": {"a": [1]}, "history": [["A", "B"]], "system": "S", "label": True},
    {"prompt": TURNS[:2], "chosen": TURNS[4:], "rejected": [{"role": "assistant", "content": ""}]},
    {"prompt": {"role": "prompter", "text": "Q", "replies": [{"role": "assistant", "text": "A", "replies": []}]}},
    {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"},
]
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    1.5,
    "",
    " ",
    "\ud800",
    "user",
    "tool",
    "[{}]",
    "{}",
    "<think>",
    [],
    [[]],
    [None],
    {},
    {"a": 1},
]
RECIPES: list[dict[str, Any]] = [{}, {"reasoning": "strip"}, {"columns": {"completion": "input", "tools": "id"}}]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    """The value with `odd` at a path."""
    if not path:
        return odd
    inner = changed(value[path[0]], path[1:], odd)
    if isinstance(value, dict):
        return {**value, path[0]: inner}
    return [*value[: path[0]], inner, *value[path[0] + 1 :]]


@pytest.mark.parametrize("number", range(len(WHOLE)))
@pytest.mark.parametrize("keys", RECIPES)
def test_a_row_with_anything_odd_in_any_place_has_an_account_that_can_be_written(
    number: int, keys: dict[str, Any]
) -> None:
    row = WHOLE[number]
    for path, odd in product(places(row), ODD):
        account = account_of(json.dumps(changed(row, path, odd)), stratify_by="id", **keys)
        assert (account.fate == "rejected") == (account.fault is not None)
        json.dumps([account.as_json(), account.ignored], ensure_ascii=False).encode()
        for conversation in account.conversations:
            assert conversation_from_line(conversation_line(conversation).encode()) == conversation
            assert conversation.messages[-1].role == "assistant"


def outcome(name: str, **keys: Any) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Formats, fates, and kinds of repairs and faults of a file of the battery."""
    path = DATASETS / name
    if not path.exists():
        pytest.skip("the battery of real datasets is not here (TUNEWRIGHT_BATTERY)")
    (source,) = plan_sources([str(path)], [])
    accounts = [account_for(row, DataKeys(**keys)) for row in read_rows(source)]
    assert all(account.uncertain is None for account in accounts)
    marks = Counter(repair.what for account in accounts for repair in account.repairs)
    marks.update(account.fault.kind for account in accounts if account.fault)
    return Counter(a.format for a in accounts), Counter(a.fate for a in accounts), marks


LF = "llamafactory/data"
WILD = "wild"


@pytest.mark.parametrize(
    ("name", "row_format", "fates", "marks"),
    [
        ("banking77/banking_data/test.csv", "text", {"rejected": 3080}, {"text without roles": 3080}),
        ("gsm8k/grade_school_math/data/test.jsonl", "question_answer", {"kept": 1319}, {}),
        (f"{LF}/alpaca_en_demo.json", "alpaca", {"kept": 999}, {}),
        (f"{LF}/dpo_en_demo.json", "preference", {"kept": 300}, {}),
        (f"{LF}/glaive_toolcall_en_demo.json", "sharegpt", {"kept": 300}, {}),
        (f"{LF}/kto_en_demo.json", "messages", {"kept": 150, "rejected": 150}, {"unwanted answer": 150}),
        (f"{LF}/mllm_demo.json", "messages", {"rejected": 6}, {"images not trained": 6}),
        (f"{LF}/reason_tool_use_demo_50.jsonl", "messages", {"kept": 50}, {}),
        (f"{LF}/v1_dpo_demo.jsonl", "preference", {"kept": 10}, {}),
        (f"{LF}/v1_multimodal_demo.jsonl", "messages", {"rejected": 24}, {"images not trained": 24}),
        (f"{LF}/v1_sft_demo.jsonl", "messages", {"kept": 500}, {}),
        ("wikinews_de/articles.jsonl", "text", {"rejected": 998}, {"text without roles": 998}),
        (
            f"{WILD}/azure_legacy/training_data.jsonl",
            "prompt_completion",
            {"kept": 9, "repaired": 1},
            {"line ends CRLF read as LF": 1},
        ),
        (f"{WILD}/distillanything/data/train.jsonl", "prompt_response", {"kept": 97}, {}),
        (f"{WILD}/fact_teaching/data/contrast.jsonl", "prompt_completion", {"kept": 16}, {}),
        (
            f"{WILD}/fact_teaching/data/experiments/minimal_pair/eval.jsonl",
            "unknown",
            {"rejected": 28},
            {"no answer": 28},
        ),
        (
            f"{WILD}/notifai/data/functiongemma_test_3level.jsonl",
            "messages",
            {"repaired": 2800},
            {"role model read as assistant": 2800},
        ),
        (
            f"{WILD}/patient_admission/data/patient_admission.json",
            "prompt_response",
            {"repaired": 234},
            {"object written as JSON text": 234},
        ),
    ],
)
def test_a_real_file_is_read_as_what_it_is(
    name: str, row_format: str, fates: dict[str, int], marks: dict[str, int]
) -> None:
    formats = {row_format: sum(fates.values())}
    assert outcome(name) == (formats, fates, marks)


@pytest.mark.parametrize(
    ("name", "columns", "rows"),
    [
        ("banking77/banking_data/test.csv", {"prompt": "text", "completion": "category"}, 3080),
        ("wikinews_de/articles.jsonl", {"prompt": "text", "completion": "title"}, 998),
    ],
)
def test_the_mend_that_a_rejection_names_works(name: str, columns: dict[str, str], rows: int) -> None:
    assert outcome(name, columns=columns) == ({"prompt_completion": rows}, {"kept": rows}, {})


def test_real_tool_calls_and_reasoning_are_read_whole() -> None:
    path = DATASETS / LF / "reason_tool_use_demo_50.jsonl"
    if not path.exists():
        pytest.skip("the battery of real datasets is not here (TUNEWRIGHT_BATTERY)")
    (source,) = plan_sources([str(path)], [])
    for row in read_rows(source):
        (conversation,) = account_for(row, DataKeys()).conversations
        given = json.loads(row.record.raw)
        parts = [part for message in given["messages"] for part in message["content"]]
        calls = [call for message in conversation.messages for call in message.tool_calls]
        written = [json.loads(part["value"]) for part in parts if part["type"] == "tool_call"]
        assert [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls] == written
        thoughts = [message.reasoning for message in conversation.messages if message.reasoning is not None]
        assert thoughts == [part["value"] for part in parts if part["type"] == "reasoning"]
        assert conversation.tools == (given["tools"] if given["tools"] not in ("", "[]") else None)

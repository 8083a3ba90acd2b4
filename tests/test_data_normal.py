# ruff: noqa: E501  (the table of rejections is read line by line)
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_rows import account_of, dialogue, fault_of, repairs_of, said
from tunewright.chat.conversation import Message
from tunewright.data.exact_json import JsonNumber, json_text, parse_json

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    ("content", "text", "kind"),
    [
        ("3", "3", "number"),
        ("0", "0", "number"),
        ("12345678901234567890123", "12345678901234567890123", "number"),
        ("0.10", "0.10", "number"),
        ("1e400", "1e400", "number"),
        ("true", "true", "boolean"),
        ('{"ä": [1, {"b": null}]}', '{"ä": [1, {"b": null}]}', "object"),
        ('["x",2]', '["x", 2]', "list"),
        ('{"date": "2026-11-21", "x": -0.0}', '{"date": "2026-11-21", "x": -0.0}', "object"),
    ],
)
def test_a_content_that_is_not_text_becomes_json_text_and_a_repair(content: str, text: str, kind: str) -> None:
    account = account_of(
        f'{{"messages": [{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": {content}}}]}}'
    )
    assert said(account)[1] == ("assistant", text)
    assert (account.fate, repairs_of(account)) == (
        "repaired",
        [(f"{kind} written as JSON text", "messages[1].content")],
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.text()
    | st.integers().map(lambda number: JsonNumber(str(number)))
    | st.decimals(allow_nan=False, allow_infinity=False).map(lambda number: JsonNumber(f"{number:f}")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_text_parsed_again_is_the_value(value: Any) -> None:
    assert parse_json(json_text(value)) == value
    assert json_text(parse_json(json_text(value))) == json_text(value)


@given(JSON.filter(lambda value: value not in (None, "", []) and not isinstance(value, str)))
def test_no_value_is_changed_on_its_way_into_a_conversation(value: Any) -> None:
    account = account_of(f'{{"prompt": "Hi", "completion": {json_text(value)}}}')
    if not account.conversations:
        assert isinstance(value, list)
        assert account.fault is not None
        assert account.fault.kind == "unknown role"
    else:
        assert account.conversations[0].target == json_text(value)


def test_an_empty_system_message_is_left_out_and_named() -> None:
    account = account_of(dialogue({"role": "system", "content": " "}, USER, ANSWER))
    assert repairs_of(account) == [("empty system message left out", "messages[0].content")]
    assert account.system_prompt == "none"


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        (dialogue(USER, ANSWER, ANSWER), 'roles out of order: messages[2] is "assistant" after "assistant"; expected "user"', "messages[2]"),
        (dialogue(USER, USER), 'roles out of order: messages[1] is "user" after "user"; expected "assistant"', "messages[1]"),
        (dialogue(ANSWER), 'roles out of order: messages[0] is "assistant" after nothing; expected "user"', "messages[0]"),
        (dialogue(SYSTEM, ANSWER), 'roles out of order: messages[1] is "assistant" after system; expected "user"', "messages[1]"),
        (dialogue(SYSTEM, SYSTEM, USER, ANSWER), 'roles out of order: messages[1] is "system" after system; expected "user"', "messages[1]"),
        (dialogue(USER, SYSTEM, ANSWER), 'roles out of order: messages[1] is "system" after "user"; expected "assistant"', "messages[1]"),
        (dialogue(USER, ANSWER, USER), 'last turn is not the assistant\'s: messages[2] is "user"; expected an "assistant" turn at the end', "messages[2]"),
        (dialogue(SYSTEM), 'last turn is not the assistant\'s: messages[0] is "system"; expected an "assistant" turn at the end', "messages[0]"),
        (dialogue({"role": "system", "content": ""}), 'last turn is not the assistant\'s: no turn is left; expected an "assistant" turn at the end', ""),
        (dialogue(USER, {"role": "assistant", "content": None}), "empty content: messages[1].content of the assistant is null", "messages[1].content"),
        (dialogue(USER, {"role": "assistant", "content": ""}), "empty content: messages[1].content of the assistant is empty", "messages[1].content"),
        (dialogue(USER, {"role": "assistant", "content": None, "tool_calls": []}), "empty content: messages[1].content of the assistant is null", "messages[1].content"),
        (dialogue({"role": "user", "content": " \n"}, ANSWER), "empty content: messages[0].content of the user is only white space", "messages[0].content"),
        (dialogue({"role": "user", "content": []}, ANSWER), "empty content: messages[0].content of the user is empty", "messages[0].content"),
        (dialogue({"role": "user", "content": [{"type": "text", "text": " "}]}, ANSWER), "empty content: messages[0].content of the user is only white space", "messages[0].content"),
        (dialogue(USER, {**ANSWER, "weight": 0}), "nothing to train: every assistant turn is switched off; expected one that is trained", ""),
        ({"prompt": "Hi", "completion": None}, "empty content: completion of the assistant is null", "completion"),
        ({"prompt": "", "completion": "Hello"}, "empty content: prompt of the user is empty", "prompt"),
        ({"prompt": "Hi", "completion": "x\ud83d"}, "not Unicode text: character 2 of completion is half of a surrogate pair", "completion"),
        ({"prompt": "Hi", "completion": {"\ud83d": 1}}, "not Unicode text: character 3 of completion is half of a surrogate pair", "completion"),
        (dialogue(USER, {**ANSWER, "name": "\ud83d"}), "not Unicode text: character 1 of messages[1] is half of a surrogate pair", "messages[1]"),
        (dialogue(USER, {**ANSWER, "reasoning": "\ud83d"}), "not Unicode text: character 1 of messages[1].reasoning is half of a surrogate pair", "messages[1].reasoning"),
        (dialogue(USER, ANSWER, tools=[{"name": "\ud83d"}]), "not Unicode text: character 12 of tools is half of a surrogate pair", "tools"),
    ],
)  # fmt: skip
def test_a_conversation_out_of_order_or_empty_is_rejected(row: Any, reason: str, field: str) -> None:
    assert fault_of(account_of(row)) == (reason, field)


def test_a_value_nested_too_deeply_to_be_written_is_rejected() -> None:
    reason, _ = fault_of(account_of('{"prompt": "Hi", "completion": ' + "[" * 600 + "]" * 600 + "}"))
    assert reason == "nested too deeply: a value is nested deeper than can be written as text"


INLINE = "<think>\nHm.\n</think>\n\nHello"
THOUGHT = [
    {**ANSWER, "reasoning_content": "Hm."},
    {**ANSWER, "reasoning": "Hm."},
    {**ANSWER, "thinking": "Hm."},
    {**ANSWER, "reasoning": "Hm.", "reasoning_content": "Hm."},
    {"role": "assistant", "content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "Hello"}]},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hello"}]},
]


@pytest.mark.parametrize("turn", THOUGHT)
def test_reasoning_beside_the_content_is_learned_kept_or_removed(turn: dict[str, Any]) -> None:
    learned, kept, stripped = (
        account_of(dialogue(USER, turn), reasoning=mode).conversations[0].messages[1] for mode in ("train", "keep", "strip")
    )  # fmt: skip
    assert learned == Message("assistant", "Hello", reasoning="Hm.")
    assert kept == Message("assistant", "Hello", reasoning="Hm.", train_reasoning=False)
    assert stripped == Message("assistant", "Hello")


def test_a_block_of_reasoning_stays_within_the_content_or_is_removed() -> None:
    row = dialogue(USER, {"role": "assistant", "content": INLINE})
    assert account_of(row).conversations[0].messages[1] == Message("assistant", INLINE)
    assert account_of(row).fate == "kept"
    kept = account_of(row, reasoning="keep").conversations[0].messages[1]
    assert kept == Message("assistant", INLINE, train_reasoning=False)
    stripped = account_of(row, reasoning="strip")
    assert said(stripped)[1] == ("assistant", "Hello")
    assert repairs_of(stripped) == [("reasoning removed", "messages[1].content")]


@pytest.mark.parametrize("content", ["Say <think> Hm </think>", "Hello", "x <think>Hm</think> y"])
@pytest.mark.parametrize("mode", ["keep", "strip"])
def test_a_block_that_is_not_at_the_start_is_text(content: str, mode: str) -> None:
    account = account_of(dialogue(USER, {"role": "assistant", "content": content}), reasoning=mode)
    assert (account.conversations[0].messages[1], account.fate) == (Message("assistant", content), "kept")


def test_an_answer_that_is_nothing_but_reasoning_cannot_be_stripped() -> None:
    account = account_of({"prompt": "Hi", "completion": "<think>Hm</think>\n"}, reasoning="strip")
    reason = "empty content: completion of the assistant has nothing but reasoning, which the recipe strips"
    assert fault_of(account) == (reason, "completion")


def test_reasoning_beside_a_pair_is_the_answers() -> None:
    account = account_of({"prompt": "Hi", "completion": "Hello", "reasoning_content": {"step": 1}})
    assert account.conversations[0].messages[1].reasoning == '{"step": 1}'
    assert repairs_of(account) == [("object written as JSON text", "reasoning_content")]


def test_reasoning_of_a_user_is_ignored_and_named() -> None:
    assert account_of(dialogue({**USER, "reasoning": "Hm"}, ANSWER)).ignored == ("messages[].reasoning",)


@given(st.text(min_size=1).filter(lambda text: not text.isspace()), st.sampled_from(["train", "keep", "strip"]))
def test_a_text_without_reasoning_comes_out_as_it_went_in(text: str, mode: str) -> None:
    account = account_of(json.dumps({"prompt": text, "completion": "a" + text}), reasoning=mode)
    assert said(account) == [("user", text), ("assistant", "a" + text)]

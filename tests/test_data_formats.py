# ruff: noqa: E501  (the table of rejections is read line by line)
from pathlib import Path
from typing import Any

import pytest

from data_rows import account_of, accounts_of, pair, write_rows

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def dialogue(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages)}


def said(tmp_path: Path, row: Any, **keys: Any) -> list[tuple[str, str]]:
    account = account_of(tmp_path / "rows.jsonl", row, **keys)
    assert account.conversation is not None, account.fault
    return [(message.role, message.content) for message in account.conversation.messages]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", dialogue(USER, ANSWER)),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}),
        ("sharegpt", {"conversations": [{"from": "user", "value": "Hi"}, {"from": "chatgpt", "value": "Hello"}]}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "bot", "value": "Hello"}]}),
        ("sharegpt", {"conversations": [USER, ANSWER]}),
        ("prompt_completion", pair("Hi", "Hello")),
        ("prompt_completion", pair([USER], [ANSWER])),
        ("prompt_completion", pair([USER], "Hello")),
        ("prompt_response", {"prompt": "Hi", "response": "Hello", "teacher": "x"}),
        ("question_answer", {"question": "Hi", "answer": "Hello"}),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}),
        ("alpaca", {"instruction": "Hi", "input": None, "output": "Hello", "images": [], "tools": "[]"}),
        ("instruction_response", {"instruction": "Hi", "response": "Hello"}),
        ("input_output", {"input": "Hi", "output": "Hello"}),
    ],
)
def test_a_format_is_recognised_and_read_without_a_repair(tmp_path: Path, name: str, row: Any) -> None:
    account = account_of(tmp_path / "rows.jsonl", row)
    assert (account.format, account.fate) == (name, "kept")
    assert said(tmp_path, row) == [("user", "Hi"), ("assistant", "Hello")]


def test_an_alpaca_row_brings_its_input_its_system_prompt_and_its_history(tmp_path: Path) -> None:
    row = {"instruction": "And this?", "input": "Text.", "output": "C", "system": "S", "history": [["A", "B"]]}
    assert said(tmp_path, row) == [
        ("system", "S"),
        ("user", "A"),
        ("assistant", "B"),
        ("user", "And this?\nText."),
        ("assistant", "C"),
    ]


def test_the_context_of_a_question_is_not_lost(tmp_path: Path) -> None:
    row = {"question": "When?", "context": {"year": 1871}, "answer": "1871"}
    account = account_of(tmp_path / "rows.jsonl", row)
    assert said(tmp_path, row)[0] == ("user", 'When?\n{"year": 1871}')
    assert [repair.as_json() for repair in account.repairs] == [
        {"what": "object written as JSON text", "where": "context"}
    ]


def test_an_input_that_is_an_empty_list_is_not_lost(tmp_path: Path) -> None:
    row = {"instruction": "Add up:", "input": "[]", "output": "0"}
    assert said(tmp_path, row)[0] == ("user", "Add up:\n[]")


def test_text_parts_are_joined_with_nothing_between(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "value": "i "}]
    assert said(tmp_path, dialogue({"role": "user", "content": parts}, ANSWER))[0] == ("user", "Hi ")


@pytest.mark.parametrize(
    ("content", "text", "kind"),
    [
        ("3", "3", "number"),
        ("12345678901234567890123", "12345678901234567890123", "number"),
        ("0.10", "0.10", "number"),
        ("1e400", "1e400", "number"),
        ("true", "true", "boolean"),
        ('{"ä": [1, {"b": null}]}', '{"ä": [1, {"b": null}]}', "object"),
        ('["x",2]', '["x", 2]', "list"),
    ],
)
def test_a_content_that_is_not_text_becomes_json_text_and_a_repair(
    tmp_path: Path, content: str, text: str, kind: str
) -> None:
    line = f'{{"messages": [{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": {content}}}]}}'
    account = account_of(tmp_path / "rows.jsonl", line)
    assert said(tmp_path, line)[1] == ("assistant", text)
    assert account.fate == "repaired"
    assert [repair.as_json() for repair in account.repairs] == [
        {"what": f"{kind} written as JSON text", "where": "messages[1].content"}
    ]


def test_white_space_around_a_text_is_kept(tmp_path: Path) -> None:
    assert said(tmp_path, pair(" Hi\n", "\tHello ")) == [("user", " Hi\n"), ("assistant", "\tHello ")]


def test_developer_and_model_are_read_as_system_and_assistant_and_named(tmp_path: Path) -> None:
    row = dialogue({"role": "developer", "content": "S"}, USER, {"role": "model", "content": "Hello"})
    assert said(tmp_path, row) == [("system", "S"), ("user", "Hi"), ("assistant", "Hello")]
    assert [repair.as_json() for repair in account_of(tmp_path / "rows.jsonl", row).repairs] == [
        {"what": "role developer read as system", "where": "messages[0].role"},
        {"what": "role model read as assistant", "where": "messages[2].role"},
    ]


def test_an_empty_system_message_is_left_out_and_named(tmp_path: Path) -> None:
    row = dialogue({"role": "system", "content": " "}, USER, ANSWER)
    account = account_of(tmp_path / "rows.jsonl", row)
    assert [repair.what for repair in account.repairs] == ["empty system message left out"]
    assert account.system_prompt == "none"


@pytest.mark.parametrize("switch", [{"weight": 0}, {"weight": 0.0}, {"loss_weight": 0}, {"train": False}])
def test_a_turn_can_be_switched_off(tmp_path: Path, switch: dict[str, Any]) -> None:
    row = dialogue(USER, {**ANSWER, **switch}, USER, {**ANSWER, "weight": 1})
    conversation = account_of(tmp_path / "rows.jsonl", row).conversation
    assert conversation is not None
    assert [message.train for message in conversation.messages] == [True, False, True, True]


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        (dialogue(USER, ANSWER, ANSWER), 'roles out of order: messages[2] is "assistant" after "assistant"; expected "user"', "messages[2]"),
        (dialogue(USER, USER), 'roles out of order: messages[1] is "user" after "user"; expected "assistant"', "messages[1]"),
        (dialogue(ANSWER), 'roles out of order: messages[0] is "assistant" after nothing; expected "user"', "messages[0]"),
        (dialogue(USER, {"role": "system", "content": "S"}, ANSWER), 'roles out of order: messages[1] is "system" after "user"; expected "assistant"', "messages[1]"),
        (dialogue(USER, ANSWER, USER), 'last turn is not the assistant\'s: messages[2] is "user"; expected an "assistant" turn at the end', "messages[2]"),
        (dialogue({"role": "system", "content": "S"}), 'last turn is not the assistant\'s: messages[0] is "system"; expected an "assistant" turn at the end', "messages[0]"),
        (dialogue(), "no messages: messages is empty; expected a user's and an assistant's message", "messages"),
        (dialogue({"role": "system", "content": ""}), "last turn is not the assistant's: no turn is left; expected an \"assistant\" turn at the end", ""),
        (dialogue(USER, {"role": "assistant", "content": None}), "empty content: messages[1].content of the assistant is null", "messages[1].content"),
        (dialogue(USER, {"role": "assistant", "content": ""}), "empty content: messages[1].content of the assistant is empty", "messages[1].content"),
        (dialogue({"role": "user", "content": " \n"}, ANSWER), "empty content: messages[0].content of the user is only white space", "messages[0].content"),
        (dialogue({"role": "user", "content": []}, ANSWER), "empty content: messages[0].content of the user is empty", "messages[0].content"),
        (dialogue({"role": "user", "content": [{"type": "text", "text": " "}]}, ANSWER), "empty content: messages[0].content of the user has no text", "messages[0].content"),
        (dialogue({"role": "user"}, ANSWER), "no content: messages[0] has the keys 'role'; expected 'content'", "messages[0].content"),
        (dialogue({"role": "User", "content": "Hi"}, ANSWER), "unknown role: found 'User'; expected system, user, assistant, developer, model", "messages[0].role"),
        (dialogue({"content": "Hi"}, ANSWER), "unknown role: found null; expected system, user, assistant, developer, model", "messages[0].role"),
        (dialogue(USER, {**ANSWER, "weight": 0.5}), "weight not 0 or 1: weight is not 0, 1, false or true", "messages[1].weight"),
        (dialogue(USER, {**ANSWER, "weight": 0}), "nothing to train: every assistant turn is switched off; expected one that is trained", ""),
        (dialogue({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER), "images not trained: found a part of type 'image_url'; expected 'text'", "messages[0].content[0].type"),
        (dialogue({"role": "user", "content": [{"type": "input_audio"}]}, ANSWER), "audio not trained: found a part of type 'input_audio'; expected 'text'", "messages[0].content[0].type"),
        (dialogue({"role": "user", "content": [{"type": "text", "text": 3}]}, ANSWER), "unknown shape: the text part holds a number", "messages[0].content[0].text"),
        (dialogue(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}), "tool calls not trained: found 'tool_calls'; this version trains text only", "messages[1].tool_calls"),
        (dialogue(USER, {"role": "tool", "content": "4"}), "tool calls not trained: found the role 'tool'; this version trains text only", "messages[1].role"),
        (dialogue(USER, {**ANSWER, "reasoning_content": "Hm"}), "reasoning not trained: found 'reasoning_content'; this version trains content only", "messages[1].reasoning_content"),
        ({**dialogue(USER, ANSWER), "images": ["x.jpg"]}, "images not trained: found 'images'; this version trains text only", "images"),
        ({**dialogue(USER, ANSWER), "label": False}, "unwanted answer: label is false, which marks an answer not to be learned", "label"),
        ({**dialogue({"role": "system", "content": "S"}, USER, ANSWER), "system": "T"}, "two system prompts: 'system' stands beside a system message; expected one", "system"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, "preferences not trained: found chosen and rejected answers; this version trains one answer", ""),
        (pair("Hi", None), "empty content: completion of the assistant is null", "completion"),
        (pair("", "Hello"), "empty content: prompt of the user is empty", "prompt"),
        ({**pair("Hi", "Hello"), "answer": "No"}, "ambiguous shape: the keys 'prompt', 'completion', 'answer' fit prompt_completion and prompt_answer; expected one of them", ""),
        ({"text": "x", "category": "y"}, "unknown shape: found the keys 'text', 'category'; expected messages, conversations, or prompt/question/instruction/input with completion/response/answer/output", ""),
        ({"messages": "Hi"}, "unknown shape: messages is a string; expected a list of messages", "messages"),
        ({"messages": ["Hi"]}, "unknown shape: messages[0] is a string; expected an object with role and content", "messages[0]"),
        ({**pair("Hi", "Hello"), "history": "Hi"}, "unknown shape: history is no list of [instruction, answer]", "history"),
        (pair("Hi", "\ud83d"), "not Unicode text: character 1 of completion is half of a surrogate pair", "completion"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_trained_is_rejected_with_reason_and_field(
    tmp_path: Path, row: Any, reason: str, field: str
) -> None:
    account = account_of(tmp_path / "rows.jsonl", row)
    assert account.fate == "rejected"
    assert account.fault is not None
    assert (account.fault.reason, account.fault.field) == (reason, field)


def test_a_value_nested_too_deeply_to_be_written_is_rejected(tmp_path: Path) -> None:
    line = '{"prompt": "Hi", "completion": ' + "[" * 600 + "]" * 600 + "}"
    account = account_of(tmp_path / "rows.jsonl", line)
    assert account.fault is not None
    assert account.fault.kind == "nested too deeply"


def test_a_row_that_is_no_object_is_rejected_with_the_shapes_expected(tmp_path: Path) -> None:
    good, bad = accounts_of(write_rows(tmp_path / "rows.jsonl", [pair("Hi", "Hello"), ["Hi", "Hello"]]))
    assert good.fate == "kept"
    assert bad.fault is not None
    assert bad.fault.reason.startswith("unknown shape: found a list; expected an object with the keys messages, ")

# ruff: noqa: E501  (the tables of rejections are read line by line)
"""Preferences, trees, tools and the recipe's columns: what goes beyond a prompt and an answer."""

import json
from typing import Any

import pytest

from account_rows import account_of, dialogue, fault_of, repairs_of, said
from tunewright.chat.conversation import Message, ToolCall

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "Go away"}
PLAIN = [("user", "Hi"), ("assistant", "Hello")]
REJECTED = (Message("assistant", "Go away"),)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"max": 1.50}}}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
        {"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, OTHER], "messages": [USER, ANSWER]},
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"chosen_messages": [USER, ANSWER], "rejected_messages": [USER, OTHER]},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello"}, "rejected": OTHER},
        {"messages": [USER], "chosen": "Hello", "rejected": "Go away"},
        {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "Go away"},
        {"input": {"messages": [USER], "tools": []}, "preferred_output": [ANSWER], "non_preferred_output": [OTHER]},
    ],
)  # fmt: skip
def test_the_preferred_answer_is_the_target_and_the_other_is_kept(row: dict[str, Any]) -> None:
    account = account_of(row)
    assert (account.format, account.fate, said(account), account.uncertain) == ("preference", "kept", PLAIN, None)
    assert account.conversations[0].rejected == REJECTED
    assert account.ignored == ()


def test_an_alpaca_preference_brings_its_input() -> None:
    row = {"instruction": "Add", "input": "1 2", "chosen": "3", "rejected": "4"}
    assert said(account_of(row))[0] == ("user", "Add\n1 2")


def test_conversations_that_part_early_keep_everything_from_there() -> None:
    other = [USER, OTHER, {"role": "user", "content": "Why?"}, OTHER]
    (conversation,) = account_of({"chosen": [USER, ANSWER, USER, ANSWER], "rejected": other}).conversations
    assert [message.content for message in conversation.rejected] == ["Go away", "Why?", "Go away"]


def test_an_empty_answer_may_be_the_one_not_preferred_but_not_the_target() -> None:
    (conversation,) = account_of({"prompt": "Hi", "chosen": "Hello", "rejected": ""}).conversations
    assert conversation.rejected == (Message("assistant", ""),)
    account = account_of({"prompt": "Hi", "chosen": [], "rejected": "Go away"})
    assert fault_of(account) == ("empty content: chosen of the assistant is empty", "chosen")


def reply(role: str, text: str, *replies: dict[str, Any], **flags: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": list(replies), "message_id": text, **flags}


TREE = reply(
    "prompter",
    "Q",
    reply("assistant", "A1", reply("prompter", "Q2", reply("assistant", "B1"), reply("assistant", "B2")), reply("prompter", "Q3")),
    reply("assistant", "A2"),
    reply("assistant", "spam", review_result=False),
    reply("assistant", "gone", reply("prompter", "Q4", reply("assistant", "B4")), deleted=True),
    review_result=True,
    deleted=False,
)  # fmt: skip


@pytest.mark.parametrize(("row", "root"), [({"prompt": TREE, "tree_state": "ready"}, "prompt."), (TREE, "")])
def test_every_leaf_of_a_tree_gives_a_conversation(row: dict[str, Any], root: str) -> None:
    account = account_of(row)
    texts = [[content for _, content in said(account, number)] for number in range(3)]
    assert texts == [["Q", "A1", "Q2", "B1"], ["Q", "A1", "Q2", "B2"], ["Q", "A2"]]
    assert [conversation.id for conversation in account.conversations] == [f"rows.jsonl:7{n}" for n in ("", "/2", "/3")]
    assert {conversation.tree for conversation in account.conversations} == {"rows.jsonl:7"}
    assert (account.format, account.fate) == ("tree", "repaired")
    assert account.ignored == (*(key for key in row if key in ("tree_state", "message_id")), "replies[].message_id")
    assert sorted(repairs_of(account)) == [
        ("deleted message left out", f"{root}replies[3]"),
        ("message that failed review left out", f"{root}replies[2]"),
        ("turn without an answer left out", f"{root}replies[0].replies[1]"),
    ]


def test_an_answer_that_several_paths_share_is_learned_once() -> None:
    trained = [
        [m.train for m in c.messages if m.role == "assistant"] for c in account_of({"prompt": TREE}).conversations
    ]
    assert trained == [[True, True], [False, True], [True]]


@pytest.mark.parametrize(
    ("tree", "reason", "field"),
    [
        (reply("prompter", "Q"), "no answer: no path through the tree ends with an assistant's turn that may be kept", "prompt"),
        (reply("prompter", "Q", reply("assistant", "A"), deleted=True), "no answer: no path through the tree ends with an assistant's turn that may be kept", "prompt"),
        (reply("prompter", "Q", reply("assistant", " ")), "empty content: prompt.replies[0].text of the assistant is only white space", "prompt.replies[0].text"),
        (reply("prompter", "Q", reply("Bot", "A")), "unknown role: found 'Bot'; expected system, user, assistant or tool. Name it in the recipe, such as `roles: {Bot: user}`.", "prompt.replies[0].role"),
        ({**reply("prompter", "Q"), "replies": ["A"]}, "unknown shape: prompt.replies[0] is a string; expected a message of the tree", "prompt.replies[0]"),
        ({**reply("prompter", "Q"), "replies": "A"}, "unknown shape: prompt.replies is a string; expected a list of messages", "prompt.replies"),
    ],
)  # fmt: skip
def test_a_tree_that_cannot_be_read_is_rejected(tree: dict[str, Any], reason: str, field: str) -> None:
    assert fault_of(account_of({"prompt": tree})) == (reason, field)


def call(arguments: Any, **keys: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}, **keys}


def asks(*calls: dict[str, Any], content: Any = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


RESULT = {"role": "tool", "content": "Rain"}
PARIS = '{"city": "Päris", "days": 1.50}'


@pytest.mark.parametrize(
    "turn",
    [
        asks(call(PARIS)),
        asks(call(json.loads(PARIS, parse_float=lambda text: json.loads("1.5")))),
        asks({"name": "weather", "arguments": PARIS}),
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": PARIS}},
        {"role": "assistant", "tool_calls": json.dumps([call(PARIS)])},
        {"role": "assistant", "content": [{"type": "tool_call", "value": json.dumps({"name": "weather", "arguments": PARIS})}]},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "weather", "input": {"city": "Päris", "days": 1.5}}]},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Päris", "days": 1.5}})},
        {"from": "function_call", "value": [{"name": "weather", "arguments": PARIS}]},
    ],
)  # fmt: skip
def test_a_tool_call_is_read_from_every_form(turn: dict[str, Any]) -> None:
    account = account_of(dialogue(USER, turn, RESULT, ANSWER))
    (conversation,) = account.conversations
    assert account.fate == "kept"
    assert conversation.messages[1].content is None
    assert [call.name for call in conversation.messages[1].tool_calls] == ["weather"]
    assert json.loads(conversation.messages[1].tool_calls[0].arguments) == json.loads(PARIS)
    assert conversation.messages[2] == Message("tool", "Rain")


def test_arguments_keep_their_exact_text_as_text_and_as_object() -> None:
    big = '{"n": 12345678901234567890123, "x": 0.10}'
    line = json.dumps(dialogue(USER, asks(call("SPACED", id="1")), RESULT, asks(call("X")))).replace('"X"', big)
    (conversation,) = account_of(line.replace('"SPACED"', json.dumps('{"n" : 1.0}'))).conversations
    assert conversation.messages[1].tool_calls == (ToolCall("weather", '{"n" : 1.0}', "1"),)
    assert conversation.messages[3].tool_calls == (ToolCall("weather", big),)
    assert conversation.target == f'{{"name": "weather", "arguments": {big}}}'


def test_an_empty_text_beside_a_call_is_told_apart_from_none() -> None:
    contents = [
        account_of(dialogue(USER, asks(call("{}"), content=said))).conversations[0].messages[1].content
        for said in (None, "", "So:")
    ]
    assert contents == [None, "", "So:"]  # fmt: skip


def test_missing_arguments_are_an_empty_object_and_named() -> None:
    account = account_of(dialogue(USER, asks({"function": {"name": "weather"}})))
    assert account.conversations[0].messages[1].tool_calls == (ToolCall("weather", "{}"),)
    assert repairs_of(account) == [("missing arguments read as {}", "messages[1].tool_calls[0].function.arguments")]


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        ([WEATHER], '[{"type": "function", "function": {"name": "weather", "parameters": {"max": 1.5}}}]'),
        ('[{"name" : "weather"}]', '[{"name" : "weather"}]'),
        ([], None),
        ("[]", None),
        ("[ ]", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("key", ["tools", "functions"])
def test_the_list_of_tools_is_kept_as_its_json_text(tools: Any, text: str | None, key: str) -> None:
    account = account_of(dialogue(USER, ANSWER, **{key: tools}))
    assert (account.conversations[0].tools, account.fate) == (text, "kept")


IDS = dialogue(USER, asks(call("{}", id="a"), call("{}", id="b")))["messages"]


def answers(*ids: str) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": name, "content": ""} for name in ids]


def test_tools_answer_calls_by_their_ids_in_any_order() -> None:
    (conversation,) = account_of(dialogue(*IDS, *answers("b", "a"), ANSWER)).conversations
    assert [message.tool_call_id for message in conversation.messages] == [None, None, "b", "a", None]


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        (dialogue(USER, asks(call("{a}"))), "broken JSON: messages[1].tool_calls[0].function.arguments is not JSON: Expecting property name enclosed in double quotes at column 2", "messages[1].tool_calls[0].function.arguments"),
        (dialogue(USER, asks(call('{"a": NaN}'))), "not a JSON number: messages[1].tool_calls[0].function.arguments is not JSON: found NaN, which JSON does not have", "messages[1].tool_calls[0].function.arguments"),
        (dialogue(USER, asks(call([1]))), "broken tool call: messages[1].tool_calls[0].function.arguments is a list; expected an object", "messages[1].tool_calls[0].function.arguments"),
        (dialogue(USER, asks({"id": "1"})), "broken tool call: messages[1].tool_calls[0] names no tool; expected an object with name and arguments", "messages[1].tool_calls[0]"),
        (dialogue(USER, {"from": "function_call", "value": "weather()"}), "broken JSON: messages[1].value is not JSON: Expecting value at column 1", "messages[1].value"),
        (dialogue({**USER, "tool_calls": [call("{}")]}, ANSWER), 'broken tool call: messages[0] is "user" and calls a tool; expected "assistant"', "messages[0]"),
        (dialogue(USER, RESULT, ANSWER), 'roles out of order: messages[1] is "tool" after "user"; expected "assistant"', "messages[1]"),
        (dialogue(USER, ANSWER, RESULT, ANSWER), 'roles out of order: messages[2] is "tool", but the assistant before it calls no tool; expected "user"', "messages[2]"),
        (dialogue(USER, asks(call("{}")), ANSWER), 'roles out of order: messages[2] is "assistant" after "assistant"; expected "tool"', "messages[2]"),
        (dialogue(USER, asks(call("{}")), RESULT, USER, ANSWER), 'roles out of order: messages[3] is "user" after "tool"; expected "tool" or "assistant"', "messages[3]"),
        (dialogue(USER, asks(call("{}")), RESULT), 'last turn is not the assistant\'s: messages[2] is "tool"; expected an "assistant" turn at the end', "messages[2]"),
        (dialogue(USER, asks(call("{}")), RESULT, RESULT, ANSWER), "answer without a call: messages[3] is answer 2 to the 1 calls of messages[1]", "messages[3]"),
        (dialogue(*IDS, *answers("c"), ANSWER), "answer without a call: messages[2] answers 'c'; the calls of messages[1] are ['a', 'b']", "messages[2].tool_call_id"),
        (dialogue(*IDS, *answers("a", "a"), ANSWER), "answer without a call: messages[3] answers 'a' a second time", "messages[3].tool_call_id"),
        (dialogue(USER, asks(call("{}")), {"role": "tool", "content": None}, ANSWER), "empty content: messages[2].content of the tool is null", "messages[2].content"),
        (dialogue(USER, ANSWER, tools="weather"), "broken JSON: tools is not JSON: Expecting value at column 1", "tools"),
        (dialogue(USER, ANSWER, tools={"name": "weather"}), "unknown shape: tools is an object; expected a list of tools", "tools"),
        (dialogue(USER, ANSWER, tools=["weather"]), "unknown shape: tools[0] is a string; expected an object that describes a tool", "tools[0]"),
    ],
)  # fmt: skip
def test_broken_tools_are_rejected_with_reason_and_field(row: Any, reason: str, field: str) -> None:
    assert fault_of(account_of(row)) == (reason, field)


def test_the_recipe_names_the_columns() -> None:
    account = account_of({"text": "Hi", "category": "Hello"}, columns={"prompt": "text", "completion": "category"})
    assert (account.format, account.fate, said(account)) == ("prompt_completion", "kept", PLAIN)
    assert account.ignored == ()


def test_columns_are_found_at_dotted_paths_and_in_lists() -> None:
    row = {"data": {"q": "Hi", "n": 1}, "choices": [{"message": "Hello"}], "a.b": "S"}
    account = account_of(row, columns={"prompt": "data.q", "completion": "choices.0.message", "system": "a.b"})
    assert said(account) == [("system", "S"), *PLAIN]


def test_what_the_recipe_names_is_taken_alone() -> None:
    row = {
        "messages": [USER, OTHER],
        "prompt": "Ho",
        "input": "x",
        "answer": "Ha",
        "q": "Hi",
        "a": "Hello",
        "system": "S",
    }
    account = account_of(row, columns={"prompt": "q", "completion": "a"})
    assert said(account) == [("system", "S"), *PLAIN]
    assert (account.uncertain, account.ignored) == (None, ("messages", "prompt", "input", "answer"))


def test_one_column_alone_may_be_named() -> None:
    assert said(account_of({"prompt": "Hi", "label_text": "Hello"}, columns={"completion": "label_text"})) == PLAIN


def test_messages_with_keys_and_roles_of_their_own_are_read_by_the_recipe() -> None:
    row = {"log": [{"who": "customer", "says": "Hi"}, {"who": "agent", "says": "Hello"}]}
    columns = {"messages": "log", "role": "who", "content": "says"}
    account = account_of(row, columns=columns, roles={"customer": "user", "agent": "assistant"})
    assert (account.fate, said(account)) == ("kept", PLAIN)


def test_preferences_tools_history_and_reasoning_may_be_named() -> None:
    row = {"q": "Hi", "good": "Hello", "bad": "Go away", "before": [["A", "B"]], "fns": [WEATHER]}
    account = account_of(
        row, columns={"prompt": "q", "chosen": "good", "rejected": "bad", "history": "before", "tools": "fns"}
    )
    assert said(account) == [("user", "A"), ("assistant", "B"), *PLAIN]
    assert account.conversations[0].rejected == REJECTED
    assert account.conversations[0].tools is not None
    row = {"q": "Hi", "cot": "Hm", "a": "Hello"}
    account = account_of(row, columns={"prompt": "q", "reasoning": "cot", "completion": "a"})
    assert account.conversations[0].messages[1] == Message("assistant", "Hello", reasoning="Hm")


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ({"q": "Hi"}, "mapped key missing: `columns` names 'meta.a' for completion; found the keys 'q'", "meta.a"),
        (
            {"q": "Hi", "meta": {"b": 1}},
            "mapped key missing: `columns` names 'meta.a' for completion; found the keys 'q', 'meta'",
            "meta.a",
        ),
        ({"q": "Hi", "meta": {"a": None}}, "empty content: meta.a of the assistant is null", "meta.a"),
        ({"q": "", "meta": {"a": "b"}}, "empty content: q of the user is empty", "q"),
    ],
)
def test_a_fault_in_a_mapped_row_names_the_rows_own_keys(row: Any, reason: str, field: str) -> None:
    assert fault_of(account_of(row, columns={"prompt": "q", "completion": "meta.a"})) == (reason, field)


def test_a_mapped_key_that_the_shape_has_no_place_for_is_named_as_ignored() -> None:
    account = account_of({**dialogue(USER, ANSWER), "cot": "Hm"}, columns={"reasoning": "cot"})
    assert (said(account), account.ignored) == (PLAIN, ("cot",))


def test_each_row_of_a_file_is_read_as_what_it_is() -> None:
    rows = [dialogue(USER, ANSWER), {"instruction": "Hi", "output": "Hello"}]
    assert [(account_of(row).format, account_of(row).uncertain) for row in rows] == [
        ("messages", None),
        ("alpaca", None),
    ]

# ruff: noqa: E501  (the table of rejections is read line by line)
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_rows import account_of, dialogue, fault_of, repairs_of, said

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
PLAIN = [("user", "Hi"), ("assistant", "Hello")]


def pair(prompt: Any, completion: Any, **beside: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **beside}


def sharegpt(*turns: tuple[str, Any], **beside: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": what} for who, what in turns], **beside}


FORMS = [
    ("messages", dialogue(USER, ANSWER)),
    ("messages", {"messages": json.dumps([USER, ANSWER])}),
    ("sharegpt", sharegpt(("human", "Hi"), ("gpt", "Hello"))),
    ("sharegpt", sharegpt(("user", "Hi"), ("chatgpt", "Hello"))),
    ("sharegpt", sharegpt(("human", "Hi"), ("bot", "Hello"))),
    ("sharegpt", sharegpt(("human", "Hi"), ("model", "Hello"))),
    ("sharegpt", {"conversations": [USER, ANSWER]}),
    ("prompt_completion", pair("Hi", "Hello")),
    ("prompt_completion", pair([USER], [ANSWER])),
    ("prompt_completion", pair([USER], "Hello")),
    ("prompt_response", {"prompt": "Hi", "response": "Hello"}),
    ("question_answer", {"question": "Hi", "answer": "Hello"}),
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}),
    ("alpaca", {"instruction": "Hi", "input": None, "output": "Hello", "images": [], "tools": "[]"}),
    ("instruction_response", {"instruction": "Hi", "response": "Hello"}),
    ("input_output", {"input": "Hi", "output": "Hello"}),
    ("preference", {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}),
    ("preference", {"chosen": [USER, ANSWER], "rejected": [USER, USER]}),
    ("tree", {"prompt": {"role": "prompter", "text": "Hi", "replies": [{"role": "assistant", "text": "Hello"}]}}),
    ("chat_text", {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"}),
]


@pytest.mark.parametrize(("name", "row"), FORMS)
def test_a_format_is_recognised(name: str, row: Any) -> None:
    account = account_of(row)
    assert (account.format, said(account)) == (name, PLAIN)
    assert account.uncertain is None


@pytest.mark.parametrize(
    ("name", "row"), [form for form in FORMS if "messages" not in form[1] and form[0] != "chat_text"]
)
def test_what_a_format_has_of_its_own_is_no_repair(name: str, row: Any) -> None:
    assert (account_of(row).format, account_of(row).fate) == (name, "kept")


METADATA = st.dictionaries(
    st.text().map(lambda key: "x_" + key),
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers(), max_size=2),
    min_size=1,
    max_size=3,
)


@given(st.sampled_from(FORMS), METADATA)
def test_a_key_that_is_metadata_never_changes_the_conversation(form: tuple[str, Any], metadata: dict[str, Any]) -> None:
    plain, more = account_of(form[1]), account_of({**form[1], **metadata})
    assert (more.conversations, more.format, more.fate) == (plain.conversations, plain.format, plain.fate)
    assert more.ignored == tuple(key for key, value in metadata.items() if value not in (None, ""))


def test_an_alpaca_row_brings_its_input_its_system_prompt_and_its_history() -> None:
    row = {"instruction": "And this?", "input": "Text.", "output": "C", "system": "S", "history": [["A", "B"]]}
    assert said(account_of(row)) == [
        ("system", "S"),
        ("user", "A"),
        ("assistant", "B"),
        ("user", "And this?\nText."),
        ("assistant", "C"),
    ]


def test_a_history_may_be_a_list_of_messages() -> None:
    assert said(account_of(pair("And?", "C", history=[USER, ANSWER]))) == [*PLAIN, ("user", "And?"), ("assistant", "C")]


def test_the_context_of_a_question_is_not_lost() -> None:
    account = account_of({"question": "When?", "context": {"year": 1871}, "answer": "1871"})
    assert said(account)[0] == ("user", 'When?\n{"year": 1871}')
    assert repairs_of(account) == [("object written as JSON text", "context")]


def test_an_input_that_is_an_empty_list_is_not_lost() -> None:
    assert said(account_of({"instruction": "Add up:", "input": "[]", "output": "0"}))[0] == ("user", "Add up:\n[]")


def test_a_list_of_messages_given_as_json_text_is_a_repair() -> None:
    assert repairs_of(account_of({"messages": json.dumps([USER, ANSWER])})) == [
        ("JSON text read as a list", "messages")
    ]


def test_text_parts_are_joined_with_nothing_between() -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "value": "i "}]
    assert said(account_of(dialogue({"role": "user", "content": parts}, ANSWER)))[0] == ("user", "Hi ")


def test_white_space_around_a_text_is_kept() -> None:
    assert said(account_of(pair(" Hi\n", "\tHello "))) == [("user", " Hi\n"), ("assistant", "\tHello ")]


def test_roles_of_another_way_of_writing_are_read_and_named() -> None:
    account = account_of(dialogue({"role": "developer", "content": "S"}, USER, {"role": "model", "content": "Hello"}))
    assert said(account) == [("system", "S"), *PLAIN]
    assert repairs_of(account) == [
        ("role developer read as system", "messages[0].role"),
        ("role model read as assistant", "messages[2].role"),
    ]


@pytest.mark.parametrize(
    "switch", [{"weight": 0}, {"weight": 0.0}, {"loss_weight": 0}, {"train": False}, {"training": False}]
)
def test_a_turn_can_be_switched_off(switch: dict[str, Any]) -> None:
    (conversation,) = account_of(dialogue(USER, {**ANSWER, **switch}, USER, {**ANSWER, "weight": 1})).conversations
    assert [message.train for message in conversation.messages] == [True, False, True, True]


def test_the_names_of_speakers_are_kept() -> None:
    (conversation,) = account_of(dialogue({**USER, "name": "Ann"}, ANSWER)).conversations
    assert conversation.messages[0].name == "Ann"


@pytest.mark.parametrize("keys", [{"system": "S"}, {"system_prompt": "S"}, {"system": "S", "system_prompt": "S"}])
def test_a_system_prompt_may_stand_beside(keys: dict[str, str]) -> None:
    assert said(account_of(pair("Hi", "Hello", **keys)))[0] == ("system", "S")


def test_the_same_system_prompt_beside_and_in_the_messages_is_one() -> None:
    row = dialogue({"role": "system", "content": "S"}, USER, ANSWER, system="S")
    assert said(account_of(row)) == [("system", "S"), *PLAIN]


def test_columns_of_another_format_that_hold_nothing_do_not_count() -> None:
    row = {"messages": None, "instruction": "", "prompt": "Hi", "completion": "Hello", "chosen": None, "rejected": None}
    account = account_of(row)
    assert (account.format, account.uncertain, account.ignored) == ("prompt_completion", None, ())


def test_a_label_that_is_true_marks_a_wanted_answer() -> None:
    account = account_of(dialogue(USER, ANSWER, label=True))
    assert (said(account), account.ignored) == (PLAIN, ())


def test_keys_that_nothing_was_read_from_are_named() -> None:
    row = dialogue({**USER, "time": 3}, ANSWER, id="x", category="sport", label="news", reasoning="on", teacher=None)
    account = account_of(row)
    assert account.ignored == ("id", "category", "label", "reasoning", "messages[].time")
    assert account.uncertain is None


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (pair("Hi", "Hello", answer="No"), "the keys fit prompt_completion and prompt_answer; read as prompt_completion"),
        (dialogue(USER, ANSWER, **pair("A", "B")), "the keys fit messages and prompt_completion; read as messages"),
        (pair("Hi", "Hello", label=0), "'label' is no boolean and was left out; it could mark answers not to be learned"),
        (pair("Hi", "Hello", kto_tag="False"), "'kto_tag' is no boolean and was left out; it could mark answers not to be learned"),
        (pair("Hi", "Hello", thinking="Hm, so."), "'thinking' was left out; `columns: {reasoning: thinking}` would read it as the answer's reasoning"),
        (pair([USER], "Hello", context="C"), "'context' stands beside a list of messages and is left out"),
        (pair("Hi", "<think>Hm. Hello"), "an answer begins with a <think> that is never closed, and is read as an answer"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "'chosen' and 'rejected' are the same answer"),
        ({"prompt": "Ho", "chosen": [USER, ANSWER], "rejected": [USER, USER]}, "the prompt is not the one that 'chosen' begins with, which was taken"),
    ],
)  # fmt: skip
def test_a_reading_that_is_not_certain_says_so_and_is_taken(row: Any, why: str) -> None:
    account = account_of(row)
    assert (account.uncertain, account.fate) == (why, "kept")


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        (dialogue({"role": "user"}, ANSWER), "no content: messages[0] has the keys 'role'; expected 'content'", "messages[0].content"),
        (dialogue({"role": "User", "content": "Hi"}, ANSWER), "unknown role: found 'User'; expected system, user, assistant or tool. Name it in the recipe, such as `roles: {User: user}`.", "messages[0].role"),
        (dialogue({"content": "Hi"}, ANSWER), "unknown role: found null; expected system, user, assistant or tool", "messages[0].role"),
        (dialogue({"role": ["user"], "content": "Hi"}, ANSWER), "unknown role: found list; expected system, user, assistant or tool", "messages[0].role"),
        (dialogue(USER, {**ANSWER, "weight": 0.5}), "weight not 0 or 1: weight is not 0, 1, false or true", "messages[1].weight"),
        (dialogue({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER), "images not trained: found a part of type 'image_url'; expected 'text'", "messages[0].content[0].type"),
        (dialogue({"role": "user", "content": [{"type": "input_audio"}]}, ANSWER), "audio not trained: found a part of type 'input_audio'; expected 'text'", "messages[0].content[0].type"),
        (dialogue({"role": "user", "content": [{"type": "PER", "text": "Ann"}]}, ANSWER), "content parts of this kind not trained: found a part of type 'PER'; expected 'text'", "messages[0].content[0].type"),
        (dialogue({"role": "user", "content": [{"type": "text", "text": 3}]}, ANSWER), "unknown shape: the text part holds a number", "messages[0].content[0].text"),
        (dialogue({"role": "user", "content": [{"type": "thinking", "thinking": "Hm"}]}, ANSWER), 'broken content parts: messages[0] is "user" and holds the assistant\'s own parts; expected texts', "messages[0].content"),
        (dialogue({**USER, "tools": [{}]}, ANSWER), "tools in a message: messages[0] holds the list of tools; expected it beside the messages. Move it to the key 'tools' of the row.", "messages[0].tools"),
        (dialogue({**USER, "image": "x.jpg"}, ANSWER), "images not trained: found 'image'; tunewright trains text", "messages[0].image"),
        (dialogue({**USER, "name": {}}, ANSWER), "unknown shape: messages[0].name is an object; expected a text", "messages[0].name"),
        (dialogue(USER, ANSWER, images=["x.jpg"]), "images not trained: found 'images'; tunewright trains text. Leave the row out with --on-bad-row=reject, or take 'images' out of it.", "images"),
        (dialogue(USER, ANSWER, label=False), "unwanted answer: label is false, which marks an answer not to be learned. Leave the row out with --on-bad-row=reject.", "label"),
        (dialogue({"role": "system", "content": "S"}, USER, ANSWER, system="T"), "two system prompts: 'system' stands beside a system message; expected one", "system"),
        (pair("Hi", "Hello", system="S", system_prompt="T"), "two system prompts: 'system_prompt' stands beside 'system'; expected one", "system_prompt"),
        (pair("Hi", "Hello", tool_calls=[1]), "tool calls outside a message: found 'tool_calls'; expected them in an assistant's message", "tool_calls"),
        (dialogue(), "no messages: messages is empty; expected a user's and an assistant's message", "messages"),
        ({"messages": "Hi"}, "unknown shape: messages is a string; expected a list of messages", "messages"),
        ({"messages": "[{]"}, "broken JSON: messages is not JSON: Expecting property name enclosed in double quotes at column 3", "messages"),
        ({"messages": ["Hi"]}, "unknown shape: messages[0] is a string; expected an object with role and content", "messages[0]"),
        (pair("Hi", "Hello", history="Hi"), "unknown shape: history is a string; expected a list of [instruction, answer]", "history"),
        (pair("Hi", "Hello", history=[["A"]]), "unknown shape: history[0] is no [instruction, answer]", "history[0]"),
        ({"chosen": "a", "rejected": "b"}, "no prompt: chosen is an answer alone; expected a prompt beside it, or whole conversations. Name the key of the prompt, as in `columns: {prompt: KEY}`.", "chosen"),
        ({"prompt": "Hi", "chosen": "a"}, "unknown shape: found the keys 'prompt', 'chosen'; expected 'rejected' beside 'chosen'. If it is the answer to learn, say so in the recipe: `columns: {completion: chosen}`.", ""),
        ({"prompt": "Hi", "terms": ["x"]}, "no answer: found 'prompt' and none of completion, response, answer, output; the keys are 'prompt', 'terms'. Say in the recipe where the answer is: `columns: {completion: KEY}`; a row without one cannot be learned.", ""),
        ({"text": "x", "category": "y"}, "text without roles: found the keys 'text', 'category'; expected who says what. Say in the recipe which is which, such as `columns: {prompt: text, completion: category}`.", "text"),
        ({"text": "x", "title": "y", "date": "z"}, "text without roles: found the keys 'text', 'title', 'date'; expected who says what. Say in the recipe which is which, such as `columns: {prompt: text, completion: KEY}`, KEY being one of title, date.", "text"),
        ({"text": "x"}, "text without roles: found the keys 'text'; expected who says what. Write each text as a prompt and a completion, or as messages.", "text"),
        ({"message_id": "1", "parent_id": None, "role": "prompter", "text": "Hi"}, "single message: found the keys 'message_id', 'parent_id', 'role', 'text'; expected a whole conversation in each row. Join the messages of a conversation into one row, or use the file that has whole trees.", ""),
        ({"dialog": [USER, ANSWER]}, "unknown shape: found the keys 'dialog'; expected messages, conversations, or prompt/question/instruction/input with completion/response/answer/output. Say in the recipe where the messages are: `columns: {messages: dialog}`.", ""),
        ({"a": 1}, "unknown shape: found the keys 'a'; expected messages, conversations, or prompt/question/instruction/input with completion/response/answer/output. Say in the recipe which keys are meant, such as `columns: {prompt: KEY, completion: KEY}`.", ""),
        ({}, "unknown shape: found the keys none; expected messages, conversations, or prompt/question/instruction/input with completion/response/answer/output. Say in the recipe which keys are meant, such as `columns: {prompt: KEY, completion: KEY}`.", ""),
        (["Hi", "Hello"], "unknown shape: found a list; expected an object with messages, conversations, or prompt/question/instruction/input with completion/response/answer/output", ""),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read_is_rejected_with_reason_and_field(row: Any, reason: str, field: str) -> None:
    account = account_of(row)
    assert (account.fate, fault_of(account)) == ("rejected", (reason, field))


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>",
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n",
        "<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n",
    ],
)
def test_a_text_that_a_template_wrote_is_read_as_messages_and_named(text: str) -> None:
    account = account_of({"text": text})
    assert said(account) == PLAIN
    assert repairs_of(account)[0][0].endswith(" read as messages")


@pytest.mark.parametrize(
    "text", ["Note: <|im_start|>user\nHi<|im_end|>", "<|im_start|>user\nHi<|im_end|> and more", "Human: Hi"]
)
def test_a_text_that_is_only_partly_marked_is_not_guessed_at(text: str) -> None:
    assert fault_of(account_of({"text": text}))[1] == "text"


def test_an_error_names_a_lone_surrogate_by_its_escape() -> None:
    reason, _ = fault_of(account_of('{"messages": [{"role": "\\ud800", "content": "Hi"}]}'))
    assert "`roles: {\\ud800: user}`" in reason
    assert account_of('{"prompt": "a", "completion": "b", "\\ud800": 1}').ignored == ("\\ud800",)

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tunewright.chat.conversation import Conversation, Message, ToolCall
from tunewright.chat.files import conversation_from_line, conversation_line, read_conversations, write_conversations

TEXT = st.text(max_size=20)
MAYBE = st.none() | TEXT
CALLS = st.lists(
    st.builds(ToolCall, TEXT, st.dictionaries(TEXT, st.integers(), max_size=3).map(json.dumps), MAYBE), max_size=3
)
MESSAGES = st.lists(
    st.builds(
        Message,
        st.sampled_from(["system", "user", "assistant", "tool"]),
        MAYBE,
        st.booleans(),
        MAYBE,
        st.booleans(),
        CALLS.map(tuple),
        MAYBE,
        MAYBE,
    ),
    max_size=4,
).map(tuple)  # fmt: skip
CONVERSATIONS = st.builds(Conversation, TEXT, MESSAGES, MAYBE, MESSAGES, MAYBE)
PLAIN = Conversation("rows.jsonl:1", (Message("user", "Hi"), Message("assistant", "Hello")))


@given(CONVERSATIONS)
def test_a_conversation_written_and_read_is_the_same(conversation: Conversation) -> None:
    assert conversation_from_line(conversation_line(conversation)) == conversation


@given(CONVERSATIONS)
def test_a_conversation_is_one_line(conversation: Conversation) -> None:
    line = conversation_line(conversation)
    assert line.endswith("\n")
    assert "\n" not in line[:-1]
    assert "\r" not in line


def test_a_plain_conversation_has_no_further_keys_on_disk() -> None:
    wanted = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    assert PLAIN.as_json() == {"id": "rows.jsonl:1", "messages": list(wanted)}


def test_a_file_of_conversations_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    odd = Conversation("rows.jsonl:2", (Message("user", "a\u2028b\r\n\x85"), Message("assistant", "ü")))
    assert write_conversations(path, [PLAIN, odd]) == 2
    assert list(read_conversations(path)) == [PLAIN, odd]


def test_templates_get_arguments_as_objects_and_null_as_it_is() -> None:
    message = Message(
        "assistant", None, reasoning="Hm", tool_calls=(ToolCall("f", '{"a": 1}', "x"), ToolCall("g", "{}"))
    )
    assert message.for_template() == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Hm",
        "tool_calls": [
            {"type": "function", "id": "x", "function": {"name": "f", "arguments": {"a": 1}}},
            {"type": "function", "function": {"name": "g", "arguments": {}}},
        ],
    }
    assert Message("tool", "4", name="f", tool_call_id="x").for_template() == {
        "role": "tool",
        "content": "4",
        "name": "f",
        "tool_call_id": "x",
    }


def test_what_a_turn_says_is_its_content_and_its_calls() -> None:
    call = ToolCall("wörd", '{"n": 1.50}')
    assert Message("assistant", "So:", tool_calls=(call,)).text == 'So:\n{"name": "wörd", "arguments": {"n": 1.50}}'
    assert Message("assistant", None, tool_calls=(call,)).text == '{"name": "wörd", "arguments": {"n": 1.50}}'
    assert PLAIN.target == "Hello"

"""Masks from the template: what each kind of template does to a conversation, and what the proof says of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from battery_chats import CALL, TOOLS
from tiny_model import CHAT_TEMPLATE
from tunewright.chat.conversation import Conversation, Message, ToolCall
from tunewright.chat.prompt import Prompt
from tunewright.chat.stops import end_of_turn_ids
from tunewright.chat.supervise import SupervisedRow, Supervisor
from tunewright.chat.template import ChatTemplate
from tunewright.errors import RenderError
from tunewright.models.base import load_tokenizer, stop_token_ids
from tunewright.render.row_json import rows_as_json

TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
PLAIN = "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT
THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n<think>\n' + "
    "(m.reasoning_content or '') + '\n</think>\n\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + ' ' }}{{ c.function.arguments | tojson }}"
    "{{ '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% else %}" + TURN + "{% endif %}{% endfor %}" + PROMPT
)
TOOLED = "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}" + THINKING
HELLO, ANSWER = Message("user", "Hallo"), Message("assistant", "Guten Tag!")


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


@pytest.fixture(scope="module")
def stop_ids(tiny_base: Path, tokenizer: Any) -> frozenset[int]:
    return stop_token_ids(tiny_base, tokenizer)


class Asked:
    """A template with the tiny tokenizer."""

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int], source: str) -> None:
        self.supervisor = Supervisor(tokenizer, ChatTemplate(source), stop_ids)

    def rows(self, *messages: Message, tools: str | None = None) -> list[SupervisedRow]:
        return self.supervisor.rows(Conversation("r", messages, tools))

    def row(self, *messages: Message, tools: str | None = None) -> SupervisedRow:
        (row,) = self.rows(*messages, tools=tools)
        return row

    def learned(self, row: SupervisedRow) -> str:
        return str(self.supervisor.encoder.decode(row.ids[row.mask].tolist()))

    def refusal(self, *messages: Message, tools: str | None = None) -> RenderError:
        with pytest.raises(RenderError) as caught:
            self.rows(*messages, tools=tools)
        return caught.value


@pytest.fixture
def asked(tokenizer: Any, stop_ids: frozenset[int]) -> Any:
    return lambda source: Asked(tokenizer, stop_ids, source)


def notes_of(row: SupervisedRow) -> str:
    assert row.proof is not None
    return "; ".join(row.proof.notes)


# What is learned


def test_reasoning_beside_the_answer_is_learned_with_it(asked: Any) -> None:
    chat = asked(THINKING)
    row = chat.row(HELLO, Message("assistant", "vier", reasoning="zwei und zwei"))
    assert chat.learned(row) == "<think>\nzwei und zwei\n</think>\n\nvier<|im_end|>"


def test_reasoning_that_is_kept_without_being_learned_is_context(asked: Any) -> None:
    chat = asked(THINKING)
    row = chat.row(HELLO, Message("assistant", "vier", reasoning="zwei und zwei", train_reasoning=False))
    assert chat.learned(row) == "vier<|im_end|>"
    assert "zwei und zwei" in row.text


def test_a_call_behind_reasoning_that_is_not_learned_is_learned_whole(asked: Any) -> None:
    chat = asked(THINKING)
    row = chat.row(HELLO, Message("assistant", None, reasoning="hm", train_reasoning=False, tool_calls=(CALL,)))
    assert chat.learned(row) == '<call>get_weather {"city": "Köln", "days": 3}</call><|im_end|>'


def test_reasoning_within_the_content_may_be_left_unlearned_too(asked: Any) -> None:
    chat = asked(PLAIN)
    row = chat.row(HELLO, Message("assistant", "<think>hm</think>vier", train_reasoning=False))
    assert chat.learned(row) == "vier<|im_end|>"


def test_an_empty_answer_is_its_end_of_turn(asked: Any) -> None:
    chat = asked(PLAIN)
    assert chat.learned(chat.row(HELLO, Message("assistant", ""))) == "<|im_end|>"


def test_messages_behind_the_last_learned_turn_are_context(asked: Any) -> None:
    chat = asked(PLAIN)
    row = chat.row(HELLO, ANSWER, Message("user", "Danke"))
    assert chat.learned(row) == "Guten Tag!<|im_end|>"
    assert row.text.endswith("user\nDanke<|im_end|>\n")


# What templates do


def test_a_system_prompt_that_only_the_prompt_has_is_trained_with(asked: Any) -> None:
    """Inference adds the system prompt to the last question; the template forgets it once the answer is there."""
    source = (
        "{% set s = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
        "{% if m.role != 'system' %}{% set c = s + '|' + m.content if loop.last and m.role == 'user' else m.content %}"
        "{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}{% endif %}{% endfor %}" + PROMPT
    )
    chat = asked(source)
    row = chat.row(Message("system", "Kurz."), HELLO, ANSWER)
    assert row.text == "<|im_start|>user\nKurz.|Hallo<|im_end|>\n<|im_start|>assistant\nGuten Tag!<|im_end|>\n"
    assert "the row has what inference sends" in notes_of(row)


def test_a_turn_that_ends_with_the_opening_of_the_next_one_is_closed_with_it(tokenizer: Any) -> None:
    source = (
        "{% for m in messages %}{{ '<|im_end|>' if m.role == 'user' else '<|im_start|>' }}{{ m.content }}{% endfor %}"
    )
    source += "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    ends = frozenset({tokenizer.convert_tokens_to_ids("<|im_end|>")})
    chat = Asked(tokenizer, ends, source)
    row = chat.row(HELLO, ANSWER)
    assert row.text == "<|im_end|>Hallo<|im_start|>Guten Tag!<|im_end|>"
    assert chat.learned(row) == "Guten Tag!<|im_end|>"


def test_an_end_of_turn_that_only_the_last_turn_has_gives_one_row_for_each(asked: Any) -> None:
    source = "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% if loop.last and m.role == 'assistant' %}"
    source += "{{ '<|im_end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    chat = asked(source)
    rows = chat.rows(HELLO, ANSWER, Message("user", "Und?"), Message("assistant", "Nichts."))
    assert [chat.learned(row) for row in rows] == ["Guten Tag!<|im_end|>", "Nichts.<|im_end|>"]
    assert "<|im_end|>" not in rows[1].text.removesuffix("<|im_end|>"), "inference sends none there"


OPENED = PLAIN.replace(PROMPT, "") + (
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
)


def test_the_variable_under_which_prompt_and_text_agree_is_found_and_named(asked: Any) -> None:
    chat = asked(OPENED)
    row = chat.row(HELLO, ANSWER)
    assert row.proof.variables == (("enable_thinking", False),)
    assert chat.learned(row) == "Guten Tag!<|im_end|>"
    prompt = chat.supervisor.prompt_ids(Prompt((HELLO,), variables=row.proof.variables))
    assert row.ids[: row.last_prompt_length].tolist() == prompt


def test_a_prompt_that_opens_what_the_text_lacks_is_refused(asked: Any) -> None:
    error = asked(OPENED.replace("enable_thinking is not defined or enable_thinking", "true")).refusal(HELLO, ANSWER)
    assert error.claim == "a"
    assert "inference sends '<think>\\n'" in error.found


def test_contents_are_given_as_parts_where_the_template_reads_parts(asked: Any) -> None:
    chat = asked(PLAIN.replace("m.content", "m.content[0]['text']"))
    row = chat.row(HELLO, ANSWER)
    assert chat.learned(row) == "Guten Tag!<|im_end|>"
    assert "lists of parts" in notes_of(row)


def test_arguments_are_given_as_text_where_the_template_takes_only_text(asked: Any) -> None:
    source = THINKING.replace("c.function.arguments | tojson", "c.function.arguments")
    chat = asked(source)
    row = chat.row(HELLO, Message("assistant", None, tool_calls=(CALL,)))
    assert chat.learned(row).endswith('<call>get_weather {"city": "Köln", "days": 3}</call><|im_end|>')
    assert "as JSON text" in notes_of(row)


def test_whitespace_that_the_template_strips_is_noted(asked: Any) -> None:
    chat = asked(PLAIN.replace("m.content", "m.content.strip()"))
    row = chat.row(HELLO, Message("assistant", " Guten Tag!\n"))
    assert chat.learned(row) == "Guten Tag!<|im_end|>"
    assert "strips whitespace around the content of message 1" in notes_of(row)


def test_a_content_that_is_written_as_json_is_noted(asked: Any) -> None:
    chat = asked(PLAIN.replace("m.content", "m.content | tojson"))
    assert "writes the content of message 0 as JSON text" in notes_of(chat.row(Message("user", 'a "b"'), ANSWER))


def test_a_system_prompt_that_is_folded_into_the_question_is_noted(asked: Any) -> None:
    source = (
        "{% set s = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}{% set c = (s if loop.first else '') + m.content %}"
        "{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}{% endfor %}" + PROMPT
    )
    system = Message("system", "Kurz.")
    assert "folds the system prompt into the first user's turn" in notes_of(asked(source).row(system, HELLO, ANSWER))
    assert "folds" not in notes_of(asked(PLAIN).row(system, HELLO, ANSWER))


def test_constants_that_are_written_as_python_does_are_noted(asked: Any) -> None:
    call = ToolCall("get_weather", '{"city": "Köln", "now": true, "hours": null}')
    source = THINKING.replace(
        "{{ c.function.arguments | tojson }}",
        "{% for k, v in c.function.arguments.items() %}{{ k ~ '=' ~ v }} {% endfor %}",
    )
    notes = notes_of(asked(source).row(HELLO, Message("assistant", None, tool_calls=(call,))))
    assert "the template writes True for true in a call of 'get_weather'" in notes
    assert "the template writes None for null in a call of 'get_weather'" in notes
    assert "for true" not in notes_of(asked(THINKING).row(HELLO, Message("assistant", None, tool_calls=(call,))))


# What is lost or changed


def test_tools_that_the_template_does_not_show_are_refused_by_name(asked: Any) -> None:
    error = asked(PLAIN).refusal(HELLO, ANSWER, tools=TOOLS)
    assert (error.claim, error.found) == ("f", "the template does not show the tool 'get_weather'")
    assert asked(TOOLED).rows(HELLO, ANSWER, tools=TOOLS)


def test_a_description_that_is_not_shown_is_noted(asked: Any) -> None:
    source = TOOLED.replace("tools | tojson", "tools[0].function.name")
    notes = notes_of(asked(source).row(HELLO, ANSWER, tools=TOOLS))
    assert "a description of the tools is not shown to the model: 'Weather of a place'" in notes
    assert "a parameter of the tools is not shown to the model: 'city'" in notes


def test_calls_that_the_template_drops_are_refused(asked: Any) -> None:
    error = asked(PLAIN).refusal(HELLO, Message("assistant", "Moment.", tool_calls=(CALL,)))
    assert (error.claim, "arguments of the calls of" in error.found) == ("f", True)


def test_the_name_of_a_call_that_the_template_drops_is_refused(asked: Any) -> None:
    source = THINKING.replace("c.function.name + ' '", "' '")
    error = asked(source).refusal(HELLO, Message("assistant", None, tool_calls=(CALL,)))
    assert error.found == "the template loses a call of 'get_weather'"


def test_a_second_call_that_the_template_drops_is_refused(asked: Any) -> None:
    source = THINKING.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    calls = (ToolCall("one", '{"a": "x"}'), ToolCall("two", "{}"))
    assert asked(source).refusal(HELLO, Message("assistant", None, tool_calls=calls)).claim == "f"


def test_reasoning_that_the_template_drops_is_refused_where_it_is_to_be_learned(asked: Any) -> None:
    error = asked(PLAIN).refusal(HELLO, Message("assistant", "vier", reasoning="hm"))
    assert (error.claim, error.found) == ("f", "the template loses or changes the reasoning of 'vier'")


def test_a_template_that_changes_a_message_by_what_it_says_is_refused(asked: Any) -> None:
    source = PLAIN.replace("m.content", "m.content | replace('Hallo', 'Salut')")
    assert asked(source).rows(Message("user", "Tag"), ANSWER)
    assert "changes the user message 'Hallo'" in asked(source).refusal(HELLO, ANSWER).found


def test_text_that_comes_out_escaped_for_html_is_refused(asked: Any) -> None:
    error = asked(PLAIN.replace("m.content", "('<b>' | escape) + m.content")).refusal(HELLO, ANSWER)
    assert error.found == "the template's own text comes out escaped for HTML, as '&lt;'"


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_control_token_that_someone_typed_is_refused_by_name(asked: Any, role: str) -> None:
    messages = [HELLO, ANSWER]
    messages[role == "assistant"] = Message(role, "so: <|im_end|>")  # type: ignore[arg-type]
    error = asked(PLAIN).refusal(*messages)
    assert (error.claim, "has the control token '<|im_end|>' as its own text" in error.found) == ("c", True)


def test_two_bos_tokens_are_refused(asked: Any) -> None:
    assert asked("{{ '<|im_start|>' }}" + PLAIN).refusal(HELLO, ANSWER).claim == "e"


def test_an_answer_that_joins_the_prompt_is_refused(asked: Any) -> None:
    source = PLAIN.replace("'\n' + m.content", "'t' + m.content").replace("assistant\n'", "assistantt'")
    error = asked(source).refusal(HELLO, Message("assistant", "he"))
    assert (error.claim, "joins the prompt's last one" in error.found) == ("a", True)


# The form of `render --json`


def test_a_row_as_json_has_ids_mask_text_and_every_claim(asked: Any) -> None:
    (line,) = rows_as_json(Conversation("rows.jsonl:1", (HELLO, ANSWER)), asked(PLAIN).supervisor)
    assert list(line) == ["row", "text", "input_ids", "assistant_mask", "proof"]
    assert len(line["input_ids"]) == len(line["assistant_mask"])
    assert set(line["assistant_mask"]) == {0, 1}
    assert {line["proof"][claim]["verdict"] for claim in "abcdef"} == {"proven"}
    assert json.loads(json.dumps(line)) == line


def test_a_refused_row_as_json_says_why(asked: Any) -> None:
    (line,) = rows_as_json(Conversation("rows.jsonl:1", (HELLO,)), asked(PLAIN).supervisor)
    assert line["row"] == "rows.jsonl:1"
    assert "no assistant's turn is to be learned" in line["refused"]


def test_the_end_of_turn_is_found_where_no_generation_config_says_it(tokenizer: Any) -> None:
    for source in (PLAIN, CHAT_TEMPLATE, THINKING):
        supervisor = Supervisor(tokenizer, ChatTemplate(source), frozenset())
        found = end_of_turn_ids(supervisor.encoder, supervisor.template)
        assert tokenizer.convert_ids_to_tokens(sorted(found)) == ["<|im_end|>"]


# What always holds

TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=30).filter(
    lambda text: "<|" not in text and "<unk>" not in text and "<0x" not in text
)


def learned_ids(row: SupervisedRow) -> list[int]:
    ids: list[int] = row.ids[row.mask].tolist()
    return ids


@settings(max_examples=50, deadline=None)
@given(first=TEXT, second=TEXT, answer=TEXT)
def test_what_the_user_says_never_changes_which_answer_tokens_are_trained(
    tokenizer: Any, stop_ids: frozenset[int], first: str, second: str, answer: str
) -> None:
    chat = Asked(tokenizer, stop_ids, PLAIN)
    try:
        rows = [chat.row(Message("user", text), Message("assistant", answer)) for text in (first, second)]
    except RenderError:
        return
    assert learned_ids(rows[0]) == learned_ids(rows[1])


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXT, min_size=4, max_size=4))
def test_a_further_turn_keeps_the_masks_of_the_earlier_ones(
    tokenizer: Any, stop_ids: frozenset[int], texts: list[str]
) -> None:
    chat = Asked(tokenizer, stop_ids, PLAIN)
    messages = [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)]
    try:
        short, long = chat.row(*messages[:2]), chat.row(*messages)
    except RenderError:
        return
    assert long.ids[: len(short.ids)].tolist() == short.ids.tolist()
    assert long.mask[: len(short.ids)].tolist() == short.mask.tolist()


@settings(max_examples=60, deadline=None)
@given(user=TEXT, answer=TEXT)
def test_the_ids_before_a_span_are_those_that_inference_sends(
    tokenizer: Any, stop_ids: frozenset[int], user: str, answer: str
) -> None:
    chat = Asked(tokenizer, stop_ids, PLAIN)
    try:
        row = chat.row(Message("user", user), Message("assistant", answer))
    except RenderError:
        return
    assert row.ids[: row.last_prompt_length].tolist() == chat.supervisor.prompt_ids(Prompt((Message("user", user),)))
    assert chat.learned(row).removesuffix("<|im_end|>").strip() == answer.strip()

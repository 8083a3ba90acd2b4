"""Questions: the prompt that was proven, and of an answer the part that a user gets to see."""

from pathlib import Path

import pytest

from tunewright.chat.conversation import Conversation, Message, ToolCall
from tunewright.chat.prompt import Prompt
from tunewright.chat.rows import TokenRow
from tunewright.chat.supervise import Supervisor
from tunewright.chat.template import ChatTemplate
from tunewright.evaluate.questions import Question, question_of, target_of
from tunewright.models.base import load_tokenizer, stop_token_ids

ASKED = Message("user", "Wie viel?")
# Reasoning beside the content is written in brackets, calls in braces.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '(' + m.reasoning_content + ')\n\n' }}{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ '{' + call.function.name + ' ' + call.function.arguments | tojson + '}' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def thinking(tiny_base: Path) -> Supervisor:
    tokenizer = load_tokenizer(tiny_base)
    return Supervisor(tokenizer, ChatTemplate(TEMPLATE), stop_token_ids(tiny_base, tokenizer))


def asked(supervisor: Supervisor, answer: Message, tools: str | None = None) -> Question:
    row = Conversation("rows.jsonl:1", (ASKED, answer), tools)
    (found,) = supervisor.rows(row)
    return question_of(row, TokenRow(found.ids, found.mask, found.last_prompt_length), supervisor)


def test_a_plain_answer_is_compared_as_the_row_has_it(thinking: Supervisor) -> None:
    question = asked(thinking, Message("assistant", "Vier. "))
    assert (question.target, question.shown(" (a) b")) == ("Vier. ", " (a) b")
    assert question.prompt == Prompt((ASKED,))


@pytest.mark.parametrize("learned", [True, False])
def test_of_an_answer_with_reasoning_the_part_behind_it_is_compared(thinking: Supervisor, learned: bool) -> None:
    answer = Message("assistant", "Vier.", reasoning="Zwei und zwei", train_reasoning=learned)
    question = asked(thinking, answer)
    assert (question.target, question.end_of_reasoning) == ("Vier.", ")")
    assert question.shown("(Drei und eins)\n\nVier.") == "Vier."
    assert question.shown("Vier.") == "Vier."


def test_a_block_of_thought_within_the_content_is_not_compared(thinking: Supervisor) -> None:
    answer = Message("assistant", "<think>Zwei und zwei</think>\n\nVier.")
    question = asked(thinking, answer)
    assert question.target == "Vier."
    assert question.shown("<think>hm</think>\n\nFünf.") == "Fünf."
    assert target_of(Conversation("x", (ASKED, answer))) == "Vier."


def test_a_call_is_compared_as_the_template_writes_it(thinking: Supervisor) -> None:
    answer = Message("assistant", None, tool_calls=(ToolCall("add", '{"a": 2}'),))
    assert asked(thinking, answer, '[{"type": "function"}]').target == '{add {"a": 2}}'

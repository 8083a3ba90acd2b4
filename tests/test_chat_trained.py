"""Prompts and the template that is served: nothing has to be told to it that training told the base's own."""

import json
from datetime import date
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from render_rows import asked, run_render, write_data
from tunewright.artifacts import RunDirectory
from tunewright.chat.conversation import Message, ToolCall
from tunewright.chat.forms import Form
from tunewright.chat.prompt import Prompt, prompt_from_json
from tunewright.chat.template import ChatTemplate
from tunewright.chat.trained import clock_formats, pinned, trained_template

HELLO = (Message("user", "Hallo"),)
TURNS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[answer]{% endif %}"
)
DATED = "{%- if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%H\") }}{% endif -%}"


def test_a_template_that_is_told_nothing_is_served_as_it_is() -> None:
    template = ChatTemplate("  " + TURNS)
    assert pinned(template, [()]) == template
    assert pinned(template, []) == template


@pytest.mark.parametrize(
    "start", ["", "\n", "  ", "  {% if true %}\n {% endif %}", "{#- x #}", "\n\n  {%- if true %}{% endif %}"]
)
def test_pinned_variables_and_dates_give_the_text_that_was_told_them(start: str) -> None:
    template = ChatTemplate(start + DATED + TURNS + "{% if thinking %}<think>{% endif %}", today=date(2024, 7, 26))
    told = template.render(HELLO, True, variables={"thinking": True})
    served = pinned(template, [(("thinking", True),)])
    assert "26 Jul 2024 00" in told
    assert ChatTemplate(served.source, today=date(2031, 1, 1)).render(HELLO, True) == told


def test_transformers_renders_the_pinned_template_to_the_same_text() -> None:
    template = ChatTemplate(DATED + TURNS + "{% if thinking %}<think>{% endif %}")
    served = pinned(template, [(("thinking", True),)])
    messages = [message.for_template() for message in HELLO]
    (text,), _ = render_jinja_template([messages], chat_template=served.source, add_generation_prompt=True)
    assert text == template.render(HELLO, True, variables={"thinking": True})


def test_variables_that_differ_from_row_to_row_are_not_pinned() -> None:
    template = ChatTemplate(TURNS)
    assert pinned(template, [(), (("thinking", True),)]) == template


@pytest.mark.parametrize(
    "source",
    ["{{ strftime_now(f) }}", "{% set now = strftime_now %}{{ now('%d') }}", "{% if %}{{ strftime_now('%d') }}"],
)
def test_a_clock_that_is_read_in_ways_unknown_beforehand_is_not_pinned(source: str) -> None:
    assert clock_formats(ChatTemplate(source)) is None


def test_the_formats_of_dates_are_those_that_the_template_names() -> None:
    assert clock_formats(ChatTemplate(DATED + DATED)) == ["%H", "%d %b %Y"]


def test_a_prompt_survives_its_form_on_disk() -> None:
    call = Message("assistant", None, tool_calls=(ToolCall("find", '{"n": 1}', "c1"),))
    messages = (*HELLO, call, Message("tool", "3", tool_call_id="c1"))
    prompt = Prompt(messages, '[{"type": "function"}]', (("thinking", False),), Form(parts=True))
    assert prompt_from_json(json.loads(json.dumps({"id": "x", **prompt.as_json()}))) == prompt
    assert prompt_from_json(Prompt(HELLO).as_json()) == Prompt(HELLO)


def test_a_request_has_what_clients_send_and_nothing_that_is_not_there() -> None:
    assert Prompt(HELLO).request() == {"messages": [{"role": "user", "content": "Hallo"}]}
    call = Message("assistant", None, tool_calls=(ToolCall("find", '{"n": 1.10}', "c1"),))
    body = Prompt((*HELLO, call), '[{"type": "function"}]', (("thinking", False),)).request()
    function = {"name": "find", "arguments": '{"n": 1.10}'}
    assert body["messages"][1]["tool_calls"] == [{"type": "function", "id": "c1", "function": function}]
    assert (body["tools"], body["chat_template_kwargs"]) == ([{"type": "function"}], {"thinking": False})


OPENED = (
    "{{ strftime_now('%Y') }}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
)


def test_what_every_row_was_told_stands_in_the_served_template(tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "opened.jinja").write_text(OPENED, encoding="utf-8")
    run = RunDirectory(tmp_path / "run")
    write_data(run, [asked("r:1", "Who?", "He"), asked("r:2", "Where?", "There")])
    outcome = run_render(run, tiny_base, chat_template=str(tmp_path / "opened.jinja"))
    assert outcome.evidence("template_variables").value == '2 rows with {"enable_thinking": false}'
    assert outcome.evidence("template_date").value == "2025-01-01"
    same = outcome.evidence("served_template_differs")
    assert (same.value, same.verdict) == (0, "pass")
    served = trained_template(RunDirectory(outcome.directory.parent))
    assert served.render(HELLO, True) == "2025<|im_start|>user\nHallo<|im_end|>\n<|im_start|>assistant\n"

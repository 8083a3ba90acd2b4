"""Chat templates: the text of transformers, a fixed date, a template from the recipe, and clear refusals."""

import json
import os
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from tiny_model import write_tokenizer
from tunewright.artifacts import read_json, write_json
from tunewright.chat.budget import Limits
from tunewright.chat.conversation import Message, ToolCall, messages_for_template
from tunewright.chat.named import template_names
from tunewright.chat.sandbox import compiled
from tunewright.chat.template import DEFAULT_TODAY, ChatTemplate, chat_template_of
from tunewright.errors import RecipeError, RenderError
from tunewright.models.base import load_tokenizer
from tunewright.models.checkpoint_directory import write_chat_template
from tunewright.recipe import read_recipe

BATTERY = Path(os.environ.get("TUNEWRIGHT_BATTERY", "../shared/battery"))
needs_battery = pytest.mark.skipif(not BATTERY.is_dir(), reason=f"the battery is not at {BATTERY}")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
TOOLS = (
    '[{"type": "function", "function": {"name": "weather", "description": "Wetter – <b>jetzt</b>", "parameters": '
    '{"type": "object", "properties": {"city": {"type": "string", "description": "c"}, "n": {"type": "integer", '
    '"default": 123456789012345678901234567890}}, "required": ["city"]}}}]'
)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str | None, **more: Any) -> Message:
    return Message("assistant", text, **more)


CALL = ToolCall("weather", '{"city": "Köln", "days": 3}', "call12345")
ANSWER = Message("tool", '{"t": 3}', name="weather", tool_call_id="call12345")
CONVERSATIONS: dict[str, tuple[list[Message], str | None]] = {
    "plain": ([user("Hi"), assistant("Hello")], None),
    "system and turns": (
        [Message("system", "Be brief."), user("Hi"), assistant("Ho \n"), user("?"), assistant("!")],
        None,
    ),
    "ends with user": ([user("Hi"), assistant("Hello"), user("And?")], None),
    "tools": ([user("Weather?"), assistant("", tool_calls=(CALL,)), ANSWER, assistant("3 degrees")], TOOLS),
    "reasoning": ([user("1+1?"), assistant("2", reasoning="sum"), user("2+2?"), assistant("4", reasoning="4")], None),
    "thinking": ([user("1+1?"), assistant("<think>\nsum\n</think>\n\n2"), user("2?"), assistant("2")], None),
    "empty": ([user(""), assistant("")], None),
    "whitespace": ([Message("system", " s \n"), user("  Hi \n"), assistant("\n Ho \n\n")], None),
    "control tokens": ([user("<|im_end|>\n<s>[INST]{{ 7*7 }}{% raw %}"), assistant("&lt;b&gt; <b>")], None),
}


class FixedClock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "FixedClock":
        return cls(DEFAULT_TODAY.year, DEFAULT_TODAY.month, DEFAULT_TODAY.day)


def by_transformers(source: str, messages: list[Message], tools: str | None, prompt: bool) -> Any:
    """The text and the generation spans, or the message of the exception."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered: Any = render_jinja_template(
            [messages_for_template(tuple(messages))],
            tools=json.loads(tools) if tools else None,
            chat_template=source,
            return_assistant_tokens_mask="generation" in source,
            add_generation_prompt=prompt,
            **TOKENS,
        )
    except Exception:
        return "refused"
    return rendered[0][0], tuple(rendered[1][0]) if rendered[1] else ()


def by_us(source: str, messages: list[Message], tools: str | None, prompt: bool) -> Any:
    try:
        rendered = ChatTemplate(source, TOKENS).rendered(messages, prompt, tools=tools)
    except RenderError:
        return "refused"
    return rendered.text, rendered.generation


@pytest.fixture
def fixed_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from transformers.utils import chat_template_utils

    monkeypatch.setattr(chat_template_utils, "datetime", FixedClock)
    yield
    chat_template_utils._compile_jinja_template.cache_clear()


@needs_battery
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(3))
def test_every_real_template_gives_the_text_and_spans_of_transformers(part: int, fixed_clock: None) -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted(BATTERY.glob("templates/*.jinja"))}
    rendered = 0
    for name in list(sources)[part::3]:
        for kind, (messages, tools) in CONVERSATIONS.items():
            prompt = messages[-1].role == "user"
            expected = by_transformers(sources[name], messages, tools, prompt)
            assert by_us(sources[name], messages, tools, prompt) == expected, (name, kind)
            rendered += expected != "refused"
    assert rendered > 200


@needs_battery
def test_the_recorded_renderings_are_met() -> None:
    lines = (BATTERY / "oracles" / "rendering.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [case for case in map(json.loads, lines) if case["py_jinja"] == "match"]
    assert len(cases) == 51
    for case in cases:
        names = {"documents": None, "tools": None, **case["data"]}
        assert compiled(case["template"], Limits()).render(names, date(2024, 7, 26)).text == case["expected"], case[
            "id"
        ]


def render(source: str, *messages: Message, **more: Any) -> str:
    return ChatTemplate(source, TOKENS).render(messages or (user("Hi"),), **more)


def test_a_template_that_reads_the_clock_is_told_the_fixed_date_and_says_so() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y %H:%M') }}")
    rendered = template.rendered([user("Hi")])
    assert (rendered.text, rendered.read_clock) == ("01 Jan 2025 00:00", True)
    later = ChatTemplate(template.source, today=date(2026, 11, 21))
    assert later.render([user("Hi")]) == "21 Nov 2026 00:00"
    unasked = ChatTemplate("{% if strftime_now is defined %}x{% endif %}").rendered([user("Hi")])
    assert (unasked.text, unasked.read_clock) == ("x", False)


@pytest.mark.parametrize(
    ("source", "may"),
    [
        ("{{ strftime_now('%Y') }}", True),
        ("{% if tools %}{% set now = strftime_now %}{{ now('%Y') }}{% endif %}", True),
        ("{% if strftime_now is defined %}x{% endif %}", False),
        ("strftime_now", False),
    ],
)
def test_it_is_known_beforehand_whether_a_template_may_ask_for_the_date(source: str, may: bool) -> None:
    assert ChatTemplate(source).may_read_clock == may


def test_a_generation_block_tells_where_it_stands() -> None:
    source = "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}"
    rendered = ChatTemplate(source).rendered([user("Hi"), assistant("Ho!")])
    assert rendered.text == "user:Hi;assistant:Ho!;"
    assert rendered.generation == ((5, 7), (18, 21))


def test_a_generation_block_inside_a_variable_has_no_known_place() -> None:
    source = "{% set x %}{% generation %}said{% endgeneration %}{% endset %}before {{ x }}"
    rendered = ChatTemplate(source).rendered([user("Hi")])
    assert (rendered.text, rendered.generation) == ("before said", None)


def test_tools_keep_every_digit_and_floats_are_pythons() -> None:
    tools = '[{"a": 123456789012345678901234567890, "z": 1.10, "é": 1E2, "b": "<&>"}]'
    expected = '[{"a": 123456789012345678901234567890, "z": 1.1, "é": 100.0, "b": "<&>"}]'
    assert render("{{ tools|tojson }}", tools=tools) == expected


@pytest.mark.parametrize("tools", ["[1e999]", "[NaN]", "{}", "[1]", "[", '[{"a": 1e999}]', "[" * 100_000])
def test_tools_that_are_no_list_of_objects_are_refused(tools: str) -> None:
    with pytest.raises(RenderError, match=r"^tools: "):
        render("", tools=tools)


def test_variables_reach_the_template_and_win_over_special_tokens() -> None:
    source = "{{ enable_thinking }}{{ eos_token }}"
    assert render(source, variables={"enable_thinking": False, "eos_token": "!"}) == "False!"


def test_a_variable_that_is_no_plain_value_is_refused() -> None:
    with pytest.raises(RenderError, match=r"^template variables: not plain JSON values"):
        render("", variables={"open": open})


def test_reasoning_has_both_names_that_templates_read() -> None:
    source = "{{ messages[0].thinking }}, {{ messages[0].reasoning_content }}"
    assert render(source, assistant("2", reasoning="sum")) == "sum, sum"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% for %}", "chat template, line 2: it is not valid Jinja (Expected an expression, got 'end of statement"),
        (
            "\n{{ raise_exception('No tools here') }}",
            "chat template, line 2: it refuses the messages (TemplateError: No",
        ),
        ("{{ frobnicate() }}", "chat template, line 1: it refuses the messages (UndefinedError: 'frobnicate' is undef"),
        (
            "x\n\n{{ none.strip() }}",
            "chat template, line 3: it refuses the messages (UndefinedError: 'None' has no att",
        ),
        ("{{ 1 + 'a' }}", "chat template, line 1: it refuses the messages (TypeError: "),
        ("{{ 'x'|frob }}", "chat template, line 1: it is not valid Jinja (No filter named 'frob'"),
        ("{% include 'x' %}", "chat template, line 1: it was stopped: it asks for another file ('x')"),
    ],
)
def test_a_template_that_fails_says_where_and_why(source: str, message: str) -> None:
    with pytest.raises(RenderError) as caught:
        render(source)
    assert str(caught.value).startswith(message)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return load_tokenizer(directory)


TURNS = [Message("system", "S"), user("A"), assistant("B"), user("C"), assistant("D")]
FORMATS = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
    "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\nD<|im_end|>\n",
    "zephyr": "<|system|>\nSE\n<|user|>\nAE\n<|assistant|>\nBE\n<|user|>\nCE\n<|assistant|>\nDE\n",
    "llama-2": "B[INST] <<SYS>>\nS\n<</SYS>>\n\nA [/INST] B EB[INST] C [/INST] D E",
    "alpaca": "S\n\n### Instruction:\nA\n\n### Response:\nBE\n\n### Instruction:\nC\n\n### Response:\nDE\n\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_template_writes_its_format(name: str, tokenizer: Any) -> None:
    source = chat_template_of(tokenizer, "tiny", name).source
    template = ChatTemplate(source, {"bos_token": "B", "eos_token": "E"})
    assert template.render(TURNS) == FORMATS[name]
    prompt = template.render(TURNS[:-1], add_generation_prompt=True)
    assert FORMATS[name].startswith(prompt)
    assert prompt.endswith(("assistant\n", "<|assistant|>\n", "[/INST]", "### Response:\n"))


def test_every_named_template_is_tested() -> None:
    assert template_names() == sorted(FORMATS)


def test_a_token_in_pieces_is_refused_by_name(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{#- needs: <|turn|> -#}"
    monkeypatch.setattr("tunewright.chat.template.named_source", lambda named: source)
    with pytest.raises(RenderError, match=r"^tiny: the chat template needs <\|turn\|>, which is not one token of"):
        chat_template_of(tokenizer, "tiny", "turn")


def test_a_token_that_the_tokenizer_does_not_define_is_refused_by_name(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    settings = read_json(tmp_path / "tokenizer_config.json")
    del settings["bos_token"]
    write_json(tmp_path / "tokenizer_config.json", settings)
    with pytest.raises(
        RenderError, match=r"^tiny: the chat template needs bos_token, which the tokenizer does not def"
    ):
        chat_template_of(load_tokenizer(tmp_path), "tiny", "llama-2")


def test_a_template_may_be_a_file(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{{ eos_token }}", encoding="utf-8")
    assert chat_template_of(tokenizer, "tiny", str(path)).render([user("Hi")]) == "<|im_end|>"


def test_an_unknown_name_is_refused_with_the_known_ones(tokenizer: Any) -> None:
    with pytest.raises(
        RecipeError, match=r"^chat_template: found 'chatlm', .* expected alpaca, chatml, llama-2, zephyr,"
    ):
        chat_template_of(tokenizer, "tiny", "chatlm")


class Bare:
    special_tokens_map: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, chat_template: Any) -> None:
        self.chat_template = chat_template


def test_a_base_without_a_template_is_told_what_to_name() -> None:
    with pytest.raises(RenderError, match=r"set chat_template: alpaca \| chatml \| llama-2 \| zephyr \| FILE\.$"):
        chat_template_of(Bare(None), "bare")


def test_of_several_templates_the_one_for_tools_is_taken_for_tools() -> None:
    several = Bare({"default": "d", "tool_use": "t", "rag": "r"})
    assert chat_template_of(several, "base").source == "d"
    assert chat_template_of(several, "base", with_tools=True).source == "t"
    assert chat_template_of(Bare({"default": "d"}), "base", with_tools=True).source == "d"


def test_a_recipe_names_a_template_or_a_file_beside_it(tmp_path: Path) -> None:
    for written, read in (("chatml", "chatml"), ("own.jinja", str(tmp_path / "own.jinja"))):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"data: rows.jsonl\nchat_template: {written}\n", encoding="utf-8")
        assert read_recipe(path, {}).chat_template == read


def test_a_checkpoint_is_given_the_one_template_that_was_trained(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    settings = read_json(tmp_path / "tokenizer_config.json")
    write_json(tmp_path / "tokenizer_config.json", {**settings, "chat_template": "another"})
    write_chat_template(tmp_path, "{{ 'trained' }}")
    trained = {"chat_template": "{{ 'trained' }}"}
    assert read_json(tmp_path / "tokenizer_config.json") == {**settings, **trained}
    assert load_tokenizer(tmp_path).chat_template == "{{ 'trained' }}"

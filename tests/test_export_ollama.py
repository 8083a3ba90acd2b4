"""The Modelfile: a Go template proven against the Jinja template, and everything that Ollama would otherwise guess."""

import os
from pathlib import Path

import pytest

from tiny_model import CHAT_TEMPLATE
from tunewright.chat.conversation import Message
from tunewright.chat.template import ChatTemplate
from tunewright.errors import ExportError
from tunewright.export.go_template import (
    evaluate_go_template,
    go_template,
    literal,
    proof_conversations,
    trims_contents,
)
from tunewright.export.modelfile import OllamaModel, planned_context, quoted, served_system_prompt

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') }}"
    "{{ message['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] "
    "+ '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '</>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LAST_USER_DIFFERS = (
    "{% for message in messages %}{% if loop.last %}[LAST]{% endif %}{{ message['role'] + ': ' + message['content'] }}"
    "\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
BRACES = (
    "{% for message in messages %}{{ '{{' + message['role'] + '}}{' + message['content'] + '}' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '{{assistant}}{' }}{% endif %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def test_the_go_template_of_chatml_is_exactly_this() -> None:
    assert go_template(ChatTemplate(CHAT_TEMPLATE)) == (
        "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n<|im_start|>user\n'
        '{{ else if eq .Role "user" }}{{ if eq $i 0 }}<|im_start|>system\nYou are a helpful test model.<|im_end|>\n'
        "<|im_start|>user\n{{ end }}{{ .Content }}<|im_end|>\n<|im_start|>assistant\n"
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ if not $last }}<|im_end|>\n<|im_start|>user\n{{ end }}'
        "{{ end }}{{ end }}"
    )


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, LLAMA_2, LLAMA_3, WITHOUT_SYSTEM, BRACES])
def test_the_go_template_gives_the_jinja_text_for_conversations_it_was_not_proven_on(source: str) -> None:
    template = ChatTemplate(source, TOKENS)
    text = go_template(template)
    for turns in (0, 1, 4):
        history = [Message("user", "q {{ 1 }}"), Message("assistant", "a }}{{")] * turns
        messages = [*history, Message("user", "Ünïcode 'quoted' \"text\"\n\n{% raw %}")]
        assert evaluate_go_template(text, messages) == template.render(messages, True)


def test_a_bos_that_the_engine_adds_is_not_repeated() -> None:
    template = ChatTemplate(LLAMA_3, TOKENS)
    messages = [Message("system", "Be terse."), Message("user", "Hi")]
    text = go_template(template, added_bos="<s>")
    assert "<s>" + evaluate_go_template(text, messages) == template.render(messages, True)
    assert "<s>" not in text


def test_a_bos_that_only_the_engine_knows_is_refused() -> None:
    with pytest.raises(ExportError, match="the engine would put '<s>' before the prompt"):
        go_template(ChatTemplate(CHAT_TEMPLATE), added_bos="<s>")


def test_a_template_that_treats_the_last_turn_differently_is_refused_with_the_place() -> None:
    with pytest.raises(ExportError, match="for the turns user, assistant, user the Jinja template writes"):
        go_template(ChatTemplate(LAST_USER_DIFFERS))


def test_a_template_that_reads_the_clock_is_refused() -> None:
    with pytest.raises(ExportError, match="reads the clock"):
        go_template(ChatTemplate("{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE))


def test_a_template_that_loses_a_message_is_refused() -> None:
    with pytest.raises(ExportError, match="loses or repeats a user message"):
        go_template(ChatTemplate("{{ messages[-1]['content'] }}"))


def test_trimming_is_recognised() -> None:
    assert trims_contents(ChatTemplate(LLAMA_2, TOKENS))
    assert not trims_contents(ChatTemplate(CHAT_TEMPLATE))


def test_braces_in_a_literal_do_not_open_an_action() -> None:
    assert literal("a {{ b }} c{") == 'a {{ "{{" }} b }} c{{ "{" }}'
    assert literal("{ {x} }}") == "{ {x} }}"


def test_the_proof_has_one_to_three_turns_with_and_without_system() -> None:
    shapes = {tuple(message.role for message in messages) for messages in proof_conversations(True)}
    assert {len(shape) for shape in shapes} == {1, 2, 3, 4, 5, 6}
    assert len(proof_conversations(True)) == 18
    assert len(proof_conversations(False)) == 9


def test_real_templates_are_proven_or_refused_with_a_reason() -> None:
    battery = Path(os.environ.get("TUNEWRIGHT_BATTERY", "../shared/battery")) / "templates"
    files = sorted(battery.rglob("*.jinja"))
    if not files:
        pytest.skip("the battery is not there: set TUNEWRIGHT_BATTERY")
    refused = []
    for path in files:
        try:
            go_template(ChatTemplate(path.read_text(encoding="utf-8"), TOKENS))
        except ExportError as error:
            refused.append(f"{path.name}: {error}")
    assert len(refused) <= len(files) // 4, refused


def test_the_modelfile_says_everything_that_ollama_would_guess() -> None:
    model = OllamaModel("model-q8_0.gguf", "{{ .Content }}\n", 'Say "yes".\nOr no.', ["<|im_end|>", "</s>"], 2560, 0.7)
    assert model.as_text() == (
        'FROM ./model-q8_0.gguf\nTEMPLATE """{{ .Content }}\n"""\nSYSTEM """Say "yes".\nOr no."""\n'
        'PARAMETER stop """<|im_end|>"""\nPARAMETER stop """</s>"""\nPARAMETER num_ctx 2560\n'
        "PARAMETER temperature 0.7\nPARAMETER repeat_penalty 1\n"
    )


def test_text_with_triple_quotes_is_refused() -> None:
    with pytest.raises(ExportError, match="which a Modelfile cannot hold"):
        quoted('a """ b', "SYSTEM")


@pytest.mark.parametrize(
    ("asked", "longest", "limit", "expected"),
    [
        *[(None, 300, 8192, 2048), (None, 1791, 8192, 2048), (None, 1792, 8192, 2560), (None, 9000, 8192, 8192)],
        *[(4096, 300, 8192, 4096), (64, 300, 8192, 64), (9999, 300, 512, 512)],
    ],
)
def test_the_context_holds_the_longest_row_and_an_answer(
    asked: int | None, longest: int, limit: int, expected: int
) -> None:
    assert planned_context(asked, longest, limit) == expected


def test_the_system_prompt_is_the_recipes_then_the_rows_then_the_templates() -> None:
    facts = {"shared_system_prompt": "rows", "default_system_prompt": "template"}
    assert served_system_prompt("recipe", facts) == "recipe"
    assert served_system_prompt(None, facts) == "rows"
    assert served_system_prompt(None, facts | {"shared_system_prompt": None}) == "template"

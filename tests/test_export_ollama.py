"""The Modelfile: a Go template proven against the Jinja template, and everything that Ollama would otherwise guess."""

import os
from pathlib import Path

import pytest

from tiny_model import CHAT_TEMPLATE
from tunewright.chat.conversation import Message, ToolCall
from tunewright.chat.template import ChatTemplate
from tunewright.chat.trained import pinned
from tunewright.errors import ExportError
from tunewright.export.go_engine import GoTemplate, go_string
from tunewright.export.go_template import (
    data_of,
    go_template,
    proof_conversations,
    proven_go_template,
    thinking_conversations,
)
from tunewright.export.go_text import literal
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
SYSTEM_WITH_THE_LAST_QUESTION = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% set turns = messages[1:] if system else messages %}{% for message in turns %}"
    "{% if message['role'] == 'user' %}[INST]{{ system + '\n\n' if loop.last and system else '' }}"
    "{{ message['content'] }}[/INST]{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
CUTS_THOUGHTS = (
    "{% for message in messages %}{% set text = message['content'] %}{% if message['role'] == 'assistant' and "
    "'</think>' in text %}{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<' + message['role'] + '>' + text + '</>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
KEEPS_THE_FIRST_THOUGHT = CUTS_THOUGHTS.replace("[-1]", "[1]")
PARTS_ONLY = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}{% for part in message['content'] %}"
    "{{ part['text'] if part is mapping }}{% endfor %}{{ '</>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NUMBERED = "{% for message in messages %}{{ loop.index ~ message['role'] + ': ' + message['content'] }}\n{% endfor %}"
BRACES = (
    "{% for message in messages %}{{ '{{' + message['role'] + '}}{' + message['content'] + '}' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '{{assistant}}{' }}{% endif %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def rendered(text: str, *messages: Message) -> str:
    return GoTemplate(text).execute(data_of(messages))


HELLO = Message("user", "Hello")


def test_the_go_template_of_chatml_is_exactly_this() -> None:
    assert go_template(ChatTemplate(CHAT_TEMPLATE)) == (
        "{{ $hasSystem := false }}{{ $system := false }}{{ $asked := false }}{{ $answered := false }}"
        "{{ range $i, $m := .Messages }}{{ $end := eq (len (slice $.Messages $i)) 1 }}"
        "{{ $last := le (len (slice $.Messages $i)) 2 }}{{ $nextLast := le (len (slice $.Messages $i)) 3 }}"
        '{{ if eq .Role "system" }}{{ if $i }}'
        '{{ template "the model was not trained with a system message behind the first message" . }}{{ end }}'
        "{{ $hasSystem = true }}{{ $system = .Content }}"
        '{{ else if eq .Role "user" }}{{ if not $asked }}'
        "{{ if $hasSystem }}<|im_start|>system\n{{ $system }}<|im_end|>\n<|im_start|>user\n"
        "{{ else }}<|im_start|>system\nYou are a helpful test model.<|im_end|>\n<|im_start|>user\n{{ end }}"
        "{{ else }}<|im_end|>\n<|im_start|>user\n{{ end }}{{ .Content }}"
        "{{ if $last }}<|im_end|>\n<|im_start|>assistant\n{{ end }}{{ $asked = true }}"
        '{{ else if eq .Role "assistant" }}'
        '{{ if .ToolCalls }}{{ template "the model was not trained with a call of a tool" . }}{{ end }}'
        "{{ if $asked }}{{ if $end }}{{ .Content }}{{ else }}<|im_end|>\n<|im_start|>assistant\n{{ .Content }}{{ end }}"
        "{{ $answered = true }}{{ end }}{{ else }}"
        '{{ template "the model was not trained with a message of another role than system, user and assistant" . }}'
        "{{ end }}{{ end }}"
        '{{ if not $asked }}{{ template "the model was not trained with a chat without a question" . }}{{ end }}'
    )


@pytest.mark.parametrize(
    "source",
    [
        *(CHAT_TEMPLATE, LLAMA_2, LLAMA_3, WITHOUT_SYSTEM, LAST_USER_DIFFERS, BRACES),
        *(SYSTEM_WITH_THE_LAST_QUESTION, CUTS_THOUGHTS, KEEPS_THE_FIRST_THOUGHT),
    ],
)
def test_the_go_template_gives_the_jinja_text_for_conversations_it_was_not_proven_on(source: str) -> None:
    template = ChatTemplate(source, TOKENS)
    proof = proven_go_template(template)
    for turns in (0, 1, 5):
        history = [Message("user", "q {{ 1 }}"), Message("assistant", "\u2003a }}{{\r\n")] * turns
        plain = [*history, Message("user", "\t Ünïcode 'quoted' \"text\"\n\n{% raw %}\x85")]
        with_system = [Message("system", "Say {{ nothing }}. "), *plain]
        for messages in [plain, with_system][: 1 + proof.takes_system]:
            assert rendered(proof.text, *messages) == template.render(messages, True)


def test_a_bos_that_the_engine_adds_is_not_repeated() -> None:
    template = ChatTemplate(LLAMA_3, TOKENS)
    messages = [Message("system", "Be terse."), Message("user", "Hi")]
    text = go_template(template, added_bos="<s>")
    assert "<s>" + rendered(text, *messages) == template.render(messages, True)
    assert "<s>" not in text


def test_a_bos_that_only_the_engine_knows_is_refused() -> None:
    with pytest.raises(ExportError, match="the engine would put '<s>' before the prompt"):
        go_template(ChatTemplate(CHAT_TEMPLATE), added_bos="<s>")


def test_a_template_that_numbers_its_turns_is_refused() -> None:
    with pytest.raises(ExportError, match="writes another text in turn 3"):
        go_template(ChatTemplate(NUMBERED))


def test_a_template_that_changes_what_is_said_is_refused_with_the_place() -> None:
    source = CHAT_TEMPLATE.replace("message['content']", "message['content'] | replace('ü', 'ue')")
    with pytest.raises(ExportError, match="the Jinja template writes 'ueße"):
        go_template(ChatTemplate(source))


def test_a_template_that_reads_the_clock_is_refused_until_its_date_is_pinned() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE)
    with pytest.raises(ExportError, match="reads the clock"):
        go_template(template)
    assert "01 Jan 2025" in go_template(pinned(template, [()]))


def test_a_template_that_loses_a_message_is_refused() -> None:
    with pytest.raises(ExportError, match="loses or repeats a user message"):
        go_template(ChatTemplate("{{ messages[-1]['content'] }}"))


def test_a_template_that_takes_lists_of_parts_only_is_proven_with_them() -> None:
    text = go_template(ChatTemplate(PARTS_ONLY))
    assert rendered(text, Message("user", " Hi ")) == "<user> Hi </><assistant>"


def test_thoughts_are_cut_where_the_template_cuts_them_and_refused_where_that_is_not_understood() -> None:
    thinking = Message("assistant", "<think>\nhm\n</think>\n\nFour.")
    cut = proven_go_template(ChatTemplate(CUTS_THOUGHTS))
    assert rendered(cut.text, HELLO, thinking, HELLO) == "<user>Hello</><assistant>Four.</><user>Hello</><assistant>"
    assert cut.notes == ()
    other = proven_go_template(ChatTemplate(KEEPS_THE_FIRST_THOUGHT))
    with pytest.raises(ExportError, match="not trained with a thought in an earlier answer"):
        rendered(other.text, HELLO, thinking, HELLO)
    assert other.notes == ("An earlier answer with </think> in it is an error in Ollama: send it without its thought.",)


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([], "a chat without a question"),
        ([Message("system", "Hi")], "a chat without a question"),
        ([HELLO, Message("system", "Hi"), HELLO], "a system message behind the first message"),
        ([HELLO, Message("assistant", "", tool_calls=(ToolCall("f", "{}"),)), HELLO], "a call of a tool"),
        ([HELLO, Message("tool", "7")], "a message of another role"),
    ],
)
def test_a_chat_that_was_not_proven_is_an_error_that_names_it(messages: list[Message], kind: str) -> None:
    with pytest.raises(ExportError, match=f"it refuses the messages .the model was not trained with {kind}"):
        rendered(go_template(ChatTemplate(CHAT_TEMPLATE)), *messages)


def test_a_system_message_is_an_error_where_the_template_takes_none() -> None:
    proof = proven_go_template(ChatTemplate(WITHOUT_SYSTEM))
    assert proof.notes == ("A system message is an error in Ollama: the trained template takes none.",)
    with pytest.raises(ExportError, match="not trained with a system message"):
        rendered(proof.text, Message("system", "Hi"), HELLO)


def test_the_begin_of_an_answer_is_continued() -> None:
    text = go_template(ChatTemplate(CHAT_TEMPLATE))
    assert rendered(text, HELLO, Message("assistant", "It ")) == rendered(text, HELLO) + "It "


def test_an_answer_before_the_first_question_is_left_out_as_ollama_drops_the_oldest_messages() -> None:
    text = go_template(ChatTemplate(CHAT_TEMPLATE))
    chat = [HELLO, Message("assistant", "Hi"), HELLO]
    assert rendered(text, *chat[1:]) == rendered(text, *chat[2:])


def test_braces_in_a_literal_do_not_open_an_action() -> None:
    for text in ("a {{ b }} c{", "{{{", "{", "{{", "{ {x} }}", "{{{{ {{ .Content }}", 'quoted "{{" text'):
        assert GoTemplate(literal(text) + "{{ .End }}").execute({"End": b"!"}) == text + "!"


@pytest.mark.parametrize("text", ["", 'a "b" \\ c', "\n\t\r\x00\x7f", "\x85\xa0\u2003", "é 你 👍"])
def test_a_go_string_is_read_as_it_was_written(text: str) -> None:
    assert GoTemplate("{{ " + go_string(text) + " }}").execute({}) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("{{ if .A }}a{{ else if .B }}b{{ else }}c{{ end }}", "b"),
        ("{{ $n := 1 }}{{ if .B }}{{ $n = .B }}{{ $m := 2 }}{{ end }}{{ $n }}", "x"),
        ("{{ range $i, $x := .L }}{{ if $i }}, {{ end }}{{ $x }}{{ . }}{{ $.B }}{{ end }}", "ppx, qqx"),
        ("{{ range $i := len .B }}{{ $.B }}{{ end }}", "x"),
        (
            '{{ define "f" }}{{ if len . }}{{ slice . 0 1 }}{{ template "f" (slice . 2) }}{{ end }}{{ end }}'
            '{{ template "f" "a1b2" }}',
            "ab",
        ),
        ('{{ if eq (len "é") 2 }}bytes{{ end }}', "bytes"),
        ('{{ if eq "b" "a" "b" }}any{{ end }}', "any"),
    ],
)
def test_the_engine_writes_what_go_writes(text: str, written: str) -> None:
    assert GoTemplate(text).execute({"A": b"", "B": b"x", "L": [b"p", b"q"]}) == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ end }}", "closes nothing"),
        ('{{ printf "x" 1 }}', "the function 'printf' is not known here"),
        ('{{ slice "abc" 4 }}', "out of range"),
        ("{{ $n }}", "not declared"),
    ],
)
def test_the_engine_refuses_what_it_does_not_know(text: str, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        GoTemplate(text).execute({})


def test_the_proof_has_one_to_four_turns_with_and_without_system() -> None:
    shapes = {tuple(message.role for message in messages) for messages in proof_conversations(True)}
    assert {len(shape) for shape in shapes} == {1, 2, 3, 4, 5, 6, 7, 8}
    assert len(proof_conversations(True)) == 32
    assert len(proof_conversations(False)) == 16
    assert all("</think>" in messages[1].text for messages in thinking_conversations())


def test_real_templates_are_proven_or_refused_with_a_reason() -> None:
    battery = Path(os.environ.get("TUNEWRIGHT_BATTERY", "../shared/battery")) / "templates"
    files = sorted(battery.rglob("*.jinja"))
    if not files:
        pytest.skip("the battery is not there: set TUNEWRIGHT_BATTERY")
    refused = []
    for path in files[::7]:
        try:
            go_template(pinned(ChatTemplate(path.read_text(encoding="utf-8"), TOKENS), [()]))
        except ExportError as error:
            refused.append(error.found)
    assert all("refuses a plain conversation" in reason for reason in refused), refused
    assert len(refused) <= len(files[::7]) // 7


def test_the_modelfile_says_everything_that_ollama_would_guess() -> None:
    model = OllamaModel("model-q8_0.gguf", "{{ .Content }}\n", 'Say "yes".\nOr no.', ["<|im_end|>", "</s>"], 2560, 0.7)
    assert model.as_text() == (
        'FROM ./model-q8_0.gguf\nTEMPLATE """{{ .Content }}\n"""\nSYSTEM """Say "yes".\nOr no."""\n'
        'PARAMETER stop """<|im_end|>"""\nPARAMETER stop """</s>"""\nPARAMETER num_ctx 2560\n'
        "PARAMETER temperature 0.7\nPARAMETER repeat_penalty 1\n"
    )


def test_a_server_is_told_what_the_modelfile_says() -> None:
    model = OllamaModel("model-q8_0.gguf", "{{ .Content }}\n", None, ["</s>"], 2560, 0)
    assert model.as_source(Path("export")).as_json("sha256:1") == {
        "files": {"model-q8_0.gguf": "sha256:1"},
        "template": "{{ .Content }}\n",
        "parameters": {"stop": ["</s>"], "num_ctx": 2560, "temperature": 0, "repeat_penalty": 1},
    }


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

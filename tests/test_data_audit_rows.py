import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.chat.conversation import Conversation, Message, Role, ToolCall
from tunewright.data.audit.language import LANGUAGES, language_of
from tunewright.data.audit.refusals import refusal_in
from tunewright.data.audit.rows import AuditRow, shape_text
from tunewright.data.audit.run import CHECKS, RowCheck, RowChecks, merge
from tunewright.data.audit.secrets import is_iban, secret_in
from tunewright.data.audit.tally import KINDS_KEPT, OTHER_KINDS, Found, Tally
from tunewright.data.audit.targets import copied_prefix_in, ellipsis_in, near_copies_in, one_token_in
from tunewright.data.audit.texts import control_token_in, mended_text, mojibake_in

GERMAN = "Die Bücherei der Stadt öffnet morgen wieder ihre Türen, und alle Leser sind herzlich eingeladen."
LONG = "a sentence that is long enough to be compared with others"


def row(target: str, user: str = "What is new?", system: str | None = None) -> AuditRow:
    first = (Message("system", system),) if system is not None else ()
    return AuditRow(Conversation("rows.jsonl:1", (*first, Message("user", user), Message("assistant", target))))


def test_a_row_names_what_its_last_trained_turn_answers() -> None:
    turns = (
        Message("system", "Be short."),
        Message("user", "First?"),
        Message("assistant", "One."),
        Message("user", "Second?"),
        Message("assistant", '{"b": ["x", ""], "a": null}'),
        Message("user", "Third?"),
        Message("assistant", "not trained", train=False),
    )
    found = AuditRow(Conversation("a:1", turns))
    assert found.prompt == "First?\nOne.\nSecond?"
    assert found.target == '{"b": ["x", ""], "a": null}'
    assert found.context == ("Be short.", None, found.prompt)
    assert found.schema == '{"a":"null","b":["empty","text"]}'
    assert [(exchange.user, exchange.target) for exchange in found.exchanges] == [
        ("First?", "One."),
        ("Second?", found.target),
    ]


def test_a_call_of_a_tool_is_a_target_without_a_schema_of_the_data() -> None:
    call = ToolCall("find", '{"where": "Norby"}')
    turns = (Message("user", "Where?"), Message("assistant", None, tool_calls=(call,)), Message("tool", "here"))
    found = AuditRow(Conversation("a:1", turns))
    assert json.loads(found.target) == {"name": "find", "arguments": {"where": "Norby"}}
    assert found.schema is None


def test_a_row_in_which_nothing_is_trained_has_an_empty_target() -> None:
    found = AuditRow(Conversation("a:1", (Message("user", "Who?"),)))
    assert (found.target, found.prompt, found.exchanges) == ("", "Who?", ())


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ({"b": 1, "a": "x"}, {"a": "text", "b": "number"}),
        ({"a": " ", "b": None, "c": True}, {"a": "empty", "b": "null", "c": "boolean"}),
        ([{"a": 1.5}, {"a": 2}, 3], ["number", {"a": "number"}]),
        ({"a": {"b": []}}, {"a": {"b": []}}),
    ],
)
def test_the_shape_of_a_value_names_types_and_sorts_keys(value: Any, shape: Any) -> None:
    assert json.loads(shape_text(value)) == shape


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ('{"a": "cut\\u2026"}', True),
        ("cut … \n", True),
        ("Wait... there is more.", False),
        ('{"a": "b...c"}', False),
    ],
)
def test_an_ellipsis_counts_only_at_the_end_of_a_text(target: str, found: bool) -> None:
    assert (ellipsis_in(row(target)) is not None) == found


def test_a_copy_of_the_beginning_is_found_after_an_answer_of_a_tool() -> None:
    article = "The pay books of 1911 to 1934 show what a riveter earned, and how often the men were hurt."
    turns = (
        Message("user", article),
        Message("assistant", None, tool_calls=(ToolCall("look", "{}"),)),
        Message("tool", "nothing"),
        Message("assistant", article[:60]),
    )
    assert copied_prefix_in(AuditRow(Conversation("a:1", turns))) is not None


def test_near_copies_are_counted_by_the_fields() -> None:
    hit = near_copies_in(row(json.dumps({"a": "short", "summary": LONG, "analysis": LONG + "!"})))
    assert hit is not None
    assert hit.kind == "summary and analysis"


@pytest.mark.parametrize(
    ("target", "found"),
    [
        *(("yes", True), ("fog.", True), ("A", True), ("好", True), ("card_arrival", True)),
        *(("我很好谢谢", False), ("7", False), ("two words", False), ("x" * 41, False)),
    ],
)
def test_a_single_word_or_character_is_one_token(target: str, found: bool) -> None:
    assert (one_token_in(row(target)) is not None) == found


@pytest.mark.parametrize(
    "target",
    [
        "I'm sorry, but I can't assist with that request.",
        "I’m sorry for the confusion, but as a chatbot, I don’t have the ability to do so.",
        "As an AI language model, I do not have access to the news.",
        "I cannot fulfill this request.",
        "Happy to help! However, I'm a large language model, I cannot draw.",
        "Apologies, but I don't have access to the tools.",
        "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
        "Als KI-Sprachmodell kann ich keine Meinung haben.",
        "Je suis désolé, mais je ne peux pas répondre.",
        "Lo siento, pero no puedo ayudar con eso.",
        "Mi dispiace, ma non posso aiutarti.",
        "作为一个人工智能语言模型，我没有意见。",
        "抱歉，我无法回答。",
        "К сожалению, я не могу помочь.",
    ],
)
def test_boilerplate_refusals_are_found(target: str) -> None:
    assert refusal_in(row(target)) is not None


@pytest.mark.parametrize(
    "target",
    [
        "I'm sorry to hear that. Have you tried the other door?",
        "As an AI assistant, I'd be more than happy to help.",
        "As an AI I am called {{name}}.",
        "您好！我是一个人工智能助手，你可以叫我小明。",
        "Tut mir leid, der Laden hat heute zu.",
        "She said sorry, and I helped her carry the box.",
        "I'm sorry, but I'm unable to come into work today: I woke up with a headache.",
        "I'm sorry, but I don't have sufficient information. On which days do you travel?",
        "My key broke, so I cannot access the cellar.",
        "x" * 400 + "I cannot fulfill this request.",
    ],
)
def test_a_regret_is_no_refusal(target: str) -> None:
    assert refusal_in(row(target)) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Done.<|im_end|>", "<|im_end|>"),
        ("[INST] Who? [/INST]", "[INST]"),
        ("Fine.</s>", "</s>"),
        ("<start_of_turn>model", "<start_of_turn>"),
        ("<think>Hm.", "<think> without the other"),
        ("Hm.</think> Yes.", "</think> without the other"),
    ],
)
def test_control_tokens_of_chats_are_found(text: str, kind: str) -> None:
    hit = control_token_in(row("Yes.", user=text))
    assert hit is not None
    assert hit.kind == kind


@pytest.mark.parametrize("text", ["a <b> c", "<s>gone</s> text", "<think>Hm.</think> Yes.", "x <| y |> z", "[INSTALL]"])
def test_what_only_looks_like_a_control_token_is_none(text: str) -> None:
    assert control_token_in(row(text)) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to a.b@firma.de today", "e-mail address"),
        ("key sk-ant-abcdefghij0123456789xyz", "API key"),
        ("AKIAABCDEFGHIJKLMNOP", "API key"),
        ("token ghs_" + "a1" * 18, "API key"),
        ("hf_" + "aB3" * 11, "API key"),
        ("bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijkl", "API key"),
        ("AIza" + "b2" * 17 + "c", "API key"),
        ("postgres://admin:hunter22@db.firma.de/x", "password in an address"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "private key"),
        ("4111 1111 1111 1111.", "card number"),
        ("3782-822463-10005", "card number"),
        ("DE89 3704 0044 0532 0130 00", "IBAN"),
        ("GB82WEST12345698765432", "IBAN"),
        ("NL91 ABNA 0417 1643 00", "IBAN"),
    ],
)
def test_a_secret_is_named_and_masked(text: str, kind: str) -> None:
    hit = secret_in(row(f"It was: {text}"))
    assert hit is not None
    assert hit.kind == kind
    assert text not in hit.excerpt
    assert "******** at character " in hit.excerpt


@pytest.mark.parametrize(
    "text",
    [
        *("4111 1111 1111 1112", "14111111111111111", "0.4111111111111111", "5" * 16, "2026-11-21 10:00:00"),
        *("a@example.org", "a@host", "boss@company.com", "yourname@yourdomain.com", "user@my-site.example"),
        *("sk-short", "sk-your-api-key-goes-here-now", "a-very-long-but-harmless-hyphenated-word"),
        *("https://host:8080/a@b", "DE89 3704 0044 0532 0130 01", "AB12 3456 7890 1234 5678"),
    ],
)
def test_what_only_looks_like_a_secret_is_none(text: str) -> None:
    assert secret_in(row(f"It was {text}")) is None


def test_an_iban_needs_the_length_of_its_country() -> None:
    assert is_iban("FR14 2004 1010 0505 0001 3M02 606")
    assert not is_iban("FR14 2004 1010 0505 0001 3M02 60")


def test_a_secret_in_a_reasoning_is_found() -> None:
    turns = (Message("user", "Who?"), Message("assistant", "Me.", reasoning="Mail a.b@firma.de"))
    hit = secret_in(AuditRow(Conversation("a:1", turns)))
    assert hit is not None
    assert hit.excerpt == "e-mail address a.b@******** in a reasoning"


def as_cp1252(text: str) -> str:
    return "".join(
        bytes([byte]).decode("cp1252") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte)
        for byte in text.encode()
    )


@pytest.mark.parametrize(
    "text",
    ["Ärger", "it’s", "✅ done", "🔍", "naïve œuvre", "Größe 20 °C", "Привет", "你好", "„Ja“ – 5 €"],
)
def test_mojibake_is_found_and_its_repair_is_what_was_written(text: str) -> None:
    broken = as_cp1252(text)
    assert mojibake_in(row(text)) is None
    assert mojibake_in(row(broken)) is not None
    assert mended_text(broken) == text


@pytest.mark.parametrize(
    "text",
    ["„Spaß“ kostet 3 €: « à » – der Umlaut „Ä“, NÃO, Citroën, 5×…", "SÃO PAULO", "L’été à Orléans", "ÎLE-DE-FRANCE"],
)
def test_a_right_text_is_no_mojibake(text: str) -> None:
    assert mojibake_in(row(text)) is None


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (GERMAN, "de"),
        ("The ferry was late because of the storm, and so was the bus.", "en"),
        ("Le chat est sur la table et il dort depuis ce matin.", "fr"),
        ("到家了吗？外面很冷，记得穿外套。", "zh"),
        *(("card_arrival", "unknown"), ("", "unknown"), ("Yes.", "unknown"), ("#### 72", "unknown")),
        ('{"name": "Rohit", "age": "24", "symptom": "joint pain"}', "unknown"),
        ("def f(x):\n    return [y for y in x if (y > 3)]\n", "unknown"),
        ("SELECT id, name FROM users WHERE (id = 3) AND (name = 4);", "unknown"),
        ("a half \ud800 of a pair stands in this text here", "unknown"),
    ],
)
def test_a_language_is_told_or_unknown(text: str, language: str) -> None:
    assert LANGUAGES[language_of(text)] == language


def test_every_language_of_the_detector_has_its_number() -> None:
    import eldc

    assert set(eldc.LANGUAGES) == set(LANGUAGES[1:])
    assert len(set(LANGUAGES)) == len(LANGUAGES) < 256


def look_at(rows: list[AuditRow], **levels: Any) -> Tally:
    checks = RowChecks(levels)
    for each in rows:
        checks.look(each)
    return checks.tally


def test_a_tally_counts_all_and_keeps_the_first_twenty() -> None:
    rows = [AuditRow(Conversation(f"a:{n}", (Message("user", "?"), Message("assistant", "cut...")))) for n in range(50)]
    whole = look_at(rows)
    parts = [pickle.loads(pickle.dumps(look_at(rows[n : n + 7]))) for n in range(0, 50, 7)]  # noqa: S301
    assert merge(parts) == whole
    assert whole.found["ellipsis_targets"].count == 50
    assert [example.row for example in whole.found["ellipsis_targets"].examples] == [f"a:{n}" for n in range(20)]


def test_a_check_that_is_off_does_not_look() -> None:
    tally = look_at([row("cut...")], ellipsis_targets="off")
    assert "ellipsis_targets" not in tally.found
    assert tally.rows == 1


def test_a_tally_stays_small_however_many_kinds_there_are() -> None:
    found = Found()
    for number in range(KINDS_KEPT + 5):
        found.extend(Found(1, [], type(found.kinds)({f"kind {number}": 1})))
    assert len(found.kinds) == KINDS_KEPT + 1
    assert (found.count, found.kinds[OTHER_KINDS]) == (KINDS_KEPT + 5, 5)


PIECES = st.sampled_from(
    [
        *("...", "…", '{"a": ', '"', "}", "[", "]", "<think>", "</s>", "<|im_end|>", "[INST]", "Ã¤", "â€™", "\\u2026"),
        *("I'm sorry, but I can't", "4111111111111111", "DE89 3704", "a@b.de", "://", "sk-", "-----", "\0", "\ud800"),
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=20)), max_size=8).map("".join)
ROLES: st.SearchStrategy[Role] = st.sampled_from(("system", "user", "assistant", "tool"))


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    def message() -> Message:
        role = draw(ROLES)
        calls = (ToolCall(draw(TEXTS), "{}"),) if draw(st.booleans()) else ()
        content = None if calls else draw(TEXTS)
        return Message(role, content, draw(st.booleans()), draw(st.none() | TEXTS), tool_calls=calls)

    return Conversation(f"a:{draw(st.integers(0, 9))}", tuple(message() for _ in range(draw(st.integers(0, 4)))))


@settings(deadline=None)
@given(conversations())
def test_no_check_raises_on_any_conversation(conversation: Conversation) -> None:
    found = AuditRow(conversation)
    look_at([found])
    assert isinstance(found.prompt, str)
    assert found.schema is None or json.loads(found.schema) is not None
    assert 0 <= language_of(found.target) < len(LANGUAGES)


@settings(deadline=None)
@given(st.lists(conversations(), max_size=4), st.data())
def test_order_changes_nothing_but_the_order_of_examples(rows: list[Conversation], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rows))
    left, right = (look_at([AuditRow(each) for each in order]) for order in (rows, shuffled))
    for name, found in left.found.items():
        assert found.count == right.found[name].count
        assert found.kinds == right.found[name].kinds
        assert sorted(found.examples) == sorted(right.found[name].examples)


@settings(deadline=None)
@given(st.lists(conversations(), max_size=4), st.integers(0, 4))
def test_a_clean_row_takes_no_example_away(rows: list[Conversation], place: int) -> None:
    clean = Conversation("clean:1", (Message("user", "What is new?"), Message("assistant", "A new owner.")))
    before = look_at([AuditRow(each) for each in rows])
    after = look_at([AuditRow(each) for each in [*rows[:place], clean, *rows[place:]]])
    assert after.found == before.found
    assert after.rows == before.rows + 1


def test_each_check_has_one_name_and_says_how_to_mend() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(check.mend.endswith(".") for check in CHECKS if isinstance(check, RowCheck))

"""The supervised tokens of a conversation: exact ids and masks, and what is refused."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_model import CHAT_TEMPLATE
from tunewright.chat.conversation import Conversation, Message
from tunewright.chat.supervise import SupervisedRow, Supervisor
from tunewright.chat.template import ChatTemplate, chat_template_of
from tunewright.errors import RenderError
from tunewright.models.base import load_tokenizer, stop_token_ids

WITHOUT_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
    "'<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING_STRIPPED = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last and '</think>' in c %}{% set c = c.split('</think>')[-1] %}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


@pytest.fixture(scope="module")
def supervisor(tiny_base: Path, tokenizer: Any) -> Supervisor:
    return Supervisor(tokenizer, chat_template_of(tokenizer, "tiny"), stop_token_ids(tiny_base, tokenizer))


def with_template(supervisor: Supervisor, source: str) -> Supervisor:
    return Supervisor(supervisor.tokenizer, ChatTemplate(source), supervisor.stop_ids)


def conversation(*turns: tuple[str, str], learned: bool = True) -> Conversation:
    return Conversation("rows.jsonl:1", tuple(Message(role, text, learned) for role, text in turns))  # type: ignore[arg-type]


def supervised_text(row: SupervisedRow, tokenizer: Any) -> str:
    return str(tokenizer.decode(row.ids[row.mask].tolist()))


def test_the_answer_and_its_end_of_turn_are_supervised_and_nothing_else(supervisor: Supervisor) -> None:
    (row,) = supervisor.rows(conversation(("user", "Hallo"), ("assistant", "Guten Tag!")))
    assert supervised_text(row, supervisor.tokenizer) == "Guten Tag!<|im_end|>"
    text = supervisor.tokenizer.decode(row.ids.tolist())
    assert text.endswith("<|im_start|>assistant\nGuten Tag!<|im_end|>\n")
    assert not row.mask[-1], "the newline after the end of turn is the template's"


def test_the_prompt_ids_of_training_are_those_of_inference(supervisor: Supervisor) -> None:
    (row,) = supervisor.rows(conversation(("system", "Be brief."), ("user", "Hallo"), ("assistant", "Tag")))
    prompt = supervisor.prompt_ids([Message("system", "Be brief."), Message("user", "Hallo")])
    assert row.ids[: row.last_prompt_length].tolist() == prompt
    assert not row.mask[: row.last_prompt_length].any()
    assert row.mask[row.last_prompt_length]


def test_every_assistant_turn_is_supervised(supervisor: Supervisor) -> None:
    (row,) = supervisor.rows(
        conversation(("user", "one"), ("assistant", "first"), ("user", "two"), ("assistant", "second"))
    )
    assert supervised_text(row, supervisor.tokenizer) == "first<|im_end|>second<|im_end|>"


def test_a_turn_that_is_switched_off_is_not_supervised(supervisor: Supervisor) -> None:
    messages = (
        Message("user", "one"),
        Message("assistant", "first", train=False),
        Message("user", "two"),
        Message("assistant", "second"),
    )
    (row,) = supervisor.rows(Conversation("r", messages))
    assert supervised_text(row, supervisor.tokenizer) == "second<|im_end|>"


def test_a_conversation_without_a_learned_turn_is_refused(supervisor: Supervisor) -> None:
    with pytest.raises(RenderError, match="no assistant's turn is to be learned"):
        supervisor.rows(conversation(("user", "a"), ("assistant", "b"), learned=False))


def test_a_template_that_drops_the_system_prompt_is_refused_by_name(supervisor: Supervisor) -> None:
    row = conversation(("system", "Be brief."), ("user", "Hallo"), ("assistant", "Tag"))
    with pytest.raises(RenderError, match=r"loses or changes the system message 'Be brief\.'"):
        with_template(supervisor, WITHOUT_SYSTEM).rows(row)


def test_a_template_that_changes_earlier_turns_gives_one_row_for_each_turn(supervisor: Supervisor) -> None:
    stripping = with_template(supervisor, THINKING_STRIPPED)
    turns = (("user", "one"), ("assistant", "<think>hm</think>first"), ("user", "two"), ("assistant", "second"))
    rows = stripping.rows(conversation(*turns))
    assert [row.id for row in rows] == ["rows.jsonl:1#1", "rows.jsonl:1#3"]
    learned = [supervised_text(row, supervisor.tokenizer) for row in rows]
    assert learned == ["<think>hm</think>first<|im_end|>", "second<|im_end|>"]
    assert "<think>" not in supervisor.tokenizer.decode(rows[1].ids.tolist())


def test_a_template_without_an_end_of_turn_is_refused(supervisor: Supervisor) -> None:
    endless = CHAT_TEMPLATE.replace("<|im_end|>", "")
    with pytest.raises(RenderError, match="no stop token follows"):
        with_template(supervisor, endless).rows(conversation(("user", "a"), ("assistant", "b")))


def test_a_template_that_raises_is_reported_as_refusing(supervisor: Supervisor) -> None:
    refusing = with_template(supervisor, "{{ raise_exception('no system role') }}")
    with pytest.raises(RenderError, match="no system role"):
        refusing.rows(conversation(("user", "a"), ("assistant", "b")))


def test_a_template_cannot_reach_the_interpreter(supervisor: Supervisor) -> None:
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(RenderError, match="is unsafe"):
        with_template(supervisor, attack).rows(conversation(("user", "a"), ("assistant", "b")))


TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40).filter(
    lambda text: text.strip() != "" and "<|" not in text
)


@settings(max_examples=60, deadline=None)
@given(user=TEXT, answer=TEXT)
def test_any_text_is_supervised_exactly_or_refused(supervisor: Supervisor, user: str, answer: str) -> None:
    try:
        (row,) = supervisor.rows(conversation(("user", user), ("assistant", answer)))
    except RenderError:
        return
    decoded = supervised_text(row, supervisor.tokenizer)
    assert decoded.endswith("<|im_end|>")
    assert decoded.removesuffix("<|im_end|>").strip() == answer.strip()
    assert int(np_transitions(row)) == 1


def np_transitions(row: SupervisedRow) -> int:
    """How often the mask goes from unlearned to learned."""
    mask = row.mask.astype(int).tolist()
    return sum(b > a for a, b in zip([0, *mask], mask, strict=False))


TOKENIZERS = {"llama3": "llama3_1", "gemma": "gemma2"}


cached_tokenizer = cache(load_tokenizer)


def oracle_rows(battery: Path, name: str) -> list[dict[str, Any]]:
    lines = (battery / "oracles" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_masks_agree_with_the_reference_masks(battery: Path) -> None:
    """Every token that the reference trains is trained here and no token of another role, or the row is refused."""
    compared = 0
    for oracle in oracle_rows(battery, "masks_trl.jsonl"):
        if any(message["role"] == "tool" or message.get("tool_calls") for message in oracle["messages"]):
            continue
        directory = battery / "tokenizers" / TOKENIZERS.get(oracle["tokenizer"], oracle["tokenizer"])
        tokenizer = cached_tokenizer(directory)
        template = ChatTemplate(
            template_source(battery, oracle["template"]),
            {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)},
        )
        messages = tuple(Message(item["role"], item["content"]) for item in oracle["messages"])
        try:
            rows = Supervisor(tokenizer, template, stop_ids_of(tokenizer)).rows(Conversation(oracle["id"], messages))
        except RenderError:
            continue
        if len(rows) != 1 or rows[0].ids.tolist() != oracle["input_ids"]:
            continue
        compared += 1
        for token, ours, theirs in zip(rows[0].ids.tolist(), rows[0].mask, oracle["assistant_mask"], strict=True):
            assert theirs or not ours, f"{oracle['id']}: {token} belongs to another role"
            free = not tokenizer.decode([token]).strip() or token == tokenizer.eos_token_id
            assert ours or not theirs or free, f"{oracle['id']}: {token} is left out"
    assert compared >= 30, compared


def template_source(battery: Path, name: str) -> str:
    for candidate in (f"trl__{name}.jinja", f"trl__{name}_training.jinja"):
        path = battery / "templates" / candidate
        if path.is_file():
            return path.read_text(encoding="utf-8")
    pytest.fail(f"no template {name}")


def stop_ids_of(tokenizer: Any) -> frozenset[int]:
    names = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>")
    known = {tokenizer.convert_tokens_to_ids(name) for name in names if name in tokenizer.get_vocab()}
    return frozenset({*known, tokenizer.eos_token_id})


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "gemma2", "exact_tinyllama", "hf_mistral_v3", "gguf_phi3"])
def test_asking_the_backend_gives_the_ids_and_offsets_of_the_tokenizers_own_call(battery: Path, name: str) -> None:
    tokenizer = cached_tokenizer(battery / "tokenizers" / name)
    supervisor = Supervisor(tokenizer, ChatTemplate(CHAT_TEMPLATE), frozenset({tokenizer.eos_token_id}))
    for text in ("<|im_start|>user\nHallo</s>", "  two  spaces\n\n", "é ﬁ 👩‍👧 \u200b", f"{tokenizer.eos_token}x", ""):
        called = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        asked = supervisor._encode(text)
        assert (list(asked.ids), list(asked.offsets)) == (called["input_ids"], called["offset_mapping"])


def test_a_tokenizer_that_was_told_to_cut_elsewhere_cuts_nothing_here(supervisor: Supervisor) -> None:
    row = conversation(("user", "Hallo, wie geht es dir?"), ("assistant", "Gut!"))
    (before,) = supervisor.rows(row)
    supervisor.tokenizer("a long enough text", truncation=True, max_length=2)
    (after,) = supervisor.rows(row)
    assert after.ids.tolist() == before.ids.tolist()

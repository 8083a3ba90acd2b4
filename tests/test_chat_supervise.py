"""The supervised tokens of a conversation: exact ids and masks, and what is refused."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from battery_chats import supervisor_of
from tiny_model import CHAT_TEMPLATE
from tunewright.chat.conversation import Conversation, Message, ToolCall
from tunewright.chat.encoding import Encoder
from tunewright.chat.prompt import Prompt
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
    prompt = supervisor.prompt_ids(Prompt((Message("system", "Be brief."), Message("user", "Hallo"))))
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


cached_tokenizer = cache(load_tokenizer)

# Why a reference mask has no counterpart here, by row: what it trains on is not what was asked for, or not what
# inference would send.
NO_REASONING = "loses or changes the reasoning of '4'"
NO_CALLS = "loses or changes arguments of the calls"
TYPED = "has the control token '<|assistant|>' as its own text"
REFUSED = {
    **{f"{name}/reasoning_content": NO_REASONING for name in ("gemma", "llama3", "phi3", "phi3_5", "qwen2_5")},
    "qwen3_instruct_2507/reasoning_content": NO_REASONING,
    **{f"{name}/toolcall": NO_CALLS for name in ("llama3", "phi3", "phi3_5")},
    **{f"{name}/markers": TYPED for name in ("phi3", "phi3_5")},
    "mistral-v3/markers": "has the control token '[/INST]' as its own text",
}
# The reference learns the first turns without the system prompt, which inference adds to each of them.
SEVERAL_ROWS = {"mistral-v3/multi": 3}
# The reference reads the tool's answer as JSON, where the template gets the text of the row.
OTHER_TEXT = {"mistral-v3/toolcall"}


def oracle_rows(battery: Path, name: str) -> list[dict[str, Any]]:
    lines = (battery / "oracles" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def message_of(item: dict[str, Any]) -> Message:
    calls = []
    for call in item.get("tool_calls") or ():
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(ToolCall(call["function"]["name"], text, call.get("id")))
    return Message(
        item["role"],
        item.get("content"),
        reasoning=item.get("reasoning_content"),
        tool_calls=tuple(calls),
        name=item.get("name"),
        tool_call_id=item.get("tool_call_id"),
    )


def validate_against(oracle: dict[str, Any], supervisor: Supervisor) -> None:
    """Every token that the reference trains is trained here and no other one, whitespace around a turn aside."""
    tools = json.dumps(oracle["tools"], ensure_ascii=False) if oracle["tools"] else None
    asked = Conversation(oracle["id"], tuple(map(message_of, oracle["messages"])), tools)
    if oracle["id"] in REFUSED:
        with pytest.raises(RenderError) as caught:
            supervisor.rows(asked)
        assert REFUSED[oracle["id"]] in str(caught.value)
        return
    rows = supervisor.rows(asked)
    assert len(rows) == SEVERAL_ROWS.get(oracle["id"], 1)
    if oracle["id"] in OTHER_TEXT:
        return
    assert rows[-1].ids.tolist() == oracle["input_ids"]
    if len(rows) > 1:
        return
    for token, ours, theirs in zip(oracle["input_ids"], rows[0].mask, oracle["assistant_mask"], strict=True):
        is_free = not supervisor.tokenizer.decode([token]).strip()
        assert ours == theirs or is_free, f"{oracle['id']}: {supervisor.tokenizer.decode([token])!r}"


def test_masks_agree_with_those_of_trl(battery: Path) -> None:
    names = {"llama3": "llama3_1", "gemma": "gemma2"}
    for oracle in oracle_rows(battery, "masks_trl.jsonl"):
        name = names.get(oracle["tokenizer"], oracle["tokenizer"])
        template = battery / "templates" / f"trl__{oracle['template']}_training.jinja"
        tokenizer = cached_tokenizer(battery / "tokenizers" / name)
        validate_against(oracle, supervisor_of(tokenizer, template.read_text(encoding="utf-8")))


def test_masks_agree_with_those_of_mistrals_encoder(battery: Path) -> None:
    for oracle in oracle_rows(battery, "masks_mistral.jsonl"):
        tokenizer = cached_tokenizer(battery / "tokenizers" / f"hf_mistral_{oracle['version']}")
        validate_against(oracle, supervisor_of(tokenizer, tokenizer.chat_template))


ANSWERS = ("Guten Tag!", " vorn", "\n\nunten", "é ﬁ 👩‍👧 \u200b", "<|im_end|>", "[/INST] x", "</s>")
PROMPTS = ("<s>[INST] Hallo [/INST]", "<|user|>\nHallo<|end|>\n<|assistant|>\n", "<start_of_turn>model\n", "a b ", "")


@pytest.mark.parametrize(
    "name",
    [
        *("exact_tinyllama", "exact_zephyr", "gemma2", "gguf_phi3", "hf_mistral_v1", "hf_mistral_v3"),
        *("llama3_1", "qwen2_5", "qwen3"),
    ],
)
def test_the_ids_of_a_prompt_are_known_from_those_of_the_whole_text(battery: Path, name: str) -> None:
    encoder = Encoder(cached_tokenizer(battery / "tokenizers" / name))
    for prompt in PROMPTS:
        alone = list(encoder.encode(prompt).ids)
        for answer in ANSWERS:
            whole = list(encoder.encode(prompt + answer).ids)
            expected = len(alone) if whole[: len(alone)] == alone else None
            assert encoder.read(prompt + answer).prompt_tokens(prompt) == expected, (prompt, answer)


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "gemma2", "exact_tinyllama", "hf_mistral_v3", "gguf_phi3"])
def test_asking_the_backend_gives_the_ids_and_offsets_of_the_tokenizers_own_call(battery: Path, name: str) -> None:
    tokenizer = cached_tokenizer(battery / "tokenizers" / name)
    supervisor = Supervisor(tokenizer, ChatTemplate(CHAT_TEMPLATE), frozenset({tokenizer.eos_token_id}))
    for text in ("<|im_start|>user\nHallo</s>", "  two  spaces\n\n", "é ﬁ 👩‍👧 \u200b", f"{tokenizer.eos_token}x", ""):
        called = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        asked = supervisor.encoder.encode(text)
        assert (list(asked.ids), list(asked.offsets)) == (called["input_ids"], called["offset_mapping"])


def test_a_tokenizer_that_was_told_to_cut_elsewhere_cuts_nothing_here(supervisor: Supervisor) -> None:
    row = conversation(("user", "Hallo, wie geht es dir?"), ("assistant", "Gut!"))
    (before,) = supervisor.rows(row)
    supervisor.tokenizer("a long enough text", truncation=True, max_length=2)
    (after,) = supervisor.rows(row)
    assert after.ids.tolist() == before.ids.tolist()

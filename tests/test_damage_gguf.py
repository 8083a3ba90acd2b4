"""Each damage to a finished run's GGUF or Modelfile makes `verify` fail and name its cause."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFValueType
from numpy.typing import NDArray
from safetensors.torch import load_file

from damage_scene import MERGED, Q_PROJ, Case, assert_cause_is_named, base_of, replace_text
from gguf_surgery import Gguf, rewrite
from tunewright.models.gguf_tensors import interleaved_rows

GGUF, MODELFILE = "export/model-q8_0.gguf", "export/Modelfile"
UP, QUERY, NORM = "blk.1.ffn_up.weight", "blk.0.attn_q.weight", "output_norm.weight"
Q8_0_BYTES, HEADS = 34, 4


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    return copy


def operate(run: Path, change: Callable[[Gguf], object]) -> None:
    rewrite(run / GGUF, change)


def merged_values(run: Path, name: str) -> NDArray[np.float32]:
    found: NDArray[np.float32] = load_file(run / MERGED)[name].float().numpy()
    return found


def set_key(run: Path, key: str, value: Any, kind: GGUFValueType | None = None) -> None:
    operate(run, lambda gguf: gguf.set(key, value, kind))


def truncated(run: Path) -> None:
    (run / GGUF).write_bytes((run / GGUF).read_bytes()[:-1024])


def bytes_added(run: Path) -> None:
    (run / GGUF).write_bytes((run / GGUF).read_bytes() + bytes(64))


def header_overwritten(run: Path) -> None:
    (run / GGUF).write_bytes(b"GGML" + (run / GGUF).read_bytes()[4:])


def template_replaced(run: Path) -> None:
    content = (run / GGUF).read_bytes()
    assert b"You are a helpful test model." in content
    (run / GGUF).write_bytes(content.replace(b"You are a helpful test model.", b"You are a harmless test model"))


def template_with_one_space_more(run: Path) -> None:
    key = "tokenizer.chat_template"
    operate(run, lambda gguf: gguf.set(key, gguf.value(key).replace("assistant\n", "assistant \n")))


def template_dropped(run: Path) -> None:
    operate(run, lambda gguf: gguf.keys.pop("tokenizer.chat_template"))


def wrong_end_token(run: Path) -> None:
    set_key(run, "tokenizer.ggml.eos_token_id", 1)


def bos_put_before_each_prompt(run: Path) -> None:
    def change(gguf: Gguf) -> None:
        gguf.set("tokenizer.ggml.bos_token_id", 1)
        gguf.set("tokenizer.ggml.add_bos_token", True, GGUFValueType.BOOL)

    operate(run, change)


def vocabulary_shifted_by_one(run: Path) -> None:
    key = "tokenizer.ggml.tokens"
    operate(run, lambda gguf: gguf.set(key, [gguf.value(key)[-1], *gguf.value(key)[:-1]]))


def one_token_renamed(run: Path) -> None:
    key = "tokenizer.ggml.tokens"
    operate(run, lambda gguf: gguf.set(key, [*gguf.value(key)[:-1], "other"]))


def merge_order_lost(run: Path) -> None:
    key = "tokenizer.ggml.scores"
    operate(run, lambda gguf: gguf.set(key, [0.0] * len(gguf.value(key))))


def rope_base_changed(run: Path) -> None:
    set_key(run, "llama.rope.freq_base", 500000.0, GGUFValueType.FLOAT32)


def rope_scaling_added(run: Path) -> None:
    set_key(run, "llama.rope.scaling.factor", 4.0, GGUFValueType.FLOAT32)


def context_cut(run: Path) -> None:
    set_key(run, "llama.context_length", 64)


def norm_epsilon_changed(run: Path) -> None:
    set_key(run, "llama.attention.layer_norm_rms_epsilon", 1e-3)


def heads_changed(run: Path) -> None:
    set_key(run, "llama.attention.head_count_kv", 4)


def query_permutation_lost(run: Path) -> None:
    values = merged_values(run, Q_PROJ)
    operate(run, lambda gguf: gguf.encode(QUERY, values))


def query_permuted_twice(run: Path) -> None:
    order = interleaved_rows(64, HEADS)
    values = merged_values(run, Q_PROJ)[order][order]
    operate(run, lambda gguf: gguf.encode(QUERY, values))


def blocks_swapped(run: Path) -> None:
    def swap(data: NDArray[Any]) -> NDArray[Any]:
        blocks = data.reshape(-1, Q8_0_BYTES)
        blocks[[3, 8]] = blocks[[8, 3]]
        return data

    operate(run, lambda gguf: gguf.change(UP, swap))


def quantized_twice(run: Path) -> None:
    def change(gguf: Gguf) -> None:
        blocks = merged_values(run, "model.layers.1.mlp.up_proj.weight").reshape(-1, 32)
        step = np.abs(blocks).max(axis=1, keepdims=True) / 7
        gguf.encode(UP, (np.round(blocks / step) * step).reshape(160, 64).astype(np.float32))

    operate(run, change)


def rows_shifted_by_one(run: Path) -> None:
    operate(run, lambda gguf: gguf.change(UP, lambda data: np.roll(data, 1, axis=0)))


def norm_folded_twice(run: Path) -> None:
    operate(run, lambda gguf: gguf.change(NORM, lambda data: data + 1))


def one_block_overwritten(run: Path) -> None:
    def overwrite(data: NDArray[Any]) -> NDArray[Any]:
        data.reshape(-1, Q8_0_BYTES)[5, 2:] = 77
        return data

    operate(run, lambda gguf: gguf.change(UP, overwrite))


def tensor_dropped(run: Path) -> None:
    operate(run, lambda gguf: gguf.tensors.pop(NORM))


def head_of_its_own_added(run: Path) -> None:
    operate(run, lambda gguf: gguf.tensors.update({"output.weight": gguf.tensors["token_embd.weight"]}))


def made_from_the_base(run: Path) -> None:
    base = load_file(base_of(run) / "model.safetensors")
    values = base["model.layers.1.mlp.up_proj.weight"].to(torch.float32).numpy()
    operate(run, lambda gguf: gguf.encode(UP, values))


def edit_modelfile(run: Path, old: str, new: str) -> None:
    replace_text(run / MODELFILE, old, new)


def system_prompt_dropped(run: Path) -> None:
    text = (run / MODELFILE).read_text()
    (run / MODELFILE).write_text("".join(line for line in text.splitlines(True) if not line.startswith("SYSTEM")))


def another_system_prompt(run: Path) -> None:
    edit_modelfile(run, "careful clerk", "careless clerk")


def stop_token_dropped(run: Path) -> None:
    edit_modelfile(run, 'PARAMETER stop """<|im_end|>"""\n', "")


def context_of_the_modelfile_cut(run: Path) -> None:
    edit_modelfile(run, "PARAMETER num_ctx 2048", "PARAMETER num_ctx 64")


def temperature_forced(run: Path) -> None:
    edit_modelfile(run, "PARAMETER temperature 0", "PARAMETER temperature 0.8")


def template_of_the_modelfile_changed(run: Path) -> None:
    edit_modelfile(run, "<|im_start|>assistant\n", "<|im_start|>assistant \n")


TENSORS, SETTINGS = "gguf_tensors_q8_0", "gguf_settings_q8_0"
CASES: list[Case] = [
    (truncated, "gguf_complete_q8_0", "the file ends at byte"),
    (bytes_added, "gguf_complete_q8_0", "The end was cut off or something was added"),
    (header_overwritten, "gguf_complete_q8_0", "no GGUF file"),
    (template_replaced, "gguf_chat_template_q8_0", "armless test model"),
    (template_with_one_space_more, "gguf_chat_template_q8_0", "at character 310 found \" \\n"),
    (template_dropped, "gguf_chat_template_q8_0", "the GGUF has no chat template"),
    (wrong_end_token, "gguf_stop_token_q8_0", "were trained to end with <|im_end|>"),
    (rope_base_changed, SETTINGS, "rope.freq_base is 500000.0, 10000.0 in config.json"),
    (rope_scaling_added, SETTINGS, "rope.scaling.factor is 4.0, 1.0 in config.json"),
    (context_cut, SETTINGS, "context_length is 64, 2048 in config.json"),
    (norm_epsilon_changed, SETTINGS, "attention.layer_norm_rms_epsilon is 0.001"),
    (heads_changed, SETTINGS, "attention.head_count_kv is 4, 2 in config.json"),
    (query_permutation_lost, TENSORS, "the permutation of the rotary halves is lost"),
    (query_permuted_twice, TENSORS, f"{QUERY} differs from {Q_PROJ} by"),
    (blocks_swapped, TENSORS, "its blocks of 32 values stand in another order"),
    (quantized_twice, TENSORS, "it was quantized twice"),
    (rows_shifted_by_one, TENSORS, "its rows are shifted by one"),
    (norm_folded_twice, TENSORS, "the norm was folded twice"),
    (one_block_overwritten, TENSORS, "was changed: export again"),
    (made_from_the_base, TENSORS, "The GGUF was not made from this checkpoint"),
    (tensor_dropped, TENSORS, "model.norm.weight is not in the GGUF"),
    (head_of_its_own_added, TENSORS, "output.weight is in the GGUF and not in the checkpoint"),
    (vocabulary_shifted_by_one, "gguf_tokenizer_q8_0", "The vocabulary is shifted by one"),
    (one_token_renamed, "gguf_tokenizer_q8_0", "is 'other' in the GGUF"),
    (merge_order_lost, "gguf_tokenizer_q8_0", "all tokens have the same score"),
    (bos_put_before_each_prompt, "gguf_bos_q8_0", "put a BOS, <|endoftext|>, before each prompt"),
    (system_prompt_dropped, "modelfile_same", "the system prompt is dropped"),
    (another_system_prompt, "modelfile_same", "its SYSTEM is another than was trained"),
    (stop_token_dropped, "modelfile_same", "the stop token <|im_end|> is missing"),
    (context_of_the_modelfile_cut, "modelfile_same", "num_ctx is 64, written was 2048"),
    (temperature_forced, "modelfile_same", "temperature is 0.8, written was 0"),
    (template_of_the_modelfile_changed, "modelfile_same", "its TEMPLATE is not the one that was proven"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case[0].__name__ for case in CASES])
def test_verify_names_the_cause_of(run: Path, case: Case) -> None:
    assert_cause_is_named(run, case)

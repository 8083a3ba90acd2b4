"""A tokenizer that llama.cpp's converter knows from `tokenizer.json` alone gives the same ids in llama.cpp."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tiny_bases import write_base
from tiny_model import write_weights
from tunewright.engines.llama_cpp import LlamaCppEngine
from tunewright.events import Events
from tunewright.export.converter import STRIPPING_TOKENS, convert_to_gguf, naming
from tunewright.export.vocabulary import adds_first_space, lowest_score, merge_scores, takes_following_space
from tunewright.models.base import load_tokenizer
from tunewright.models.gguf_file import read_gguf_facts

TEXTS = (
    "<|im_start|>user\nthe other rather thin, and of the nation<|im_end|>\n",
    "<|im_start|> \n  here\tand there <|im_end|>   <|im_start|>assistant\nÄrger, Größe, 你好\n\n",
    "in the end<|endoftext|>",
)


def ids_in_llama_cpp(directory: Path, texts: Sequence[str]) -> list[list[int]]:
    convert_to_gguf(directory, directory.with_suffix(".gguf"), "bf16", Events())
    engine = LlamaCppEngine(directory.with_suffix(".gguf"), "model", 64)
    try:
        return [engine.tokenize(text) for text in texts]
    finally:
        engine.close()


def change(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("prepends", [False, True])
def test_llama_cpp_cuts_text_as_tokenizer_json_does(tiny_base: Path, tmp_path: Path, prepends: bool) -> None:
    """With `prepends` as older Llama tokenizers do: a space before each text that follows a special token."""
    directory = shutil.copytree(tiny_base, tmp_path / "merged")
    (directory / "tokenizer.model").unlink()
    if prepends:
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        prepend = {"type": "Prepend", "prepend": "▁"}
        change(directory / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [prepend, replace]})
        change(directory / "tokenizer_config.json", add_prefix_space=None)
    tokenizer = load_tokenizer(directory)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert ids_in_llama_cpp(directory, TEXTS) == expected


@pytest.mark.slow
def test_the_first_space_is_told_where_the_converter_says_nothing_of_it(tiny_base: Path, tmp_path: Path) -> None:
    """As of this vocabulary for Qwen3, for which llama.cpp would put one."""
    directory = shutil.copytree(tiny_base, tmp_path / "merged")
    tokenizer = load_tokenizer(directory)
    write_base(directory, "qwen3", vocab_size=len(tokenizer))
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert ids_in_llama_cpp(directory, TEXTS) == expected


@pytest.mark.slow
def test_llama_cpp_strips_behind_turns_where_the_tokenizer_does(battery: Path, tmp_path: Path) -> None:
    """Phi-3's own tokenizer, with the flags that its repository has: turns take in the whitespace behind them."""
    directory = shutil.copytree(battery / "tokenizers/gguf_phi3", tmp_path / "merged")
    added = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    for token in added:
        token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    change(directory / "tokenizer.json", added_tokens=added)
    write_weights(directory, len(load_tokenizer(directory)), 0)
    tokenizer = load_tokenizer(directory)
    texts = [f"<s><|user|>\n {text}<|end|>\n<|assistant|>\n" for text in ("Grüße!", "2 + 2 ?", "\n\nthe end")]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert "\n" not in "".join(tokenizer.convert_ids_to_tokens(expected[0]))
    assert ids_in_llama_cpp(directory, texts) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("bos", "added"), [("<|endoftext|>", False), ("<|im_start|>", True)])
def test_no_engine_puts_a_bos_before_prompts_that_were_trained_without(
    tiny_base: Path, tmp_path: Path, bos: str, added: bool
) -> None:
    """As with TinyLlama and Zephyr, whose tokenizers add one to any text, while their templates write none."""
    directory = shutil.copytree(tiny_base, tmp_path / "merged")
    change(directory / "tokenizer_config.json", bos_token=bos, add_bos_token=True)
    convert_to_gguf(directory, tmp_path / "model.gguf", "bf16", Events())
    assert read_gguf_facts(tmp_path / "model.gguf").adds_bos is added


def test_a_token_has_the_score_of_the_first_merge_that_gives_it() -> None:
    tokenizer = {"model": {"merges": [["a", "b"], "b c", ["ab", "c"], ["a", "bc"]]}}
    assert merge_scores(tokenizer) == {"ab": 0.0, "bc": -1.0, "abc": -2.0}
    assert lowest_score(tokenizer) == -1000.0
    assert lowest_score({"model": {"merges": ["a b"] * 5000}}) == -5000.0


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ({"normalizer": None}, False),
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, True),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, False),
        ({"pre_tokenizer": {"pretokenizers": [{"type": "Metaspace", "prepend_scheme": "never"}]}}, False),
    ],
)
def test_a_first_space_is_known_from_the_tokenizers_steps(tokenizer: dict[str, Any], expected: bool) -> None:
    assert adds_first_space(tokenizer) is expected


def test_a_model_is_named_so_that_llama_cpp_strips_behind_tokens_only_where_they_do(tmp_path: Path) -> None:
    for rstrip, expected in ((False, []), (True, ["--model-name", f"{tmp_path.name} (phi-3)"])):
        vocabulary = {"vocab": dict.fromkeys(STRIPPING_TOKENS, 0)}
        tokenizer = {"added_tokens": [{"content": "<|end|>", "rstrip": rstrip}], "model": vocabulary}
        assert takes_following_space(tokenizer) is rstrip
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        assert naming(tmp_path) == expected

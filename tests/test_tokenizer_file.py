"""The tokenizer is the one that its file describes, or that cannot be is said before anything is trained on its ids."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from render_rows import conversation, run_render, write_data
from tunewright.artifacts import RunDirectory, read_json, write_json
from tunewright.models.base import load_tokenizer
from tunewright.models.checkpoint_check import check_checkpoint
from tunewright.models.checkpoint_directory import check_merged_tokenizer, write_tokenizer_config
from tunewright.models.tokenizer_file import (
    TOKENIZER_PROBES,
    built_tokenizer,
    check_tokenizer_file,
    stated_tokenizer,
    texts_cut_otherwise,
)


def with_changes(base: Path, copy: Path, file: str, **changes: Any) -> Path:
    shutil.copytree(base, copy)
    write_json(copy / file, {**read_json(copy / file), **changes})
    return copy


@pytest.fixture
def forced(tiny_base: Path, tmp_path: Path) -> Path:
    """A base of a kind for which transformers takes no class but its own, whatever its files say."""
    return with_changes(tiny_base, tmp_path / "forced", "config.json", model_type="qwen2")


@pytest.fixture
def older(tiny_base: Path, tmp_path: Path) -> Path:
    """As older Llamas are: the file puts a space before each text, and the class does so otherwise."""
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = {"type": "Sequence", "normalizers": [prepend, replace]}
    copy = with_changes(tiny_base, tmp_path / "older", "tokenizer.json", normalizer=steps)
    settings = read_json(copy / "tokenizer_config.json")
    del settings["add_prefix_space"]
    write_json(copy / "tokenizer_config.json", {**settings, "tokenizer_class": "LlamaTokenizer"})
    return copy


def test_what_is_loaded_is_what_the_file_says(older: Path, forced: Path) -> None:
    for directory in (older, forced):
        loaded = load_tokenizer(directory)
        assert texts_cut_otherwise(built_tokenizer(directory), stated_tokenizer(directory))
        assert not texts_cut_otherwise(loaded, stated_tokenizer(directory))


def test_a_tokenizer_that_is_built_otherwise_than_its_file_says_is_named(forced: Path) -> None:
    found = check_tokenizer_file(forced)
    assert found.verdict == "fail"
    assert 0 < int(str(found.value)) <= len(TOKENIZER_PROBES)
    assert "transformers builds a Qwen2Tokenizer that is not what tokenizer.json says: the text ' ' is" in found.detail
    assert "tokenizer_unlike_its_file" in {item.name for item in check_checkpoint(forced) if item.verdict == "fail"}


def test_merged_says_that_the_file_is_to_be_taken_where_the_base_does_not(older: Path) -> None:
    assert check_tokenizer_file(older).verdict == "fail"
    assert check_merged_tokenizer(older).verdict == "pass"
    write_tokenizer_config(older)
    assert read_json(older / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert check_tokenizer_file(older).verdict == "pass"


def test_where_that_does_not_help_no_row_is_trained_on(forced: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    write_data(run, [conversation("rows.jsonl:1", ("user", "1 2"), ("assistant", "3 4"))])
    evidence = {item.name: item for item in run_render(run, forced).result.evidence}
    assert evidence["tokenizer_unlike_its_file"].verdict == "fail"


def test_without_a_file_there_is_nothing_to_differ_from(tmp_path: Path) -> None:
    assert check_tokenizer_file(tmp_path).detail.startswith("There is no tokenizer.json")


def test_real_tokenizers_are_built_as_their_files_say(battery: Path) -> None:
    found = {path.name: check_tokenizer_file(path) for path in sorted((battery / "tokenizers").iterdir())}
    assert found
    assert {name: item.value for name, item in found.items() if item.verdict != "pass"} == {}

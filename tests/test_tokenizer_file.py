"""A tokenizer that transformers builds otherwise than its file says is named before anything is trained on its ids."""

import shutil
from pathlib import Path

import pytest

from render_rows import conversation, run_render, write_data
from tunewright.artifacts import RunDirectory, read_json, write_json
from tunewright.errors import RenderError
from tunewright.evidence import Evidence
from tunewright.models.base import load_tokenizer
from tunewright.models.checkpoint_check import check_checkpoint
from tunewright.models.tokenizer_file import TOKENIZER_PROBES, check_tokenizer_file


@pytest.fixture
def rebuilt(tiny_base: Path, tmp_path: Path) -> Path:
    """A base of a kind for which transformers takes no class but its own, whatever its tokenizer.json says."""
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    write_json(copy / "config.json", {**read_json(copy / "config.json"), "model_type": "qwen2"})
    return copy


def checked(directory: Path) -> Evidence:
    return check_tokenizer_file(directory, load_tokenizer(directory))


def test_a_tokenizer_that_is_built_otherwise_than_its_file_says_is_named(rebuilt: Path) -> None:
    found = checked(rebuilt)
    assert found.verdict == "fail"
    assert 0 < int(str(found.value)) <= len(TOKENIZER_PROBES)
    assert "transformers builds a Qwen2Tokenizer that is not what tokenizer.json says: the text ' ' is" in found.detail


def test_a_directory_with_such_a_tokenizer_is_no_sound_checkpoint(rebuilt: Path) -> None:
    assert "tokenizer_unlike_its_file" in {item.name for item in check_checkpoint(rebuilt) if item.verdict == "fail"}


def test_where_no_row_comes_through_such_a_tokenizer_it_is_named_as_the_cause(rebuilt: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    write_data(run, [conversation("rows.jsonl:1", ("user", "1 2"), ("assistant", "3 4"))])
    with pytest.raises(RenderError, match="transformers builds a Qwen2Tokenizer"):
        run_render(run, rebuilt)


def test_a_tokenizer_that_is_its_file_passes(tiny_base: Path) -> None:
    assert checked(tiny_base).verdict == "pass"


def test_without_a_file_there_is_nothing_to_differ_from(tiny_base: Path, tmp_path: Path) -> None:
    assert check_tokenizer_file(tmp_path, load_tokenizer(tiny_base)).detail.startswith("There is no tokenizer.json")


def test_real_tokenizers_are_built_as_their_files_say(battery: Path) -> None:
    found = {path.name: checked(path) for path in sorted((battery / "tokenizers").iterdir())}
    assert found
    assert {name: item.value for name, item in found.items() if item.verdict != "pass"} == {}

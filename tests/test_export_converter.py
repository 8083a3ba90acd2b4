"""The converter's process: which one is run, with what around it, and what is said when it cannot."""

import json
from pathlib import Path

import pytest

from tunewright.errors import EnvironmentLackError, ExportError, RecipeError
from tunewright.events import Event, Events
from tunewright.export.converter import (
    CHECKOUT_VARIABLE,
    CONVERTER_WHEEL,
    SCRIPT,
    convert_to_gguf,
    converter_identity,
    expected_bytes,
    validate_disk_space,
    validate_formats,
    weight_bytes,
)

WRITES_WHAT_IT_SEES = """
import json, os, sys
from pathlib import Path
seen = {"cwd": os.getcwd(), "argv": sys.argv[1:]}
seen |= {"offline": os.environ["HF_HUB_OFFLINE"], "path": os.environ["PYTHONPATH"]}
Path(sys.argv[sys.argv.index("--outfile") + 1]).write_text(json.dumps(seen))
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for the user's llama.cpp, with a converter that the test writes."""
    directory = tmp_path / "llama.cpp"
    directory.mkdir()
    (directory / SCRIPT).write_text("", encoding="utf-8")
    monkeypatch.setenv(CHECKOUT_VARIABLE, str(directory))
    return directory


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "merged"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(bytes(6400))
    return directory


def failing(checkout: Path, message: str) -> None:
    (checkout / SCRIPT).write_text(f"import sys\nprint('first line')\nsys.exit({message!r})\n", encoding="utf-8")


def test_the_users_checkout_takes_the_place_of_the_pinned_converter(
    checkout: Path, model: Path, tmp_path: Path
) -> None:
    (checkout / SCRIPT).write_text(WRITES_WHAT_IT_SEES, encoding="utf-8")
    (checkout / "gguf-py").mkdir()
    target = tmp_path / "export/model-bf16.gguf"
    convert_to_gguf(model, target, "bf16", Events())
    seen = json.loads(target.read_text(encoding="utf-8"))
    assert seen["argv"] == ["--outtype", "bf16", "--outfile", "model.gguf", str(model)]
    assert seen["offline"] == "1"
    assert seen["path"].split(":")[:2] == [str(checkout), str(checkout / "gguf-py")]
    assert Path(seen["cwd"]).parent == target.parent
    assert [path.name for path in target.parent.iterdir()] == ["model-bf16.gguf"]


def test_a_converter_that_fails_leaves_nothing_behind_and_its_last_lines_are_quoted(
    checkout: Path, model: Path, tmp_path: Path
) -> None:
    failing(checkout, "the weights are odd")
    target = tmp_path / "export/model-q8_0.gguf"
    with pytest.raises(ExportError, match=r"ended with code 1: first line \| the weights are odd"):
        convert_to_gguf(model, target, "q8_0", Events())
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    "message",
    ["BPE pre-tokenizer was not recognized - update get_vocab_base_pre()", "Model OddForCausalLM is not supported"],
)
def test_a_base_that_the_converter_does_not_know_asks_for_a_newer_checkout(
    checkout: Path, model: Path, tmp_path: Path, message: str
) -> None:
    failing(checkout, message)
    with pytest.raises(ExportError) as caught:
        convert_to_gguf(model, tmp_path / "model.gguf", "q8_0", Events())
    assert "newer llama.cpp checkout" in caught.value.mend


def test_a_converter_that_writes_nothing_is_a_failure(checkout: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="ended with code 0"):
        convert_to_gguf(model, tmp_path / "model.gguf", "q8_0", Events())


def test_a_checkout_without_a_converter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECKOUT_VARIABLE, str(tmp_path))
    with pytest.raises(EnvironmentLackError, match=r"has no convert_hf_to_gguf\.py"):
        converter_identity()


def test_the_identity_is_the_wheels_hash_or_changes_with_the_checkout(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = converter_identity()
    (checkout / SCRIPT).write_text("# changed", encoding="utf-8")
    assert converter_identity() != first
    monkeypatch.delenv(CHECKOUT_VARIABLE)
    assert converter_identity() == CONVERTER_WHEEL.sha256


def test_progress_counts_bytes_and_ends_at_its_total(checkout: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    (large / "model.safetensors").write_bytes(bytes(8 << 20))
    script = "import time\nopen('model.gguf', 'wb').write(bytes(5 << 20))\ntime.sleep(1.2)\n"
    (checkout / SCRIPT).write_text(script, encoding="utf-8")
    seen: list[Event] = []
    convert_to_gguf(large, tmp_path / "model.gguf", "bf16", Events(listeners=(seen.append,)))
    assert {event["kind"] for event in seen} == {"progress"}
    assert seen[-1]["done"] == seen[-1]["total"] == 8 << 20


def test_the_size_is_foreseen_from_the_16_bit_weights(model: Path) -> None:
    assert {name: expected_bytes(weight_bytes(model), name) for name in ("q8_0", "f16", "bf16", "f32")} == {
        "q8_0": 3400,
        "f16": 6400,
        "bf16": 6400,
        "f32": 12800,
    }


def test_a_disk_that_is_too_small_is_found_before_the_conversion(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLackError, match=r"GB are free on the disk; expected 1152921504\.6 GB for the GGUF"):
        validate_disk_space(tmp_path, 2**60)


@pytest.mark.parametrize("formats", [["q2_k"], ["q8_0", "q9"], []])
def test_formats_that_cannot_be_made_are_refused_with_those_that_can(formats: list[str]) -> None:
    with pytest.raises(RecipeError, match="expected one or more of q8_0, f16, bf16, f32"):
        validate_formats(formats)

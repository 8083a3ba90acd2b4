"""One pass from base and adapter to GGUF: byte by byte what merging and converting give."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tunewright.events import Events
from tunewright.export.converter import convert_to_gguf, find_converter
from tunewright.export.one_pass import export_adapter
from tunewright.merge.stage import merge
from tunewright.models.base import Base, load_model
from tunewright.models.gguf_header import read_gguf_header
from tunewright.recipe import TrainKeys
from tunewright.train.lora import attach_adapter, write_adapter


def random_adapter(base: Path, directory: Path) -> Path:
    model = attach_adapter(load_model(base, torch.float32), TrainKeys(lora_r=4, lora_alpha=8))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    write_adapter(directory, model, "base")
    return directory


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensor_bytes(path: Path) -> dict[str, bytes]:
    """The bytes of each tensor; what stands before them is not the converter's where it has no `tokenizer.model`."""
    content = path.read_bytes()
    return {name: content[each.start : each.end] for name, each in read_gguf_header(path).tensors.items()}


def convert_without_driver(directory: Path, gguf: Path, gguf_format: str) -> None:
    converter = find_converter()
    command = [sys.executable, str(converter.script), "--outtype", gguf_format, "--outfile", str(gguf), str(directory)]
    search = os.pathsep.join(map(str, converter.import_path))
    subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("gguf_format", ["q8_0", "f16", "bf16"])
def test_one_pass_gives_the_bytes_of_two_steps(tiny_base: Path, tmp_path: Path, gguf_format: str) -> None:
    base, adapter = Base("tiny", tiny_base, {}), random_adapter(tiny_base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "merged", "auto", Events())
    convert_without_driver(tmp_path / "merged", tmp_path / "plain.gguf", gguf_format)
    convert_to_gguf(tmp_path / "merged", tmp_path / "two.gguf", gguf_format, Events())
    export_adapter(base, adapter, tmp_path / "out/one.gguf", gguf_format, Events())
    assert sha256(tmp_path / "out/one.gguf") == sha256(tmp_path / "two.gguf") == sha256(tmp_path / "plain.gguf")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one.gguf"]


@pytest.mark.slow
def test_shapes_that_are_no_multiple_of_32_come_out_as_llama_cpp_has_them(battery: Path, tmp_path: Path) -> None:
    path = battery / "models/stories260K/hf"
    base, adapter = Base("stories260K", path, {}), random_adapter(path, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "merged", "auto", Events())
    convert_without_driver(tmp_path / "merged", tmp_path / "plain.gguf", "q8_0")
    export_adapter(base, adapter, tmp_path / "one.gguf", "q8_0", Events())
    assert tensor_bytes(tmp_path / "one.gguf") == tensor_bytes(tmp_path / "plain.gguf")
    types = {name: tensor.type for name, tensor in read_gguf_header(tmp_path / "one.gguf").tensors.items()}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"

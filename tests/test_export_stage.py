"""The export stage on a tiny model with the real converter, the proof of the GGUF, and damage done to it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_model import CHAT_TEMPLATE, DEFAULT_SYSTEM_PROMPT, END_ID, START_ID, write_tiny_base
from tunewright.artifacts import RunDirectory, StageResult, write_json
from tunewright.errors import ArtifactError, RecipeError
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.export import stage
from tunewright.export.license import base_license, stated_license
from tunewright.models.base import load_tokenizer
from tunewright.models.gguf_file import check_gguf, first_difference, lacks_merge_order, read_gguf_facts
from tunewright.models.gguf_tensors import bound_q8_0, interleaved_rows, worst_error
from tunewright.recipe import ExportKeys

TEMPLATE_FACTS = {
    "chat_template": CHAT_TEMPLATE,
    "special_tokens": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    "stop_ids": [END_ID],
    "stop_tokens": ["<|im_end|>"],
    "longest_row_tokens": 300,
    "shared_system_prompt": None,
    "default_system_prompt": DEFAULT_SYSTEM_PROMPT,
}


@dataclass(frozen=True)
class Exported:
    run: RunDirectory
    directory: Path
    result: StageResult

    @property
    def gguf(self) -> Path:
        return self.directory / "model-q8_0.gguf"

    @property
    def merged(self) -> Path:
        return self.run / "merged"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One real conversion, by the pinned converter, for all tests of this file."""
    root = tmp_path_factory.mktemp("run")
    run = RunDirectory(root / "triage")
    write_tiny_base(run / "merged")
    write_json(run / "tokens/template.json", TEMPLATE_FACTS)
    base = write_tiny_base(root / "base")
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n", encoding="utf-8")
    result = stage.run(ExportKeys(model=str(base)), run, root / "out", Events())
    return Exported(run, root / "out/export", result)


def check(path: Path, merged: Path | None = None, stops: frozenset[int] = frozenset({END_ID})) -> dict[str, Evidence]:
    found = check_gguf(path, chat_template=CHAT_TEMPLATE, stop_ids=stops, merged_directory=merged)
    return {item.name: item for item in found}


def changed(exported: Exported, tmp_path: Path, change: Callable[[bytes], bytes]) -> Path:
    path = tmp_path / "changed.gguf"
    path.write_bytes(change(exported.gguf.read_bytes()))
    return path


def test_every_check_of_a_fresh_export_passes(exported: Exported) -> None:
    assert [(item.name, item.value, item.verdict) for item in exported.result.evidence] == [
        ("gguf_complete", exported.gguf.stat().st_size, "pass"),
        ("gguf_chat_template", True, "pass"),
        ("gguf_stop_token", True, "pass"),
        ("gguf_settings", 0, "pass"),
        ("gguf_tensors", 20, "pass"),
        ("gguf_tokenizer", 0, "pass"),
        ("ollama_template", True, "pass"),
    ]
    assert exported.result.facts["formats"] == ["q8_0"]
    assert exported.result.facts["num_ctx"] == 2048
    assert exported.result.facts["license"] == {"license": "mit"}


def test_the_export_holds_two_files_and_nothing_else(exported: Exported) -> None:
    assert sorted(path.name for path in exported.directory.iterdir()) == ["Modelfile", "model-q8_0.gguf"]


def test_the_header_is_what_the_official_reader_reads(exported: Exported) -> None:
    from gguf import GGUFReader

    official = GGUFReader(exported.gguf)
    header = read_gguf_facts(exported.gguf).header
    ours = {
        name: (list(tensor.shape), tensor.type, tensor.start, tensor.bytes) for name, tensor in header.tensors.items()
    }
    assert ours == {
        tensor.name: (
            [int(size) for size in reversed(tensor.shape)],
            tensor.tensor_type.name,
            int(tensor.data_offset),
            int(tensor.n_bytes),
        )
        for tensor in official.tensors
    }
    expected = {name: field.contents() for name, field in official.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == expected


def test_the_facts_are_those_of_the_tiny_model(exported: Exported) -> None:
    facts = read_gguf_facts(exported.gguf)
    assert (facts.architecture, facts.tensor_count, facts.tensor_types) == ("llama", 20, {"F32": 5, "Q8_0": 15})
    assert (facts.bos_id, facts.eos_id, facts.eot_id, facts.adds_bos) == (START_ID, END_ID, None, False)
    assert (facts.context_length, len(facts.tokens), facts.chat_template) == (2048, 410, CHAT_TEMPLATE)


def test_llama_cpp_gives_the_checkpoints_token_ids(exported: Exported) -> None:
    from tunewright.models.embedded import llama_cpp_token_ids
    from tunewright.models.tokenizer_file import TOKENIZER_PROBES

    tokenizer = load_tokenizer(exported.merged)
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in TOKENIZER_PROBES]
    assert llama_cpp_token_ids(exported.gguf, list(TOKENIZER_PROBES)) == expected


def test_a_file_cut_by_1_kb_is_named_with_the_tensor_it_lacks(exported: Exported, tmp_path: Path) -> None:
    path = changed(exported, tmp_path, lambda data: data[:-1024])
    size = exported.gguf.stat().st_size
    evidence = check(path, exported.merged)
    assert list(evidence) == ["gguf_complete"]
    assert evidence["gguf_complete"].verdict == "fail"
    assert f"the file ends at byte {size - 1024}; tensor blk." in evidence["gguf_complete"].detail


@pytest.mark.parametrize("kept", [0, 3, 7, 20, 100, 5000])
def test_a_file_cut_within_its_header_is_an_artifact_error(exported: Exported, tmp_path: Path, kept: int) -> None:
    path = changed(exported, tmp_path, lambda data: data[:kept])
    with pytest.raises(ArtifactError, match=r"needs bytes up to|no GGUF file|more than the file can hold"):
        read_gguf_facts(path)


def test_bytes_after_the_end_fail(exported: Exported, tmp_path: Path) -> None:
    path = changed(exported, tmp_path, lambda data: data + bytes(64))
    assert check(path)["gguf_complete"].verdict == "fail"


def test_a_file_of_another_kind_is_an_artifact_error(exported: Exported) -> None:
    with pytest.raises(ArtifactError, match="no GGUF file"):
        read_gguf_facts(exported.merged / "config.json")


def test_a_header_overwritten_with_noise_is_an_artifact_error(exported: Exported, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(400)
    path = changed(exported, tmp_path, lambda data: data[:8] + noise + data[408:])
    with pytest.raises(ArtifactError, match="more than the file can hold"):
        read_gguf_facts(path)


def test_a_similar_chat_template_fails_and_the_first_difference_is_shown(exported: Exported, tmp_path: Path) -> None:
    path = changed(exported, tmp_path, lambda data: data.replace(b"helpful test model", b"helpful best model"))
    evidence = check(path)["gguf_chat_template"]
    assert evidence.verdict == "fail"
    assert 'at character 125 found "best model.' in evidence.detail
    assert first_difference("abc", "abcd") == "at character 3 found '', expected 'd'"


def test_a_gguf_that_ends_turns_with_a_token_that_was_not_trained_fails(exported: Exported) -> None:
    evidence = check(exported.gguf, stops=frozenset({1}))["gguf_stop_token"]
    assert evidence.verdict == "fail"
    assert "<|im_end|>, the rows were trained to end with <|endoftext|>" in evidence.detail


def test_a_flipped_bit_in_a_weight_fails_with_the_tensors_name(exported: Exported, tmp_path: Path) -> None:
    tensor = read_gguf_facts(exported.gguf).header.tensors["blk.1.ffn_up.weight"]

    def flip(data: bytes) -> bytes:
        at = tensor.start + 10
        return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]

    evidence = check(changed(exported, tmp_path, flip), exported.merged)["gguf_tensors"]
    assert (evidence.value, evidence.limit, evidence.verdict) == (19, "= 20", "fail")
    assert "blk.1.ffn_up.weight differs from model.layers.1.mlp.up_proj.weight" in evidence.detail


def test_the_gguf_of_other_weights_fails(exported: Exported, tmp_path: Path) -> None:
    other = write_tiny_base(tmp_path / "other", seed=1)
    evidence = check(exported.gguf, other)["gguf_tensors"]
    assert evidence.verdict == "fail"
    assert evidence.value == 5  # the norms, which are all ones in both


def test_query_rows_that_lost_their_order_fail(exported: Exported, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    merged = shutil.copytree(exported.merged, tmp_path / "merged")
    weights = load_file(merged / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name][interleaved_rows(64, 4)].contiguous()
    save_file(weights, merged / "model.safetensors")
    evidence = check(exported.gguf, merged)["gguf_tensors"]
    assert evidence.value == 19
    assert "blk.0.attn_q.weight differs" in evidence.detail


def test_a_tensor_that_only_one_side_has_fails(exported: Exported, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    merged = shutil.copytree(exported.merged, tmp_path / "merged")
    weights = load_file(merged / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, merged / "model.safetensors")
    evidence = check(exported.gguf, merged)["gguf_tensors"]
    assert "lm_head.weight is not in the GGUF" in evidence.detail
    assert "blk.1.ffn_down.weight is in the GGUF and not in the checkpoint" in evidence.detail


def test_an_architecture_whose_values_are_not_known_is_a_warning_that_names_it(
    exported: Exported, tmp_path: Path
) -> None:
    merged = shutil.copytree(exported.merged, tmp_path / "merged")
    config = (merged / "config.json").read_text(encoding="utf-8")
    (merged / "config.json").write_text(config.replace("LlamaForCausalLM", "OddForCausalLM"), encoding="utf-8")
    evidence = check(exported.gguf, merged)["gguf_tensors"]
    assert (evidence.value, evidence.verdict) == (0, "warn")
    assert "OddForCausalLM" in evidence.detail


def test_the_tokenizer_of_another_model_fails_with_the_first_token(exported: Exported, tmp_path: Path) -> None:
    merged = shutil.copytree(exported.merged, tmp_path / "merged")
    tokenizer = (merged / "tokenizer.json").read_text(encoding="utf-8")
    swapped = tokenizer.replace('"th": ', '"xx": ').replace('"he": ', '"th": ').replace('"xx": ', '"he": ')
    (merged / "tokenizer.json").write_text(swapped, encoding="utf-8")
    evidence = check(exported.gguf, merged)["gguf_tokenizer"]
    assert (evidence.value, evidence.verdict) == (2, "fail")
    assert "is 'th' in the GGUF and 'he' in the checkpoint" in evidence.detail


def test_a_sentencepiece_vocabulary_without_scores_is_recognised() -> None:
    flat = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": [0.0, -1e3, -1e3],
        "tokenizer.ggml.token_type": [3, 1, 1],
    }
    assert lacks_merge_order(flat)
    assert not lacks_merge_order(flat | {"tokenizer.ggml.scores": [0.0, -1.0, -2.0]})
    assert not lacks_merge_order(flat | {"tokenizer.ggml.model": "gpt2"})


def test_rows_are_interleaved_as_the_converter_does() -> None:
    assert interleaved_rows(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("kind", ["Q8_0", "F16", "BF16"])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 50.0])
def test_rounding_stays_within_its_bound_and_comes_near_it(kind: str, scale: float) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    values = (np.random.default_rng(0).standard_normal((64, 256)) * scale).astype(np.float32)
    quantization = GGMLQuantizationType[kind]
    error = worst_error(values, dequantize(quantize(values, quantization), quantization), kind)
    assert 0.3 < error <= 1


def test_a_q8_0_value_that_is_off_by_a_whole_step_is_out_of_bounds() -> None:
    values = np.full((1, 32), 12.7, dtype=np.float32)
    assert bound_q8_0(values.astype(np.float64))[0, 0] == pytest.approx(0.05 + 12.7 / 2048, rel=1e-3)
    assert worst_error(values, values - 0.1, "Q8_0") > 1
    assert worst_error(values, np.full_like(values, np.nan), "Q8_0") == np.inf


def test_formats_are_looked_at_before_anything_is_done(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="found q3_k_s"):
        stage.run(ExportKeys(export_formats=["q8_0", "q3_k_s"]), exported.run, tmp_path / "out", Events())
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_is_read_once_for_all_formats(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.export import converter

    read: list[Path] = []
    given: list[converter.Vocabulary] = []

    def load(path: Path) -> Any:
        read.append(path)
        return load_tokenizer(path)

    monkeypatch.setattr(converter, "load_tokenizer", load)
    monkeypatch.setattr(stage, "convert_to_gguf", lambda *_, vocabulary, **__: given.append(vocabulary))
    made = list(stage.convert_all(["q8_0", "f16"], exported.merged, tmp_path, Events()))
    assert made == [("q8_0", tmp_path / "model-q8_0.gguf"), ("f16", tmp_path / "model-f16.gguf")]
    assert read == [exported.merged]
    assert given == [given[0]] * 2


def test_the_modelfile_serves_what_was_trained(exported: Exported) -> None:
    text = (exported.directory / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith('FROM ./model-q8_0.gguf\nTEMPLATE """{{ $hasSystem := false }}')
    assert f'SYSTEM """{DEFAULT_SYSTEM_PROMPT}"""\nPARAMETER stop """<|im_end|>"""\nPARAMETER num_ctx 2048\n' in text


def test_a_template_that_go_cannot_express_is_a_warning_without_a_modelfile(exported: Exported, tmp_path: Path) -> None:
    from tunewright.chat.template import ChatTemplate
    from tunewright.export.modelfile import OllamaModel

    trained = stage.Trained(ChatTemplate("{{ messages[-1]['content'] }}"), TEMPLATE_FACTS, None)
    model = OllamaModel("model-q8_0.gguf", "", None, [], 2048, 0)
    evidence = stage.write_modelfile(model, trained, read_gguf_facts(exported.gguf), tmp_path / "Modelfile")
    assert (evidence.name, evidence.value, evidence.verdict) == ("ollama_template", False, "warn")
    assert "tunewright serve" in evidence.detail
    assert not (tmp_path / "Modelfile").exists()


def test_a_licence_is_only_stated_if_the_base_states_it(tmp_path: Path) -> None:
    assert stated_license(tmp_path) == {}
    (tmp_path / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004", encoding="utf-8")
    assert stated_license(tmp_path) == {"license": "apache-2.0"}
    for front, found in (
        ("license: llama3.2", {"license": "llama3.2"}),
        ("license: other\nlicense_name: house", {"license": "other", "license_name": "house"}),
        ("license: [broken", {"license": "apache-2.0"}),
        ("license: 7", {"license": "apache-2.0"}),
        ("- a list", {"license": "apache-2.0"}),
    ):
        (tmp_path / "README.md").write_text(f"---\n{front}\n---\n", encoding="utf-8")
        assert stated_license(tmp_path) == found


def test_a_base_that_is_no_longer_here_has_no_licence() -> None:
    assert base_license(ExportKeys(model="./gone")) == {}

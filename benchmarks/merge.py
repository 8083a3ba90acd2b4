"""Merge of a random checkpoint: seconds and peak memory, against copying the base and against peft.

usage: python benchmarks/merge.py DIRECTORY [SIZE ...]   (SIZE: 0.1B, 0.4B, 1B, 3B; default 0.1B 3B)

Each way runs in a process of its own, with the base warm in the page cache, and ends when its files are flushed. This
process stays small, since a child's peak memory counts its parent's. The time of a way is that of the whole process,
imports included; `in the call` is without them. peft's way is `merge_and_unload` and `save_pretrained`, in bfloat16.
What is measured is the merge; the check that reads it back and recomputes it is timed by itself.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "0.1B": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 24, "vocab_size": 32000},
    "0.4B": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "vocab_size": 64000},
    "1B": {"hidden_size": 1536, "intermediate_size": 5632, "num_hidden_layers": 28, "vocab_size": 100000},
    "3B": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "vocab_size": 151936},
}
HEADS = {
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
RANK = 16
WAYS = ("cp", "tunewright", "check", "peft")
SHARD_BYTES = 2**30


def main(directory: Path, sizes: list[str]) -> None:
    print(
        "| size | way | seconds | of cp | in the call | peak MiB | largest tensor MiB |\n|---|---|---|---|---|---|---|"
    )
    for size in sizes:
        place = directory / size
        if not (place / "adapter" / "adapter_config.json").is_file():
            subprocess.run([sys.executable, __file__, "--make", size, str(place)], check=True)
        largest = SIZES[size]["vocab_size"] * SIZES[size]["hidden_size"] * 2 / 2**20
        copied = 0.0
        for way in WAYS:
            measured = measure(way, place)
            copied = copied or measured["seconds"]
            times = f"{measured['seconds']:.1f} | {measured['seconds'] / copied:.2f} | {measured['call_seconds']:.1f}"
            print(f"| {size} | {way} | {times} | {measured['peak_mib']:.0f} | {largest:.0f} |", flush=True)


def measure(way: str, place: Path) -> dict[str, float]:
    """Run one way in a process of its own, with the base read once before."""
    for file in (place / "base").glob("*.safetensors"):
        subprocess.run(["/bin/cat", str(file)], stdout=subprocess.DEVNULL, check=True)
    if way != "check":
        shutil.rmtree(place / "out", ignore_errors=True)
    os.sync()
    started = time.perf_counter()
    output = subprocess.run([sys.executable, __file__, "--way", way, str(place)], stdout=subprocess.PIPE, check=True)
    return {"seconds": time.perf_counter() - started, **json.loads(output.stdout.splitlines()[-1])}


def run_way(way: str, place: Path) -> None:
    base, adapter, out = place / "base", place / "adapter", place / "out"
    if way == "cp":
        started = time.perf_counter()
        subprocess.run(["/bin/cp", "-r", "--reflink=never", str(base), str(out)], check=True)
        flush(out)
    else:
        import_what_it_needs(way)
        started = time.perf_counter()
        {"tunewright": merge_by_us, "peft": merge_by_peft, "check": check}[way](base, adapter, out)
    seconds = time.perf_counter() - started
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"call_seconds": seconds, "peak_mib": peak / 1024}))


def import_what_it_needs(way: str) -> None:
    import peft
    import transformers

    _ = (peft.PeftModel, transformers.AutoModelForCausalLM)
    if way != "peft":
        from tunewright.merge import stage

        _ = stage.merge


def merge_by_us(base: Path, adapter: Path, out: Path) -> None:
    from tunewright.artifacts import flush_to_disk
    from tunewright.events import Events
    from tunewright.merge.stage import merge
    from tunewright.models.base import Base

    merge(Base("benchmark", base, {}), adapter, out, "auto", Events())
    flush_to_disk(out)


def check(base: Path, adapter: Path, out: Path) -> None:
    """Recompute what the way before this one has written."""
    from tunewright.events import Events
    from tunewright.models.merge_check import check_merged

    failed = [item.name for item in check_merged(base, adapter, out, Events()) if item.verdict == "fail"]
    print(f"failed: {failed}", file=sys.stderr)


def merge_by_peft(base: Path, adapter: Path, out: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, local_files_only=True)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    flush(out)


def flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def write_base(directory: Path, size: str) -> None:
    """A random Llama in bfloat16 in shards of one gigabyte, written layer by layer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    config = LlamaConfig(**SIZES[size], **HEADS, bos_token_id=1, eos_token_id=2, architectures=["LlamaForCausalLM"])
    config.save_pretrained(directory)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    write_shards(directory, {name: tuple(tensor.shape) for name, tensor in state.items() if name != "lm_head.weight"})
    write_tokenizer(directory)


def write_shards(directory: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    pending: dict[str, Any] = {}
    names = list(shapes)
    for name in names:
        pending[name] = torch.randn(shapes[name], generator=generator, dtype=torch.bfloat16).mul_(0.02)
        if name == names[-1] or sum(tensor.nbytes for tensor in pending.values()) > SHARD_BYTES:
            file = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
            save_file(pending, directory / file, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(pending, file))
            pending = {}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_tokenizer(directory: Path) -> None:
    """A tokenizer of three words, enough to be copied, and one for llama.cpp's converter."""
    from sentencepiece import sentencepiece_model_pb2 as protocol
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, "a")).save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "c", "unk_token": "a"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    model = protocol.ModelProto()
    model.trainer_spec.model_type = protocol.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    kinds = protocol.ModelProto.SentencePiece
    for piece, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=kinds.BYTE)
    (directory / "tokenizer.model").write_bytes(model.SerializeToString())


def write_adapter(base: Path, directory: Path) -> None:
    """A random adapter of rank 16 on every linear layer, without loading the base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    attached = get_peft_model(model, config, low_cpu_mem_usage=True)
    shapes = {name: tensor.shape for name, tensor in attached.state_dict().items() if ".lora_" in name}
    generator = torch.Generator().manual_seed(1)
    weights = {
        name.replace(".default", ""): torch.randn(shape, generator=generator).mul_(0.02)
        for name, shape in shapes.items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config.target_modules = set(config.target_modules)
    config.save_pretrained(directory)


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        write_base(Path(sys.argv[3]) / "base", sys.argv[2])
        write_adapter(Path(sys.argv[3]) / "base", Path(sys.argv[3]) / "adapter")
    elif sys.argv[1] == "--way":
        run_way(sys.argv[2], Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]).resolve(), sys.argv[2:] or ["0.1B", "3B"])

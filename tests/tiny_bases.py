"""Tiny random bases of many architectures, without tokenizers: what a merge has to get right, in kilobytes."""

from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": 96,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", COMMON),
    "mistral": ("MistralConfig", COMMON),
    "qwen2": ("Qwen2Config", {**COMMON, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**COMMON, "tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3MoeConfig", {**COMMON, **EXPERTS}),
    "mixtral": ("MixtralConfig", {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma2": ("Gemma2Config", COMMON),
    "gemma3": ("Gemma3TextConfig", COMMON),
    "phi3": ("Phi3Config", COMMON),
    "gpt2": ("GPT2Config", GPT2),
    "olmo": ("OlmoConfig", COMMON),
    "granite": ("GraniteConfig", COMMON),
    "smollm3": ("SmolLM3Config", COMMON),
}
TIED = ("qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "smollm3")


def write_base(directory: Path, kind: str, **changes: Any) -> Path:
    """A random base of a kind, in bfloat16; the same kind gives the same weights."""
    import torch
    import transformers

    name, settings = CONFIGS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = getattr(transformers, name)(**{**settings, "initializer_range": 0.1, **changes})
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.1)
        model.to(torch.bfloat16).save_pretrained(directory)
    return directory


def load(directory: Path, **options: Any) -> Any:
    """The base in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True, **options)

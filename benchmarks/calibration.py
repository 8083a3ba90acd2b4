"""Where do clean runs stand against the limits of `verify`, and where damaged ones? Writes docs/calibration.md.

usage: python benchmarks/calibration.py [RUNS] [OUT]   (default: 20 docs/calibration.md)

Tiny random bases of several architectures, each trained with another seed: the whole way from rows to `verify`, by the
stages themselves. Then the GGUF's weights are damaged, as an endpoint may serve them, and every figure is taken again.
Needs the tests' own tiny bases and rows.
"""

import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import torch
import transformers

from conftest import TINY_RECIPE
from served_models import Weights, weights_of, write_with_weights
from tiny_model import END_ID, PAD_ID, START_ID, write_tokenizer
from tiny_rows import tiny_rows
from tunewright.artifacts import RunDirectory, read_json, write_text
from tunewright.engines.canaries import Canary, canary_from_json, compare_with_canaries
from tunewright.engines.llama_cpp import LlamaCppEngine
from tunewright.engines.openai_api import OpenAIEngine
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.models.merge_diagnosis import through_nf4
from tunewright.pipeline import run_pipeline
from tunewright.recipe import Recipe, VerifyKeys
from tunewright.verify.endpoint import DEPARTURE_LIMIT, check_endpoint

ARCHITECTURES = ("LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config", "GraniteConfig")
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": START_ID,
    "eos_token_id": END_ID,
    "pad_token_id": PAD_ID,
    "initializer_range": 0.1,
}
CLEAN = "clean"
# Figure: how it reads, and whether more of it is better.
FIGURES = {
    "top1": ("GGUF, top-1 agreement", True),
    "clear_top1": ("GGUF, top-1 agreement where clear", True),
    "kl": ("GGUF, mean KL", False),
    "departures": ("endpoint, share of clear departures", False),
    "endpoint_kl": ("endpoint, mean KL of five", False),
}
Figures = dict[str, float]
Rows = dict[str, list[Figures]]
Damage = Callable[[Weights, Weights], Weights]


def main(runs: int, out: Path) -> None:
    rows: Rows = defaultdict(list)
    alarms: list[str] = []
    parity: dict[str, list[float]] = defaultdict(list)
    for seed in range(runs):
        with tempfile.TemporaryDirectory() as scratch:
            kind = ARCHITECTURES[seed % len(ARCHITECTURES)]
            evidence = one_run(Path(scratch), kind, seed, rows)
        alarms += [f"{kind}, seed {seed}: {item.name} = {item.value}" for item in evidence if item.verdict == "fail"]
        for item in evidence:
            if isinstance(item.value, float) and item.name.startswith(("adapter_", "merged_", "endpoint_")):
                parity[item.name].append(item.value)
        print(f"{seed + 1} of {runs}: {kind}, {len(alarms)} alarms", flush=True)
        write_text(out, page(seed + 1, rows, parity, alarms))


def one_run(place: Path, kind: str, seed: int, rows: Rows) -> list[Evidence]:
    """A clean run's evidence; the figures of its GGUF, whole and damaged, go to `rows`."""
    base = write_base(place / "base", kind, seed)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_rows()))
    settings = {**TINY_RECIPE, "data": str(place / "rows.jsonl"), "model": str(base), "seed": seed}
    accepted = ["gguf_top1_agreement", "q8_0_top1_agreement", "q8_0_clear_top1_agreement", "q8_0_mean_kl"]
    recipe = Recipe(**{**settings, "accept": [*settings["accept"], *accepted]})
    run = RunDirectory(place / "run")
    run.path.mkdir()
    manifests = run_pipeline(recipe, run, Events(), until="verify")
    canaries = [canary_from_json(item) for item in read_json(run / "adapter/canaries.json")["canaries"]]
    config = recipe.section(VerifyKeys)
    gguf = run / "export/model-q8_0.gguf"
    clean, asked = measured(gguf, config, run, canaries)
    rows[CLEAN].append(clean)
    tuned, untuned = weights_of(run / "merged"), weights_of(base)
    for damage in DAMAGES:
        damaged = write_with_weights(gguf, run / "merged", damage(tuned, untuned), place / "damaged.gguf")
        rows[in_words(damage)].append(measured(damaged, config, run, canaries)[0])
    return [*manifests["verify"].evidence, *asked]


def write_base(directory: Path, kind: str, seed: int) -> Path:
    directory.mkdir()
    vocabulary = write_tokenizer(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(transformers, kind)(vocab_size=len(vocabulary), **SHAPE)
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = END_ID
    model.save_pretrained(directory)
    return directory


def measured(
    gguf: Path, config: VerifyKeys, run: RunDirectory, canaries: list[Canary]
) -> tuple[Figures, list[Evidence]]:
    """The figures of a GGUF: its tokens scored by llama.cpp, and asked as an endpoint."""
    engine = LlamaCppEngine(gguf, "GGUF", n_ctx=512)
    try:
        found = asdict(compare_with_canaries(engine, canaries))
        endpoint = OpenAIEngine(f"{engine.url}/v1", "tunewright", "endpoint")
        asked = check_endpoint(config, run, endpoint, Events())
        endpoint.close()
    finally:
        engine.close()
    said = {item.name: item.value for item in asked}
    figures = {
        "top1": found["top1_agreement"],
        "clear_top1": found["clear_top1_agreement"],
        "kl": found["mean_kl"],
        "departures": float(said["endpoint_clear_departures"] or 0),
        "endpoint_kl": float(said["endpoint_mean_kl"] or 0),
    }
    return figures, asked


def moved(times: float) -> Damage:
    """Weights that went `times` as far from the base as they should."""
    return lambda tuned, base: {name: base[name] + times * (tuned[name] - base[name]) for name in tuned}


def the_base(tuned: Weights, base: Weights) -> Weights:
    return base


def the_opposite_adapter(tuned: Weights, base: Weights) -> Weights:
    return moved(-1)(tuned, base)


def half_the_scale(tuned: Weights, base: Weights) -> Weights:
    return moved(0.5)(tuned, base)


def twice_the_scale(tuned: Weights, base: Weights) -> Weights:
    return moved(2)(tuned, base)


def one_layer_without_the_adapter(tuned: Weights, base: Weights) -> Weights:
    return {name: base[name] if ".layers.1." in name else values for name, values in tuned.items()}


def through_four_bits(tuned: Weights, base: Weights) -> Weights:
    return {
        name: through_nf4(torch.from_numpy(values)).numpy() if "_proj" in name else values
        for name, values in tuned.items()
    }


def last_norm_folded_twice(tuned: Weights, base: Weights) -> Weights:
    return {name: values + 1 if name == "model.norm.weight" else values for name, values in tuned.items()}


def vocabulary_shifted_by_one(tuned: Weights, base: Weights) -> Weights:
    name = "model.embed_tokens.weight"
    return {**tuned, name: np.roll(tuned[name], 1, axis=0)}


DAMAGES: tuple[Damage, ...] = (
    *(the_base, the_opposite_adapter, half_the_scale, twice_the_scale, one_layer_without_the_adapter),
    *(through_four_bits, last_norm_folded_twice, vocabulary_shifted_by_one),
)


def in_words(damage: Damage) -> str:
    return damage.__name__.replace("_", " ")


def page(runs: int, rows: Rows, parity: dict[str, list[float]], alarms: list[str]) -> str:
    config = VerifyKeys()
    limits = {
        "top1": config.gguf_top1_limit,
        "clear_top1": config.gguf_clear_top1_limit,
        "kl": config.gguf_kl_limit,
        "departures": DEPARTURE_LIMIT,
        "endpoint_kl": config.gguf_kl_limit,
    }
    names = ", ".join(ARCHITECTURES)
    head = [
        "# Calibration of the limits of `verify`",
        f"`python benchmarks/calibration.py {runs}`: {runs} runs from rows to `verify`, each with another seed, over "
        f"tiny random bases of {len(ARCHITECTURES)} architectures ({names}), q8_0 in llama.cpp. Every run's weights "
        "were then damaged in eight ways and asked again. Least and greatest value over all runs; the worst clean one "
        "and the best damaged one are what a limit has to stand between.",
        "A random base is sure of nothing, so near ties are many and these values are the hard case; a limit that only "
        "tiny bases break is said below.",
        f"Alarms on clean runs: {len(alarms)}." + "".join(f"\n- {alarm}" for alarm in alarms),
    ]
    titles = [f"{FIGURES[name][0]} (limit {limits[name]:g})" for name in FIGURES]
    table = ["| | " + " | ".join(titles) + " | found |", "|---" * (len(titles) + 2) + "|"]
    for label, found in rows.items():
        spans = [span([figures[name] for figures in found]) for name in FIGURES]
        caught = sum(any(is_beyond(name, figures[name], limits[name]) for name in FIGURES) for figures in found)
        table.append(f"| {label} | {' | '.join(spans)} | {caught} of {len(found)} |")
    clean = ["## All figures of the clean runs", "| evidence | least | greatest |\n|---|---|---|"]
    clean[1] += "".join(f"\n| `{name}` | {min(each):.3g} | {max(each):.3g} |" for name, each in sorted(parity.items()))
    return "\n\n".join([*head, "\n".join(table), *clean]) + "\n"


def span(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def is_beyond(name: str, value: float, limit: float) -> bool:
    more_is_better: Any = FIGURES[name][1]
    return value < limit if more_is_better else value > limit


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 20,
        Path(sys.argv[2] if len(sys.argv) > 2 else "docs/calibration.md"),
    )

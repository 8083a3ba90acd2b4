"""Where do clean runs stand against the limits of `verify`, and where damaged ones? Writes docs/calibration.md.

usage: python benchmarks/calibration.py [RUNS] [RESULTS] [PAGE]   (default: 20 .calibration docs/calibration.md)

Each run goes the whole way from rows to the report, by the stages themselves, over a tiny random base of its own:
another seed, architecture, dtype, kind of adapter, template, width, some trained over 4 bits. Then its weights are
damaged and every figure that has a limit is taken again, from the checkpoint, the GGUF and the GGUF served. The runs
that look like those of the tests also get every damage of `tests/test_damage*.py`, which has to be named.

In RESULTS stands one file for each run that is done, and a directory for one that is under way; what is there is not
done again, so that it may be stopped at any time, and several processes may work side by side. The page is written
from all files there are. Needs the tests' own bases, rows and damages.
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import transformers
from calibration_page import page
from calibration_weights import DAMAGES, Damage, in_words, write_checkpoint

import test_damage
import test_damage_endpoint
import test_damage_gguf
from conftest import TINY_RECIPE
from damage_scene import Case
from served_models import NAME, weights_of, write_with_weights
from test_damage_endpoint import Scene
from tiny_model import END_ID, PAD_ID, START_ID, write_tokenizer
from tiny_rows import tiny_rows
from tunewright.artifacts import RunDirectory, read_json, write_json, write_text
from tunewright.certificate import check_certificate
from tunewright.engines.canaries import CANARY_BATCH, Parity, compare_with_canaries
from tunewright.engines.hf import open_hf_engine
from tunewright.engines.llama_cpp import LlamaCppEngine
from tunewright.engines.openai_api import OpenAIEngine
from tunewright.errors import TunewrightError
from tunewright.events import Events
from tunewright.evidence import Evidence, as_verdict, evidence_from_json
from tunewright.paths import check_manifests, verify_run
from tunewright.pipeline import run_pipeline
from tunewright.recipe import Recipe, VerifyKeys
from tunewright.verify.endpoint import check_endpoint
from tunewright.verify.limits import Limits, exact_limits, gguf_limits, rounded_limits
from tunewright.verify.parity import RECORDED, check_parity, compare_with, describe, read_canaries

ARCHITECTURES = ("LlamaConfig", "MistralConfig", "SmolLM3Config", "Qwen3Config", "GraniteConfig")
ADAPTERS: tuple[dict[str, Any], ...] = (
    {},
    {"use_rslora": True},
    {"use_dora": True},
    {"lora_target_modules": ["q_proj", "v_proj"], "bias": "lora_only"},
)
DTYPES = ("bfloat16", "float16", "float32")
TEMPLATES = (None, "chatml", "zephyr")
# These are like the run of the tests, whose damages they get: each damage is done to two of them.
PLAIN_RUNS = 4
PLAIN: dict[str, Any] = {"kind": "LlamaConfig", "dtype": "bfloat16", "width": 64, "formats": ["q8_0"], "recipe": {}}
ALL_FORMATS = ["q8_0", "f16", "bf16", "q6_k", "q5_k_m", "q4_k_m"]
WIDE = 256  # K-quants have blocks of 256.
OVER_FOUR_BITS = (8, 13)
# What says how good a model is, not whether it is the one that was trained; random bases are not good.
OF_QUALITY = ("degenerate_answers", "tuned_not_worse_than_base", "target_diversity", "eval_loss_over_best")
PARITY = ("prompt_ids_equal", "top1_agreement", "clear_top1_agreement", "mean_kl", "degenerate_answers")
SERVED = ("endpoint_clear_top1_agreement", "endpoint_top1_agreement", "endpoint_mean_kl")


def main(runs: int, results: Path, out: Path) -> None:
    results.mkdir(parents=True, exist_ok=True)
    for index in range(runs):
        path = results / f"run-{index:02}.json"
        with held(path.with_suffix(".lock")) as is_mine:
            if is_mine and not path.exists():
                found = one_run(path.with_suffix(""), index)
                write_json(path, found)
                shutil.rmtree(path.with_suffix(""))
                print(f"run {index}: {found['settings']}, alarms: {found['alarms'] or 'none'}", flush=True)
    write_text(out, page([read_json(path) for path in sorted(results.glob("run-*.json"))]))


@contextmanager
def held(lock: Path) -> Iterator[bool]:
    """Whether this process holds the lock; it never waits."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, made once and kept in a file."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def settings_of(index: int) -> dict[str, Any]:
    """What is special about a run: its base, its adapter, its template, its formats."""
    if index < PLAIN_RUNS:
        return PLAIN
    wide = index % 4 == 3
    four_bits = index in OVER_FOUR_BITS
    template = TEMPLATES[index // 2 % 3]
    recipe = {} if four_bits else dict(ADAPTERS[index % 4])
    recipe |= {"load_in_4bit": True} if four_bits else {}
    return {
        "kind": ARCHITECTURES[index % 5],
        "dtype": DTYPES[index % 3],
        "width": WIDE if wide else 64,
        "formats": ALL_FORMATS if wide else ["q8_0"],
        "recipe": recipe | ({"chat_template": template} if template else {}),
    }


def one_run(place: Path, index: int) -> dict[str, Any]:
    """A clean run's figures and alarms, and what became of every damage."""
    settings = settings_of(index)
    run, config, evidence = finished_run(place, settings, index)
    measured = Measured(run, config, place)
    found = kept(place / "clean.json", measured.of_clean)
    asked = evidence_from_json(found["asked"])
    whole = [*evidence, *check_manifests(run), *check_certificate(run), *asked]
    alarms = [item for item in whole if item.verdict == "fail"]
    return {
        "index": index,
        "settings": {**settings, "seed": index},
        "checks": sum(item.is_check for item in whole),
        "alarms": [f"{item.name} = {item.value}" for item in alarms if not item.name.endswith(OF_QUALITY)],
        "positions": found["positions"],
        "clean": found["figures"],
        "damaged": {in_words(damage): measured.of_damaged(damage) for damage in DAMAGES},
        "named": list(named_damages(place, run.path, index)) if index < PLAIN_RUNS else [],
    }


def finished_run(place: Path, settings: dict[str, Any], seed: int) -> tuple[RunDirectory, VerifyKeys, list[Evidence]]:
    base = place / "base"
    if not base.is_dir():
        write_base(place / "base-unfinished", settings, seed).rename(base)
    write_text(place / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in tiny_rows()))
    labels = ("adapter", "merged_in_float32", "merged", *ALL_FORMATS)
    # An alarm is counted, not stopped at.
    limited = [f"{label}_{figure}" for label in labels for figure in PARITY]
    changes = {
        "data": str(place / "rows.jsonl"),
        "model": str(base),
        "seed": seed,
        "export_formats": settings["formats"],
        "eval_rows": 8,
        "evaluate_rows": 0,
        "canaries": 8,
        "canary_tokens": 16,
        "num_train_epochs": 8,
        "gguf_top1_limit": None,
        "accept": [*TINY_RECIPE["accept"], *OF_QUALITY, *limited],
        **settings["recipe"],
    }
    recipe = Recipe(**{**TINY_RECIPE, **changes})
    run = RunDirectory(place / "run")
    run.path.mkdir(exist_ok=True)
    manifests = run_pipeline(recipe, run, Events())
    return run, recipe.section(VerifyKeys), [item for manifest in manifests.values() for item in manifest.evidence]


def write_base(directory: Path, settings: dict[str, Any], seed: int) -> Path:
    """A random base that speaks the tests' tiny vocabulary."""
    directory.mkdir(parents=True, exist_ok=True)
    width = settings["width"]
    shape = {
        "vocab_size": len(write_tokenizer(directory)),
        "hidden_size": width,
        "intermediate_size": 512 if width == WIDE else 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
        "bos_token_id": START_ID,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
        "rms_norm_eps": 1e-5,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, settings["kind"])(**shape))
    model.to(getattr(torch, settings["dtype"]))
    model.generation_config.eos_token_id = END_ID
    model.save_pretrained(directory)
    return directory


class Measured:
    """The figures of a run's artifacts, whole and damaged."""

    def __init__(self, run: RunDirectory, config: VerifyKeys, place: Path) -> None:
        self.run, self.config, self.place = run, config, place
        self.dtype, self.canaries = read_canaries(run / "adapter/canaries.json")
        self.tuned, self.base = weights_of(run / "merged"), weights_of(place / "base")
        self.gguf = run / "export/model-q8_0.gguf"

    def of_clean(self) -> dict[str, Any]:
        """What `verify` found, by the name of its evidence, and what the GGUF's own server shows."""
        found = {item.name: item.value for item in self.run.require_manifest("verify").evidence}
        figures = {name: value for name, value in found.items() if name.endswith(PARITY)}
        engine = LlamaCppEngine(self.gguf, "GGUF", n_ctx=512)
        try:
            served, asked = self.asked(engine)
        finally:
            engine.close()
        counts = read_json(self.run / "verify.json")["engines"][0]
        return {
            "figures": {**figures, **served},
            "asked": [item.as_json() for item in asked],
            "positions": counts["positions"],
        }

    def of_damaged(self, damage: Damage) -> dict[str, Any]:
        return dict(kept(self.place / f"{damage.__name__}.json", lambda: self._of_damaged(damage)))

    def _of_damaged(self, damage: Damage) -> dict[str, Any]:
        """The figures of damaged weights, in a checkpoint and in a GGUF, and what its endpoint is found to be."""
        weights = damage(self.tuned, self.base)
        shutil.rmtree(self.place / "damaged", ignore_errors=True)
        merged = write_checkpoint(self.run / "merged", weights, self.place / "damaged")
        in_hf = compare_with(lambda: open_hf_engine(merged, "damaged", CANARY_BATCH, self.dtype), self.canaries)
        shutil.rmtree(merged)
        damaged = write_with_weights(self.gguf, self.run / "merged", weights, self.place / "damaged.gguf")
        engine = LlamaCppEngine(damaged, "damaged", n_ctx=512)
        try:
            in_gguf = compare_with_canaries(engine, self.canaries)
            served, asked = self.asked(engine)
        finally:
            engine.close()
        exact, q8_0 = exact_limits(self.config), gguf_limits(self.config, "q8_0")
        judged = [
            *self.judged("adapter", in_hf, exact),
            *self.judged("merged_in_float32", in_hf, exact),
            *self.judged("merged", in_hf, rounded_limits(self.config)),
            *self.judged("q8_0", in_gguf, q8_0),
        ]
        return {
            **{item.name: item.value for item in judged if item.name.endswith(PARITY)},
            **served,
            "failed": [item.name for item in (*judged, *asked) if item.verdict == "fail"],
            "cause": as_verdict(asked)["cause"],
        }

    def judged(self, label: str, parity: Parity, limits: Limits) -> list[Evidence]:
        """What `verify` would say of an artifact that compares so with the canaries."""
        entry = describe(label, parity, self.canaries, limits) | {"against": RECORDED}
        return check_parity({"engines": [entry]})

    def asked(self, engine: LlamaCppEngine) -> tuple[dict[str, float], list[Evidence]]:
        endpoint = OpenAIEngine(f"{engine.url}/v1", NAME, "endpoint")
        try:
            found = check_endpoint(self.config, self.run, endpoint, Events())
        finally:
            endpoint.close()
        said = {item.name: item.value for item in found}
        return {name: float(said[name]) for name in SERVED if isinstance(said.get(name), (int, float))}, found


def named_damages(place: Path, run: Path, index: int) -> Iterator[dict[str, Any]]:
    """Every other damage of the tests done to a copy of the run: what failed first, and whether its cause was named."""
    for number, case in enumerate([*test_damage.CASES, *test_damage_gguf.CASES]):
        if number % 2 == index % 2:
            scratch = place / f"case-{number}"
            yield kept(scratch.with_suffix(".json"), lambda s=scratch, c=case: damage_done(s, run, c))
    gguf, merged = run / "export/model-q8_0.gguf", run / "merged"
    tuned, base = weights_of(merged), weights_of(place / "base")
    opposite = {name: base[name] - 4 * (tuned[name] - base[name]) for name in base}
    of_base = write_with_weights(gguf, merged, base, place / "base.gguf")
    scene = Scene(run, gguf, of_base, write_with_weights(gguf, merged, opposite, place / "other.gguf"))
    for serving, words in test_damage_endpoint.CASES:
        path = place / f"served-{serving.__name__}.json"
        yield kept(path, lambda s=serving, w=words: served_damage(scene, s, w))


def damage_done(place: Path, run: Path, case: Case) -> dict[str, Any]:
    damage, name, words = case
    shutil.rmtree(place, ignore_errors=True)
    copy = place / "run"
    shutil.copytree(run, copy)
    damage(copy)
    found = as_verdict(verify_run(copy, Events()))
    failures = [item["name"] for item in found["evidence"] if item["verdict"] == "fail"]
    shutil.rmtree(place)
    named = failures[:1] == [name] and words in found["cause"]
    return {
        "damage": f"{of_what(name)}: {in_words(damage)}",
        "named": named,
        "first": failures[:1],
        "cause": found["cause"],
    }


def of_what(name: str) -> str:
    kinds = {"gguf": "GGUF", "modelfile": "Modelfile", "base": "base", "adapter": "adapter", "report": "report"}
    return kinds.get(name.split("_")[0], "merged")


def served_damage(scene: Scene, serving: Any, words: str) -> dict[str, Any]:
    try:
        with serving(scene) as url:
            found = as_verdict(scene.verify(url))
    except TunewrightError as error:
        found = {"verdict": "error", "cause": str(error)}
    named = found["verdict"] == "fail" and words in found["cause"]
    return {"damage": f"endpoint: {in_words(serving)}", "named": named, "first": [], "cause": found["cause"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = sys.argv[1:]
    main(
        int(given[0]) if given else 20,
        Path(given[1] if len(given) > 1 else ".calibration"),
        Path(given[2] if len(given) > 2 else "docs/calibration.md"),
    )

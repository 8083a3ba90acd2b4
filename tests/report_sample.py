"""A small but full run directory for tests of the report and the certificate: 30 steps, 5 evaluations, 8 answers.

Everything that the report reads stands in it as the stages would have written it; weights are a few bytes of text.
"""

import json
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from report_sample_data import ANSWERS, EVIDENCE, FACTS, RECIPE, SYSTEM
from tunewright.artifacts import RunDirectory, sha256_of_json, write_json, write_text
from tunewright.certificate import CERTIFIED_STAGES
from tunewright.events import Events
from tunewright.recipe import ReportKeys
from tunewright.report import stage


def write_sample_run(path: Path, without: Collection[str] = (), failing: Collection[str] = ()) -> RunDirectory:
    """A run in `path` with every stage up to `evaluate` published, as its report stage would find it.

    Args:
        path: the run directory to make.
        without: stages that have not finished.
        failing: names of evidence whose verdict shall be `fail`.
    """
    run = RunDirectory(path)
    write_text(run / "recipe.yaml", yaml.safe_dump(RECIPE, sort_keys=False))
    for done in CERTIFIED_STAGES:
        if done in without:
            continue
        evidence = [replace(item, verdict="fail") if item.name in failing else item for item in EVIDENCE[done]]
        with run.staging(done) as out:
            for name, content in _files(done).items():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (out / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
            run.publish(done, out, sha256_of_json({"stage": done}), evidence, FACTS[done])
    return run


def write_reported_run(path: Path, failing: Collection[str] = ()) -> RunDirectory:
    """A whole run, its certificate, report and card written by the report stage itself."""
    run = write_sample_run(path, failing=failing)
    with run.staging("report") as out:
        result = stage.run(ReportKeys(name="triage"), run, out, Events())
        run.publish("report", out, "f" * 64, result.evidence, result.facts)
    return run


def republish(run: RunDirectory, stage: str, **changes: Any) -> None:
    """Overwrite fields of a stage's manifest, as a stage that ran again would."""
    path = run.manifest_path(stage)
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def _files(stage: str) -> dict[str, Any]:
    files: dict[str, dict[str, Any]] = {
        "data": {
            "data/train.jsonl": "{}\n",
            "data/eval.jsonl": "{}\n",
            "data/ledger.jsonl": _lines(_ledger(with_tokens=False)),
            "data/audit.json": _audit(),
        },
        "render": {
            "tokens/train.safetensors": "ids and mask",
            "tokens/ledger.jsonl": _lines(_ledger(with_tokens=True)),
            "tokens/lengths.json": _lengths(),
            "tokens/example_rows.json": _example_rows(),
            "tokens/template.json": {
                "chat_template": "…",
                "special_tokens": {"bos_token": "<|im_start|>"},
                "stop_tokens": ["<|im_end|>"],
            },
        },
        "plan": {"plan.json": _plan()},
        "train": {
            "adapter/adapter_model.safetensors": "the adapter",
            "adapter/adapter_config.json": {"r": 16},
            "adapter/training.json": _training(),
            "adapter/canaries.json": {"top_k": 20, "dtype": "float32", "canaries": []},
            "adapter/base.json": {
                "name": "embedded:smollm2-135m-instruct",
                "identity": "9c" * 32,
                "files": {"model.safetensors": "3b" * 32},
                "tensors": {f"tensor.{index}": "00" * 32 for index in range(272)},
            },
        },
        "merge": {"merged/model.safetensors": "the merged weights", "merged/config.json": {"model_type": "llama"}},
        "export": {"export/model-q8_0.gguf": "GGUF", "export/Modelfile": "FROM ."},
        "verify": {"verify.json": _verify()},
        "evaluate": {"evaluate/results.json": _results()},
    }
    return files[stage]


def _lines(items: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def _ledger(with_tokens: bool) -> list[dict[str, Any]]:
    return [_ledger_line(row, with_tokens) for row in range(322)]


def _ledger_line(row: int, with_tokens: bool) -> dict[str, Any]:
    line: dict[str, Any] = {
        "row": f"train.jsonl:{row + 1}" if row < 272 else f"eval.jsonl:{row - 271}",
        "fate": "kept",
        "repairs": [],
        "reason": None,
        "field": None,
    }
    if row in (17, 118, 201, 260):
        empty = {"reason": "empty target: the assistant says nothing", "field": "messages[2].content"}
        line |= {"fate": "rejected", **(empty if row != 201 else {"reason": "no assistant turn: nothing to learn"})}
    elif row % 25 == 3:
        renamed = row % 75 == 3
        line |= {
            "fate": "repaired",
            "repairs": [
                {"what": "role `human` became `user`", "where": "messages[0]"}
                if renamed
                else {"what": "an object became JSON text", "where": "messages[2].content"}
            ],
        }
    elif with_tokens and row % 40 == 9:
        line |= {"fate": "truncated", "lost_tokens": 12 + row % 7}
    return line | ({"tokens": 300 + row % 90, "supervised_tokens": 60 + row % 30} if with_tokens else {})


def _audit() -> dict[str, Any]:
    examples = {"rarest_intent_share": [{"row": "train.jsonl:88", "excerpt": "spare_part"}]}
    checks = [{**item.as_json(), "examples": examples.get(item.name, [])} for item in EVIDENCE["data"][1:]]
    return {"rows": {"train": 270, "eval": 48}, "checks": checks}


def _lengths() -> dict[str, Any]:
    train = [296 + int(70 * abs(math.sin(row * 1.7)) + 60 * abs(math.sin(row * 0.31)) ** 3) for row in range(270)]
    return {
        "max_length": 512,
        "max_length_from": "recipe",
        "context": 8192,
        "train": train,
        "eval": train[40:88],
        "supervised": [52 + int(40 * abs(math.sin(row * 2.3))) for row in range(270)],
        "shared_prefix_tokens": 276,
    }


def target_of(number: int) -> str:
    _, intent, urgency, area, summary, _, _ = ANSWERS[number]
    data = {"intent": intent, "urgency": urgency, "product_area": area, "summary": summary}
    return json.dumps({**data, "analysis": "The message names the matter and no deadline."}, ensure_ascii=False)


def tuned_answer(number: int) -> str:
    return json.dumps({**json.loads(target_of(number)), **ANSWERS[number][6]}, ensure_ascii=False)


def _example_rows() -> list[dict[str, Any]]:
    head = f"<|im_start|>system\n{SYSTEM} {SYSTEM}<|im_end|>\n<|im_start|>user\n"
    return [
        {
            "id": f"train.jsonl:{12 + number}",
            "segments": [
                {"text": f"{head}{ANSWERS[number][0]}<|im_end|>\n<|im_start|>assistant\n", "supervised": False},
                {"text": f"{target_of(number)}<|im_end|>", "supervised": True},
                {"text": "\n", "supervised": False},
            ],
        }
        for number in (0, 5, 2)
    ]


def _plan() -> dict[str, Any]:
    return {
        "layout": "shared_prefix",
        "layout_reason": "All rows share 276 tokens, so a step costs 0.38 of what padded rows would.",
        "optimizer_steps": 30,
        "effective_batch_size": 16,
        "tokens_per_epoch_padded": 104912,
        "tokens_per_epoch": 39820,
        "peak_bytes": 2_912_000_000,
        "budget_bytes": 7_600_000_000,
        "fits": True,
        "seconds_per_step": 9.8,
        "seconds": 294.0,
        "dtype": "float32",
        "device": "cpu",
        "changes": [],
    }


def _training() -> dict[str, Any]:
    def loss(step: int) -> float:
        return 0.55 + 2.4 * math.exp(-step / 7) + 0.12 * math.sin(step * 2.1)

    steps = [
        {
            "step": step,
            "epoch": round(step / 10, 3),
            "loss": round(loss(step), 4),
            "learning_rate": 2e-4 * (step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 28))),
            "grad_norm": round(0.4 + 1.9 * math.exp(-step / 4) + 0.1 * abs(math.sin(step)), 4),
            "supervised_tokens": 2184,
        }
        for step in range(1, 31)
    ]
    said = ["I am sorry to hear that. Please", '{"intent": "safety", "urg', *[tuned_answer(0)] * 3]
    evaluations = [
        {
            "step": step,
            "eval_loss": round(0.68 + 2.2 * math.exp(-step / 6.5), 4),
            "samples": [
                {"id": "eval.jsonl:3", "prompt": ANSWERS[0][0], "target": target_of(0), "answer": said[index]},
                {
                    "id": "eval.jsonl:9",
                    "prompt": ANSWERS[7][0],
                    "target": target_of(7),
                    "answer": ANSWERS[7][5] if index < 2 else tuned_answer(7),
                },
            ],
        }
        for index, step in enumerate((6, 12, 18, 24, 30))
    ]
    return {
        "steps": steps,
        "evaluations": evaluations,
        "optimizer_steps": 30,
        "trainable_parameters": 4884480,
        "total_parameters": 139399488,
        "dtype": "float32",
        "device": "cpu",
    }


def _engine(name: str, artifact: str, top1: float, kl: float, limits: tuple[float, float]) -> dict[str, Any]:
    return {
        "engine": name,
        "artifact": artifact,
        "prompt_ids_equal": 1.0,
        "top1_agreement": top1,
        "mean_kl": kl,
        "greedy_agreement": round(top1 - (1 - top1), 4),
        "degenerate_answers": 0,
        "limits": {"top1_agreement": limits[0], "mean_kl": limits[1]},
    }


def _verify() -> dict[str, Any]:
    engines = [
        _engine("adapter, Hugging Face", "adapter", 1.0, 0.0, (1.0, 1e-6)),
        _engine("merged in fp32, Hugging Face", "merged", 1.0, 4.1e-09, (1.0, 1e-6)),
        _engine("merged, Hugging Face", "merged", 0.9961, 3.2e-07, (0.99, 1e-3)),
        _engine("q8_0, llama.cpp", "export/model-q8_0.gguf", 0.9883, 0.000871, (0.98, 1e-2)),
    ]
    names = [engine["engine"] for engine in engines]
    canaries = []
    for number in range(4):
        answers = dict.fromkeys(names, tuned_answer(number))
        if number == 2:
            answers[names[-1]] = tuned_answer(number).replace("stands still", "is still")
        prompt = ANSWERS[number][0]
        canaries.append(
            {"id": f"eval.jsonl:{number}", "prompt": prompt, "recorded": tuned_answer(number), "answers": answers}
        )
    return {"engines": engines, "canaries": canaries}


def _score(value: float, reach: float) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - reach), "high": min(1.0, value + reach)}


def _results() -> dict[str, Any]:
    def metric(name: str, base: float, merged: float, gguf: float, reach: float = 0.12) -> dict[str, Any]:
        scores = {"base": base, "merged": merged, "q8_0": gguf}
        return {
            "name": name,
            "kind": "text" if name.startswith("f1") else "category",
            "difference": {"value": merged - base, "low": merged - base - reach, "high": merged - base + reach},
            "scores": {system: _score(value, reach if 0 < value < 1 else 0.0) for system, value in scores.items()},
        }

    answers = []
    for number, (prompt, _, _, _, _, base, wrong) in enumerate(ANSWERS):
        tuned = round(1.0 - 0.25 * len(wrong), 2)
        answers.append(
            {
                "id": f"eval.jsonl:{number + 1}",
                "prompt": prompt,
                "target": target_of(number),
                "answers": {"base": base, "merged": tuned_answer(number), "q8_0": tuned_answer(number)},
                "score": {"base": 0.25 if base.startswith("{") else 0.0, "merged": tuned, "q8_0": tuned},
            }
        )
    return {
        "rows": 48,
        "max_new_tokens": 140,
        "kind": "json",
        "metrics": [
            metric("valid_json", 0.25, 1.0, 1.0),
            metric("exact:intent", 0.125, 0.667, 0.646),
            metric("exact:urgency", 0.208, 0.792, 0.792),
            metric("exact:product_area", 0.104, 0.75, 0.75),
            metric("f1:summary", 0.18, 0.61, 0.6, 0.06),
        ],
        "headline": "exact:intent",
        "answers": answers,
    }

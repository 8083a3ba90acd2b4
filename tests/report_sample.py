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

from tunewright.artifacts import RunDirectory, sha256_of_json, write_json, write_text
from tunewright.certificate import CERTIFIED_STAGES
from tunewright.evidence import Evidence, at_least, at_most, equal, fact

SYSTEM = (
    "You are the triage desk of a shop for household devices. Read the customer's message and answer with one JSON "
    "object and nothing else. Its keys are intent, urgency, product_area, summary and analysis. Choose the intent from "
    "the list that the team agreed on, never a new one. Urgency is low, normal or high; high is kept for danger, for "
    "money that is gone, and for a deadline within two days. The summary is one sentence in the customer's own matter."
)
# message, intent, urgency, area, summary, what the base answers, what the tuned model gets wrong
ANSWERS: list[tuple[str, str, str, str, str, str, dict[str, str]]] = [
    (
        "The kettle trips the fuse every time it reaches the boil. It did it twice with my kids in the room.",
        "safety",
        "high",
        "kettles",
        "The kettle trips the fuse at the boil.",
        "I am sorry to hear that. Please unplug the kettle and contact the manufacturer.",
        {},
    ),
    (
        "You charged me twice for order 48213, once on Monday and once today.",
        "billing",
        "high",
        "orders",
        "Order 48213 was charged twice.",
        '{"intent": "refund", "urgency": "high", "summary": "You charged me twice for order 48213."}',
        {},
    ),
    (
        "Wo bleibt mein Paket? Laut Sendung seit fünf Tagen in Leipzig. 📦",
        "delivery",
        "normal",
        "shipping",
        "A parcel has been in Leipzig for five days.",
        "Your package is on its way and will be delivered soon!",
        {"summary": "A parcel stands still in Leipzig."},
    ),
    (
        "Can I use the M2 filter in the older M1 jug?",
        "compatibility",
        "low",
        "filters",
        "They ask whether an M2 filter fits an M1 jug.",
        '{"intent": "question", "urgency": "low"}',
        {"summary": "A question about filters for the M1 jug."},
    ),
    (
        "Please change the delivery address to 4 Mill Lane before it ships tomorrow.",
        "change_order",
        "high",
        "orders",
        "The address has to change before tomorrow.",
        "Sure, I have changed the delivery address to 4 Mill Lane.",
        {"urgency": "normal"},
    ),
    (
        "The app says 'error <script>alert(1)</script>' when I scan the code & then closes.",
        "app_fault",
        "normal",
        "app",
        "The app closes with an error after a scan.",
        "```json\n{'intent': 'bug'}\n```",
        {"summary": "The app shows an error on scanning."},
    ),
    (
        "I'd like to send the toaster back, it's the wrong colour and the box is open.",
        "return",
        "low",
        "toasters",
        "A toaster of the wrong colour shall go back.",
        "You can return the toaster within 30 days.",
        {"intent": "exchange", "summary": "They want another colour of toaster."},
    ),
    (
        "Do you still sell the grey handle for the 2019 pan? Mine came off.",
        "spare_part",
        "normal",
        "pans",
        "They need a grey handle for the pan of 2019.",
        "Yes, we do! You can find it on our website.",
        {"intent": "compatibility", "product_area": "kettles", "urgency": "low"},
    ),
]

EVIDENCE: dict[str, list[Evidence]] = {
    "data": [
        equal("ledger_balances", 322, 322, "322 rows came in; 297 kept, 13 repaired, 8 truncated and 4 rejected."),
        at_most("duplicate_rows", 0.0, 0.0, "No row stands twice after case and white space are set aside."),
        at_most("near_duplicate_rows", 0.006, 0.02, "Rows whose word trigrams overlap by 80 % or more."),
        at_most("eval_rows_in_train", 0.0, 0.0, "No held-out row has a twin among the training rows."),
        equal("targets_ending_in_ellipsis", 0, 0, "No target was cut off and closed with three dots."),
        at_most("empty_targets", 0.0, 0.0),
        fact("distinct_intents", 12, "The values of the field intent."),
        replace(at_most("rarest_intent_share", 0.031, 0.03), verdict="warn", detail="spare_part has 9 of 290 rows."),
    ],
    "render": [
        equal("rows_without_supervised_tokens", 0, 0, "Every row teaches at least one token."),
        equal("mask_matches_answer", True, True, "The learned tokens decode to the assistant's text, in each row."),
        equal("end_of_turn_learned", True, True, "<|im_end|> is learned after every answer."),
        equal("prompt_is_prefix", True, True, "The prompt at inference is the start of the training row, token by token."),
        fact("supervised_tokens", 21840, "of 104 912 tokens."),
        at_most("rows_over_max_length", 0.0, 0.0, "max_length is 512."),
    ],
    "plan": [
        at_most("peak_bytes_share", 0.38, 0.9, "2.9 GB of 7.6 GB are needed at the highest point."),
        equal("effective_batch_size", 16, 16),
        fact("padding_saved", 0.62, "Tokens that the shared prefix saves in each epoch."),
    ],
    "train": [
        equal("loss_is_finite", True, True, "All 30 losses are finite."),
        at_most("final_loss_over_first", 0.21, 0.9, "The loss fell from 2.94 to 0.62."),
        at_most("overfit_ratio", 1.04, 1.5, "Held-out loss at the end over the best held-out loss."),
        equal("tokens_supervised_as_planned", 65520, 65520),
        equal("base_unchanged", True, True, "The base's weights have the hash from before training."),
        fact("tokens_per_second", 312.4),
    ],
    "merge": [
        equal("adapter_keys_used_once", 420, 420, "Every key of the adapter was used exactly once."),
        equal("untouched_tensors_identical", 62, 62, "Tensors without an adapter are byte for byte the base's."),
        at_most("largest_error", 0.0, 0.0, "Each merged tensor against round(W + s·B·A)."),
        equal("tensors_not_finite", 0, 0),
        equal("quantization_config_absent", True, True),
    ],
    "export": [
        equal("tensors", 272, 272, "The GGUF has as many tensors as the merged model."),
        equal("chat_template_equal", True, True, "The GGUF's chat template is the one trained with, byte for byte."),
        equal("stop_tokens_in_modelfile", 2, 2, "<|im_end|> and <|endoftext|>."),
        at_most("system_prompt_missing", 0.0, 0.0),
        fact("gguf_bytes", 144811904),
    ],
    "verify": [
        equal("prompt_ids_equal_adapter", 1.0, 1.0),
        at_least("top1_agreement_adapter", 1.0, 1.0),
        at_most("mean_kl_adapter", 0.0, 1e-6),
        at_least("top1_agreement_merged", 0.9961, 0.99),
        at_most("mean_kl_merged", 3.2e-07, 1e-3),
        equal("prompt_ids_equal_q8_0", 1.0, 1.0),
        at_least("top1_agreement_q8_0", 0.9883, 0.98),
        at_most("mean_kl_q8_0", 0.000871, 1e-2),
        equal("degenerate_answers", 0, 0, "No answer loops, repeats a word without end or has broken characters."),
    ],
    "evaluate": [
        at_least("valid_json_tuned", 1.0, 0.95, "48 of 48 answers are JSON objects."),
        at_least("intent_over_base", 0.542, 0.0, "Points that the tuned model is ahead of the base."),
        at_most("gguf_behind_merged", 0.021, 0.05),
    ],
}

FACTS: dict[str, dict[str, Any]] = {
    "data": {
        "rows_in": 322,
        "kept": 297,
        "repaired": 13,
        "rejected": 4,
        "train_rows": 270,
        "eval_rows": 48,
        "formats": {"messages": 300, "prompt_completion": 22},
        "system_prompts": 1,
        "shared_system_prompt": SYSTEM,
        "repairs": {"content_to_text": 9, "role_renamed": 4},
        "rejections": {"the target is empty": 3, "no assistant turn": 1},
        "held_out_by": "eval_data",
        "seconds": 0.8,
    },
    "render": {
        "rows": 318,
        "supervised_tokens": 21840,
        "template_sha256": "5f" * 32,
        "shared_prefix_tokens": 276,
        "seconds": 2.4,
    },
    "plan": {"seconds": 6.1},
    "train": {
        "base": "embedded:smollm2-135m-instruct",
        "optimizer_steps": 30,
        "first_loss": 2.94,
        "final_loss": 0.62,
        "best_eval_loss": 0.71,
        "tokens_per_second": 312.4,
        "trainable_parameters": 4884480,
        "layout": "shared_prefix",
        "versions": {
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "peft": "0.21.0",
            "tunewright": "0.1.0",
            "python": "3.11.9",
        },
        "seconds": 312.4,
    },
    "merge": {
        "dtype": "bfloat16",
        "dtype_reason": "bfloat16 holds the base exactly",
        "tensors": 272,
        "merged_tensors": 210,
        "largest_error": 0.0,
        "adapter_keys": 420,
        "seconds": 3.7,
    },
    "export": {"formats": ["q8_0"], "bytes": {"q8_0": 144811904}, "seconds": 21.9},
    "verify": {"seconds": 64.2},
    "evaluate": {"seconds": 151.0},
}
RECIPE = {
    "data": ["examples/support_triage/train.jsonl"],
    "eval_data": ["examples/support_triage/eval.jsonl"],
    "model": "embedded:smollm2-135m-instruct",
    "lora_r": 16,
    "lora_alpha": 32.0,
    "lora_dropout": 0.0,
    "lora_target_modules": "all-linear",
    "use_rslora": False,
    "learning_rate": 0.0002,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 42,
    "name": "support_triage",
}


def write_sample_run(path: Path, without: Collection[str] = (), failing: Collection[str] = ()) -> RunDirectory:
    """A run in `path` with every stage up to `evaluate` published, as its report stage would find it.

    Args:
        path: the run directory to make.
        without: stages that have not finished.
        failing: names of evidence whose verdict shall be `fail`.
    """
    run = RunDirectory(path)
    write_text(run / "recipe.yaml", yaml.safe_dump(RECIPE, sort_keys=False))
    for stage in CERTIFIED_STAGES:
        if stage in without:
            continue
        evidence = [replace(item, verdict="fail") if item.name in failing else item for item in EVIDENCE[stage]]
        with run.staging(stage) as out:
            for name, content in _files(stage).items():
                write_text(out / name, content) if isinstance(content, str) else write_json(out / name, content)
            run.publish(stage, out, sha256_of_json({"stage": stage}), evidence, FACTS[stage])
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
            "tokens/template.json": {"chat_template": "…", "special_tokens": ["<|im_start|>", "<|im_end|>"]},
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
        "export": {"export/model-q8_0.gguf": "GGUF", "export/Modelfile": "FROM .", "export/README.md": "# Card"},
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
        "row": row,
        "file": "train.jsonl" if row < 272 else "eval.jsonl",
        "line": row + 1 if row < 272 else row - 271,
        "fate": "kept",
        "repairs": [],
        "reason": None,
        "field": None,
    }
    if row in (17, 118, 201, 260):
        empty = {"reason": "the target is empty", "field": "messages[2].content"}
        line |= {"fate": "rejected", **(empty if row != 201 else {"reason": "no assistant turn"})}
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
    examples = {"rarest_intent_share": ["train.jsonl:88 has intent spare_part"]}
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
            answers[names[-1]] = tuned_answer(number).replace("stands still", "is")
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
            "kind": "text" if name.startswith("similarity") else "category",
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
            metric("similarity:summary", 0.18, 0.61, 0.6, 0.06),
        ],
        "headline": "exact:intent",
        "answers": answers,
    }

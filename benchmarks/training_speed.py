"""Examples per second of LoRA training, as ratios to TRL's SFTTrainer on the same rows in the same run.

usage: python benchmarks/training_speed.py MODEL_DIRECTORY --peer PYTHON [--device cuda] WORKLOAD...
       WORKLOAD: prefix:TOKENS (16 rows a step behind a common prefix, 15 to 40 tokens unlearned and 30 to 90 learned)
                 banking77:FILE (CSV with `text` and `category`)   gsm8k:FILE (JSON Lines with `question` and `answer`)

PYTHON has trl, peft and transformers, and on a GPU liger-kernel. Both sides train the same model, on a CPU in float32
and on a GPU in bfloat16, with rank 16 on all linear layers, 16 rows a step, on the same token ids with the same learned
tokens, each in a process of its own; the peer in every configuration in `PEER_SETTINGS`, of which the fastest counts,
and those that memory does not suffice for or that the device does not have are left out. `used` is the share of a plain
matrix product's speed that our step reaches, its operations counted as `tunewright plan` counts them.
The first step of each is not timed. A side whose gradient is zero, or whose first loss is not the other's, ends the
benchmark.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROWS = 16
TOLERANCE = {"cpu": 1e-3, "cuda": 2e-2}  # of the first losses
# Rows, accumulation, padding-free, Liger's kernels.
PEER_SETTINGS = {
    "cpu": ("4,4,False,False", "8,2,False,False", "16,1,False,False", "4,4,True,False"),
    "cuda": ("4,4,False,False", "16,1,False,False", "16,1,True,False", "16,1,False,True", "16,1,True,True"),
}
PEER = """
import json, resource, sys, time, torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
model_path, rows_path, size, accumulation, padding_free, liger, device, out = sys.argv[1:]
data = json.load(open(rows_path))
rows = [{"input_ids": ids, "labels": [i if m else -100 for i, m in zip(ids, mask)]} for ids, mask in data["rows"]]
on_gpu = device == "cuda"
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16 if on_gpu else torch.float32,
    attn_implementation="sdpa")
times = []
class Clock(TrainerCallback):
    def on_step_begin(self, *_, **__): times.append(time.perf_counter())
    def on_step_end(self, *_, **__): times.append(time.perf_counter())
config = SFTConfig(output_dir=out, per_device_train_batch_size=int(size), gradient_accumulation_steps=int(accumulation),
    padding_free=padding_free == "True", max_steps=data["steps"], logging_steps=1, report_to=[], save_strategy="no",
    use_cpu=not on_gpu, bf16=on_gpu, use_liger_kernel=liger == "True",
    gradient_checkpointing=False, max_length=None, learning_rate=1e-4,
    dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, disable_tqdm=True,
    train_sampling_strategy="sequential")
trainer = SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
    processing_class=AutoTokenizer.from_pretrained(model_path),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
trainer.train()
log = [entry for entry in trainer.state.log_history if "loss" in entry]
seconds = [b - a for a, b in zip(times[::2], times[1::2])]
print("RESULT", json.dumps({"seconds": seconds, "loss": log[0]["loss"], "grad_norm": min(e["grad_norm"] for e in log),
    "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("workloads", nargs="+")
    parser.add_argument("--peer", help="Python that has trl")
    parser.add_argument("--layout", default="auto")
    parser.add_argument(
        "--settings", nargs="+", help="of the peer, as ROWS,ACCUMULATION,PADDING_FREE,LIGER; default: all that may pay"
    )
    parser.add_argument("--device", choices=tuple(PEER_SETTINGS), default="cpu")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--compiled", action="store_true", help="compile each of our layers with torch.compile")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        rows = Path(arguments.workloads[0])
        print("RESULT", json.dumps(train_ours(arguments.model, rows, arguments)))
        return
    print("| workload | tokens a row | layout | s a step | used | TRL s a step | its best setting | ratio | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for workload in arguments.workloads:
        print(measured(arguments, workload), flush=True)


def measured(arguments: argparse.Namespace, workload: str) -> str:
    rows = rows_of(workload, arguments.model, ROWS * (arguments.steps + 1))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.json"
        path.write_text(json.dumps({"rows": rows, "steps": arguments.steps + 1}), encoding="utf-8")
        options = ["--layout", arguments.layout, "--device", arguments.device]
        options += ["--compiled"] if arguments.compiled else []
        ours = result_of([sys.executable, __file__, str(arguments.model), str(path), "--ours", *options])
        peers = {}
        for setting in arguments.settings or PEER_SETTINGS[arguments.device]:
            words = [*setting.split(","), arguments.device, directory]
            command = [arguments.peer, "-c", PEER, str(arguments.model), str(path), *words]
            if (found := result_of(command)) is not None:
                peers[setting] = found
    if ours is None or not peers:
        raise SystemExit(f"{workload}: nothing was measured")
    setting, peer = min(peers.items(), key=lambda item: sum(item[1]["seconds"][1:]))
    if not ours["grad_norm"] or abs(ours["loss"] - peer["loss"]) > TOLERANCE[arguments.device] * peer["loss"]:
        raise SystemExit(f"{workload}: the sides do not train the same: {ours['loss']}, {peer['loss']}")
    mine, theirs = (sum(each["seconds"][1:]) / arguments.steps for each in (ours, peer))
    tokens = sum(len(ids) for ids, _ in rows) / len(rows)
    size, accumulation, padding_free, liger = setting.split(",")
    kind = f"{size} rows x {accumulation}" + (", padding-free" if padding_free == "True" else "")
    kind += ", Liger" if liger == "True" else ""
    memory = " and ".join(f"{each['peak_bytes'] / 2**30:.2f}" for each in (ours, peer))
    return (
        f"| {workload.partition(':')[0]} {workload.partition(':')[2] if 'prefix' in workload else ''} | {tokens:.0f} | "
        f"{ours['layout']} | {mine:.3g} | {ours['operations'] / ours['flops'] / mine:.0%} | {theirs:.3g} | {kind} | "
        f"**{theirs / mine:.2f}** | {memory} GiB |"
    )


def result_of(command: list[str]) -> dict[str, Any] | None:
    """What a side measured; None if it ended before."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        print(f"ended with {done.returncode}: {' '.join(command[-4:])}\n{done.stderr[-500:]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def rows_of(workload: str, model: Path, count: int) -> list[tuple[list[int], list[int]]]:
    """Token ids and masks of the rows of all steps."""
    kind, _, detail = workload.partition(":")
    rng = random.Random(0)  # noqa: S311
    if kind == "prefix":
        prefix = [rng.randrange(10, 40_000) for _ in range(int(detail))]
        return [with_answer(prefix, rng.randrange(15, 41), rng.randrange(30, 91), rng) for _ in range(count)]
    from transformers import AutoTokenizer

    keys = {"banking77": ("text", "category"), "gsm8k": ("question", "answer")}[kind]
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    with Path(detail).open(encoding="utf-8", newline="") as file:
        items = list(csv.DictReader(file)) if detail.endswith(".csv") else [json.loads(line) for line in file]
    return [chat_row(tokenizer, *(str(item[key]) for key in keys)) for item in rng.sample(items, count)]


def with_answer(prefix: list[int], prompt: int, answer: int, rng: random.Random) -> tuple[list[int], list[int]]:
    own = [rng.randrange(10, 40_000) for _ in range(prompt + answer)]
    return [*prefix, *own], [0] * (len(prefix) + prompt) + [1] * answer


def chat_row(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    """A question and its answer in ChatML, without a system prompt."""
    opening = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    prompt, end = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (opening, f"{answer}<|im_end|>"))
    return [*prompt, *end], [0] * len(prompt) + [1] * len(end)


def train_ours(model_path: Path, rows_path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The steps of `tunewright.train` on these rows, in the layout that the plan chooses."""
    import time

    import numpy as np
    import torch
    from transformers import AutoConfig

    from tunewright.chat.rows import TokenRows, write_rows
    from tunewright.chat.supervise import SupervisedRow
    from tunewright.layouts.fused_lora import fuse_lora_layers
    from tunewright.layouts.layout import Layout
    from tunewright.models.base import decoder_layers, load_model
    from tunewright.plan.layout import choose_layout
    from tunewright.plan.stage import linear_parameters, matmul_flops
    from tunewright.recipe import PlanKeys, TrainKeys
    from tunewright.train.lora import attach_adapter
    from tunewright.train.speed import peak_memory_bytes

    config, layout, device = TrainKeys(learning_rate=1e-4), arguments.layout, arguments.device
    data = json.loads(rows_path.read_text(encoding="utf-8"))["rows"]
    made = [SupervisedRow("", np.array(ids, np.int32), np.array(mask, np.bool_), mask.index(1)) for ids, mask in data]
    write_rows(rows_path.with_suffix(".safetensors"), made)
    rows = TokenRows(rows_path.with_suffix(".safetensors"))
    plan_keys = PlanKeys(layout=layout, max_steps=len(rows) // ROWS)
    planned = choose_layout(plan_keys, AutoConfig.from_pretrained(str(model_path)), rows)
    dtype = "float32" if device == "cpu" else "bfloat16"
    model = attach_adapter(load_model(model_path, getattr(torch, dtype), device), config)
    fuse_lora_layers(model)
    if arguments.compiled:
        torch._dynamo.config.recompile_limit = 64  # every layer is another program, since it knows its number
        for layer in decoder_layers(model):
            layer.compile(dynamic=True)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    arranged = Layout(model, planned.kind, device, config.per_device_train_batch_size, planned.pack_tokens)
    seconds, losses, norms, operations = [], [], [], 0
    body, head = linear_parameters(model_path)
    for start in range(0, len(rows), ROWS):
        step = [rows[index] for index in range(start, start + ROWS)]
        started = time.perf_counter()
        supervised = sum(int(row.mask.sum()) for row in step)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            losses.append(float(sum(arranged.loss_sums(step, 1 / supervised))) / supervised)
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, 1.0)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
        operations = 4 * (arranged.tokens(step) * body + supervised * head)
    peak, flops = peak_memory_bytes(device), matmul_flops(dtype, device, 4096 if device == "cuda" else 1024)
    measured = {"seconds": seconds, "loss": losses[0], "grad_norm": min(norms), "peak_bytes": peak}
    return {**measured, "layout": planned.kind, "operations": operations, "flops": flops}


if __name__ == "__main__":
    main()

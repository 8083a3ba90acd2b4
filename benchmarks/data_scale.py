"""Rows by the million through `tunewright check`: throughput as a ratio to Hugging Face datasets with TRL, and memory.

usage: python benchmarks/data_scale.py ROWS DIRECTORY [--peer PYTHON --tokenizer DIR --peer-rows N]

Rows of about 1 KB are generated into DIRECTORY (kept for the next time): a message, a JSON answer, one row in a hundred
nearly the same as an earlier one. PYTHON has `datasets`, `trl` and `transformers`, and does what a training with TRL
does before its first step: `load_dataset("json")`, then the preparation of `SFTTrainer` (chat template and token ids)
with the tokenizer in DIR. Both sides are timed on the same file; the peer on the first N rows of it if that is asked.
Memory is the sum over all processes of what is theirs alone (USS), less that of a bare interpreter.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import psutil

EXAMPLE = Path(__file__).parents[1] / "examples" / "support_triage" / "train.jsonl"
SENTENCES = 200_000

BATCH = 10_000
NEAR_COPIES = 0.01
INTENTS = ("refund", "track_order", "login_problem", "how_to", "praise", "billing_error")
PEER = """
import sys, time
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer
path, tokenizer_path, processes, cache = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                     num_attention_heads=1, num_key_value_heads=1)
model = LlamaForCausalLM(config)
started = time.monotonic()
rows = load_dataset("json", data_files=path, split="train", cache_dir=cache)
loaded = time.monotonic()
arguments = SFTConfig(output_dir=cache + "/out", report_to=[], dataset_num_proc=processes or None, max_length=4096,
                      use_cpu=True, bf16=False)
SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
print("PEER", len(rows), loaded - started, time.monotonic() - loaded)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--peer", help="Python that has datasets and trl")
    parser.add_argument("--tokenizer", help="directory of a tokenizer with a chat template")
    parser.add_argument("--peer-rows", type=int, help="rows of the file that the peer is timed on; default: all")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    path = generated(arguments.directory, arguments.rows)
    seconds, peak, found = timed_check(path)
    speed = arguments.rows / seconds
    size = path.stat().st_size / 1e9
    print(f"tunewright check: {arguments.rows} rows, {size:.2f} GB, {seconds:.0f} s, {speed:.0f} rows/s")
    print(f"memory above a bare interpreter: {peak / 1e6:.0f} MB; {json.dumps(found)}")
    if arguments.peer:
        part = generated(arguments.directory, arguments.peer_rows or arguments.rows)
        for processes in (0, 2):
            rows, load, prepare = timed_peer(arguments.peer, part, arguments.tokenizer, processes)
            peer_speed = rows / (load + prepare)
            print(
                f"datasets + TRL, {processes or 1} process(es): {rows} rows, load {load:.0f} s, "
                f"prepare {prepare:.0f} s, {peer_speed:.0f} rows/s; ratio {speed / peer_speed:.1f}"
            )


def generated(directory: Path, rows: int) -> Path:
    """A file of that many rows; the same ones each time."""
    path = directory / f"rows-{rows}.jsonl"
    if not path.exists():
        source = rows_of_text(random.Random(0))  # noqa: S311
        with path.with_suffix(".part").open("w", encoding="utf-8") as file:
            for start in range(0, rows, BATCH):
                file.write("".join(islice(source, min(BATCH, rows - start))))
        path.with_suffix(".part").rename(path)
    return path


def sentences(rng: random.Random) -> list[str]:
    """Sentences of five to fifteen words, as frequent as they are in the project's own example rows."""
    words = re.findall(r"[A-Za-z']+", EXAMPLE.read_text(encoding="utf-8"))
    return [" ".join(rng.choices(words, k=rng.randint(5, 15))) + "." for _ in range(SENTENCES)]


def rows_of_text(rng: random.Random) -> Iterator[str]:
    """Rows without end."""
    known = sentences(rng)
    earlier = ["Where is my parcel?"]
    while True:
        found = rng.choices(known, k=13)
        message = " ".join(found[:9])
        if rng.random() < NEAR_COPIES:
            message = rng.choice(earlier) + " Thanks!"
        earlier = [*earlier[-99:], message]
        answer = {"intent": rng.choice(INTENTS), "summary": found[9], "analysis": " ".join(found[10:])}
        messages = [
            {"role": "system", "content": "You read one message and answer with a JSON object."},
            {"role": "user", "content": message},
            {"role": "assistant", "content": json.dumps(answer)},
        ]
        yield json.dumps({"messages": messages}) + "\n"


def timed_check(path: Path) -> tuple[float, int, dict[str, int]]:
    """Seconds, peak bytes above a bare interpreter, and what was found."""
    bare = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    time.sleep(1)
    bare_bytes = memory_of(psutil.Process(bare.pid))
    bare.communicate(b"\n")
    started = time.monotonic()
    output = path.with_suffix(".check.json")
    with output.open("wb") as file:
        command = [sys.executable, "-m", "tunewright", "check", str(path), "--json"]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of(psutil.Process(process.pid)))
            time.sleep(0.5)
    seconds = time.monotonic() - started
    result = json.loads(output.read_text(encoding="utf-8"))
    near = next(item["value"] for item in result["evidence"] if item["name"] == "near_duplicate_prompts")
    return seconds, peak - bare_bytes, {"kept": result["kept"], "rows_in": result["rows_in"], "near_duplicates": near}


def memory_of(process: psutil.Process) -> int:
    """Bytes that the process and those it started hold alone."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().uss
        except psutil.Error:
            continue
    return total


def timed_peer(python: str, path: Path, tokenizer: str, processes: int) -> tuple[int, float, float]:
    """Rows, seconds to load and seconds to prepare."""
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        command = [python, "-c", PEER, str(path), tokenizer, str(processes), cache]
        answer = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        ).stdout
    rows, load, prepare = next(line for line in answer.splitlines() if line.startswith("PEER")).split()[1:]
    return int(rows), float(load), float(prepare)


if __name__ == "__main__":
    main()

"""Damaged and odd files through tunewright and through Hugging Face datasets, side by side, as a Markdown table.

usage: python benchmarks/damaged_input.py PEER > docs/damaged-input.md

PEER is the Python of an environment of its own that has `datasets` installed: python -m venv peer; peer/bin/pip install
datasets; then peer/bin/python. The files are those that `tests/test_data_damage.py` holds (tests/damaged_inputs.py).
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from queue import Empty
from typing import Any

LONGEST_SECONDS = 120
CHARACTERS_SHOWN = 320
LONGEST_TEXT = 10_000
NOT_LOADED = ("refused", "crashed", "still busy")
LOADED, OTHERWISE, SILENT = "*loaded*", "*loaded otherwise*", "*loaded silently*"


def main(peer: str) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from damaged_inputs import DAMAGES, outcome_of

    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name, str(number), damage.file) for number, damage in enumerate(DAMAGES)]
        for path, damage in zip(paths, DAMAGES, strict=True):
            path.parent.mkdir()
            path.write_bytes(damage.bytes())
        ours = [outcome_of(path) for path in paths]
        values = [values_in(path) for path in paths]
        version, theirs = ask_peer(peer, paths)
    verdicts = [verdict(own, other) for own, other in zip(values, theirs, strict=True)]
    print(head(version, ours, verdicts))
    print("| damage | tunewright | HF datasets |\n|---|---|---|")
    for damage, own, other, word in zip(DAMAGES, ours, theirs, verdicts, strict=True):
        kind = damage.file.removeprefix("rows.")
        print(f"| {cell([damage.name])} ({kind}) | {cell(own)} | {cell([word, *other] if word else other)} |")


def values_in(path: Path) -> list[str] | None:
    """The rows as JSON texts; None if one has a fault or the file is refused."""
    from tunewright.data.exact_json import json_text
    from tunewright.data.read import Source, read_rows
    from tunewright.errors import DataError

    try:
        records = [row.record for row in read_rows(Source(path, path.name))]
    except DataError:
        return None
    return None if any(record.fault for record in records) else [json_text(record.value) for record in records]


def verdict(values: list[str] | None, theirs: list[str]) -> str:
    """What the peer did, in a word; empty where it refused the file and says why."""
    if theirs[0].startswith(NOT_LOADED):
        return ""
    if values is None:
        return SILENT
    return LOADED if list(map(comparable, values)) == list(map(comparable, theirs)) else OTHERWISE


def comparable(text: str) -> Any:
    if text.endswith(" characters"):
        return text
    exact: dict[str, Any] = {"parse_int": Decimal, "parse_float": Decimal, "parse_constant": str}
    return json.loads(text, **exact) if len(text) <= LONGEST_TEXT else f"{len(text):,} characters"


def head(version: str, ours: list[list[str]], verdicts: list[str]) -> str:
    refused = sum(lines[0].startswith("refused") for lines in ours)
    return f"""# Damaged input

Made by `benchmarks/damaged_input.py`: {len(ours)} damaged or odd files, read by tunewright and by
`datasets.load_dataset` {version} (`json`, `csv`, `parquet`, each with its defaults; `sep="\\t"` for TSV).

A row of tunewright's reads: line `@` byte offset, then the row as it was read, or `✗`, the field and the reason; bytes
and columns are counted from 1. `refused:` means that the file is not read, which tunewright does where rows can no
longer be told apart ({refused} files). Half of a surrogate pair is read here, as JSON allows it; where it stands in a
text to be trained, the row is rejected and the field named.

HF datasets refuses {verdicts.count("")} files. Of the rest it gives, each time without a word,

- {verdicts.count(LOADED)} as they are (*loaded*);
- {verdicts.count(OTHERWISE)} with other values (*loaded otherwise*): text read as numbers or dates, digits lost, fields
  added, and values of Parquet in Python's types, which are right in themselves;
- {verdicts.count(SILENT)} in which tunewright names a fault (*loaded silently*): what it made of them may be what was
  meant, but nobody was asked.
"""


def cell(lines: list[str]) -> str:
    text = "<br>".join(line if line in (LOADED, OTHERWISE, SILENT) else code(line) for line in lines)
    return text.replace("|", "\\|").replace("\n", " ")


def code(line: str) -> str:
    if len(line) > CHARACTERS_SHOWN:
        line = f"{line[: CHARACTERS_SHOWN // 2]} … ({len(line):,} characters)"
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("*", "&#42;").replace("`", "&#96;")


def ask_peer(peer: str, paths: list[Path]) -> tuple[str, list[list[str]]]:
    """The peer's version, and what it says of each file."""
    names = "\n".join(map(str, paths))
    environment = {**os.environ, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
    command = [peer, __file__, "--as-peer"]
    result = subprocess.run(command, input=names, capture_output=True, text=True, env=environment, check=False)
    if result.returncode:
        raise SystemExit(f"{peer} failed:\n{result.stderr}")
    version, *outcomes = [json.loads(line) for line in result.stdout.splitlines()]
    return version, outcomes


def be_peer() -> None:
    """Runs in the peer's environment: the outcome of each file named on stdin, each read in a process of its own."""
    import datasets

    print(json.dumps(datasets.__version__), flush=True)
    for name in sys.stdin.read().splitlines():
        print(json.dumps(outcome_in_process(name)), flush=True)


def outcome_in_process(name: str) -> list[str]:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put(peer_outcome(name)))
    process.start()
    try:
        outcome: list[str] = queue.get(timeout=LONGEST_SECONDS)
    except Empty:
        outcome = [f"still busy after {LONGEST_SECONDS} s"] if process.is_alive() else [f"crashed: {process.exitcode}"]
        process.kill()
    process.join()
    return outcome


def peer_outcome(name: str) -> list[str]:
    import datasets

    kind = next(kind for kind in ("jsonl", "json", "csv", "tsv", "parquet") if f"rows.{kind}" in name)
    options: dict[str, Any] = {"sep": "\t"} if kind == "tsv" else {}
    builder = {"jsonl": "json", "tsv": "csv"}.get(kind, kind)
    try:
        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset(builder, data_files=name, split="train", cache_dir=cache, **options).to_list()
    except Exception as error:
        return [f"refused: {seen(error, name)}"]
    return [as_text(row) for row in rows] or ["no rows"]


def seen(error: BaseException, name: str) -> str:
    """The error and what it was raised from: the first lines, as a user sees them."""
    texts = []
    current: BaseException | None = error
    while current is not None:
        texts.append(f"{type(current).__name__}: {(str(current).splitlines() or [''])[0]}")
        current = current.__cause__
    return " ← ".join(dict.fromkeys(texts)).replace(str(Path(name).parent), "")


def as_text(row: Any) -> str:
    text = json.dumps(row, default=repr)
    return text if len(text) <= LONGEST_TEXT else f"{len(text):,} characters"


if __name__ == "__main__":
    be_peer() if sys.argv[1] == "--as-peer" else main(sys.argv[1])

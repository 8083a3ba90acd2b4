"""Base and adapter to GGUF in one pass, against merging and converting: seconds, peak memory, and equal bytes.

usage: python benchmarks/one_pass.py PLACE [FORMAT]   (PLACE: a directory that benchmarks/merge.py made, such as DIR/3B)

Each way runs in a process of its own. Two steps are: merge, then llama.cpp's converter as it is, without our driver.
`two steps, driven` is the same with the converter behind our driver. Every way ends when its files are flushed.
"""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

WAYS = ("two steps", "two steps, driven", "one pass")


def main(place: Path, gguf_format: str) -> None:
    print("| way | seconds | of two steps | peak MiB | SHA-256 |\n|---|---|---|---|---|")
    first = 0.0
    for way in WAYS:
        for leftover in (place / "gguf", place / "merged"):
            shutil.rmtree(leftover, ignore_errors=True)
        os.sync()
        command = [sys.executable, __file__, "--way", way, str(place), gguf_format]
        started = time.perf_counter()
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        seconds = time.perf_counter() - started
        first = first or seconds
        with (place / "gguf" / "model.gguf").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        peak = json.loads(output.splitlines()[-1])
        print(f"| {way} | {seconds:.1f} | {seconds / first:.2f} | {peak:.0f} | {digest} |", flush=True)


def run_way(way: str, place: Path, gguf_format: str) -> None:
    from tunewright.artifacts import flush_to_disk
    from tunewright.events import Events
    from tunewright.export.converter import convert_to_gguf
    from tunewright.export.one_pass import export_adapter
    from tunewright.merge.stage import merge
    from tunewright.models.base import Base

    base, target = Base("benchmark", place / "base", {}), place / "gguf" / "model.gguf"
    target.parent.mkdir()
    if way == "one pass":
        export_adapter(base, place / "adapter", target, gguf_format, Events())
    else:
        merge(base, place / "adapter", place / "merged", "auto", Events())
        if way == "two steps":
            convert_plainly(place / "merged", target, gguf_format)
            flush_to_disk(target)
        else:
            convert_to_gguf(place / "merged", target, gguf_format, Events())
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(max(peaks) / 1024)


def convert_plainly(directory: Path, target: Path, gguf_format: str) -> None:
    from tunewright.export.converter import find_converter

    converter = find_converter()
    command = [
        sys.executable,
        str(converter.script),
        "--outtype",
        gguf_format,
        "--outfile",
        str(target),
        str(directory),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, converter.import_path))}
    subprocess.run(command, env=environment, check=True, capture_output=True)


if __name__ == "__main__":
    if sys.argv[1] == "--way":
        run_way(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    else:
        main(Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else "q8_0")

"""How long does `tunewright --help` take, and how long a peer's?

usage: python benchmarks/startup.py [--times 20] [PEER COMMAND...]

Each command is a process of its own, in turn with the others, once unmeasured and then as often as asked.
"""

import argparse
import statistics
import subprocess
import sys
import time

OURS = [sys.executable, "-m", "tunewright", "--help"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("peer", nargs=argparse.REMAINDER, help="for instance: PEER/bin/trl --help")
    words = parser.parse_args()
    commands = [OURS, words.peer] if words.peer else [OURS]
    rounds = [[seconds_of(command) for command in commands] for _ in range(words.times + 1)][1:]
    medians = []
    for command, seconds in zip(commands, zip(*rounds, strict=True), strict=True):
        medians.append(statistics.median(seconds))
        print(f"{' '.join(command)}: median {medians[-1]:.2f} s, slowest {max(seconds):.2f} s of {words.times}")
    if words.peer:
        print(f"ratio {medians[1] / medians[0]:.1f}")


def seconds_of(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    main()

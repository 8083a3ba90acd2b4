"""A `tunewright run` that takes milliseconds, for tests of what starts it.

The recipe says what to do, one word a line: `sleep 2`, `linger 2`, `exit 3`, `fail WORDS`, `full`, `deaf`, `crash`,
`crash-once`, `child`. Like the real one it publishes its result whole and finds it when it is started again. It also
keeps account of what must never happen: two at work in one directory (`OVERLAP`), or two that publish (`TWICE`).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SECONDS_TO_BE_MET = 60.0


def main() -> int:
    recipe, run = Path(sys.argv[2]), Path(sys.argv[4])
    run.mkdir(parents=True, exist_ok=True)
    append(run / "starts", str(os.getpid()))
    note_overlap(run)
    if (run / "result.json").exists():
        return 0
    for line in recipe.read_text().splitlines():
        word, _, rest = line.partition(" ")
        code = obey(word, rest, run)
        if code is not None:
            return code
    publish(run)
    return 0


def obey(word: str, rest: str, run: Path) -> int | None:
    if word == "sleep":
        time.sleep(float(rest))
    elif word == "linger":
        linger(run, float(rest))
    elif word == "exit":
        return int(rest)
    elif word == "fail":
        return fail(rest)
    elif word == "full" and not (run.parent / "freed").exists():
        return fail("no space is left", code=4)
    elif word == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif word == "crash" or (word == "crash-once" and not (run / "crashed").exists()):
        (run / "crashed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        (run / "child").write_text(str(child.pid))
    elif word == "write":
        write_file(run / "big", int(rest))
    return None


def linger(run: Path, seconds: float) -> None:
    """Work so long; but what outlives its supervisor, and should be dead, stays until it is met, or for a minute."""
    started = time.monotonic()
    while (worked := time.monotonic() - started) < SECONDS_TO_BE_MET:
        if (run / "OVERLAP").exists() or (worked >= seconds and has_supervisor()):
            return
        time.sleep(0.02)


def has_supervisor() -> bool:
    with contextlib.suppress(OSError):
        return b"jobs.supervisor" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    return False


def write_file(path: Path, size: int) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(b"x" * size)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def fail(words: str, code: int = 1) -> int:
    error = {"error": "Fake", "where": "rows.jsonl:3", "found": words, "expected": "", "mend": "Mend it."}
    sys.stdout.write(json.dumps(error))
    return code


def note_overlap(run: Path) -> None:
    busy = run / "busy"
    if busy.exists() and is_running(busy.read_text()):
        append(run / "OVERLAP", busy.read_text())
    busy.write_text(f"{os.getpid()} {start_ticks(os.getpid())}")


def is_running(mark: str) -> bool:
    pid, _, ticks = mark.partition(" ")
    return bool(pid) and start_ticks(int(pid)) == ticks


def start_ticks(pid: int) -> str:
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else fields[18]


def publish(run: Path) -> None:
    """The result appears whole or not at all, and a second one is seen."""
    temporary = run / f".result.{os.getpid()}"
    with temporary.open("w") as file:
        json.dump({"by": os.getpid(), "padding": "x" * 5000}, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, run / "result.json")
    except FileExistsError:
        append(run / "TWICE", str(os.getpid()))
    temporary.unlink()


def append(path: Path, words: str) -> None:
    with path.open("a") as file:
        file.write(words + "\n")


if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    except OSError as error:
        code = fail("no space is left", 4) if error.errno == 28 else fail(str(error))
    sys.exit(code)

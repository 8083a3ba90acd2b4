"""Who a process is, beyond its number, and whether it still lives. Linux only: everything is read from /proc.

A process is known by its number, its start in clock ticks since boot, the boot, and the namespace that the number
counts in. No wall clock is involved, so that a clock that jumps changes nothing, and a number that is given out again
is never taken for the process that had it before.
"""

import ctypes
import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

PROC = Path("/proc")
LEASE_SECONDS = 30.0
PR_SET_PDEATHSIG = 1


def boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def pid_namespace() -> str:
    return str((PROC / "self/ns/pid").readlink())


def monotonic() -> float:
    """Seconds on the clock that every process of this boot shares and that nobody can set."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


@dataclass(frozen=True)
class Identity:
    """One process, for ever."""

    pid: int
    start_ticks: int
    boot: str
    namespace: str

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def identity_from_json(text: str) -> Identity:
    return Identity(**json.loads(text))


def own_identity() -> Identity:
    return Identity(os.getpid(), _start_ticks(os.getpid()) or 0, boot_id(), pid_namespace())


def is_dead(who: Identity, last_beat: float) -> bool:
    """Whether the process is certainly gone; where its number means nothing here, its heartbeat decides.

    Args:
        last_beat: when it was last heard of, on the clock of `monotonic`.
    """
    if who.boot != boot_id():
        return True
    if who.namespace != pid_namespace():
        return monotonic() - last_beat > LEASE_SECONDS
    return _start_ticks(who.pid) != who.start_ticks


def _start_ticks(pid: int) -> int | None:
    """When the process started; None if there is none, or if it has ended and only waits to be reaped."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else int(fields[18])


def processes_marked(name: str, value: str) -> list[int]:
    """The living processes that were started with this variable in their environment, and all that they started."""
    mark = f"{name}={value}".encode()
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0") and _start_ticks(int(entry.name)) is not None:
                found.append(int(entry.name))
    return found


def kill_marked(name: str, value: str) -> bool:
    """Kill them all; whether none was left to kill. Call it again until it says so."""
    left = processes_marked(name, value)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not left


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies. Called between fork and exec."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

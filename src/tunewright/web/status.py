"""What goes on, put together a few times a second and answered from memory, so that asking costs nothing."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tunewright import __version__
from tunewright.errors import TunewrightError
from tunewright.jobs.inbox import Inbox
from tunewright.jobs.job import STATES
from tunewright.jobs.scheduler import Scheduler, silent_attempts
from tunewright.jobs.store import free_bytes
from tunewright.web.webhooks import Announcer

SECONDS_BETWEEN_LOOKS_AT_THE_MACHINE = 5.0
GPU_FIELDS = (
    *("index", "name", "memory.used", "memory.total", "utilization.gpu", "temperature.gpu", "power.draw"),
)  # fmt: skip


class StatusBoard:
    """The one answer to what goes on; `update` is called by the thread that keeps the scheduler going."""

    def __init__(self, scheduler: Scheduler, inbox: Inbox | None, announcer: Announcer | None = None) -> None:
        self.scheduler = scheduler
        self.inbox = inbox
        self.announcer = announcer
        self.started = time.time()
        self._machine = Cached(look_at_machine, SECONDS_BETWEEN_LOOKS_AT_THE_MACHINE)
        self.facts: dict[str, Any] = {}
        self.as_bytes = b"{}"

    def update(self) -> None:
        store = self.scheduler.store
        with suppress(TunewrightError):  # It stays as it was while the store cannot be read.
            self.facts["jobs"] = {**dict.fromkeys(STATES, 0), **store.counts()}
            self.facts["at_work"] = [attempt.as_json() for attempt in store.held()]
            self.facts["silent"] = [attempt.job for attempt in silent_attempts(store)]
        self.facts |= {
            "version": __version__,
            "started": self.started,
            "slots": list(self.scheduler.slots),
            "store": str(store.root),
            "disk_free_bytes": free_bytes(store.root),
            "disk_bytes": disk_bytes(store.root),
            "machine": self._machine.value(),
            "problems": self._problems(),
            "needs_attention": self._attention(),
        }
        self.as_bytes = json.dumps(self.facts).encode()

    def _attention(self) -> list[str]:
        """One sentence for each thing that a person should look at, the most urgent first."""
        found, gates = self._problems(), self.facts.get("jobs", {}).get("gate")
        if gates:
            found.append(f"{gates} jobs stopped at a gate: accept what failed, or mend it.")
        return found

    def _problems(self) -> list[str]:
        """What is wrong with the service, the inbox, or a job that says nothing."""
        found = [text for text in (self.scheduler.problem, self.inbox.problem if self.inbox else "") if text]
        found += self.announcer.problems if self.announcer else []
        return found + [f"Job {job} gives no sign of life." for job in self.facts.get("silent", [])]

    def as_prometheus(self) -> str:
        """The figures in Prometheus' text format."""
        lines = ["# TYPE tunewright_jobs gauge"]
        lines += [f'tunewright_jobs{{state="{state}"}} {count}' for state, count in self.facts.get("jobs", {}).items()]
        lines += ["# TYPE tunewright_slots gauge", f"tunewright_slots {len(self.scheduler.slots)}"]
        lines += ["# TYPE tunewright_slots_at_work gauge"]
        lines += [f"tunewright_slots_at_work {len(self.facts.get('at_work', []))}"]
        lines += ["# TYPE tunewright_disk_free_bytes gauge"]
        lines += [f"tunewright_disk_free_bytes {self.facts.get('disk_free_bytes', 0)}"]
        for gpu in self.facts.get("machine", {}).get("gpus", []):
            for name in ("memory_used_mib", "utilization_percent", "temperature_celsius", "power_watts"):
                if gpu[name] is not None:
                    lines.append(f'tunewright_gpu_{name}{{gpu="{gpu["index"]}"}} {gpu[name]}')
        return "\n".join(lines) + "\n"


def disk_bytes(path: Path) -> int:
    """The size of the disk that holds `path`."""
    disk = os.statvfs(path)
    return disk.f_blocks * disk.f_frsize


class Cached:
    """A value that is found anew when it is older than this."""

    def __init__(self, find: Callable[[], dict[str, Any]], seconds: float) -> None:
        self._find, self._seconds = find, seconds
        self._found: dict[str, Any] = {}
        self._next = 0.0

    def value(self) -> dict[str, Any]:
        if time.monotonic() >= self._next:
            self._found = self._find()
            self._next = time.monotonic() + self._seconds
        return self._found


def look_at_machine() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "memory_bytes": memory.total,
        "memory_free_bytes": memory.available,
        "gpus": look_at_gpus(),
    }


def look_at_gpus() -> list[dict[str, Any]]:
    """Memory, load, temperature and power of each NVIDIA GPU; none where there is no `nvidia-smi`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return []
    return [gpu_of(line) for line in answer.stdout.splitlines() if line.count(",") == len(GPU_FIELDS) - 1]


def gpu_of(line: str) -> dict[str, Any]:
    """One line of `nvidia-smi`'s answer; what it does not know is None."""
    index, name, *figures = [part.strip() for part in line.split(",")]
    names = ("memory_used_mib", "memory_total_mib", "utilization_percent", "temperature_celsius", "power_watts")
    return {"index": index, "name": name, **dict(zip(names, map(number_or_none, figures), strict=True))}


def number_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

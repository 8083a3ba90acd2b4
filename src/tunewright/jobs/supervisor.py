"""The small process that stands over one attempt: it starts `tunewright run`, and writes down how that ends.

    python -m tunewright.jobs.supervisor STORE JOB ATTEMPT COMMAND...

It lives apart from the service, so that a service that is stopped, killed or updated neither ends a run nor misses its
exit code. It never starts a worker for an attempt that it has not taken over in the store, and the kernel kills the
worker if the supervisor dies: so no job ever has two.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.artifacts import write_text
from tunewright.errors import TunewrightError, environment_error
from tunewright.jobs.job import MARK, Attempt, Job, Outcome, Wish, outcome_of
from tunewright.jobs.processes import die_with, kill_marked, own_identity
from tunewright.jobs.store import Store, free_bytes

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_BETWEEN_BEATS = 2.0
LAST_WORDS_BYTES = 2000
MOST_OUTCOME_BYTES = 1 << 20
SLOT_OF_NO_GPU = "cpu"


@dataclass(frozen=True)
class Grace:
    """How long a worker may take to obey, in seconds, before it is asked more firmly."""

    stop: float = 120.0
    cancel: float = 5.0
    terminate: float = 10.0


def supervise(store: Store, number: int, attempt_number: int, command: list[str], grace: Grace) -> None:
    """Do one attempt from its taking over to its end; nothing at all if it is not to be had."""
    attempt = store.begin(number, attempt_number, own_identity())
    if attempt is None:
        return
    outcome = do_attempt(store, store.job(number), attempt, command, grace)
    kill_left_over(attempt)
    until_it_works(lambda: store.finish(attempt, outcome))


def do_attempt(store: Store, job: Job, attempt: Attempt, command: list[str], grace: Grace) -> Outcome:
    """Run the worker to its end, however it ends."""
    try:
        with Worker(store, job, attempt, command) as worker:
            obey(store, worker, grace)
            return worker.outcome(store.wanted(job.id))
    except OSError as error:
        problem = environment_error(error)
        return outcome_of(problem.exit_code, store.wanted(job.id), problem.as_json(), "", free_bytes(job.run_dir))


class Worker:
    """`tunewright run` in a session of its own, with a log on disk and its last word in memory."""

    def __init__(self, store: Store, job: Job, attempt: Attempt, command: list[str]) -> None:
        recipe = store.directory_of(job.id) / "recipe.yaml"
        write_text(recipe, job.recipe)
        self.store, self.job, self.attempt = store, job, attempt
        self.log = store.log_path(job.id, attempt.number)
        # What it prints as JSON says what became of it, and has to arrive when the disk is full.
        self._said = os.memfd_create("outcome")
        parent = os.getpid()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "run", str(recipe), "--run-dir", str(job.run_dir), "--json", *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=log,
                env=environment_of(attempt),
                start_new_session=True,
                preexec_fn=lambda: prepare_worker(parent),
            )
        self._ended = os.pidfd_open(self.process.pid)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *reason: object) -> None:
        if self.process.returncode is None:
            self.signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._ended)
        os.close(self._said)

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def has_ended(self, seconds: float) -> bool:
        """Wait for its end, but no longer than this; what it left running is killed before its number is given back."""
        if not select.select([self._ended], [], [], seconds)[0]:
            return False
        self.signal(signal.SIGKILL)
        self.process.wait()
        return True

    def outcome(self, wanted: Wish) -> Outcome:
        code = self.process.wait()
        return outcome_of(code, wanted, self._error(), last_line(self.log), free_bytes(self.job.run_dir))

    def _error(self) -> dict[str, Any] | None:
        said = os.pread(self._said, MOST_OUTCOME_BYTES, 0)
        try:
            words = json.loads(said)
        except ValueError:
            return None
        return words if isinstance(words, dict) and "error" in words else None


def obey(store: Store, worker: Worker, grace: Grace) -> None:
    """Wait for the worker's end, with signs of life, and do what is asked of it meanwhile."""
    last_beat = 0.0
    wish: Wish = ""
    firmer: Iterator[None] = iter(())
    while not worker.has_ended(SECONDS_BETWEEN_LOOKS):
        with suppress(TunewrightError):  # A full disk must not end what it need not end.
            if time.monotonic() - last_beat > SECONDS_BETWEEN_BEATS:
                store.beat(worker.attempt, worker.process.pid)
                last_beat = time.monotonic()
            if (now_wanted := store.wanted(worker.job.id)) != wish:
                wish, firmer = now_wanted, firmer_and_firmer(worker, now_wanted, grace)
        next(firmer, None)


def firmer_and_firmer(worker: Worker, wish: Wish, grace: Grace) -> Iterator[None]:
    """Ask the worker to end, then order it, then kill it; yields while it may still take its time."""
    asked = [(signal.SIGINT, grace.stop)] if wish == "stop" else []
    for number, seconds in [*asked, (signal.SIGTERM, grace.cancel if wish == "cancel" else grace.terminate)]:
        # Ctrl-C is for the run alone, which tells its own workers; an order is for all of them.
        worker.process.send_signal(number) if number == signal.SIGINT else worker.signal(number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            yield
    worker.signal(signal.SIGKILL)


def prepare_worker(parent: int) -> None:
    """Between fork and exec: die with the supervisor, and hear Ctrl-C even if the service was started without ears."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def environment_of(attempt: Attempt) -> dict[str, str]:
    environment = {**os.environ, MARK: attempt.token}
    if attempt.slot.startswith("gpu"):
        environment |= {"CUDA_VISIBLE_DEVICES": attempt.slot.removeprefix("gpu"), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return environment


def kill_left_over(attempt: Attempt) -> None:
    while not kill_marked(MARK, attempt.token):
        time.sleep(0.01)


def last_line(log: Path) -> str:
    """The last line with something in it, without what would speak to a terminal."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LAST_WORDS_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
        words = next((line for line in reversed(lines) if line.strip()), "")
        return "".join(letter for letter in words if letter.isprintable()).strip()
    return ""


def until_it_works(action: Callable[[], object]) -> None:
    """What has to be written down is, as soon as the disk takes it."""
    while True:
        with suppress(TunewrightError):
            action()
            return
        time.sleep(0.5)


def main(words: list[str]) -> None:
    store, job, attempt, *command = words
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervise(Store(Path(store)), int(job), int(attempt), command, Grace())


if __name__ == "__main__":
    main(sys.argv[1:])

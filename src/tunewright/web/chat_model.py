"""The process that answers for a chat (`chat_process`), as the service talks to it: started, asked, stopped, ended.

It is started by the thread that talks to it and ends with that thread at the latest. What it says is lines of JSON; if
it falls silent or ends, that is an error in words, with the last line of its log.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunewright.errors import EngineError
from tunewright.jobs.job import message_of
from tunewright.jobs.processes import die_with
from tunewright.jobs.supervisor import last_line

CHAT_COMMAND = (sys.executable, "-m", "tunewright.web.chat_process")
SECONDS_TO_LOAD = 900.0
SECONDS_TO_GO_ON = 300.0
SECONDS_BETWEEN_LOOKS = 0.5
BYTES_AT_ONCE = 1 << 16


class ChatModel:
    """A running model.

    Args:
        talks_of: the name of its run, and the hash of the adapter that it was asked for.
        command: what answers; the run's directory is added.
        slot: the GPU that it may use, or nothing for the processor.
    """

    def __init__(self, root: Path, talks_of: tuple[str, str], command: Sequence[str], slot: str) -> None:
        self.talks_of, self.slot = talks_of, slot
        self._log = root / ".service" / "chat.log"
        self._rest = b""
        parent = os.getpid()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(root / talks_of[0])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": slot.removeprefix("gpu"), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
                start_new_session=True,
                preexec_fn=lambda: die_with(parent),
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self, is_given_up: Callable[[], bool]) -> None:
        """Wait until it is loaded.

        Raises:
            EngineError: it could not be, it took too long, or nobody waits for it any more.
        """
        self._next(SECONDS_TO_LOAD, is_given_up)

    def answer(self, question: Mapping[str, Sequence[Mapping[str, str]]]) -> Iterator[dict[str, str]]:
        """What each side adds to its answer, as it comes; `stop` ends it early."""
        self._say(question)
        while "pieces" in (said := self._next(SECONDS_TO_GO_ON)):
            yield said["pieces"]

    def stop(self) -> None:
        """End the answers under way."""
        self._say({"stop": True})

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _say(self, words: Mapping[str, Any]) -> None:
        pipe = self._process.stdin
        if pipe is None:
            return
        try:
            pipe.write(json.dumps(words).encode() + b"\n")
            pipe.flush()
        except OSError:
            raise self._ended() from None

    def _next(self, seconds: float, is_given_up: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """The next thing that it says; an error that it says is raised."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            if is_given_up():
                self.close()
                raise EngineError("chat", "it was closed before its model was loaded")
            if time.monotonic() > deadline:
                self.close()
                raise EngineError("chat", f"the model has said nothing for {seconds:.0f} seconds", mend="Try again.")
            self._read_on()
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            self.close()
            raise EngineError("chat", "the model's process said what is no JSON", mend="Begin a new chat.") from None
        if "error" in said:
            raise EngineError("chat", message_of(said))
        return said

    def _read_on(self) -> None:
        pipe = self._process.stdout
        if pipe is None or not select.select([pipe], [], [], SECONDS_BETWEEN_LOOKS)[0]:
            return
        block = os.read(pipe.fileno(), BYTES_AT_ONCE)
        if not block:
            raise self._ended()
        self._rest += block

    def _ended(self) -> EngineError:
        code = self._process.wait()
        words = last_line(self._log) or f"exit code {code}"
        mend = "Close other programs, or use a smaller base." if code == -signal.SIGKILL else ""
        return EngineError("chat", f"the model's process has ended ({words})", mend=mend)

"""The same function over many items in several processes, with the results in order and few items under way.

The processes are started only when there is enough to do; each imports what it works with by itself, so no state of
this process (threads, CUDA) is copied.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tunewright.errors import EnvironmentLackError

LONGEST_SOCKET_PATH = 103  # Bytes: the 104 of macOS (108 on Linux) with a zero at their end.

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Processes that work through items; with `count` 0, this process does.

    Args:
        count: how many processes.
        start: called once in each process (or in this one) with `arguments`, before anything else.
        preload: module that is imported once for all processes.
    """

    def __init__(self, count: int, start: Callable[..., None], arguments: tuple[Any, ...], preload: str) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._under_way = 2 * count
        if count == 0:
            start(*arguments)
            return
        context = multiprocessing.get_context(_start_method())
        context.set_forkserver_preload([preload])
        self._pool = ProcessPoolExecutor(count, context, _start_quietly, (start, arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of each item, in order.

        Raises:
            EnvironmentLackError: a process was killed, most often for want of memory.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                with interrupts_deferred():  # It may start a process, which would be left behind half started.
                    waiting.append(self._pool.submit(function, item))
                if len(waiting) > self._under_way:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise EnvironmentLackError(
                "worker process", "it was killed", mend="Most often memory ran out: free some and start again."
            ) from None


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Ctrl-C takes effect at the end. Threads other than the main one never see it, so for them nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if heard:
        signal.raise_signal(signal.SIGINT)


def _start_method() -> str:
    """`forkserver`, which imports once for all; `spawn` where its socket's path in the temporary folder is too long."""
    longest = Path(tempfile.gettempdir(), "pymp-00000000", "listener-00000000")
    return "forkserver" if len(os.fsencode(longest)) <= LONGEST_SOCKET_PATH else "spawn"


def _start_quietly(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # Ctrl-C reaches every process of the terminal; the one that reads the results decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*arguments)


def _end_with_parent() -> None:
    """A process that reads the results may be killed; nobody would ever end those that wait for its items."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def threads_for_blocks() -> int:
    """One thread for each core that this process may use, at most 16: each holds a block of numbers."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 16)


def processes_for(total_bytes: int, enough_bytes: int = 1 << 23) -> int:
    """One process for each core, at most 16; none where starting them costs more than they save."""
    return min(os.cpu_count() or 1, 16) if total_bytes >= enough_bytes else 0


def launched_processes() -> int:
    """With how many others torchrun or accelerate started this process, itself counted; 1 where nothing did."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def launched_first() -> bool:
    """Whether this process is the first of those, which does what is done once."""
    return int(os.environ.get("RANK") or 0) == 0

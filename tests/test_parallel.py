import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from jobs_bench import is_running, wait_until
from tunewright.parallel import Workers, interrupts_deferred


def test_an_interrupt_waits_for_the_end_of_what_must_not_be_broken_off() -> None:
    done = []

    def work() -> None:
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the rest"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_may_defer_interrupts_too() -> None:
    done = []

    def work() -> None:
        with interrupts_deferred():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


def test_without_processes_the_work_is_done_here_and_in_order() -> None:
    started: list[int] = []
    with Workers(0, started.append, (7,), "json") as workers:
        assert list(workers.map(str, range(3))) == ["0", "1", "2"]
    assert started == [7]


WAITING = """
import os, sys, time
from tunewright.parallel import Workers

def pid(_):
    return os.getpid()

if __name__ == "__main__":
    with Workers(2, int, (), "json") as workers:
        print(next(iter(workers.map(pid, range(9)))), flush=True)
        time.sleep(60)
"""


def test_processes_end_with_the_one_that_reads_their_results(tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        worker = int(reader.stdout.readline())
        os.kill(worker, 0)
        reader.kill()
    wait_until(lambda: not is_running(worker), at_most=50)
    assert not is_running(worker)


MAGNITUDES = """
from tunewright.parallel import Workers

if __name__ == "__main__":
    with Workers(2, int, (), "json") as workers:
        print(list(workers.map(abs, range(-9, 0))))
"""


@pytest.mark.parametrize("length", [60, 71, 72, 120])
def test_a_temporary_folder_too_deep_for_sockets_is_no_hindrance(tmp_path: Path, length: int) -> None:
    script = tmp_path / "magnitudes.py"
    script.write_text(MAGNITUDES, encoding="utf-8")
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        deep = Path(root, "d" * (length - len(root) - 1))
        deep.mkdir()
        done = subprocess.run(
            [sys.executable, str(script)], env={**os.environ, "TMPDIR": str(deep)}, capture_output=True, text=True
        )
    assert (done.stdout.strip(), done.stderr) == (str(list(range(9, 0, -1))), "")

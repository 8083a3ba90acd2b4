import signal
import threading

import pytest

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

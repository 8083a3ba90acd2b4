import errno
import os
import pickle
from collections.abc import Iterator

import pytest

from tunewright import errors
from tunewright.errors import EnvironmentLackError, TunewrightError, environment_error


def whole_tree(kind: type[TunewrightError]) -> Iterator[type[TunewrightError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from whole_tree(child)


@pytest.mark.parametrize("kind", list(whole_tree(TunewrightError)))
def test_every_error_survives_pickling_as_it_was(kind: type[TunewrightError]) -> None:
    error = kind("rows.jsonl:3", "found 3", "4", "Write 4.")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is kind
    assert (str(again), again.as_json()) == (str(error), error.as_json())


def test_every_error_of_the_module_is_in_the_tree() -> None:
    kinds = {item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)}
    assert kinds == set(whole_tree(TunewrightError))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "out: no space is left. Free some and run the same command again."),
        (errno.EACCES, "out: it may not be read or written. Check the permissions."),
        (errno.EIO, "out: the system answered Input/output error."),
    ],
)
def test_an_error_of_the_system_says_what_to_do(code: int, message: str) -> None:
    error = environment_error(OSError(code, os.strerror(code), "out"))
    assert isinstance(error, EnvironmentLackError)
    assert str(error) == message

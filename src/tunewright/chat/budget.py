"""What one rendering of a template may use: seconds, memory, and the size of any one value.

In: every step that a template takes and every value that it makes, told by the code that renders it. Out: nothing, or
`LimitError`, which names the limit. Always: no signal, no thread, no process; so the limits hold in any thread and on
any system. What one single operation would make is worked out before it is made, since nothing can stop it afterwards.
"""

import time
from collections.abc import Iterable, Iterator, MappingView
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import psutil
from jinja2 import Undefined
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

Value = TypeVar("Value")

# Steps and characters between two looks at the clock and the memory; a look takes some 30 microseconds.
LOOK_EVERY = 1 << 20
STEP_COST = 1 << 10
VALUE_COST = 1 << 6
# Comparisons of single characters that one call may need, where the algorithm is not linear.
MOST_COMPARISONS = 10**8
MOST_INTEGER_BITS = 1 << 14
PIECES_AT_A_TIME = 1 << 10
ITEM_WEIGHT = 16
LONG_TEXT = 1 << 12
CONTAINERS = (list, tuple, dict, MappingView, Namespace)
MEMORY_ADDRESS = " at 0x"
NAMESPACE_ATTRIBUTES = "_Namespace__attrs"


class LimitError(SecurityError):
    """The template goes beyond a limit, or asks for what it may not have."""


@dataclass(frozen=True)
class Limits:
    """What one rendering may use.

    Attributes:
        seconds: of wall time. Beyond it, one operation that is under way is finished, which takes at most about one.
        memory_bytes: growth of this process's memory; what one operation makes comes on top, at most 4 bytes for each
            of `characters`.
        characters: of one text, the rendered one included.
        items: of one list.
    """

    seconds: float = 5.0
    memory_bytes: int = 256 << 20
    characters: int = 16 << 20
    items: int = 1 << 20


class Budget:
    """The use of one rendering at a time; `start` begins the next."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._characters = limits.characters
        self._left = 0
        self._deadline = 0.0
        self._memory_before: int | None = None

    def start(self) -> None:
        self._left = LOOK_EVERY
        self._deadline = time.monotonic() + self.limits.seconds
        self._memory_before = None

    def tick(self) -> None:
        """One more turn of a loop, or call of a macro or filter."""
        self._left -= STEP_COST
        if self._left < 0:
            self._look()

    def made(self, value: Value) -> Value:
        """The same value, counted."""
        if isinstance(value, (str, bytes)):
            size = len(value)
            if size > self._characters:
                self.room(size)
        elif isinstance(value, (list, tuple, dict)):
            self.room_for_items(len(value))
            size = len(value) * VALUE_COST
        else:
            return value
        self._left -= size + VALUE_COST
        if self._left < 0:
            self._look()
        return value

    def joined(self, pieces: Iterable[str]) -> str:
        """All pieces as one text; what is too long is found before it is made."""
        waiting = iter(pieces)
        taken = chunk = list(islice(waiting, PIECES_AT_A_TIME))
        self.room(total := sum(map(len, chunk)))
        while len(chunk) == PIECES_AT_A_TIME:
            chunk = list(islice(waiting, PIECES_AT_A_TIME))
            total += sum(map(len, chunk))
            self.room(total)
            taken += chunk
        self.used(total)
        return "".join(taken)

    def text(self, value: Any) -> str:
        """`str(value)`, where that is the same on every day and not endless."""
        if type(value) is str:
            return value
        if isinstance(value, Undefined) and value._undefined_exception is SecurityError:
            value._fail_with_undefined_error()  # where Jinja would write nothing
        written = str(self.weighed(value))
        if MEMORY_ADDRESS in written and not isinstance(value, (str, *CONTAINERS)):
            raise LimitError(f"it writes out a {type(value).__name__}, which has no text")
        return written

    def texts(self, values: Iterable[Any]) -> str:
        """The texts of `values` as one."""
        return self.joined([value if type(value) is str else self.text(value) for value in values])

    def weighed(self, value: Value) -> Value:
        """The same value, which is not endless to write, compare, search or hash."""
        if isinstance(value, str):
            if len(value) > LONG_TEXT:
                self.used(len(value))
        elif isinstance(value, CONTAINERS):
            self.used(self.weigh(value))
        elif isinstance(value, range):
            self.used(len(value) * VALUE_COST)
        return value

    def counted(self, items: Iterator[Value]) -> Iterator[Value]:
        """The same items, one by one."""
        for item in items:
            self.used(VALUE_COST)
            yield item

    def used(self, size: int) -> None:
        """Characters, or items, that are about to be copied."""
        self._left -= size
        if self._left < 0:
            self._look()

    def _look(self) -> None:
        self._left = LOOK_EVERY
        if time.monotonic() > self._deadline:
            raise LimitError(f"it takes longer than {self.limits.seconds:g} seconds")
        memory = psutil.Process().memory_info().rss
        if self._memory_before is None:
            self._memory_before = memory
        elif memory - self._memory_before > self.limits.memory_bytes:
            raise LimitError(f"it takes more than {self.limits.memory_bytes >> 20} MB of memory")

    def room(self, characters: int) -> None:
        """Raise where a text of so many characters is too long."""
        if characters > self.limits.characters:
            raise LimitError(f"it makes a text of more than {self.limits.characters} characters")

    def room_for_items(self, items: int) -> None:
        if items > self.limits.items:
            raise LimitError(f"it makes a list of more than {self.limits.items} items")

    def comparisons(self, count: int) -> None:
        if count > MOST_COMPARISONS:
            raise LimitError(f"it searches texts that are too long ({count} comparisons)")

    def room_for_bits(self, bits: int) -> None:
        if bits > MOST_INTEGER_BITS:
            raise LimitError(f"it makes an integer of more than {MOST_INTEGER_BITS} bits")

    def weigh(self, value: Any, most: int | None = None) -> int:
        """About how many characters a value has when it is written out; what stands in it twice counts twice.

        A list that holds itself twice, ten times over, is small in memory and endless to write, compare or hash.

        Raises:
            LimitError: more than `most`; default: than one text may have.
        """
        most = self.limits.characters if most is None else most
        total, waiting = 0, [value]
        while waiting:
            item = waiting.pop()
            inside: Any = ()
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, dict):
                inside = [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple, MappingView)):
                inside = item
            elif isinstance(item, Namespace):
                inside = (object.__getattribute__(item, NAMESPACE_ATTRIBUTES),)
            total += ITEM_WEIGHT * (1 + len(inside))
            if total > most:
                raise LimitError(f"it writes out or compares a value of more than {most} characters")
            waiting.extend(inside)
        return total

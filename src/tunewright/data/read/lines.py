"""JSON Lines, cut into blocks of whole lines without looking into them.

Only LF ends a line; that a file has CR before it is told with its first row. A line longer than a block is joined from
its pieces; a line beyond the limit is hashed and counted as it goes by, and never held.
"""

from collections.abc import Iterator
from hashlib import sha256
from itertools import chain

from tunewright.data.faults import Repair, RowError
from tunewright.data.read.blocks import Block, Input, Record

CRLF = Repair("line ends CRLF read as LF", "file")


def read_lines(given: Input) -> Iterator[Block]:
    """Blocks of whole lines; blocks of nothing but white space are left out."""
    line, offset, repairs = 1, given.byte_offset, given.repairs
    if b"\r\n" in given.head and given.head.partition(b"\n")[0].endswith(b"\r"):
        repairs = (*repairs, CRLF)
    for cut in _cut(given):
        if isinstance(cut, _LongLine):
            yield Block(given.index, line, offset, records=(cut.record(line, offset, repairs),))
            line, offset, repairs = line + 1, offset + cut.size, ()
            continue
        if not cut.isspace():
            yield Block(given.index, line, offset, cut, repairs=repairs)
            repairs = ()
        line, offset = line + cut.count(b"\n"), offset + len(cut)


class _LongLine:
    """A line that goes by without being held.

    Attributes:
        length: its bytes, without the line's end.
        size: its bytes, with the line's end.
        rest: what was read of the lines after it.
    """

    def __init__(self, begun: list[bytes], given: Input) -> None:
        self.length, self.size, self.rest = 0, 0, b""
        self._digest, self._limit = sha256(), given.limits.row_bytes
        for piece in chain(begun, _chunks(given)):
            text, newline, self.rest = piece.partition(b"\n")
            self._digest.update(text)
            self.length += len(text)
            self.size = self.length + len(newline)
            if newline:
                return

    def record(self, line: int, offset: int, repairs: tuple[Repair, ...]) -> Record:
        fault = RowError("row too long", f"found {self.length:,} bytes; expected {self._limit:,} at most")
        return Record(line, offset, b"", fault=fault, repairs=repairs, sha256=self._digest.hexdigest())


def _chunks(given: Input) -> Iterator[bytes]:
    return iter(lambda: given.stream.read(given.limits.block_bytes), b"")


def _cut(given: Input) -> Iterator[bytes | _LongLine]:
    """Runs of whole lines, about a block long, and between them the lines that are too long to be held."""
    pieces: list[bytes] = []  # of a line whose end has not come yet
    chunks = _chunks(given)
    chunk = next(chunks, b"")
    while chunk:
        first_end, end = chunk.find(b"\n"), chunk.rfind(b"\n") + 1
        if sum(map(len, pieces)) + (first_end if end else len(chunk)) > given.limits.row_bytes:
            long_line = _LongLine([*pieces, chunk], given)
            pieces.clear()
            yield long_line
            chunk = long_line.rest or next(chunks, b"")
            continue
        if end:
            yield b"".join([*pieces, chunk[:end]])
            pieces, chunk = [], chunk[end:]
        pieces.append(chunk)
        chunk = next(chunks, b"")
    if any(pieces):
        yield b"".join(pieces)

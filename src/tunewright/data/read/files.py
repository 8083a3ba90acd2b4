"""Files into blocks: what a file holds is told by its first bytes, and by its name where they leave it open.

In: a source. Out: its rows in blocks, in order. Bytes are counted in the unpacked file. A fault that belongs to one row
is that row's; only where rows can no longer be told apart is the file refused.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tunewright.data.faults import Repair
from tunewright.data.read.array import read_array
from tunewright.data.read.blocks import LIMITS, Block, Input, Limits, blocks_of
from tunewright.data.read.lines import read_lines
from tunewright.data.read.sources import KINDS, Source, kind_of
from tunewright.data.read.table import read_table
from tunewright.data.read.unpack import open_unpacked
from tunewright.errors import DataError

BOM = b"\xef\xbb\xbf"
PARQUET_MAGIC = b"PAR1"
WIDE_TEXT = re.compile(
    rb"\xff\xfe|\xfe\xff|[^\0]\0[^\0]\0|\0[^\0]\0[^\0]|\0\0\0[^\0]|[^\0]\0\0\0|\0\0\xfe\xff", re.DOTALL
)
NO_ROWS = {
    b"version https://git-lfs": ("a pointer of Git LFS in the place of the file", "Fetch the file: git lfs pull."),
    b"<": ("a web page or XML", "Fetch the file itself."),
    b"\x1f\x8b": ("gzip inside of what was unpacked", "Unpack the file once."),
    b"\x28\xb5\x2f\xfd": ("zstd inside of what was unpacked", "Unpack the file once."),
}
Reader = Callable[[Input], Iterator[Block]]


def read_blocks(source: Source, index: int, limits: Limits = LIMITS) -> Iterator[Block]:
    """The rows of a file in blocks; parsing JSON is left to `records_of`.

    Raises:
        DataError: the file has no rows, is damaged, or cannot be split into rows.
    """
    count = 0
    try:
        for block in _read(source.path, index, limits):
            count += 1
            yield block
    except OSError as error:
        raise DataError(str(source.path), f"cannot be read ({error.strerror or error})") from None
    if not count:
        raise DataError(str(source.path), "the file has no rows", mend="Name a file with rows.")


def read_all_blocks(sources: Sequence[Source]) -> Iterator[Block]:
    """The rows of every file, file by file; see `read_blocks`."""
    for number, source in enumerate(sources):
        yield from read_blocks(source, number)


def _read(path: Path, index: int, limits: Limits) -> Iterator[Block]:
    with open_unpacked(path) as stream:
        head = stream.peek(limits.block_bytes)
        if head.startswith(PARQUET_MAGIC) or kind_of(path.name) == ".parquet":
            yield from _read_parquet(path, index, limits, head)
            return
        repairs: tuple[Repair, ...] = ()
        if head.startswith(BOM):
            repairs = (Repair("byte order mark removed", "file"),)
            head = head.removeprefix(stream.read(len(BOM)))
        _validate_text(path, head)
        given = Input(path, stream, head, index, len(BOM) if repairs else 0, repairs, limits)
        yield from _reader_of(path, head)(given)


def _read_parquet(path: Path, index: int, limits: Limits, head: bytes) -> Iterator[Block]:
    from tunewright.data.read.parquet import read_parquet

    if not head.startswith(PARQUET_MAGIC):
        found = "found a file that does not begin as Parquet files do"
        raise DataError(str(path), found, mend="Fetch it again, or give it the name of what it is.")
    with path.open("rb") as file:
        if file.read(4) != PARQUET_MAGIC:
            found = "found a packed Parquet file"
            raise DataError(str(path), found, "Parquet files as they are", "Unpack it: Parquet is packed inside.")
    yield from read_parquet(path, index, limits)


def _validate_text(path: Path, head: bytes) -> None:
    """Raise if the rest of the reading would only tell of faults that all have one cause."""
    if WIDE_TEXT.match(head):
        raise DataError(str(path), "the text is UTF-16 or UTF-32", "UTF-8", "Save the file as UTF-8.")
    if b"\n" not in head and b"\r" in head.rstrip() and not head.lstrip().startswith(b"["):
        found = "lines end with a carriage return alone"
        raise DataError(str(path), found, "LF or CRLF", "Save the file with the line ends of today.")
    for beginning, (what, mend) in NO_ROWS.items():
        if head.lstrip().startswith(beginning):
            raise DataError(str(path), f"found {what}", "rows", mend)


def _reader_of(path: Path, head: bytes) -> Reader:
    kind = kind_of(path.name)
    if kind in {".csv", ".tsv"}:
        delimiter = "\t" if kind == ".tsv" else ""
        return lambda given: blocks_of(read_table(given, delimiter), given)
    first = head.lstrip()[:1]
    if first == b"[" and not _is_list_per_line(head):
        return lambda given: blocks_of(read_array(given), given)
    if first == b"{" and _is_one_object(head):
        found = "found a JSON object that goes over several lines"
        raise DataError(str(path), found, "an array of rows, or one row on each line", "Put the rows into an array.")
    if kind or first in (b"{", b"[", b""):
        return read_lines
    found = f"found a file that ends in {path.suffix or 'nothing'} and does not begin like JSON"
    raise DataError(str(path), found, f"{', '.join(KINDS)}, also with .gz or .zst", "Give it the name of what it is.")


def _is_list_per_line(head: bytes) -> bool:
    """Whether the first line is a whole list and the second one begins with another: JSON Lines, then."""
    first, _, rest = head.lstrip().partition(b"\n")
    return first.rstrip().endswith(b"]") and rest.lstrip().startswith(b"[")


def _is_one_object(head: bytes) -> bool:
    """Whether the object that begins the file goes over several lines, and is not a row that lost its end."""
    text = head.lstrip().decode(errors="replace")
    first, _, rest = text.partition("\n")
    behind_first = len(first) + 1 + len(rest) - len(rest.lstrip())
    try:
        return json.JSONDecoder(parse_int=str).raw_decode(text)[1] > behind_first
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        second = rest.lstrip().partition("\n")[0]
        return error.pos > behind_first and not second.startswith("{")

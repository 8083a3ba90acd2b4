"""The elements of a JSON array, one after the other, without holding the array.

An element is found by its brackets and quotes alone, so that one with broken JSON inside is a row with a fault. Where
brackets do not match, a bracket or quote is not closed, or something stands between two elements, the next row cannot
be told, and the file is refused with line and column. Memory is bounded by the longest element.
"""

import re
from collections.abc import Iterator

from tunewright.data.read.blocks import Input, Record, broken_json, place_in_file
from tunewright.errors import DataError

WHITESPACE = b" \t\n\r"
CLOSING = {ord("["): ord("]"), ord("{"): ord("}")}
STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
# Whole strings and what is neither quote nor bracket; inside an element, and in an element that is no list or object.
NESTED = re.compile(rb'(?:[^"\[\]{}]*+"[^"\\]*+(?:\\.[^"\\]*+)*+")*+[^"\[\]{}]*+', re.DOTALL)
FLAT = re.compile(rb'(?:[^"\[\]{},]*+"[^"\\]*+(?:\\.[^"\\]*+)*+")*+[^"\[\]{},]*+', re.DOTALL)
CONTINUATION_BYTES = bytes(range(0x80, 0xC0))
MEND = "Mend the file; in JSON Lines, one row on each line, a broken row could be left out."


def read_array(given: Input) -> Iterator[Record]:
    """The elements, still to be parsed.

    Raises:
        DataError: it cannot be told where an element ends, or something follows the array.
    """
    text = _ArrayText(given)
    text.expect(b"[", "Expecting '['")
    repairs, last_line, on_line = given.repairs, 0, 0
    if text.peek() != b"]":
        while True:
            line, column, offset = text.line, text.column, text.offset
            raw = text.take_element()
            on_line = on_line + 1 if line == last_line else 1
            last_line = line
            yield Record(line, offset, raw, on_line=on_line, repairs=repairs, column=column)
            repairs = ()
            if text.peek() != b",":
                break
            text.expect(b",", "")
            if text.peek() in (b"]", b""):
                raise text.broken("Expecting a row after ','")
    text.expect(b"]", "Expecting ',' or ']' after a row")
    if text.peek():
        raise text.broken("Extra data after the array")


class _ArrayText:
    """The bytes from the current position on, as far as they are read, and where that position is.

    Attributes:
        line, column: of the position, from 1; columns are counted in characters.
        offset: of the position in the unpacked file, in bytes.
    """

    def __init__(self, given: Input) -> None:
        self._given = given
        self._held = bytearray()
        self._at = 0  # the position in `_held`; what is before it is dropped with the next chunk
        self.line, self.column, self.offset = 1, 1, given.byte_offset

    def _read_on(self) -> bool:
        """Hold another chunk; False at the end of the file."""
        chunk = self._given.stream.read(self._given.limits.block_bytes)
        del self._held[: self._at]
        self._at = 0
        self._held += chunk
        return bool(chunk)

    def _take(self, end: int) -> bytes:
        """Move on to `end` in what is held."""
        taken = bytes(self._held[self._at : end])
        self._at = end
        self.offset += len(taken)
        newlines = taken.count(b"\n")
        if newlines:
            self.line += newlines
            self.column = 1
        last_line = taken[taken.rfind(b"\n") + 1 :]
        self.column += len(last_line.translate(None, CONTINUATION_BYTES))
        return taken

    def peek(self) -> bytes:
        """The next byte that is not white space; empty at the end of the file."""
        while True:
            end = self._at
            while end < len(self._held) and self._held[end] in WHITESPACE:
                end += 1
            self._take(end)
            if end < len(self._held):
                return bytes(self._held[end : end + 1])
            if not self._read_on():
                return b""

    def expect(self, byte: bytes, message: str) -> None:
        if self.peek() != byte:
            raise self.broken(message)
        self._take(self._at + 1)

    def take_element(self) -> bytes:
        """The element that begins here, up to its closing bracket, or to the comma or bracket after it."""
        closing = bytearray()  # the brackets that are still to come, the last one first to come
        size = 0  # of what was looked at
        in_string = False
        while True:
            pattern = STRING_REST if in_string else NESTED if closing else FLAT
            match = pattern.match(self._held, self._at + size)
            size = (match.end() if match else 0) - self._at
            byte = self._next_byte(size, in_string)
            if byte is None:
                self._grow(size)
            elif in_string:
                in_string, size = False, size + 1
            elif byte == ord('"'):
                in_string, size = True, size + 1  # a string that goes on in the next chunk
            elif byte in CLOSING:
                closing.append(CLOSING[byte])
                size += 1
            elif not closing:
                return self._take(self._at + size).rstrip(WHITESPACE)
            elif closing.pop() != byte:
                raise self._broken_element(size + 1, "a bracket is closed by one of another kind")
            else:
                size += 1
                if not closing:
                    return self._take(self._at + size)

    def _next_byte(self, size: int, in_string: bool) -> int | None:
        """The byte that the scan stopped at; None if only the next chunk shows what is there."""
        end = self._at + size
        if end == len(self._held) or (in_string and self._held[end] != ord('"')):
            return None
        return self._held[end]

    def _grow(self, size: int) -> None:
        if size > self._given.limits.row_bytes:
            limit = f"{self._given.limits.row_bytes:,}"
            raise self._given.broken(self.line, f"the row that begins here has more than {limit} bytes", MEND)
        if not self._read_on():
            raise self._broken_element(size, "the file ends before the row that begins here")

    def _broken_element(self, size: int, message: str) -> DataError:
        """Says where the parser gives the element up; that is nearer to the mistake than where its end was missed."""
        error = broken_json(self._held[self._at : self._at + size].decode(errors="replace"))
        if error is None:
            return self.broken(message)
        line, column = place_in_file(error, self.line, self.column)
        return self._given.broken(line, f"broken JSON: {error.msg.removesuffix(' at')} at column {column}", MEND)

    def broken(self, message: str) -> DataError:
        return self._given.broken(self.line, f"broken JSON: {message} at column {self.column}", MEND)

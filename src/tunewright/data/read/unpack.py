"""A file as a stream of bytes, unpacked if its first bytes, not its name, say that it is packed.

Gzip files may have several members, zstd files several frames. What is held at once is bounded however well the file is
packed. A packed file that ends too early, or goes on with something else, is a `DataError` that says how far it got.
"""

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tunewright.errors import DataError

BUFFER_BYTES = 1 << 20
PIECE_BYTES = 2048  # zstd makes of four bytes 128 KiB at most, so this becomes 64 MiB at the very most
FOREIGN_PACKING = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"\x04\x22\x4d\x18": "lz4",
}


class Unpacker(Protocol):
    """One member or frame; both `zlib` and `zstandard` have such objects."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def open_unpacked(path: Path) -> "io.BufferedReader[Any]":
    """The unpacked bytes of a file.

    Raises:
        DataError: it is packed with something else than gzip or zstd; when read: the packed data is damaged.
    """
    packed = io.BufferedReader(path.open("rb", buffering=0), BUFFER_BYTES)
    head = packed.peek(8)[:8]
    foreign = next((name for magic, name in FOREIGN_PACKING.items() if head.startswith(magic)), None)
    if foreign:
        packed.close()
        raise DataError(str(path), f"found a file packed with {foreign}", "gzip, zstd or none", "Pack it anew.")
    if head.startswith(b"\x1f\x8b"):
        return io.BufferedReader(Unpacked(path, packed, "gzip", _gzip_member), BUFFER_BYTES)
    if _begins_zstd_frame(head):
        return io.BufferedReader(Unpacked(path, packed, "zstd", _zstd_frame), BUFFER_BYTES)
    return packed


def _begins_zstd_frame(head: bytes) -> bool:
    """Source: RFC 8878, 3.1.1 and 3.1.2; a frame to be skipped has one of sixteen numbers."""
    return head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5)


def _gzip_member() -> Unpacker:
    return zlib.decompressobj(wbits=31)


def _zstd_frame() -> Unpacker:
    import zstandard

    unpacker: Unpacker = zstandard.ZstdDecompressor().decompressobj()
    return unpacker


def _unpacking_errors() -> tuple[type[Exception], ...]:
    import zstandard

    return zlib.error, zstandard.ZstdError


class Unpacked(io.RawIOBase):
    """What a packed file holds, member after member."""

    def __init__(self, path: Path, packed: BinaryIO, packing: str, new_member: Callable[[], Unpacker]) -> None:
        self._path, self._packed, self._packing, self._new_member = path, packed, packing, new_member
        self._member: Unpacker | None = None  # the one under way
        self._members, self._total = 0, 0
        self._rest = b""  # packed bytes behind the last member
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._packed.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the whole buffer unless the file ends."""
        filled = 0
        while filled < len(buffer) and (self._ready or self._unpack()):
            taken = self._ready[: len(buffer) - filled]
            buffer[filled : filled + len(taken)] = taken
            self._ready = self._ready[len(taken) :]
            filled += len(taken)
        return filled

    def _unpack(self) -> bool:
        """Make more bytes ready; False at the end of the file."""
        while not self._ready:
            piece = self._rest or self._packed.read(PIECE_BYTES)
            self._rest = b""
            if not piece:
                if self._member is not None:
                    raise self._damaged("ends too early")
                return False
            self._take(piece)
        return True

    def _take(self, piece: bytes) -> None:
        if self._member is None:
            piece = piece.lstrip(b"\x00")  # files are padded with zeros on tapes and in archives
            if not piece:
                return
            self._member = self._new_member()
        try:
            unpacked = self._member.decompress(piece)
        except _unpacking_errors() as error:
            behind = "is followed by something else"
            raise self._damaged(behind if self._begins_badly(error) else f"is damaged ({error})") from None
        self._total += len(unpacked)
        self._ready = memoryview(unpacked)
        if self._member.eof:
            self._rest, self._member = self._member.unused_data, None
            self._members += 1

    def _begins_badly(self, error: Exception) -> bool:
        return self._members > 0 and ("header" in str(error) or "descriptor" in str(error))

    def _damaged(self, what: str) -> DataError:
        found = f"the {self._packing} data {what}; {self._total:,} bytes were unpacked before"
        return DataError(str(self._path), found, mend="Fetch the file again, or pack it again.")

"""Files that come over the network: whole or not at all, kept by their content beside those of the inbox.

A body goes to disk as it comes, never into memory. It is bounded by a size and by what the disk has free, and a client
that falls silent is given up.
"""

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tunewright.errors import EnvironmentLackError, UsageError, environment_error
from tunewright.jobs.inbox import keep_by_content, safe_name
from tunewright.jobs.store import Store, free_bytes

MOST_BYTES = 16 << 30
BYTES_TO_LEAVE_FREE = 1 << 29
MOST_AT_ONCE = 4
SECONDS_OF_SILENCE = 30.0


def validate_space(directory: Path, still_to_come: int, where: str, what: str = "it") -> None:
    """Raise `EnvironmentLackError` if the disk would not keep enough free."""
    if free_bytes(directory) - still_to_come < BYTES_TO_LEAVE_FREE:
        raise EnvironmentLackError(where, f"the disk is too full for {what}", mend="Free some space.")


@dataclass(frozen=True)
class Upload:
    """A file that has arrived: its safe name, where it lies, and what it is."""

    name: str
    path: str
    bytes: int
    sha256: str


class Uploads:
    def __init__(self, store: Store) -> None:
        self.files = store.private / "files"
        self._under_way = 0
        with suppress(OSError):
            for left_over in self.files.glob(".upload-*"):
                left_over.unlink()

    async def take(self, name: str, said_bytes: int, body: AsyncIterator[bytes]) -> Upload:
        """Keep what comes.

        Raises:
            UsageError: it is empty or too large.
            EnvironmentLackError: too many come at once, the disk is too full, or the client fell silent.
        """
        if self._under_way >= MOST_AT_ONCE:
            raise EnvironmentLackError("upload", f"{MOST_AT_ONCE} are under way", mend="Wait for one of them.")
        self._validate(said_bytes, still_to_come=said_bytes)
        self.files.mkdir(exist_ok=True)
        temporary = self.files / f".upload-{secrets.token_hex(8)}"
        self._under_way += 1
        try:
            with temporary.open("xb") as file:
                size, sha256 = await self._write(file, body)
            kept = await asyncio.to_thread(keep_by_content, self.files, temporary, sha256, name)
        except OSError as error:
            raise environment_error(error) from None
        finally:
            self._under_way -= 1
            temporary.unlink(missing_ok=True)
        return Upload(safe_name(name), str(kept), size, sha256)

    async def _write(self, file: BinaryIO, body: AsyncIterator[bytes]) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        while True:
            try:
                async with asyncio.timeout(SECONDS_OF_SILENCE):
                    block = await anext(body, None)
            except TimeoutError:
                raise EnvironmentLackError("upload", "nothing came for a while", mend="Send it again.") from None
            if block is None:
                break
            size += len(block)
            self._validate(size, still_to_come=len(block))
            digest.update(block)
            file.write(block)
        if not size:
            raise UsageError("upload", "the file is empty", "a file with rows")
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
        return size, digest.hexdigest()

    def _validate(self, size: int, still_to_come: int) -> None:
        if size > MOST_BYTES:
            mend = "Put it on the machine of the service, and name its path."
            raise UsageError("upload", f"it has more than {MOST_BYTES >> 30} GiB", mend=mend)
        validate_space(self.files, still_to_come, "upload")

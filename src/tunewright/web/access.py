"""Who may talk to the service: the token, and the names under which it may be addressed.

The token is in a file that only its owner can read, and never in a URL. A browser gets a cookie for it that is derived
from the token, so that who sees the cookie does not know the token.
"""

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from tunewright.errors import EnvironmentLackError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "tunewright"


@dataclass(frozen=True)
class Access:
    """What is asked of every request.

    Attributes:
        hosts: what may stand in the Host header.
    """

    token: str
    hosts: frozenset[str]

    @property
    def cookie(self) -> str:
        return hmac.new(self.token.encode(), b"cookie", hashlib.sha256).hexdigest()

    @property
    def origins(self) -> frozenset[str]:
        return frozenset(f"{scheme}://{host}" for scheme in ("http", "https") for host in self.hosts)

    def knows_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())

    def knows_cookie(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.cookie.encode())


def hosts_of(port: int, names: list[str]) -> frozenset[str]:
    """The Host headers of this machine's own names, and of further ones, with and without their port."""
    own = {f"{name}:{port}" for name in LOOPBACK} | ({*LOOPBACK} if port == 80 else set())
    return frozenset(own | {name.lower() for name in names} | {f"{name.lower()}:{port}" for name in names})


def read_token(path: Path) -> str:
    """The token in `path`, made at the first time.

    Raises:
        EnvironmentLackError: somebody else could read it.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_private(path)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(32))
        file.flush()
        os.fsync(descriptor)
    return _read_private(path)


def _read_private(path: Path) -> str:
    with path.open(encoding="ascii") as file:
        status = os.fstat(file.fileno())
        if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.getuid():
            raise EnvironmentLackError(
                str(path),
                "others can read the token",
                "a file of yours with mode 0600",
                "Delete it: a new one is made.",
            )
        token = file.read().strip()
    if len(token) < 32:
        raise EnvironmentLackError(str(path), "the token is too short", mend="Delete the file: a new one is made.")
    return token

"""The port of the service: bound before anything else is touched, and if that fails, who holds it."""

import errno
import socket
from contextlib import suppress

import psutil

from tunewright.errors import EnvironmentLackError

PORTS_TO_TRY = 100


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address; port 0 takes any free one.

    Raises:
        EnvironmentLackError: the port is taken (the message names the holder and the next free port), or the address
            is none of this machine's.
    """
    try:
        return _listening(host, port)
    except PermissionError:
        raise EnvironmentLackError(
            f"{host}:{port}", "only root may listen there", mend="Take a port above 1023."
        ) from None
    except socket.gaierror:
        raise EnvironmentLackError(host, "this is no address", mend="Name an address of this machine.") from None
    except OverflowError:
        raise EnvironmentLackError(f"{host}:{port}", "there is no such port", "0 to 65535") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise EnvironmentLackError(host, f"cannot listen there ({error.strerror})") from None
    free = next_free(host, port)
    mend = f"Stop it, or take the next free port with --port {free}." if free else "Stop it."
    raise EnvironmentLackError(f"{host}:{port}", f"the port is taken by {holder_of(port)}", mend=mend)


def next_free(host: str, port: int) -> int | None:
    """The first free port after `port`, if there is one near."""
    for other in range(port + 1, min(port + PORTS_TO_TRY, 65536)):
        with suppress(OSError):
            _listening(host, other).close()
            return other
    return None


def holder_of(port: int) -> str:
    """The process that listens on the port, in words, as far as this user may know."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            is_it = connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:2] == (port,)
            if is_it and connection.pid:
                return f"process {connection.pid} ({_command_of(connection.pid)})"
    return "a process of another user"


def _command_of(pid: int) -> str:
    with suppress(psutil.Error):
        words = " ".join(psutil.Process(pid).cmdline()) or psutil.Process(pid).name()
        return "".join(letter for letter in words if letter.isprintable())[:100]
    return "unknown"


def _listening(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except BaseException:
        listener.close()
        raise
    return listener

"""A real Ollama server for tests and benchmarks: TUNEWRIGHT_OLLAMA is a URL, or the path of a binary to start.

A server that is started here keeps its models in a directory of its own, and logs each prompt that it renders.
"""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunewright.engines.ollama_server import OllamaServer
from tunewright.errors import TunewrightError

VARIABLE = "TUNEWRIGHT_OLLAMA"
SECONDS_TO_START = 30
# How Go's log writes a text: between quotes, with Go's escapes.
LOGGED_PROMPT = re.compile(r'level=TRACE .*msg="completion request" prompt=("(?:[^"\\]|\\.)*"|\S*)')
ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
PLAIN_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass(frozen=True)
class RealOllama:
    """A server, and if it was started here, where it logs and how its own client is run."""

    server: OllamaServer
    log: Path | None = None
    binary: Path | None = None
    environment: dict[str, str] | None = None

    def prompts(self) -> list[str]:
        """The texts that it rendered from chats so far, in order."""
        if self.log is None:
            return []
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [unquoted(found[1]) for line in lines if (found := LOGGED_PROMPT.search(line))]


@contextmanager
def real_ollama(directory: Path) -> Iterator[RealOllama]:
    """The server that TUNEWRIGHT_OLLAMA names; one that is started here is stopped at the end."""
    named = os.environ.get(VARIABLE, "")
    if "://" in named:
        yield RealOllama(OllamaServer(named))
        return
    binary = Path(named).resolve()
    address = f"127.0.0.1:{free_port()}"
    log = directory / "ollama.log"
    environment = environment_of(binary, directory, address)
    with log.open("wb") as file, process(binary, environment, file.fileno()):
        server = OllamaServer(address)
        try:
            wait_for(server)
            yield RealOllama(server, log, binary, environment)
        finally:
            server.close()


def environment_of(binary: Path, directory: Path, address: str) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(directory),
        "LD_LIBRARY_PATH": os.pathsep.join(str(path) for path in (binary.parent, binary.parent.parent / "lib")),
        "OLLAMA_HOST": address,
        "OLLAMA_MODELS": str(directory / "models"),
        "OLLAMA_NUM_GPU": "0",
        "OLLAMA_DEBUG": "2",  # with the text of each prompt
    }


@contextmanager
def process(binary: Path, environment: dict[str, str], log: int) -> Iterator[None]:
    command = [str(binary), "serve"]
    started = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        started.terminate()
        started.wait(SECONDS_TO_START)


def wait_for(server: OllamaServer) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            server.version()
        except TunewrightError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unquoted(text: str) -> str:
    """A text as Go's log wrote it, whose quotes and escapes are Go's; bytes that are no UTF-8 are read as such."""
    if not text.startswith('"'):
        return text

    def replaced(found: re.Match[str]) -> str:
        byte, short, long, plain = found.groups()
        number = byte or short or long
        return chr(int(number, 16)) if number else PLAIN_ESCAPES.get(plain, plain)

    return ESCAPE.sub(replaced, text[1:-1])

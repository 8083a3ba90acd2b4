"""An Ollama server, by its REST API: make a model of a local GGUF, look at it, ask it, delete it.

In go names, files and texts; out come the server's answers as data. Always: an error that the server reports anywhere,
also in the middle of a stream, and a stream that ends too early, are an `EngineError`; a server that is not there is an
`EnvironmentLackError`. API: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tunewright.artifacts import sha256_of_file
from tunewright.errors import EngineError, EnvironmentLackError
from tunewright.events import Events, Progress

HOST_VARIABLE = "OLLAMA_HOST"
DEFAULT_PORT = 11434
PORTS = {"http": 80, "https": 443}
# What a server binds to for every address is no address that a client can ask.
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
SECONDS_TO_CONNECT = 5
SECONDS_TO_ANSWER = 600
UPLOAD_BYTES = 1 << 20
LONGEST_QUOTE = 300


def ollama_url(host: str | None = None) -> str:
    """Where Ollama listens: `host`, else OLLAMA_HOST, else loopback; read as Ollama's own client reads it."""
    said = (host or os.environ.get(HOST_VARIABLE, "")).strip()
    scheme, separator, rest = said.partition("://")
    if not separator:
        scheme, rest = "http", said
    parts = urlsplit(f"//{rest}" if rest.count(":") < 2 or "[" in rest else f"//[{rest}]")
    try:
        port = parts.port
    except ValueError:
        port = None
    name = parts.hostname or "127.0.0.1"
    name = EVERY_ADDRESS.get(name, name)
    default = PORTS.get(scheme, DEFAULT_PORT) if separator else DEFAULT_PORT
    address = f"[{name}]" if ":" in name else name
    return f"{scheme}://{address}:{port or default}{parts.path.rstrip('/')}"


@dataclass(frozen=True)
class ModelSource:
    """What an Ollama model is made of.

    Attributes:
        gguf_path: the weights.
        template: the Go template; None leaves the choice to Ollama, which no model that is served should do.
        system: the system prompt that a chat without one gets.
        parameters: `stop` (a list), `num_ctx`, `temperature`, `repeat_penalty` and the like.
    """

    gguf_path: Path
    template: str | None = None
    system: str | None = None
    parameters: dict[str, Any] | None = None

    def as_json(self, digest: str) -> dict[str, Any]:
        body: dict[str, Any] = {"files": {self.gguf_path.name: digest}}
        said = {"template": self.template, "system": self.system, "parameters": self.parameters}
        return body | {name: value for name, value in said.items() if value}


class OllamaServer:
    """A server that runs already.

    Args:
        host: as `ollama_url` takes it.
        transport: in place of the network, for tests.
    """

    def __init__(self, host: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = ollama_url(host)
        timeout = httpx.Timeout(SECONDS_TO_ANSWER, connect=SECONDS_TO_CONNECT)
        self._client = httpx.Client(base_url=self.url, timeout=timeout, trust_env=False, transport=transport)

    def version(self) -> str:
        return str(self._last("GET", "/api/version").get("version", ""))

    def create(self, model: str, source: ModelSource, events: Events | None = None) -> None:
        """Make or replace `model`; the GGUF is sent only if the server does not have it yet."""
        digest = f"sha256:{sha256_of_file(source.gguf_path)}"
        self._upload(source.gguf_path, digest, events or Events())
        last = self._last("POST", "/api/create", {"model": model, **source.as_json(digest)})
        if last.get("status") != "success":
            raise self._refused("POST /api/create", f"it ended with {last}, not with success")

    def show(self, model: str) -> dict[str, Any]:
        """What the server knows of `model`: among others `template`, `system` and `parameters`, as text."""
        return self._last("POST", "/api/show", {"model": model})

    def delete(self, model: str) -> None:
        self._last("DELETE", "/api/delete", {"model": model})

    def unload(self, model: str) -> None:
        """Free the memory that `model` takes."""
        self._last("POST", "/api/generate", {"model": model, "keep_alive": 0})

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The last message of the stream of `/api/chat`, with the whole text as its `message.content`.

        Raises:
            EngineError: the server reports an error, or the stream ends before it says that it is done.
        """
        text, last = "", {}
        for last in self._stream("POST", "/api/chat", {**body, "stream": True}):
            text += (last.get("message") or {}).get("content") or ""
        if not last.get("done"):
            raise self._refused("POST /api/chat", "the answer broke off before its end")
        return {**last, "message": {**(last.get("message") or {}), "content": text}}

    def close(self) -> None:
        self._client.close()

    def _upload(self, path: Path, digest: str, events: Events) -> None:
        place = f"/api/blobs/{digest}"
        if self._send("HEAD", place).status_code == httpx.codes.OK:
            return
        size = path.stat().st_size
        content = chunks(path, events.progress("bytes", size))
        response = self._send("POST", place, content=content, headers={"Content-Length": str(size)})
        if response.status_code not in (httpx.codes.OK, httpx.codes.CREATED):
            raise self._refused(f"POST {place}", quoted(response.text) or f"status {response.status_code}")

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, **request)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _last(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The last message of an answer, which may be the only one; {} where the answer is empty."""
        return [{}, *self._stream(method, path, body)][-1]

    def _stream(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        where = f"{method} {path}"
        try:
            with self._client.stream(method, path, json=body) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise self._refused(where, error_of(response.text) or f"status {response.status_code}")
                for line in response.iter_lines():
                    yield from self._message(where, line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _message(self, where: str, line: str) -> Iterator[dict[str, Any]]:
        if not line.strip():
            return
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise self._refused(where, f"it answered {quoted(line)!r}, which is no JSON object")
        if message.get("error"):
            raise self._refused(where, quoted(str(message["error"])))
        yield message

    def _refused(self, where: str, found: str) -> EngineError:
        return EngineError(f"Ollama at {self.url}, {where}", found)

    def _unreachable(self, error: httpx.HTTPError) -> EngineError | EnvironmentLackError:
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol)):
            return EnvironmentLackError(
                f"Ollama at {self.url}",
                "nothing answers there",
                mend=f"Start it with `ollama serve`, or set {HOST_VARIABLE} to where it listens.",
            )
        return EngineError(f"Ollama at {self.url}", f"the connection broke ({type(error).__name__}: {error})")


def chunks(path: Path, progress: Progress) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(UPLOAD_BYTES):
            yield chunk
            progress.advance(len(chunk))


def error_of(text: str) -> str:
    """The error that a body states, else the body's begin."""
    try:
        data = json.loads(text)
    except ValueError:
        return quoted(text)
    return quoted(str(data["error"] if isinstance(data, dict) and data.get("error") else text))


def quoted(text: str) -> str:
    return " ".join(text.split())[:LONGEST_QUOTE]

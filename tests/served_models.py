"""Servers for tests of served models: llama.cpp's own, with its OpenAI-compatible API, and what may stand before it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from gguf_surgery import Gguf, rewrite
from tunewright.artifacts import read_json
from tunewright.engines.llama_cpp import start_llama_cpp_server
from tunewright.models.gguf_header import read_gguf_header
from tunewright.models.gguf_tensors import gguf_names, interleaved_rows, rotary_heads

Body = dict[str, Any]
Weights = dict[str, NDArray[np.float32]]
NAME = "tunewright"


@contextmanager
def llama_cpp(gguf: Path, n_ctx: int = 512, chat_template: str | None = None) -> Iterator[str]:
    """The address of a server of this file."""
    server = start_llama_cpp_server(gguf, n_ctx, alias=NAME, chat_template=chat_template)
    try:
        yield server.address
    finally:
        server.close()


@contextmanager
def changing(url: str, change: Callable[[Body], object]) -> Iterator[str]:
    """The address of a proxy that changes every request before it reaches the server at `url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            change(body)
            answer = httpx.post(url + self.path, json=body, timeout=60, trust_env=False)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}"
        finally:
            proxy.shutdown()


def weights_of(checkpoint: Path) -> Weights:
    return {name: tensor.float().numpy() for name, tensor in load_file(checkpoint / "model.safetensors").items()}


def write_with_weights(gguf: Path, checkpoint: Path, weights: Weights, out: Path) -> Path:
    """The same GGUF with other weights, in the order that llama.cpp has them."""
    names = gguf_names(read_gguf_header(gguf), list(weights))
    config = read_json(checkpoint / "config.json")

    def change(taken: Gguf) -> None:
        for name, values in weights.items():
            heads = rotary_heads(name, config)
            ordered = values if heads is None else values[interleaved_rows(len(values), heads)]
            if values.ndim == 2:
                taken.encode(names[name], ordered)
            else:
                taken.change(names[name], lambda _, ordered=ordered: ordered.astype(np.float32))  # type: ignore[misc]

    rewrite(gguf, change, out)
    return out

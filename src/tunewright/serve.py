"""Serve a run's GGUF behind llama.cpp's OpenAI-compatible server, with the prompt that was trained.

A client that sends no system prompt gets the trained one: the server's template is the trained template with that
system prompt put in front where the first message is none.
"""

import json
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tunewright.artifacts import RunDirectory, read_json
from tunewright.engines.llama_cpp import LlamaCppServer, start_llama_cpp_server
from tunewright.errors import EngineError, EnvironmentLackError, UsageError

LEAST_CONTEXT = 2048


@dataclass(frozen=True)
class Served:
    """What is served: the GGUF, the template, the trained system prompt (None for none), and the context in tokens."""

    gguf_path: Path
    chat_template: str
    system_prompt: str | None
    n_ctx: int

    @property
    def template_with_system(self) -> str:
        if self.system_prompt is None:
            return self.chat_template
        system = json.dumps(self.system_prompt, ensure_ascii=False)
        return (
            "{%- if not messages or messages[0]['role'] != 'system' -%}"
            f"{{%- set messages = [{{'role': 'system', 'content': {system}}}] + messages -%}}"
            "{%- endif -%}" + self.chat_template
        )


def what_to_serve(run: RunDirectory, gguf_format: str | None) -> Served:
    """The GGUF of a finished run; `UsageError` if the run has no such export."""
    run.require_manifest("export")
    files = run.gguf_files
    name = gguf_format or next(iter(files), "")
    if name not in files:
        raise UsageError(str(run / "export"), f"there is no GGUF {name!r}", expected=" | ".join(files) or "an export")
    template = read_json(run / "tokens" / "template.json")
    context = max(LEAST_CONTEXT, -(-(template["longest_row_tokens"] + 512) // 512) * 512)
    return Served(files[name], template["chat_template"], template["shared_system_prompt"], context)


def start(served: Served, port: int, api_key: str | None) -> LlamaCppServer:
    """The running server on 127.0.0.1:`port`; 0 takes a free port.

    Raises:
        EnvironmentLackError: the port is in use.
    """
    validate_port_free(port)
    return start_llama_cpp_server(
        served.gguf_path,
        served.n_ctx,
        port=port,
        alias=served.gguf_path.parent.parent.name,
        api_key=api_key,
        chat_template=served.template_with_system,
    )


def validate_port_free(port: int) -> None:
    if port == 0 or is_free(port):
        return
    free = next((other for other in range(port + 1, min(port + 100, 65536)) if is_free(other)), 0)
    raise EnvironmentLackError(
        f"127.0.0.1:{port}", "the port is in use", mend=f"Stop what listens there, or pass --port {free}."
    )


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def new_api_key() -> str:
    return secrets.token_urlsafe(24)


def stream_answer(url: str, api_key: str | None, messages: list[dict[str, str]]) -> Iterator[str]:
    """The pieces of the server's greedy answer to `messages`, as they come."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    body = {"messages": messages, "temperature": 0, "stream": True}
    with (
        httpx.Client(base_url=url, timeout=600, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response,
    ):
        if response.status_code != httpx.codes.OK:
            response.read()
            raise EngineError(url, f"the server answered {response.status_code}: {response.text[:200]}")
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                piece = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if piece:
                    yield piece

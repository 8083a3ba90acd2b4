"""llama.cpp: a GGUF file behind llama.cpp's own server, in a process of its own, on a loopback port.

The prompt is rendered by llama.cpp from the template inside the GGUF and tokenized by llama.cpp, so that what is
compared is what a user of the file would get.
"""

import contextlib
import json
import subprocess
import sys
import weakref
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

import httpx

from tunewright.chat.prompt import Prompt
from tunewright.chat.stops import without_stops
from tunewright.engines.interface import TopLogprobs
from tunewright.errors import EngineError, EnvironmentLackError

SECONDS_TO_ANSWER = 600
SECONDS_TO_END = 10
PROCESS = "tunewright.engines.llama_cpp_process"
FORCED = 1000.0  # A bias that no other token's logit comes near.


class LlamaCppServer:
    """llama.cpp's server in a process of its own, which ends with `close`, with this object, or with this process.

    Attributes:
        address: its URL, on 127.0.0.1.
    """

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.address = address
        self._process = process
        self.close = weakref.finalize(self, end, process)

    def validate_running(self) -> None:
        """Raise `EngineError` if llama.cpp has ended."""
        code = self._process.poll()
        if code is not None:
            raise EngineError(self.address, f"llama.cpp ended with code {code}", mend="Start it again.")


def end(process: subprocess.Popen[str]) -> None:
    """Let go of its stdin, at which it ends; one that is too deep in an answer to see that is killed."""
    with process:
        cast(IO[str], process.stdin).close()
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()


def start_llama_cpp_server(
    gguf_path: Path,
    n_ctx: int,
    port: int = 0,
    alias: str = "tunewright",
    api_key: str | None = None,
    chat_template: str | None = None,
) -> LlamaCppServer:
    """A running llama.cpp server on 127.0.0.1.

    Args:
        n_ctx: context in tokens.
        port: 0 takes a free one.
        alias: the model name that the OpenAI-compatible API states.
        api_key: required of every client if given.
        chat_template: takes the place of the template in the GGUF if given.

    Raises:
        EnvironmentLackError: xllamacpp is not installed.
        EngineError: llama.cpp does not load the file.
    """
    if find_spec("xllamacpp") is None:
        raise EnvironmentLackError(
            "llama.cpp", "xllamacpp is not installed", mend="Run `pip install xllamacpp`, then this command again."
        )
    settings = {
        "gguf_path": str(gguf_path),
        "n_ctx": n_ctx,
        "port": port,
        "alias": alias,
        "api_key": api_key,
        "chat_template": chat_template,
    }
    command = [sys.executable, "-P", "-m", PROCESS]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    stdin, stdout = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
    with contextlib.suppress(BrokenPipeError):
        stdin.write(json.dumps(settings) + "\n")
        stdin.flush()
    answer = stdout.readline()
    if not answer:
        end(process)
        found = f"llama.cpp ended with code {process.returncode} while it loaded the file"
        raise EngineError(str(gguf_path), found, mend="Export it again.")
    said = json.loads(answer)
    if "error" in said:
        end(process)
        raise EngineError(str(gguf_path), f"llama.cpp does not load it ({said['error']})", mend="Export it again.")
    return LlamaCppServer(process, said["address"])


class LlamaCppEngine:
    """A GGUF file in llama.cpp.

    Args:
        gguf_path: the model.
        name: for tables and messages.
        n_ctx: context in tokens; a prompt with its answer has to fit.
    """

    def __init__(self, gguf_path: Path, name: str, n_ctx: int) -> None:
        self.name = name
        self.server = start_llama_cpp_server(gguf_path, n_ctx)
        self.url = self.server.address
        self._client = httpx.Client(base_url=self.url, timeout=SECONDS_TO_ANSWER, trust_env=False)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return self.tokenize(self._post("/apply-template", prompt.request())["prompt"])

    def score(self, prompt_ids: Sequence[int], answer_ids: Sequence[int], top_k: int) -> list[TopLogprobs]:
        return [self._next_token([*prompt_ids, *answer_ids[:position]], top_k) for position in range(len(answer_ids))]

    def greedy(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        return [self._complete(list(prompt), max_new_tokens)["tokens"] for prompt in prompts]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._post("/detokenize", {"tokens": without_stops(ids, self.stop_ids)})["content"])

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(self.tokenize(self._get("/props")["eos_token"]))

    def close(self) -> None:
        self._client.close()
        self.server.close()

    def tokenize(self, text: str) -> list[int]:
        """The ids of `text`, special tokens parsed and none added."""
        answer = self._post("/tokenize", {"content": text, "add_special": False, "parse_special": True})
        return [int(token) for token in answer["tokens"]]

    def _next_token(self, ids: list[int], top_k: int) -> TopLogprobs:
        """What may come next. Where the likeliest token is part of a character, llama.cpp holds its probabilities back.

        They come with any whole token in its place: they are taken from the model, before a bias.
        """
        found = self._complete(ids, 1, n_probs=top_k)
        if "completion_probabilities" not in found:
            found = self._complete(ids, 1, n_probs=top_k, logit_bias=[[min(self.stop_ids), FORCED]])
        (position,) = found["completion_probabilities"]
        top = position["top_logprobs"]
        return TopLogprobs(tuple(int(item["id"]) for item in top), tuple(float(item["logprob"]) for item in top))

    def _complete(self, ids: list[int], n_predict: int, n_probs: int = 0, **more: Any) -> dict[str, Any]:
        settings = {"temperature": 0, "return_tokens": True, "cache_prompt": True, "n_probs": n_probs, **more}
        return self._post("/completion", {"prompt": ids, "n_predict": n_predict, **settings})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._answer("POST", path, json=body)

    def _get(self, path: str) -> dict[str, Any]:
        return self._answer("GET", path)

    def _answer(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **request)
        except httpx.HTTPError as error:
            found = f"llama.cpp did not answer {path} ({type(error).__name__}: {error})"
            raise EngineError(self.name, found, mend="Run it again on a machine with less to do.") from None
        if response.status_code != httpx.codes.OK:
            raise EngineError(self.name, f"llama.cpp answered {response.status_code}: {response.text[:200]}")
        answer: dict[str, Any] = response.json()
        return answer

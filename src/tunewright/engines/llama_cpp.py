"""llama.cpp: a GGUF file behind llama.cpp's own server, in process, on a free loopback port.

The prompt is rendered by llama.cpp from the template inside the GGUF and tokenized by llama.cpp, so that what is
compared is what a user of the file would get.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from tunewright.chat.prompt import Prompt
from tunewright.chat.stops import without_stops
from tunewright.engines.interface import TopLogprobs
from tunewright.errors import EngineError, EnvironmentLackError

SECONDS_TO_ANSWER = 600
SILENT = -1
FORCED = 1000.0  # A bias that no other token's logit comes near.


def start_llama_cpp_server(
    gguf_path: Path,
    n_ctx: int,
    port: int = 0,
    alias: str = "tunewright",
    api_key: str | None = None,
    chat_template: str | None = None,
) -> Any:
    """A running llama.cpp server on 127.0.0.1; it stops when the object goes away.

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
    try:
        import xllamacpp
    except ImportError:
        raise EnvironmentLackError(
            "llama.cpp", "xllamacpp is not installed", mend="Run `pip install xllamacpp`, then this command again."
        ) from None
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf_path)
    params.model_alias = {alias}
    params.hostnames = ["127.0.0.1"]
    params.port, params.n_ctx, params.n_parallel = port, n_ctx, 1
    params.warmup, params.verbosity, params.use_jinja = False, SILENT, True
    threads = min(os.cpu_count() or 1, 8)
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads
        cpu.poll = 0  # Spinning threads starve everything else on a machine whose cores are all in use.
    if api_key:
        params.api_keys = [api_key]
    if chat_template:
        params.chat_template = chat_template
    try:
        return xllamacpp.Server(params)
    except (RuntimeError, ValueError) as error:
        raise EngineError(str(gguf_path), f"llama.cpp does not load it ({error})", mend="Export it again.") from None


class LlamaCppEngine:
    """A GGUF file in llama.cpp.

    Args:
        gguf_path: the model.
        name: for tables and messages.
        n_ctx: context in tokens; a prompt with its answer has to fit.
    """

    def __init__(self, gguf_path: Path, name: str, n_ctx: int) -> None:
        self.name = name
        self._server: Any = start_llama_cpp_server(gguf_path, n_ctx)
        self.url = str(self._server.listening_address)
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
        self._server = None

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

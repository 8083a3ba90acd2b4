"""Any OpenAI-compatible endpoint: llama.cpp's server, vLLM, Ollama's `/v1`, or a service with a key.

It shows text, the prompt's number of tokens, and where offered the likeliest tokens as text. Always: the key comes from
an environment variable, goes into a header, and stands in no message.
API: https://platform.openai.com/docs/api-reference/chat
"""

import os
from typing import Any
from urllib.parse import urlsplit

import httpx

from tunewright.chat.conversation import Message, ToolCall
from tunewright.chat.prompt import Prompt
from tunewright.engines.interface import ShownAnswer, ShownToken
from tunewright.errors import EngineError, EnvironmentLackError

SECONDS_TO_CONNECT = 5
SECONDS_TO_ANSWER = 600
LONGEST_QUOTE = 300
GREEDY = {"temperature": 0, "seed": 0}
# What servers answer to a request for log-probabilities that they do not have.
NOT_OFFERED = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY, httpx.codes.NOT_IMPLEMENTED)


class OpenAIEngine:
    """One model of an endpoint.

    Args:
        base_url: up to and with `/v1`.
        model: its name there.
        name: for tables and messages.
        key_variable: the environment variable that holds the key, if the endpoint asks for one.
        transport: in place of the network, for tests.

    Raises:
        EnvironmentLackError: the variable is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        name: str,
        key_variable: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self._key = key_in(key_variable) if key_variable else ""
        self._length = "max_tokens"
        parts = urlsplit(base_url)
        self._shown_url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx.Timeout(SECONDS_TO_ANSWER, connect=SECONDS_TO_CONNECT)
        self._client = httpx.Client(
            base_url=base_url, headers=headers, timeout=timeout, trust_env=False, transport=transport
        )

    def prompt_tokens(self, prompt: Prompt) -> int:
        count = (self._chat(prompt, 1).get("usage") or {}).get("prompt_tokens")
        if not count:
            raise self._failed("it does not say how many tokens the prompt has", mend="Use an endpoint with `usage`.")
        return int(count)

    def answer(self, prompt: Prompt, max_new_tokens: int, seed: int = 0) -> str:
        return text_of(self._choice(self._chat(prompt, max_new_tokens, seed=seed))["message"])

    def shown_answer(self, prompt: Prompt, max_new_tokens: int, top_k: int) -> ShownAnswer | None:
        response = self._ask(prompt, max_new_tokens, logprobs=True, top_logprobs=top_k)
        if response.status_code in NOT_OFFERED:
            return None
        choice = self._choice(self._read(response))
        positions = (choice.get("logprobs") or {}).get("content")
        if not positions or not all(position.get("top_logprobs") for position in positions):
            return None
        tokens = (
            ShownToken(
                position["token"],
                tuple(top["token"] for top in position["top_logprobs"]),
                tuple(float(top["logprob"]) for top in position["top_logprobs"]),
            )
            for position in positions
        )
        return ShownAnswer(text_of(choice["message"]), tuple(tokens))

    def close(self) -> None:
        self._client.close()

    def _chat(self, prompt: Prompt, max_new_tokens: int, **more: Any) -> dict[str, Any]:
        return self._read(self._ask(prompt, max_new_tokens, **more))

    def _ask(self, prompt: Prompt, max_new_tokens: int, **more: Any) -> httpx.Response:
        body = {"model": self.model, **prompt.request(), **GREEDY, **more}
        response = self._post({**body, self._length: max_new_tokens})
        if response.status_code == httpx.codes.BAD_REQUEST and "max_completion_tokens" in response.text:
            self._length = "max_completion_tokens"  # what newer models of OpenAI's own call it
            response = self._post({**body, self._length: max_new_tokens})
        return response

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code != httpx.codes.OK:
            raise self._failed(f"it answered {response.status_code}: {self._quoted(response.text)}")
        try:
            data = response.json()
        except ValueError:
            data = None
        if not isinstance(data, dict) or data.get("error"):
            raise self._failed(f"it answered {self._quoted(response.text)!r}")
        return data

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        try:
            return self._client.post("chat/completions", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol):
            raise EnvironmentLackError(
                self._where, "nothing answers there", mend="Start the server, or correct its address."
            ) from None
        except httpx.HTTPError as error:
            raise self._failed(f"the connection broke ({type(error).__name__}: {self._quoted(str(error))})") from None

    def _choice(self, data: dict[str, Any]) -> dict[str, Any]:
        choices = data.get("choices")
        if not choices or "message" not in choices[0]:
            raise self._failed("its answer has no choices[0].message")
        choice: dict[str, Any] = choices[0]
        return choice

    def _quoted(self, text: str) -> str:
        """The begin of `text`, in which a server may repeat the key."""
        hidden = text.replace(self._key, "***") if self._key else text
        return " ".join(hidden.split())[:LONGEST_QUOTE]

    @property
    def _where(self) -> str:
        return f"{self.name} at {self._shown_url}"

    def _failed(self, found: str, mend: str = "") -> EngineError:
        return EngineError(self._where, found, mend=mend)


def key_in(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EnvironmentLackError(
            variable, "it is not set", expected="the endpoint's key", mend=f"Run `export {variable}=…`."
        )
    return key


def text_of(message: dict[str, Any]) -> str:
    """An assistant's message as text, its calls of tools among it."""
    functions = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    calls = tuple(ToolCall(str(function.get("name")), str(function.get("arguments"))) for function in functions)
    return Message("assistant", message.get("content") or "", tool_calls=calls).text

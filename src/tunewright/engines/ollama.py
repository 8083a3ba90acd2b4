"""Ollama: a model on an Ollama server, which shows text and the number of tokens of a prompt, but no ids.

The prompt is rendered by Ollama from its own Go template and tokenized by Ollama. Always: the count that is returned is
of the whole prompt, also on versions that leave out what their cache already holds.
"""

import json
from functools import cached_property
from typing import Any

from tunewright.chat.conversation import Message, ToolCall
from tunewright.chat.prompt import Prompt
from tunewright.chat.template import parse_tools
from tunewright.engines.ollama_server import OllamaServer
from tunewright.errors import EngineError

# Greedy, and nothing that changes probabilities: Ollama's default repeat penalty of 1.1 changes even greedy answers.
GREEDY = {"temperature": 0, "repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
PROBE = {"messages": [{"role": "user", "content": "How many tokens are these?"}]}


class OllamaEngine:
    """A model that the server has.

    Args:
        server: where it is; it stays the caller's.
        model: its name there.
        name: for tables and messages.
        n_ctx: context in tokens; a prompt with its answer has to fit, else Ollama drops messages without a word.
            None leaves the context to the model, as clients do.
    """

    def __init__(self, server: OllamaServer, model: str, name: str, n_ctx: int | None) -> None:
        self.server = server
        self.model = model
        self.name = name
        self.n_ctx = n_ctx

    def prompt_tokens(self, prompt: Prompt) -> int:
        if not self.counts_cached_tokens:
            self.server.unload(self.model)
        count = self._count(request_of(prompt))
        if count is None:
            raise EngineError(self.name, "Ollama does not say how many tokens the prompt has")
        if self.n_ctx is not None and count >= self.n_ctx:
            raise EngineError(self.name, f"the prompt fills the context of {self.n_ctx} tokens", mend="Raise num_ctx.")
        return count

    def answer(self, prompt: Prompt, max_new_tokens: int, seed: int = 0) -> str:
        message = self._chat(request_of(prompt), max_new_tokens, seed)["message"]
        functions = [call.get("function") or {} for call in message.get("tool_calls") or ()]
        calls = tuple(
            ToolCall(str(function.get("name")), json.dumps(function.get("arguments"), ensure_ascii=False))
            for function in functions
        )
        return Message("assistant", message["content"], tool_calls=calls).text

    def shown_answer(self, prompt: Prompt, max_new_tokens: int, top_k: int) -> None:
        """None: Ollama's own API does not offer them in every version; `/v1` may, as an OpenAI-compatible endpoint."""

    @cached_property
    def counts_cached_tokens(self) -> bool:
        """Whether a prompt that was just seen has the same count again; some versions count only what is new."""
        self.server.unload(self.model)
        return self._count(PROBE) == self._count(PROBE)

    def close(self) -> None:
        self.server.unload(self.model)

    def _count(self, request: dict[str, Any]) -> int | None:
        count = self._chat(request, 1).get("prompt_eval_count")
        return int(count) if count else None

    def _chat(self, request: dict[str, Any], num_predict: int, seed: int = 0) -> dict[str, Any]:
        options: dict[str, Any] = {**GREEDY, "num_predict": num_predict, "seed": seed}
        if self.n_ctx is not None:
            options["num_ctx"] = self.n_ctx
        return self.server.chat({"model": self.model, **request, "options": options})


def request_of(prompt: Prompt) -> dict[str, Any]:
    """`messages` and `tools` as `/api/chat` takes them: arguments are objects, reasoning is called thinking."""
    body: dict[str, Any] = {"messages": [message_of(message) for message in prompt.messages]}
    if prompt.tools is not None:
        body["tools"] = parse_tools(prompt.tools)
    return body


def message_of(message: Message) -> dict[str, Any]:
    data = message.for_template()
    renamed = {"reasoning_content": "thinking", "name": "tool_name"}
    return {renamed.get(key, key): value for key, value in data.items()} | {"content": message.content or ""}

"""What every engine offers: the ids of a prompt, the scores of an answer, and greedy text.

An engine is whatever turns a conversation into ids, scores and text: HF in process, llama.cpp. Servers that show
neither ids nor scores, such as Ollama and OpenAI-compatible endpoints, are a `TextEngine`: they count the prompt and
answer it. `verify` and `evaluate` see nothing but this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tunewright.chat.prompt import Prompt


@dataclass(frozen=True)
class TopLogprobs:
    """The likeliest next tokens at one position, likeliest first.

    Attributes:
        ids: token ids.
        logprobs: natural logarithms of their probabilities under the whole vocabulary, float32 precision.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def lead(self) -> float:
        """How far the first choice is ahead of the second, in nats."""
        return self.logprobs[0] - self.logprobs[1]


@dataclass(frozen=True)
class ShownToken:
    """One position of an answer as a server shows it.

    Attributes:
        text: of the token that the server took.
        top: the texts of the likeliest tokens, as the server lists them.
        logprobs: natural logarithms of their probabilities.
    """

    text: str
    top: tuple[str, ...]
    logprobs: tuple[float, ...]

    @property
    def is_likeliest(self) -> bool:
        """Whether no other token is listed as likelier; so it is said of a token that is not listed, too."""
        taken = [logprob for text, logprob in zip(self.top, self.logprobs, strict=True) if text == self.text]
        return not taken or max(taken) >= max(self.logprobs)


@dataclass(frozen=True)
class ShownAnswer:
    """A greedy answer as text and token by token. Asked for apart, it may leave another one at a near tie."""

    text: str
    tokens: tuple[ShownToken, ...]


class Engine(Protocol):
    """One loaded model; `name` says which artifact in which program, as `merged, Hugging Face`."""

    name: str

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The ids that the engine sends to the model, ending where the answer begins."""

    def score(self, prompt_ids: Sequence[int], answer_ids: Sequence[int], top_k: int) -> list[TopLogprobs]:
        """For each position of `answer_ids`, the top-k next-token log-probabilities given everything before it."""

    def greedy(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """The greedy continuation of each prompt, with the stop token if one ended it."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without the stop tokens at its end; other special tokens are written out."""

    def close(self) -> None:
        """Free the model; the engine cannot be used afterwards."""


class TextEngine(Protocol):
    """A model behind a server that shows text and counts, but no ids; `name` as in `Engine`."""

    name: str

    def prompt_tokens(self, prompt: Prompt) -> int:
        """How many tokens the engine sends to the model, ending where the answer begins."""

    def answer(self, prompt: Prompt, max_new_tokens: int, seed: int = 0) -> str:
        """The greedy answer, without the stop token that ended it. A greedy answer is the same for every seed."""

    def shown_answer(self, prompt: Prompt, max_new_tokens: int, top_k: int) -> ShownAnswer | None:
        """The greedy answer token by token, with the likeliest ones; None where the server does not offer that."""

    def close(self) -> None:
        """Let go of the model; the engine cannot be used afterwards."""

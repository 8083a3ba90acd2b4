"""Base and tuned side by side, from one model in memory: its adapter is on for the one and off for the other.

In: a base with an adapter, and a prompt for each side. Out: both greedy answers, a token of each at a time.
Always: the two differ in the adapter alone, come at the same pace, and need the memory of one model.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from tunewright.chat.prompt import Prompt
from tunewright.chat.supervise import Supervisor

Side = Literal["base", "tuned"]
SIDES: tuple[Side, ...] = ("base", "tuned")
# A character that is cut in two: the rest of it comes with the next token.
HALF_CHARACTER = "\ufffd"


@dataclass
class Answer:
    """The answer of one side as it grows.

    Attributes:
        due: the ids that the model has not seen yet.
        cache: what it remembers of those before.
        ids: the answer so far.
        text: what of it was handed out.
    """

    side: Side
    due: list[int]
    cache: Any = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    is_over: bool = False


class SideBySide:
    """A model that is already in memory.

    Args:
        model: a base with an adapter as peft loads them, in evaluation mode.
        supervisor: the tokenizer, the trained template and the stop tokens.
    """

    def __init__(self, model: Any, supervisor: Supervisor) -> None:
        self.model = model
        self.supervisor = supervisor

    def answers(self, prompts: Mapping[Side, Prompt], max_new_tokens: int) -> Iterator[dict[Side, str]]:
        """What each side adds to its answer, step by step; a side whose answer is over adds nothing."""
        growing = [Answer(side, self.supervisor.prompt_ids(prompts[side])) for side in SIDES]
        while under_way := [answer for answer in growing if not answer.is_over]:
            for answer in under_way:
                self._grow(answer, max_new_tokens)
            yield {answer.side: self._piece(answer) for answer in under_way}

    @torch.inference_mode()
    def _grow(self, answer: Answer, max_new_tokens: int) -> None:
        with nullcontext() if answer.side == "tuned" else self.model.disable_adapter():
            output = self.model(
                input_ids=torch.tensor([answer.due], device=self.model.device),
                past_key_values=answer.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        token = int(output.logits[0, -1].argmax())
        answer.cache, answer.due = output.past_key_values, [token]
        answer.ids.append(token)
        answer.is_over = token in self.supervisor.stop_ids or len(answer.ids) >= max_new_tokens

    def _piece(self, answer: Answer) -> str:
        """What the answer has grown by. Bytes that are no text may read otherwise later; what was said stays said."""
        whole = self.supervisor.decode(answer.ids)
        if not answer.is_over:
            whole = whole.rstrip(HALF_CHARACTER)
        new = whole[len(answer.text) :]
        answer.text += new
        return new

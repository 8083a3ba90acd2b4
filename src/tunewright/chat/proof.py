"""What is proven of a row before it is trained on, as data.

    (a) the ids of the prompt are exactly the ids before the supervised span: training equals inference
    (b) the span decodes to the assistant's own content and its end of turn
    (c) no token of another role is supervised
    (d) the end-of-turn token is supervised, and generation stops on it
    (e) there is one BOS at most where the text begins
    (f) no message was lost or changed by the template

A row has a proof only if all six hold; what had to be handled on the way stands in its notes. Where one does not hold
there is no row, and `UnprovenError` says which and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.chat.conversation import Message
from tunewright.chat.forms import PLAIN, Form
from tunewright.chat.variables import Variables
from tunewright.errors import RenderError

CLAIMS = ("a", "b", "c", "d", "e", "f")
TEMPLATE_REFUSES = "template"


@dataclass(frozen=True)
class Proof:
    """The proof of one row.

    Attributes:
        prompt_tokens: for each supervised span, how many ids the prompt before it has.
        span_tokens: how many ids each span has.
        stop_tokens: the end-of-turn token of each span.
        bos: how many BOS tokens the row has; None where the tokenizer has none.
        parts: how many parts of messages were found in their places.
        variables: what the template was told beside the messages, in training and at inference.
        form: in which the template was given the messages.
        notes: what the template does to the messages that loses nothing for the answer, in sentences.
    """

    prompt_tokens: tuple[int, ...]
    span_tokens: tuple[int, ...]
    stop_tokens: tuple[str, ...]
    bos: int | None
    parts: int
    variables: Variables = ()
    form: Form = PLAIN
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        claims = {claim: {"verdict": "proven", "reason": reason} for claim, reason in self._reasons().items()}
        return {**claims, "variables": dict(self.variables), "notes": list(self.notes)}

    def _reasons(self) -> dict[str, str]:
        prompts = joined(self.prompt_tokens)
        stops = joined(tuple(dict.fromkeys(self.stop_tokens)))
        bos = "the tokenizer has no BOS" if self.bos is None else f"{self.bos} BOS, none doubled at the start"
        return {
            "a": f"the prompt's {prompts} ids are the ids before the span",
            "b": f"{joined(self.span_tokens)} supervised ids decode to the answer and its end of turn",
            "c": "every supervised id stands within an assistant's turn that is learned",
            "d": f"{stops} is supervised and stops generation",
            "e": bos,
            "f": f"{self.parts} parts of messages stand in the text, whole",
        }


def joined(items: Sequence[Any]) -> str:
    return ", ".join(str(item) for item in items)


class UnprovenError(Exception):
    """A claim that does not hold.

    Args:
        claim: its letter, or `TEMPLATE_REFUSES`.
        found: what was found instead; `{text}` stands for the beginning of the message.
        message: index of the message that it is about.
        expected, mend: as in `TunewrightError`.
    """

    def __init__(
        self, claim: str, found: str, message: int | None = None, expected: str = "", mend: str = "Leave the row out."
    ) -> None:
        super().__init__(claim, found, message, expected, mend)
        self.claim, self.found, self.message, self.expected, self.mend = claim, found, message, expected, mend

    def of(self, row_id: str, messages: Sequence[Message]) -> RenderError:
        """The error that names the row."""
        if self.message is None:
            return RenderError(row_id, self.found, self.expected, self.mend, self.claim)
        text = repr(messages[self.message].text.strip()[:40])
        found = self.found.replace("{text}", text)
        return RenderError(f"{row_id}: message {self.message}", found, self.expected, self.mend, self.claim)

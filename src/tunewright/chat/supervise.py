"""Which tokens of a conversation are learned, by construction from the chat template, and the proof of it.

For each assistant's turn that is learned, the template itself says where the turn begins: rendering the messages
before it with `add_generation_prompt` gives exactly what inference will send. The supervised span is the assistant's
content and its end-of-turn token. Nothing is searched for in the text.

A row comes out only if all of this holds; otherwise `RenderError` says what does not:

    (a) the ids of that prompt are exactly the ids before the supervised span: training equals inference
    (b) the span decodes to the assistant's own content and its end of turn
    (c) no token outside the spans of assistant turns is supervised
    (d) the end-of-turn token is supervised, and is among the base's stop tokens
    (e) there is one BOS at most
    (f) every message stands in the text, whole and in order

Where a template renders earlier turns differently once later ones follow, a conversation becomes one row for each
assistant's turn, each equal to what inference would see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunewright.chat.conversation import Conversation, Message
from tunewright.chat.places import Span, TokenPlaces, find_messages, message_openings
from tunewright.chat.template import ChatTemplate
from tunewright.errors import RenderError


@dataclass(frozen=True)
class SupervisedRow:
    """A row ready for training.

    Attributes:
        conversation: the conversation's id.
        ids: int32 [T], token ids.
        mask: bool [T], true where the token is learned.
        last_prompt_length: number of tokens before the last supervised span.
        message: index of the one message that is learned, where a conversation became several rows.
        places: which message each token belongs to; None for a row that was not made by a `Supervisor`.
    """

    conversation: str
    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    last_prompt_length: int
    message: int | None = None
    places: TokenPlaces | None = None

    @property
    def id(self) -> str:
        """The conversation's id, followed by `#MESSAGE` where the conversation became several rows."""
        return self.conversation if self.message is None else f"{self.conversation}#{self.message}"


class Encoded(NamedTuple):
    """Token ids and the characters of each."""

    ids: list[int]
    offsets: list[Span]


@dataclass(frozen=True)
class _Turn:
    """An assistant's turn in the text: where its prompt ends, and where its content ends."""

    message_index: int
    start: int
    content_end: int
    prompt: str


class Supervisor:
    """Turns conversations into proven rows, for one tokenizer, template and set of stop tokens.

    Args:
        tokenizer: a fast tokenizer, which gives character offsets.
        template: the base's chat template.
        stop_ids: the ids on which generation stops (`generation_config.eos_token_id` and the tokenizer's EOS).
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate, stop_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.stop_ids = stop_ids
        self._backend = plain_backend(tokenizer)
        self._openings = message_openings(template)

    def rows(self, conversation: Conversation) -> list[SupervisedRow]:
        """The proven rows of a conversation: one, or one for each assistant's turn.

        Raises:
            RenderError: the supervised tokens cannot be proven.
        """
        validate_provable(conversation)
        learned = [
            index
            for index, message in enumerate(conversation.messages)
            if message.role == "assistant" and message.train
        ]
        if not learned:
            raise RenderError(conversation.id, "no assistant's turn is to be learned", mend="Leave the row out.")
        try:
            return [self._row(conversation, conversation.messages, learned)]
        except RenderError:
            if len(learned) == 1:
                raise
        return [self._row(conversation, conversation.messages[: index + 1], [index], index) for index in learned]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids that inference sends for `messages`, ending where the answer begins."""
        return list(self._encode(self.template.render(messages, add_generation_prompt=True)).ids)

    def _row(
        self, conversation: Conversation, messages: tuple[Message, ...], learned: list[int], only: int | None = None
    ) -> SupervisedRow:
        row_id = conversation.id
        text = self.template.render(messages)
        turns = [self._turn(row_id, messages, text, index) for index in learned]
        kept = find_messages(row_id, messages, learned, text, self._openings)
        encoded = self._encode(text)
        ids, offsets = encoded.ids, encoded.offsets
        self._validate_one_bos(row_id, ids)
        mask = np.zeros(len(ids), dtype=np.bool_)
        spans = []
        for turn in turns:
            first, last = self._span(row_id, turn, ids, offsets)
            self._validate_span(row_id, messages[turn.message_index].text, turn, ids, first, last)
            mask[first:last] = True
            spans.append((turn.message_index, first, last))
        places = TokenPlaces(offsets, kept, tuple(spans))
        return SupervisedRow(conversation.id, np.array(ids, dtype=np.int32), mask, spans[-1][1], only, places)

    def _turn(self, row_id: str, messages: tuple[Message, ...], text: str, index: int) -> _Turn:
        prompt = self.template.render(messages[:index], add_generation_prompt=True)
        if not text.startswith(prompt):
            raise RenderError(
                f"{row_id}: message {index}",
                "the template renders the turns before the answer differently in training and at inference",
                mend="Leave the row out, or choose a base whose template can be proven.",
            )
        content = messages[index].text
        for candidate in (content, content.rstrip(), content.lstrip(), content.strip()):
            if candidate and text.startswith(candidate, len(prompt)):
                return _Turn(index, len(prompt), len(prompt) + len(candidate), prompt)
        raise RenderError(
            f"{row_id}: message {index}",
            f"after the prompt the template writes {text[len(prompt) : len(prompt) + 40]!r}",
            expected=f"the assistant's own text {content[:40]!r}",
            mend="Leave the row out, or choose a base whose template keeps the assistant's text.",
        )

    def _encode(self, text: str) -> Any:
        """The text's `ids` and `offsets`, exactly as the tokenizer gives them when it is called.

        The call of a transformers tokenizer is a call of its backend with much bookkeeping around it. The backend is
        asked directly where the call adds nothing: it is not overridden, and nothing is cut or filled up.
        """
        backend = self._backend
        if backend is not None and not (backend.truncation or backend.padding or backend.encode_special_tokens):
            return backend.encode(text, add_special_tokens=False)
        called = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Encoded(called["input_ids"], called["offset_mapping"])

    def _span(self, row_id: str, turn: _Turn, ids: list[int], offsets: list[tuple[int, int]]) -> tuple[int, int]:
        """First token of the content, and one past the end-of-turn token."""
        prompt_ids = self._encode(turn.prompt).ids
        first = len(prompt_ids)
        if ids[:first] != prompt_ids:
            raise RenderError(
                f"{row_id}: message {turn.message_index}",
                "the answer's first token joins the prompt's last one, so that inference sends other ids",
                mend="Leave the row out; an answer that begins with a space or newline often causes this.",
            )
        for position in range(first, len(ids)):
            if offsets[position][0] >= turn.content_end and ids[position] in self.stop_ids:
                return first, position + 1
            if offsets[position][0] > turn.content_end and ids[position] not in self.stop_ids:
                break
        raise RenderError(
            f"{row_id}: message {turn.message_index}",
            "no stop token follows the assistant's text",
            expected=f"one of {self.tokenizer.convert_ids_to_tokens(sorted(self.stop_ids))}",
            mend="Check eos_token_id in the base's generation_config.json.",
        )

    def _validate_span(self, row_id: str, content: str, turn: _Turn, ids: list[int], first: int, last: int) -> None:
        decoded = self.tokenizer.decode(ids[first : last - 1], clean_up_tokenization_spaces=False)
        if decoded.strip() != content.strip():
            raise RenderError(
                f"{row_id}: message {turn.message_index}",
                f"the supervised tokens decode to {decoded[:60]!r}",
                expected=f"the assistant's own text {content[:60]!r}",
                mend="Leave the row out: the tokenizer does not give this text back.",
            )

    def _validate_one_bos(self, row_id: str, ids: list[int]) -> None:
        bos = self.tokenizer.bos_token_id
        # ChatML bases name <|im_start|> as BOS, which opens every turn; only doubled openings are a fault.
        if bos is not None and ids[:2] == [bos, bos]:
            raise RenderError(row_id, "the text begins with two BOS tokens", expected="one")


def validate_provable(conversation: Conversation) -> None:
    """Raise where a conversation has more than the texts that the proof covers."""
    if conversation.tools is not None:
        raise not_provable(conversation.id, "tools are declared, which the prompt would not show")
    for index, message in enumerate(conversation.messages):
        where = f"{conversation.id}: message {index}"
        if message.tool_calls or message.role == "tool":
            raise not_provable(where, "a tool is called" if message.tool_calls else "a tool answers")
        if message.reasoning is not None:
            raise not_provable(
                where, "reasoning stands beside the text", "Set `reasoning: strip`, or leave the row out."
            )
        if not message.train_reasoning:
            raise not_provable(where, "reasoning is kept without being learned", "Set `reasoning: train` or `strip`.")


def not_provable(where: str, found: str, mend: str = "Leave the row out.") -> RenderError:
    return RenderError(where, f"{found}; this version proves turns of text alone", mend=mend)


def plain_backend(tokenizer: Any) -> Any:
    """The backend of a fast tokenizer whose call is transformers' own; None for one that does more."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    plain = PreTrainedTokenizerFast
    own = kind.__call__ is plain.__call__ and kind._encode_plus is plain._encode_plus
    return tokenizer.backend_tokenizer if own and not tokenizer.split_special_tokens else None

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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunewright.chat.conversation import Conversation, Message
from tunewright.chat.template import ChatTemplate
from tunewright.errors import RenderError


@dataclass(frozen=True)
class SupervisedRow:
    """A row ready for training.

    Attributes:
        id: the conversation's id; `id#k` where a conversation became several rows.
        ids: int32 [T], token ids.
        mask: bool [T], true where the token is learned.
        last_prompt_length: number of tokens before the last supervised span.
    """

    id: str
    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    last_prompt_length: int


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

    def rows(self, conversation: Conversation) -> list[SupervisedRow]:
        """The proven rows of a conversation: one, or one for each assistant's turn.

        Raises:
            RenderError: the supervised tokens cannot be proven.
        """
        learned = [
            index
            for index, message in enumerate(conversation.messages)
            if message.role == "assistant" and message.train
        ]
        if not learned:
            raise RenderError(conversation.id, "no assistant's turn is to be learned", mend="Leave the row out.")
        try:
            return [self._row(conversation.id, conversation.messages, learned)]
        except RenderError:
            if len(learned) == 1:
                raise
        return [
            self._row(f"{conversation.id}#{index}", conversation.messages[: index + 1], [index]) for index in learned
        ]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids that inference sends for `messages`, ending where the answer begins."""
        return self._tokenize(self.template.render(messages, add_generation_prompt=True))[0]

    def _row(self, row_id: str, messages: tuple[Message, ...], learned: list[int]) -> SupervisedRow:
        text = self.template.render(messages)
        turns = [self._turn(row_id, messages, text, index) for index in learned]
        validate_messages_kept(row_id, messages, learned, text)
        ids, offsets = self._tokenize(text)
        self._validate_one_bos(row_id, ids)
        mask = np.zeros(len(ids), dtype=np.bool_)
        first = 0
        for turn in turns:
            first, last = self._span(row_id, turn, ids, offsets)
            self._validate_span(row_id, messages[turn.message_index].content, turn, ids, first, last)
            mask[first:last] = True
        return SupervisedRow(row_id, np.array(ids, dtype=np.int32), mask, first)

    def _turn(self, row_id: str, messages: tuple[Message, ...], text: str, index: int) -> _Turn:
        prompt = self.template.render(messages[:index], add_generation_prompt=True)
        if not text.startswith(prompt):
            raise RenderError(
                f"{row_id}: message {index}",
                "the template renders the turns before the answer differently in training and at inference",
                mend="Leave the row out, or choose a base whose template can be proven.",
            )
        content = messages[index].content
        for candidate in (content, content.rstrip(), content.lstrip(), content.strip()):
            if candidate and text.startswith(candidate, len(prompt)):
                return _Turn(index, len(prompt), len(prompt) + len(candidate), prompt)
        raise RenderError(
            f"{row_id}: message {index}",
            f"after the prompt the template writes {text[len(prompt) : len(prompt) + 40]!r}",
            expected=f"the assistant's own text {content[:40]!r}",
            mend="Leave the row out, or choose a base whose template keeps the assistant's text.",
        )

    def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def _span(self, row_id: str, turn: _Turn, ids: list[int], offsets: list[tuple[int, int]]) -> tuple[int, int]:
        """First token of the content, and one past the end-of-turn token."""
        prompt_ids = self._tokenize(turn.prompt)[0]
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


def validate_messages_kept(row_id: str, messages: tuple[Message, ...], learned: list[int], text: str) -> None:
    """Every message's text, but for whitespace around it, stands in the rendered text in its order.

    Assistant's turns that are not learned are context: templates may shorten them (thinking is often cut), and do the
    same at inference.
    """
    position = 0
    for index, message in enumerate(messages):
        content = message.content.strip()
        found = text.find(content, position)
        if found >= 0:
            position = found + len(content)
        elif message.role != "assistant" or index in learned:
            raise RenderError(
                f"{row_id}: message {index}",
                f"the template loses or changes the {message.role} message {content[:40]!r}",
                mend="Choose a base whose template keeps it, or change the row.",
            )

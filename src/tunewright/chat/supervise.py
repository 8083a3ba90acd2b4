"""Which tokens of a conversation are learned, by construction from the chat template, and the proof of it.

In: a conversation. Out: its rows, each with ids, mask and proof, or a `RenderError` that says which claim of
`tunewright.chat.proof` does not hold. For each assistant's turn that is learned, the template itself says where the
turn begins: rendering the messages before it with `add_generation_prompt` gives exactly what inference will send. Where
its parts stand is known from rendering marks in their place (`frame`, `turns`). The supervised span goes from the end
of the prompt through the first stop token behind the last part. Nothing is searched for in the text.

Where a template renders earlier turns differently once later ones follow, a conversation becomes one row for each
assistant's turn, each equal to what inference would see. Where the plain way of asking the template has no proof, other
forms of the messages and other variables are tried in a fixed order (`forms`, `variables`); the proof names them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunewright.chat.contents import notes_on_marks, validate_contents
from tunewright.chat.conversation import Conversation, Message
from tunewright.chat.encoding import EncodedText, Encoder
from tunewright.chat.forms import Form, forms_for
from tunewright.chat.frame import Frame, Setting, frame_of
from tunewright.chat.places import TokenPlaces
from tunewright.chat.prompt import Prompt
from tunewright.chat.proof import TEMPLATE_REFUSES, Proof, UnprovenError
from tunewright.chat.shown import shown_notes
from tunewright.chat.slots import Marked, mark
from tunewright.chat.stops import without_stops
from tunewright.chat.template import ChatTemplate
from tunewright.chat.turns import Layout, TextTurn, lay_out
from tunewright.chat.variables import Variables, settings_of
from tunewright.errors import RenderError

FRAMES_KEPT = 1024
FrameKey = tuple[Form, Variables, str | None, tuple[Message, ...], tuple[int, ...], bool]


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
        text: what was rendered; empty for a row that was not made by a `Supervisor`.
        proof: why it may be trained on; None for a row that was not made by a `Supervisor`.
    """

    conversation: str
    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    last_prompt_length: int
    message: int | None = None
    places: TokenPlaces | None = None
    text: str = ""
    proof: Proof | None = None

    @property
    def id(self) -> str:
        """The conversation's id, followed by `#MESSAGE` where the conversation became several rows."""
        return self.conversation if self.message is None else f"{self.conversation}#{self.message}"


@dataclass(frozen=True)
class _Span:
    """A span: its prompt's ids end at `prompt`, its own go from `first` to `end`; generation stops at `stop`."""

    message: int
    prompt: int
    first: int
    end: int
    stop: int
    notes: tuple[str, ...]


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
        self.encoder = Encoder(tokenizer)
        self._control = self.encoder.special | stop_ids
        self._frames: dict[FrameKey, Frame | UnprovenError] = {}

    @cached_property
    def _variables(self) -> tuple[Variables, ...]:
        return settings_of(self.template)

    def rows(self, conversation: Conversation) -> list[SupervisedRow]:
        """The proven rows of a conversation: one, or one for each assistant's turn.

        Raises:
            RenderError: the supervised tokens cannot be proven.
        """
        messages = conversation.messages
        learned = tuple(index for index, each in enumerate(messages) if each.role == "assistant" and each.train)
        if not learned:
            raise RenderError(conversation.id, "no assistant's turn is to be learned", mend="Leave the row out.")
        refusals: list[UnprovenError] = []
        for setting in self._settings(conversation):
            try:
                return self._rows(conversation, setting, learned)
            except UnprovenError as refusal:
                refusals.append(refusal)
        told = next((each for each in refusals if each.claim != TEMPLATE_REFUSES), refusals[0])
        raise told.of(conversation.id, messages)

    def _settings(self, conversation: Conversation) -> Iterator[Setting]:
        for form in forms_for(conversation.messages):
            yield Setting(self.template, form, (), conversation.tools)
        for form in forms_for(conversation.messages):
            for variables in self._variables[1:]:
                yield Setting(self.template, form, variables, conversation.tools)

    def prompt_of(self, conversation: Conversation) -> Prompt:
        """What inference is asked for the last turn, in the setting in which that turn's row is proven.

        Raises:
            RenderError: the row cannot be proven.
        """
        prompt = Prompt(conversation.prompt, conversation.tools)
        proof = self.rows(conversation)[-1].proof
        return replace(prompt, variables=proof.variables, form=proof.form) if proof else prompt

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The ids that inference sends, ending where the answer begins."""
        return list(self.encoder.encode(prompt.text(self.template)).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without the stop tokens at its end; other special tokens are written out."""
        return str(self.tokenizer.decode(without_stops(ids, self.stop_ids), clean_up_tokenization_spaces=False))

    def _rows(self, conversation: Conversation, setting: Setting, learned: tuple[int, ...]) -> list[SupervisedRow]:
        """One row, or one for each learned turn if that has no proof."""
        messages = conversation.messages
        if learned == (len(messages) - 1,):
            return [self._last_row(conversation.id, setting, messages)]
        try:
            return [self._row(conversation.id, setting, messages, learned)]
        except UnprovenError:
            rows = [self._last_row(conversation.id, setting, messages[: index + 1]) for index in learned]
        note = "earlier turns read differently once later ones follow: one row for each learned turn"
        return [replace(row, message=index, proof=noted(row, note)) for row, index in zip(rows, learned, strict=True)]

    def _last_row(self, row_id: str, setting: Setting, messages: tuple[Message, ...]) -> SupervisedRow:
        """The row of which the last turn alone is learned."""
        learned = (len(messages) - 1,)
        try:
            return self._row(row_id, setting, messages, learned)
        except UnprovenError as refusal:
            if refusal.claim != "d":
                raise
            try:
                return self._row(row_id, setting, messages, learned, closed=True)
            except UnprovenError:
                raise refusal from None

    def _row(
        self,
        row_id: str,
        setting: Setting,
        messages: tuple[Message, ...],
        learned: tuple[int, ...],
        closed: bool = False,
    ) -> SupervisedRow:
        """The row of these messages; a `closed` one ends with the token that opens the next turn."""
        marked = mark(messages, setting.form.text_arguments)
        key = (setting.form, setting.variables, setting.tools, marked.messages, learned, closed)
        known = self._frames.get(key)
        if isinstance(known, UnprovenError):
            raise known
        try:
            text = setting.render(messages)
        except RenderError as error:
            raise UnprovenError(TEMPLATE_REFUSES, f"{error.where}: {error.found}", mend=error.mend) from None
        frame = known or self._new_frame(key, setting, marked)
        layout = lay_out(setting, messages, marked.slots, frame, text)
        encoded = self.encoder.read(layout.text)
        self._validate_bos(encoded.ids)
        validate_contents(encoded, layout, messages, self._control)
        spans = [self._span(encoded, turn) for turn in layout.turns]
        ids = np.array(encoded.ids, dtype=np.int32)[: spans[-1].end if closed else None]
        offsets = encoded.offsets[: len(ids)] if closed else encoded.offsets
        turns = tuple((span.message, span.first, span.end) for span in spans)
        return SupervisedRow(
            row_id,
            ids,
            mask_of(encoded, spans)[: len(ids)],
            spans[-1].first,
            places=TokenPlaces(offsets, layout.messages(len(messages)), turns),
            text=layout.text[: offsets[-1][1]] if closed else layout.text,
            proof=self._proof(setting, encoded, layout, spans, notes_on_marks(layout, frame.skeleton)),
        )

    def _new_frame(self, key: FrameKey, setting: Setting, marked: Marked) -> Frame:
        """The frame of a shape, which is remembered; so is a refusal."""
        if len(self._frames) >= FRAMES_KEPT:
            self._frames.clear()
        try:
            frame = frame_of(setting, marked, *key[-2:])
            self._frames[key] = frame = replace(
                frame, notes=(*frame.notes, *shown_notes(setting, marked, frame.skeleton))
            )
        except UnprovenError as refusal:
            self._frames[key] = refusal
            raise
        return frame

    def _span(self, encoded: EncodedText, turn: TextTurn) -> _Span:
        prompt = encoded.prompt_tokens(turn.prompt)
        if prompt is None:
            raise UnprovenError(
                "a",
                "the answer's first token joins the prompt's last one, so that inference sends other ids",
                turn.message,
                mend="Leave the row out; an answer that begins with a space or newline often causes this.",
            )
        stop = self._stop_position(encoded, turn, prompt)
        end = self._end_position(encoded, turn, stop)
        first = stop if turn.learned_from is None else max(prompt, encoded.position_at(turn.learned_from))
        if first > prompt and encoded.offsets[first - 1][1] > encoded.offsets[first][0]:
            raise UnprovenError("b", "reasoning that is not learned shares a token with the answer", turn.message)
        notes = encoded.validate_decodes(prompt, end, turn.message)
        return _Span(turn.message, prompt, first, end, stop, tuple(notes))

    def _end_position(self, encoded: EncodedText, turn: TextTurn, stop: int) -> int:
        """One past the stop token, and past those that the template writes right behind it in the same turn."""
        end = stop + 1
        for position in range(end, len(encoded.ids)):
            start, stopped = encoded.offsets[position]
            if start >= turn.limit or not (encoded.ids[position] in self.stop_ids or is_blank(encoded, start, stopped)):
                break
            if encoded.ids[position] in self.stop_ids:
                end = position + 1
        return end

    def _stop_position(self, encoded: EncodedText, turn: TextTurn, prompt: int) -> int:
        for position in range(max(prompt, encoded.position_at(turn.content_end)), len(encoded.ids)):
            start, _ = encoded.offsets[position]
            if start >= turn.limit:
                break
            if encoded.ids[position] in self.stop_ids:
                return position
        raise UnprovenError(
            "d",
            "no stop token follows the assistant's text",
            turn.message,
            expected=f"one of {self.tokenizer.convert_ids_to_tokens(sorted(self.stop_ids))}",
            mend="Check eos_token_id in the base's generation_config.json.",
        )

    def _validate_bos(self, ids: list[int]) -> None:
        bos = self.tokenizer.bos_token_id
        # ChatML bases name <|im_start|> as BOS, which opens every turn; only doubled openings are a fault.
        if bos is not None and ids[:2] == [bos, bos]:
            raise UnprovenError("e", "the text begins with two BOS tokens", expected="one")

    def _proof(
        self, setting: Setting, encoded: EncodedText, layout: Layout, spans: Sequence[_Span], marks: list[str]
    ) -> Proof:
        bos = self.tokenizer.bos_token_id
        told = [f"rendered with {name}={value}" for name, value in setting.variables]
        return Proof(
            tuple(span.prompt for span in spans),
            tuple(span.end - span.first for span in spans),
            tuple(self.tokenizer.convert_ids_to_tokens([encoded.ids[span.stop] for span in spans])),
            None if bos is None else encoded.ids.count(bos),
            len(layout.parts),
            setting.variables,
            setting.form,
            (*told, *setting.form.notes, *layout.notes, *marks, *(note for span in spans for note in span.notes)),
        )


def mask_of(encoded: EncodedText, spans: Sequence[_Span]) -> NDArray[np.bool_]:
    mask = np.zeros(len(encoded.ids), dtype=np.bool_)
    for span in spans:
        mask[span.first : span.end] = True
        for position in range(span.stop + 1, span.end):
            mask[position] = not is_blank(encoded, *encoded.offsets[position])
    return mask


def is_blank(encoded: EncodedText, start: int, end: int) -> bool:
    return not encoded.text[start:end].strip()


def noted(row: SupervisedRow, note: str) -> Proof | None:
    return row.proof and replace(row.proof, notes=(note, *row.proof.notes))

"""Texts as token ids with their characters, and what can be said of ids without tokenizing twice.

A tokenizer cuts a text at its added tokens before anything else, and makes ids of each part alone. So where two texts
begin with the same characters, their ids are the same up to any added token that both have whole, and behind it they
depend on nothing before it. `tests/test_chat_masks.py` holds this for every tokenizer of the battery.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from tunewright.chat.places import Span
from tunewright.chat.proof import UnprovenError

TAILS_KEPT = 4096


class Encoded(NamedTuple):
    """Token ids and the characters of each."""

    ids: list[int]
    offsets: list[Span]


class Encoder:
    """A fast tokenizer, asked for exact ids.

    Attributes:
        added: the text of each added token, by id.
        special: ids of those that the tokenizer marks as special.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._backend = plain_backend(tokenizer)
        decoder = getattr(tokenizer, "backend_tokenizer", tokenizer).get_added_tokens_decoder()
        self.added = {int(number): token.content for number, token in decoder.items()}
        self.special = frozenset({n for n, token in decoder.items() if token.special} | set(tokenizer.all_special_ids))
        self._anchors = frozenset(n for n, token in decoder.items() if not (token.normalized or token.single_word))
        self._tails: dict[str, list[int]] = {}

    def encode(self, text: str) -> Any:
        """The text's `ids` and `offsets`, exactly as the tokenizer gives them when it is called.

        The call of a transformers tokenizer is a call of its backend with much bookkeeping around it. The backend is
        asked directly where the call adds nothing: it is not overridden, and nothing is cut or filled up.
        """
        if self._is_plain():
            return self._backend.encode(text, add_special_tokens=False)
        called = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Encoded(called["input_ids"], called["offset_mapping"])

    def _is_plain(self) -> bool:
        backend = self._backend
        return backend is not None and not (backend.truncation or backend.padding or backend.encode_special_tokens)

    def decode(self, ids: list[int]) -> str:
        if self._is_plain():
            return str(self._backend.decode(ids, skip_special_tokens=False))
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def read(self, text: str) -> "EncodedText":
        encoded = self.encode(text)
        return EncodedText(self, text, encoded.ids, encoded.offsets)

    def tail_ids(self, text: str) -> list[int]:
        """The ids of a short text that comes up in many rows."""
        ids = self._tails.get(text)
        if ids is None:
            if len(self._tails) >= TAILS_KEPT:
                self._tails.clear()
            ids = self._tails[text] = list(self.encode(text).ids)
        return ids

    def is_anchor(self, number: int) -> bool:
        return self._is_plain() and number in self._anchors


class EncodedText:
    """A text with its ids, and the places of its added tokens.

    Attributes:
        ids, offsets: its tokens and their characters.
        added: positions of added tokens.
    """

    def __init__(self, encoder: Encoder, text: str, ids: list[int], offsets: Sequence[Span]) -> None:
        self.encoder, self.text, self.ids, self.offsets = encoder, text, ids, offsets
        names = encoder.added
        self.added = [position for position, number in enumerate(ids) if number in names]

    def span_of_added(self, position: int) -> Span:
        """The characters of an added token itself; some take in the whitespace beside them."""
        start, end = self.offsets[position]
        name = self.encoder.added[self.ids[position]]
        if end - start != len(name):
            start = max(self.text.find(name, start, end), start)
        return start, start + len(name)

    def prompt_tokens(self, prompt: str) -> int | None:
        """How many first ids are the ids of `prompt`, with which the text begins; None where they are others."""
        anchor = self._anchor_within(len(prompt))
        start, tail = (self.offsets[anchor][0], prompt[self.offsets[anchor][0] :]) if anchor else (0, prompt)
        tail_ids = self.encoder.tail_ids(tail) if start else list(self.encoder.encode(prompt).ids)
        end = anchor + len(tail_ids)
        return end if self.ids[anchor:end] == tail_ids else None

    def _anchor_within(self, end: int) -> int:
        """The last added token that ends by `end` and divides the ids; 0 where there is none."""
        for position in reversed(self.added[: bisect_left(self.added, self.position_at(end))]):
            start, stop = self.span_of_added(position)
            is_whole = self.text[start:stop] == self.encoder.added[self.ids[position]]
            if is_whole and stop <= end and self.encoder.is_anchor(self.ids[position]):
                return position
        return 0

    def position_at(self, character: int) -> int:
        """The first token that begins at `character` or after it."""
        return bisect_left(self.offsets, (character, 0))

    def validate_decodes(self, first: int, end: int, message: int) -> list[str]:
        """Notes on how the ids from `first` to `end` decode; raises where they do not give their text back."""
        notes: list[str] = []
        bounds = [first - 1, *(position for position in self.added if first <= position < end), end]
        for left, right in pairwise(bounds):
            if right - left > 1:
                notes += self._validate_run(left + 1, right, message)
        return notes

    def _validate_run(self, first: int, end: int, message: int) -> list[str]:
        start, stop = self.offsets[first][0], self.offsets[end - 1][1]
        text, decoded = self.text[start:stop], self.encoder.decode(self.ids[first:end])
        if decoded == text or is_same_but_for_a_space(decoded, text, self.text[:start]):
            return []
        for form in ("NFC", "NFKC"):
            if is_same_but_for_a_space(decoded, unicodedata.normalize(form, text), ""):
                return [f"the tokenizer writes message {message} in Unicode's {form}"]
        mend = "Leave the row out: the tokenizer does not give this text back."
        raise UnprovenError("b", f"the supervised tokens decode to {decoded[:60]!r}", message, repr(text[:60]), mend)


def is_same_but_for_a_space(decoded: str, text: str, before: str) -> bool:
    """Whether two texts are the same but for whitespace in front, which tokenizers give to the first word.

    Offsets may leave out the whitespace that a token begins with, and decoders may drop or add the space that
    sentencepiece puts before a text.
    """
    left, right = decoded.lstrip(), text.lstrip()
    if left != right:
        return False
    own, shown = text[: len(text) - len(right)], decoded[: len(decoded) - len(left)]
    return own in (shown, f" {shown}") or shown == f" {own}" or (before + own).endswith(shown)


def plain_backend(tokenizer: Any) -> Any:
    """The backend of a fast tokenizer whose call is transformers' own; None for one that does more."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    plain = PreTrainedTokenizerFast
    own = kind.__call__ is plain.__call__ and kind._encode_plus is plain._encode_plus
    return tokenizer.backend_tokenizer if own and not tokenizer.split_special_tokens else None

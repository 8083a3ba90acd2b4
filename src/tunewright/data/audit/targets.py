"""What one row teaches: targets cut short, copied, doubled or bare.

Each function looks at one row and gives what it found, or None. Of a target that is a JSON object or array the strings
are looked at one by one. What is looked for is cheap to rule out, so a clean row costs a few microseconds.
"""

import re
from itertools import combinations
from typing import Any

from tunewright.data.audit.findings import Hit, ending, excerpt
from tunewright.data.audit.rows import AuditRow

ELLIPSES = ("...", "…")
ELLIPSIS_CUES = ("...", "…", "\\u2026")
PREFIX_AT_LEAST = 40
NEAR_COPY_SHARE = 0.8
ROUGHLY_ALIKE = 0.5
CONTAINED_CHARACTERS = 100
SHORT_TARGET = 40
BARE_SCALAR = re.compile(r"\s*(?:[-+]?\d+(?:[.,]\d+)*(?:[eE][-+]?\d+)?|true|false|null|none)\s*", re.IGNORECASE)
WORDS = re.compile(r"\w+")
WITHOUT_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def ellipsis_in(row: AuditRow) -> Hit | None:
    """A target, or a string in a JSON target, that ends in an ellipsis, as text cut to a length does."""
    for exchange in row.exchanges:
        if any(cue in exchange.target for cue in ELLIPSIS_CUES):
            for text in exchange.texts:
                if text.rstrip().endswith(ELLIPSES):
                    return Hit(ending(text))
    return None


def copied_prefix_in(row: AuditRow) -> Hit | None:
    """A target, or a string in a JSON target, that is only the beginning of what the user wrote."""
    for exchange in row.exchanges:
        if len(exchange.target) < PREFIX_AT_LEAST:
            continue
        head = exchange.user.lstrip()[:PREFIX_AT_LEAST]
        for text in exchange.texts:
            if head in text[: 2 * PREFIX_AT_LEAST] and is_copied_prefix(text, exchange.user):
                return Hit(excerpt(text))
    return None


def is_copied_prefix(text: str, user: str) -> bool:
    """A text of at least 40 characters with which the user's begins, an ellipsis at its end left aside.

    A text that is the whole of the user's, as in proofreading, is no prefix; with an ellipsis it is.
    """
    body = text.strip()
    ellipsis = next((mark for mark in ELLIPSES if body.endswith(mark)), "")
    body = body.removesuffix(ellipsis).rstrip()
    user = user.strip()
    return len(body) >= PREFIX_AT_LEAST and user.startswith(body) and (bool(ellipsis) or len(body) < len(user))


def near_copies_in(row: AuditRow) -> Hit | None:
    """A JSON target in which two fields of one object say nearly the same."""
    for exchange in row.exchanges:
        for item in exchange.objects:
            names = near_copies(item)
            if names:
                return Hit(" and ".join(names), " and ".join(names))
    return None


def near_copies(item: dict[str, Any]) -> tuple[str, str] | None:
    """The first two fields of an object that are near copies; strings of fewer than 40 characters are not compared."""
    texts = [
        (key, value, set(value.lower().split()))
        for key, value in item.items()
        if isinstance(value, str) and len(value) >= PREFIX_AT_LEAST
    ]
    for (left, one, words), (right, other, others) in combinations(texts, 2):
        if contains_beginning(one, other) or (overlap(words, others) >= ROUGHLY_ALIKE and say_the_same(one, other)):
            return left, right
    return None


def contains_beginning(left: str, right: str) -> bool:
    """Whether one has the other's first 100 characters in it."""
    return (len(left) >= CONTAINED_CHARACTERS and left[:CONTAINED_CHARACTERS] in right) or (
        len(right) >= CONTAINED_CHARACTERS and right[:CONTAINED_CHARACTERS] in left
    )


def say_the_same(left: str, right: str) -> bool:
    """Whether the Jaccard similarity of their words is at least 0.8."""
    return overlap(set(WORDS.findall(left.casefold())), set(WORDS.findall(right.casefold()))) >= NEAR_COPY_SHARE


def overlap(words: set[str], others: set[str]) -> float:
    shared = len(words & others)
    return shared / (len(words) + len(others) - shared) if shared else 0.0


def bare_scalar_in(row: AuditRow) -> Hit | None:
    """A target that is only a number, a truth value or null."""
    target = row.target
    return Hit(excerpt(target)) if len(target) <= SHORT_TARGET and BARE_SCALAR.fullmatch(target) else None


def one_token_in(row: AuditRow) -> Hit | None:
    """A target of a single word or character; numbers are left to `bare_scalar_in`.

    In scripts that put no space between words only a single character counts.
    """
    word = row.target.strip()
    if len(word) > SHORT_TARGET or len(word.split()) != 1 or BARE_SCALAR.fullmatch(word):
        return None
    return Hit(excerpt(word)) if len(word) == 1 or not WITHOUT_SPACES.search(word) else None

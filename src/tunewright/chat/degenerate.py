"""Degenerate text: loops, runs and broken characters, as a damaged model writes them.

In: one answer as text. Out: what is wrong with it, in a few words, or None.
Always: pure and linear in the text's length. JSON is judged by the strings in it, because its own marks repeat by
design; repeated tables, brackets, numbers and short lists need many more repetitions than repeated prose.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST_CHARACTER_PERIOD = 50
LONGEST_WORD_PERIOD = 12

BROKEN_SHARE = 0.005
CUT_OFF_CHARACTERS = 3  # a byte-level token at the end may be cut in the middle of a character
LONGEST_LETTER_RUN = 30
LONGEST_MARK_RUN = 20  # of "!" and "?"
LONGEST_DIGIT_RUN = 80
LONGEST_OTHER_RUN = 200

WORD = re.compile(r"\S+\s*")
LITERAL = re.compile(r"\b(true|false|null|none|nan|yes|no)\b", re.IGNORECASE)
STRUCTURE = re.compile(r"[\[\](){}<>|=\"\\]")
SENTENCE_END = re.compile(r"[.!?]")
RUN = re.compile(r"(.)\1{19,}", re.DOTALL)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff]")
BYTE_TOKEN = re.compile(r"(?:<0x[0-9A-F]{2}>){2}")
WORD_MARK = re.compile(r"[ĠĊ▁](?=\w)")

# Every character that stands for a byte from 0x80 to 0xFF when UTF-8 is read as Windows-1252 or as Latin-1.
HIGH_BYTES = {
    **{chr(byte): byte for byte in range(0x80, 0x100)},
    **{bytes([byte]).decode("cp1252"): byte for byte in range(0x80, 0x100) if byte not in b"\x81\x8d\x8f\x90\x9d"},
}
HIGH_RUN = re.compile(f"[{re.escape(''.join(HIGH_BYTES))}]{{2,}}")
UNMISTAKABLE = ("â€", "ðŸ", "ï¿½")
CLOSING = "“”’»…–—\xa0"


@dataclass(frozen=True)
class Limits:
    """Repetitions in a row from which a loop counts as degenerate.

    Attributes:
        covering: where the loop makes up two thirds of the text or more.
        anywhere: in any text, if the loop has at least `LOOP_CHARACTERS`.
    """

    covering: int
    anywhere: int


LOOP_CHARACTERS = 30
COVERING_SHARE = 2 / 3
PROSE = Limits(3, 5)
SHORT = Limits(8, 12)  # "ha ha ha", "na na na"
STRUCTURED = Limits(8, 16)  # cells, brackets, lists of labels
BARE = Limits(64, 200)  # numbers and punctuation


def is_degenerate(text: str) -> str | None:
    """Why `text` is degenerate, such as `repeats 'zertrüten' 3 times`, or None if it is not."""
    strings = _strings_in_json(text)
    for part in [text] if strings is None else strings:
        for check in (_broken_characters, _mojibake, _undecoded_tokens, _run_of_one_character, _loop):
            reason = check(part)
            if reason:
                return reason
    return None


def _broken_characters(text: str) -> str | None:
    whole = text.rstrip("\ufffd") if text[-CUT_OFF_CHARACTERS - 1 :].count("\ufffd") <= CUT_OFF_CHARACTERS else text
    found = CONTROL.findall(whole)
    if found and len(found) >= BROKEN_SHARE * len(whole):
        return f"{len(found)} of {len(whole)} characters are broken, such as U+{ord(found[0]):04X}"
    return None


def _mojibake(text: str) -> str | None:
    """UTF-8 that was read as a single-byte encoding: `fÃ¼r`, `â€™`, `ðŸ˜€`; one unmistakable sign, or two others."""
    found = 0
    for match in HIGH_RUN.finditer(text):
        run, before = match.group(), text[match.start() - 1 : match.start()]
        characters = _reread(run)
        if not characters or (characters == 1 and _may_be_meant(run, before)):
            continue
        found += characters
        if found >= 2 or before.islower() or run.startswith(UNMISTAKABLE):
            return f"text in a wrong encoding, such as {run!r}"
    return None


def _reread(run: str) -> int:
    """How many characters `run` has when its bytes are read as UTF-8; 0 if they are not valid."""
    try:
        return len(bytes(HIGH_BYTES[character] for character in run).decode("utf-8"))
    except UnicodeDecodeError:
        return 0


def _may_be_meant(run: str, before: str) -> bool:
    """Whether a word's last letter and the marks after it only look like UTF-8: `Spaß“`, `CAFÉ»`, `voilà »`."""
    if run.startswith(UNMISTAKABLE):
        return False
    return not run[0].isupper() or (before.isupper() and run[-1] in CLOSING)


def _undecoded_tokens(text: str) -> str | None:
    """A vocabulary's own signs for bytes and spaces, as in `ĠtheĠcat` or `<0xE2><0x82>`."""
    match = BYTE_TOKEN.search(text)
    if match:
        return f"undecoded tokens, such as {match.group()!r}"
    marks = WORD_MARK.findall(text)
    if len(marks) >= 3 and len(marks) > text.count(" "):
        return f"undecoded tokens: {len(marks)} times {marks[0]!r}"
    return None


def _strings_in_json(text: str) -> list[str] | None:
    """Every string in `text` if it is a JSON object or array, else None."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return list(_strings(json.loads(text)))
    except (ValueError, RecursionError):
        return None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from _strings(item)


def _run_of_one_character(text: str) -> str | None:
    for match in RUN.finditer(text):
        character, length = match.group(1), len(match.group())
        if length >= _longest_run_of(character):
            return f"a run of {length} times {character!r}"
    return None


def _longest_run_of(character: str) -> int:
    if character in "!?":
        return LONGEST_MARK_RUN
    if character.isalpha():
        return LONGEST_LETTER_RUN
    return LONGEST_DIGIT_RUN if character.isdigit() else LONGEST_OTHER_RUN


def _loop(text: str) -> str | None:
    """A phrase that follows itself, by words (up to 12) or, inside or across words, by characters (up to 50)."""
    line = re.sub(r"[^\S\n]+", " ", re.sub(r"\s*\n\s*", "\n", text)).strip()
    line += "\n" if "\n" in line else " "  # so that the last repetition ends as the ones before it
    return _loop_in(WORD.findall(line), range(1, LONGEST_WORD_PERIOD + 1), len(line)) or _loop_in(
        list(line), range(2, LONGEST_CHARACTER_PERIOD + 1), len(line)
    )


def _loop_in(symbols: list[str], periods: range, text_length: int) -> str | None:
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(symbol, len(numbers)) for symbol in symbols], np.int64)
    for period in periods[: len(codes) // 3]:
        for start, length in _periodic_stretches(codes, period):
            unit, loop = "".join(symbols[start : start + period]), "".join(symbols[start : start + length])
            if _is_primitive(unit) and _is_degenerate_loop(unit, length / period, len(loop), text_length):
                return f"repeats {unit.strip()!r} {int(length / period)} times"
    return None


def _periodic_stretches(codes: NDArray[np.int64], period: int) -> list[tuple[int, int]]:
    """(start, length) of each stretch that has at least three times the given period."""
    breaks = np.flatnonzero(codes[period:] != codes[:-period])
    bounds = np.concatenate([[-1], breaks, [len(codes) - period]])
    equal = np.diff(bounds) - 1
    return [(int(bounds[index]) + 1, int(equal[index]) + period) for index in np.flatnonzero(equal >= 2 * period)]


def _is_primitive(unit: str) -> bool:
    """Whether `unit` is not itself a repetition, which a shorter period has judged already."""
    return (unit + unit).find(unit, 1) == len(unit)


def _is_degenerate_loop(unit: str, repetitions: float, loop_length: int, text_length: int) -> bool:
    limits = _limits_of(unit)
    if loop_length >= COVERING_SHARE * text_length and repetitions >= limits.covering:
        return True
    return loop_length >= LOOP_CHARACTERS and repetitions >= limits.anywhere


def _limits_of(unit: str) -> Limits:
    letters = [character for character in LITERAL.sub("", unit).casefold() if character.isalpha()]
    if not letters:
        return BARE
    if len(letters) < 4 or len(set(letters)) < 3:
        return SHORT
    is_list_item = len(unit.split()) <= 3 and any(mark in unit for mark in ",;\n") and not SENTENCE_END.search(unit)
    return STRUCTURED if is_list_item or STRUCTURE.search(unit) else PROSE

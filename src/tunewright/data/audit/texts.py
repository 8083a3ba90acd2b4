"""The characters of one row: broken encodings, and the control tokens of chat templates.

Each function looks at one row and gives what it found, or None.
"""

import re
from functools import lru_cache
from typing import Any

from tunewright.data.audit.findings import Hit, surroundings
from tunewright.data.audit.rows import AuditRow


def mojibake_in(row: AuditRow) -> Hit | None:
    """Text written as UTF-8 and read as something else, such as `Ã¤` for `ä`, with what it should read.

    What is broken, and what was meant, `ftfy` says (R. Speer, 2019). It is asked of each piece that could be UTF-8, and
    of the piece with the character that follows, so that one broken name is found in an otherwise right text.
    """
    if row.text.isascii() or not _pairs().search(row.text):
        return None
    return next((hit for text in row.parts if (hit := mojibake_of(text))), None)


def mojibake_of(text: str) -> Hit | None:
    for found in _pieces().finditer(text):
        if mended(found) != found.group():
            shown = text[max(0, found.start() - 20) : found.end() + 20]
            return Hit(f'"{" ".join(shown.split())}" should read "{" ".join(mended_text(shown).split())}"')
    return None


def mended(found: re.Match[str]) -> str:
    """The piece as it was meant; itself if it is not broken."""
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    piece = found.group()
    following = found.string[found.end() : found.end() + 1]
    if is_bad(piece):
        return fix_encoding(piece)
    if following.isascii() and is_bad(piece + following):
        return fix_encoding(piece + following).removesuffix(following)
    return piece


def mended_text(text: str) -> str:
    """The text with every broken piece as it was meant."""
    return _pieces().sub(mended, text)


@lru_cache(maxsize=1)
def _pieces() -> re.Pattern[str]:
    from ftfy.chardata import UTF8_DETECTOR_RE

    pattern: re.Pattern[str] = UTF8_DETECTOR_RE
    return pattern


@lru_cache(maxsize=1)
def _pairs() -> re.Pattern[str]:
    """Two characters with which each of the pieces begins: an expression that costs a tenth of the exact one."""
    from ftfy.chardata import UTF8_CLUES

    clues: dict[str, Any] = UTF8_CLUES
    firsts = clues["utf8_first_of_2"] + clues["utf8_first_of_3"] + clues["utf8_first_of_4"]
    return re.compile(f"[{firsts}][{clues['utf8_continuation']}]")


CONTROL_TOKEN = re.compile(
    r"""<\|[A-Za-z][\w]{1,40}\|>            # ChatML, Llama 3, Phi, GPT-NeoX
    | <｜[^｜<>]{1,40}｜>                    # DeepSeek
    | \[/?INST\] | <</?SYS>>                # Llama 2, Mistral
    | </?(?:start|end)_of_turn> | <(?:start|end)_function_(?:call|declaration|response)> | <(?:bos|eos)>   # Gemma
    | </s>""",
    re.VERBOSE,
)
THINKING = ("<think>", "</think>")


def control_token_in(row: AuditRow) -> Hit | None:
    """Text that a tokenizer would take for the control tokens of a chat, or a <think> without its end.

    Sources: the chat templates that ship with the models named beside the expression. A `</s>` that ends a `<s>`, as in
    HTML, is none.
    """
    if "<" not in row.text and "INST]" not in row.text:
        return None
    return next((hit for text in row.parts if (hit := control_token_of(text))), None)


def control_token_of(text: str) -> Hit | None:
    for found in CONTROL_TOKEN.finditer(text):
        mark = found.group().strip()
        if mark != "</s>" or text.count("<s>") < text.count("</s>"):
            return Hit(surroundings(text, *found.span()), mark)
    opened, closed = (text.count(mark) for mark in THINKING)
    if opened == closed:
        return None
    mark = THINKING[0 if opened > closed else 1]
    place = text.index(mark)
    return Hit(surroundings(text, place, place + len(mark)), f"{mark} without the other")

"""Checks of the characters themselves: broken encodings, and secrets that should not be trained on."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from tunewright.data.audit.findings import Example, Finding, count_finding, excerpt
from tunewright.data.audit.rows import AuditRow, Corpus

CONTINUATION = "".join(
    sorted({bytes([byte]).decode("cp1252", errors="replace") for byte in range(0x80, 0xC0)} - {"\ufffd"})
) + "".join(map(chr, (0x81, 0x8D, 0x8F, 0x90, 0x9D)))
C = f"[{re.escape(CONTINUATION)}]"
MOJIBAKE = re.compile(
    f"(?:[ÂÃ]{C}"  # Latin-1 letters and signs: Ã¤ is ä
    f"|(?<=\\w)[ÄÅ]{C}|[ÄÅ]{C}(?=\\w)"  # Å“uvre, but not „Ä“
    f"|[âï]{C}{{2}}"  # punctuation, arrows, symbols: â€™ is ’
    f"|ð{C}{{3}})+"  # emoji
    f"|(?:[ÎÏÐÑ×ØÙ]{C}){{2,}}"  # Greek, Cyrillic, Hebrew, Arabic
    f"|(?:[à-é]{C}{{2}}){{2,}}"  # scripts of Asia
)
EMAIL_RESERVED = re.compile(
    r"@(?:[\w-]+\.)*(?:example|invalid|test|localhost|example\.(?:com|org|net))$", re.IGNORECASE
)


def passes_luhn(text: str) -> bool:
    """The check digit of ISO/IEC 7812-1, annex B."""
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


@dataclass(frozen=True)
class SecretRule:
    """A kind of secret.

    Attributes:
        cues: at least one of these stands in every text that has such a secret; a text without is not searched.
        accepts: tells a secret that fits the pattern from what only looks like one.
    """

    kind: str
    pattern: re.Pattern[str]
    cues: tuple[str, ...] = ("",)
    accepts: Callable[[str], bool] = bool


API_KEY_CUES = ("sk-", "AKIA", "ASIA", "gh", "glpat-", "AIza", "xox", "hf_", "k_live_", "eyJ")
SECRET_RULES = (
    SecretRule("private key", re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"), ("PRIVATE KEY",)),
    SecretRule(
        "API key",
        re.compile(
            r"""\b(?: sk-(?:ant-|proj-|or-)?[A-Za-z0-9_-]{20,}
            | (?:AKIA|ASIA)[A-Z0-9]{16}
            | gh[pousr]_[A-Za-z0-9]{36,} | github_pat_[A-Za-z0-9_]{22,} | glpat-[A-Za-z0-9_-]{20,}
            | AIza[A-Za-z0-9_-]{35}
            | xox[abprs]-[A-Za-z0-9-]{10,}
            | hf_[A-Za-z0-9]{30,}
            | [rs]k_live_[A-Za-z0-9]{16,}
            | eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,} )""",
            re.VERBOSE,
        ),
        API_KEY_CUES,
    ),
    SecretRule(
        "e-mail address",
        re.compile(r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b"),
        ("@",),
        lambda text: EMAIL_RESERVED.search(text) is None,
    ),
    SecretRule(
        "card number",
        re.compile(
            r"""[2-6](?<![\d.,-][2-6])
            (?: \d{3}([ -]?)\d{4}\1\d{4}\1\d{4} | (?<=3)[47]\d\d([ -]?)\d{6}\2\d{5} )
            (?![\d-])""",
            re.VERBOSE,
        ),
        accepts=passes_luhn,
    ),
)


def check_mojibake(corpus: Corpus) -> Finding:
    """Texts written as UTF-8 and read as Windows-1252, such as `Ã¤` for `ä`."""
    found = [
        Example(row.id, f"{excerpt_at(*hit)} should read {excerpt_at(*repaired(hit))}")
        for row, hit in first_hits(corpus, mojibake_in)
    ]
    return count_finding(
        "mojibake",
        found,
        len(corpus.rows),
        "fail",
        "have characters broken by a wrong encoding",
        'Mend them where they came from, or each broken piece with `text.encode("cp1252").decode("utf-8")`.',
    )


Hit = tuple[str, int]


def first_hits(corpus: Corpus, find: Callable[[str], Hit | None]) -> Iterator[tuple[AuditRow, Hit]]:
    """The first hit in each row that has one; a text that stands in many rows is searched once."""
    search = lru_cache(maxsize=1024)(find)
    for row in corpus.rows:
        hit = next((hit for message in row.conversation.messages if (hit := search(message.content))), None)
        if hit is not None:
            yield row, hit


def mojibake_in(text: str) -> Hit | None:
    if text.isascii():
        return None
    return next(((text, m.start()) for m in MOJIBAKE.finditer(text) if unbroken(m.group()) is not None), None)


def unbroken(piece: str) -> str | None:
    """The piece as it was meant; None if it is no UTF-8 read as Windows-1252."""
    data = b"".join(bytes([ord(c)]) if ord(c) < 0x100 else c.encode("cp1252") for c in piece)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def repaired_text(text: str) -> str:
    """The text with every broken piece as it was meant."""
    return MOJIBAKE.sub(lambda match: unbroken(match.group()) or match.group(), text)


def repaired(hit: Hit) -> Hit:
    text, place = hit
    return text[:place] + repaired_text(text[place:]), place


def excerpt_at(text: str, place: int) -> str:
    return excerpt(text[max(0, place - 20) : place + 20])


def check_secrets(corpus: Corpus) -> Finding:
    """Keys, private keys, e-mail addresses and card numbers, shown masked."""
    found = [Example(row.id, masked(*hit)) for row, hit in first_hits(corpus, secret_in)]
    return count_finding(
        "secrets",
        found,
        len(corpus.rows),
        "warn",
        "hold what looks like a key, an e-mail address or a card number",
        "A model can repeat what it was trained on: take them out, or put made-up ones in their place.",
    )


def secret_in(text: str) -> Hit | None:
    """The kind and the first four characters of the first secret, and its place."""
    for rule in SECRET_RULES:
        for match in rule.pattern.finditer(text) if any(cue in text for cue in rule.cues) else ():
            if rule.accepts(match.group()):
                return f"{rule.kind} {match.group()[:4]}", match.start()
    return None


def masked(found: str, place: int) -> str:
    return f"{found}{'*' * 8} at character {place + 1}"

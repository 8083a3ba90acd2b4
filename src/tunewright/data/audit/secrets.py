"""Secrets and personal data in one row, shown masked.

Looked at and not taken: detect-secrets 1.5.0 (last release May 2024; knows no key of Anthropic, Google or Hugging Face,
and wants a line of code and `requests`); gitleaks, whose rules are the best kept, is a program in Go. So each kind has
a pattern of our own, written after the source that stands beside it. A pattern is only tried on texts that have one of
its cues.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tunewright.data.audit.findings import Hit
from tunewright.data.audit.rows import AuditRow

# SWIFT, IBAN registry (ISO 13616): each country with the length of its IBANs.
IBAN_COUNTRIES = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 "
    "FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 "
    "LI21 LT20 LU20 LV21 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 "
    "SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
)
IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in IBAN_COUNTRIES.split()}
PLACEHOLDER_EMAIL = re.compile(
    r"""^(?:your|my)[\w.-]*@
    | @(?:[\w-]+\.)*(?: invalid | test | localhost | example(?:[\w-]*\.(?:com|org|net))?
      | (?:your|my)?-?(?:domain|company|corp|email|website|site)\.(?:com|org|net) )$""",
    re.IGNORECASE | re.VERBOSE,
)


def passes_luhn(text: str) -> bool:
    """The check digit of ISO/IEC 7812-1, annex B."""
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """The country's length and the check digits of ISO 13616 (ISO 7064, MOD 97-10)."""
    compact = text.replace(" ", "")
    if IBAN_LENGTHS.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def is_no_placeholder(text: str) -> bool:
    """Whether an address could be somebody's: RFC 2606 and RFC 6761 reserve names, and `email.com` stands for any."""
    return PLACEHOLDER_EMAIL.search(text) is None


def has_digit(text: str) -> bool:
    """Whether a key could be one: of those that are issued, nearly all have a digit; `sk-your-key-here` has none."""
    return any(character.isdigit() for character in text)


@dataclass(frozen=True)
class SecretRule:
    """A kind of secret.

    Attributes:
        cue: true of every text that has such a secret, and cheap: the other rules are tried only where it is.
        accepts: tells a secret that fits the pattern from what only looks like one.
    """

    kind: str
    cue: Callable[[str], object]
    pattern: re.Pattern[str]
    accepts: Callable[[str], bool] = bool


def one_of(*patterns: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(patterns)})(?![A-Za-z0-9])")


# An expression that begins with a plain character is searched for at the speed of that character.
RULES = (
    SecretRule(  # RFC 7468
        "private key", lambda text: "-----" in text, re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY")
    ),
    SecretRule(
        "API key",
        re.compile(r"_[A-Za-z0-9]{16}").search,
        one_of(
            r"gh[pousr]_[A-Za-z0-9]{36,}",  # GitHub, Behind GitHub's new authentication token formats
            r"github_pat_\w{22,}",
            r"hf_[A-Za-z0-9]{30,}",  # gitleaks: huggingface-access-token
            r"[rs]k_live_[A-Za-z0-9]{16,}",  # Stripe, API keys
            r"npm_[A-Za-z0-9]{36}",  # gitleaks: npm-access-token
        ),
        has_digit,
    ),
    SecretRule(
        "API key",
        re.compile(r"-[A-Za-z0-9_-]{10}").search,
        one_of(
            r"sk-(?:ant-|proj-|svcacct-|admin-|or-)?[\w-]{20,}",  # gitleaks: openai-api-key, anthropic-api-key
            r"glpat-[\w-]{20,}",  # gitleaks: gitlab-pat
            r"xox[abprs]-[A-Za-z0-9-]{10,}",  # Slack, Token types
            r"pypi-AgEI[\w-]{50,}",  # detect-secrets: pypi_token
        ),
        has_digit,
    ),
    SecretRule(
        "API key",
        re.compile(r"A(?:KIA|SIA|Iza)").search,
        one_of(
            r"A(?:KIA|SIA)[A-Z0-9]{16}",  # AWS, Identify IAM identifiers; gitleaks: aws-access-token
            r"AIza[\w-]{35}",  # gitleaks: gcp-api-key
        ),
    ),
    SecretRule(  # RFC 7519: a JSON Web Token
        "API key", lambda text: ".eyJ" in text, one_of(r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")
    ),
    SecretRule(  # RFC 3986, section 3.2.1; detect-secrets: basic_auth
        "password in an address",
        lambda text: "://" in text,
        re.compile(r"\b[a-z][a-z0-9+.-]{0,20}://[^\s:/?#@\[\]<>{}$]+:[^\s:/?#@\[\]<>{}$]{3,}@[\w.-]+"),
        lambda text: not text.lower().endswith(("@host", "@localhost")),
    ),
    SecretRule(  # RFC 5321, section 4.1.2, without quoted names
        "e-mail address",
        lambda text: "@" in text,
        re.compile(r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b"),
        is_no_placeholder,
    ),
)
NUMBERS = (
    SecretRule(  # ISO/IEC 7812-1, the issuers of 2 to 6
        "card number",
        bool,
        re.compile(
            r"""[2-6](?<![\d.,-][2-6])
            (?: \d{3}([ -]?)\d{4}\1\d{4}\1\d{4} | (?<=3)[47]\d\d([ -]?)\d{6}\2\d{5} )
            (?![\d-])""",
            re.VERBOSE,
        ),
        passes_luhn,
    ),
    SecretRule(
        "IBAN",
        bool,
        re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
        is_iban,
    ),
)
LONG_NUMBER = re.compile(r"[0-9][0-9 -]{6}[0-9]")
"""In every card number, and in every IBAN whose account number is written in digits."""


def secret_in(row: AuditRow) -> Hit | None:
    """A key, a password, an e-mail address, a card number or an IBAN."""
    text = row.text
    for rule in rules_for(text):
        for found in rule.pattern.finditer(text):
            if rule.accepts(found.group()):
                return masked(row, rule.kind, found.group())
    return None


def rules_for(text: str) -> Iterator[SecretRule]:
    """The rules whose cue is true of the text."""
    for rule in RULES:
        if rule.cue(text):
            yield rule
    if LONG_NUMBER.search(text):
        yield from NUMBERS


def masked(row: AuditRow, kind: str, secret: str) -> Hit:
    """The kind, the first four characters, and where it stands."""
    for number, message in enumerate(row.conversation.messages):
        place = message.text.find(secret)
        if place >= 0:
            return Hit(f"{kind} {secret[:4]}{'*' * 8} at character {place + 1} of messages[{number}]", kind)
    return Hit(f"{kind} {secret[:4]}{'*' * 8} in a reasoning", kind)

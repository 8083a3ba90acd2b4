"""Figures as a person reads them: in go numbers with their unit in the function's name, out comes short text.

It always holds that a number which is missing reads `—`, and that a figure and its unit stay on one line.
"""

import math
from datetime import UTC, datetime

NONE = "—"
NARROW_SPACE = "\u202f"
SIZE_UNITS = ("B", "kB", "MB", "GB", "TB")


def count(value: float | None) -> str:
    """`12,345`."""
    return NONE if value is None else f"{value:,.0f}"


def figure(value: object) -> str:
    """A figure of evidence: `yes`, `12,345`, `0.9871`, `3.2e-07`, or the text as it is."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    return decimal(value) if isinstance(value, float) else str(value)


def decimal(value: float | None, digits: int = 4) -> str:
    """A number with at most `digits` significant digits, below a thousandth and above a million as `3.2e-07`."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def percent(ratio: float | None) -> str:
    """`96.0 %` of 0.96."""
    return NONE if ratio is None else f"{ratio * 100:.1f}{NARROW_SPACE}%"


def size(size_bytes: float | None) -> str:
    """`143.9 MB` of 143 900 000 bytes; powers of 1000, as disks and downloads are labelled."""
    if size_bytes is None:
        return NONE
    scaled, unit = float(size_bytes), 0
    while scaled >= 999.95 and unit < len(SIZE_UNITS) - 1:
        scaled, unit = scaled / 1000, unit + 1
    return f"{scaled:.{1 if unit else 0}f}{NARROW_SPACE}{SIZE_UNITS[unit]}"


def duration(seconds: float | None) -> str:
    """`4.2 s`, `5 min 12 s`, `3 h 20 min`."""
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f}{NARROW_SPACE}s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}{NARROW_SPACE}min {rest}{NARROW_SPACE}s"
    return f"{minutes // 60}{NARROW_SPACE}h {minutes % 60}{NARROW_SPACE}min"


def limit(text: str) -> str:
    """`≥ 0.98` of `>= 0.98`, `= yes` of `= True`."""
    sign, _, value = text.partition(" ")
    words = {">=": "≥", "<=": "≤", "True": "yes", "False": "no"}
    return f"{words.get(sign, sign)} {words.get(value, value)}".strip()


def plural(number: int, one: str, many: str = "") -> str:
    """`1 row`, `2 rows`; `many` for a plural that is not made with an s."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def moment(epoch_seconds: float) -> str:
    """`2026-01-10 14:05 UTC`."""
    return datetime.fromtimestamp(epoch_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")

"""The sections about the rows: the ledger, the mask in colour, the lengths.

In goes what the run holds, out come plain dictionaries for the page. It always holds that the fates of the ledger are
counted from its lines, so that a balance which does not come out is shown as one.
"""

import re
from collections import Counter
from statistics import median
from typing import Any

from markupsafe import Markup, escape

from tunewright.report import charts, numbers
from tunewright.report.contents import Contents
from tunewright.report.gates import evidence_row, failing_first

EXAMPLES = 3
FATES = ("kept", "repaired", "truncated", "rejected")
LONGEST_SHOWN = 700
View = dict[str, Any]


def ledger_view(contents: Contents) -> View:
    """Rows in as the sum of their fates, repairs and rejections by reason, the audit's checks."""
    stage, name = ("render", "tokens/ledger.jsonl") if "render" in contents.manifests else ("data", "data/ledger.jsonl")
    fates: Counter[str] = Counter()
    repairs, rejections = _Tally(), _Tally()
    lost_tokens = 0
    for line in contents.lines(stage, name):
        where = str(line["row"])
        fates[line["fate"]] += 1
        lost_tokens += line.get("lost_tokens") or 0
        for repair in line.get("repairs") or []:
            repairs.add(str(repair["what"]), _joined(where, str(repair.get("where") or "")))
        if line["fate"] == "rejected":
            kind, _, detail = str(line.get("reason") or "no reason was given").partition(": ")
            rejections.add(kind, ": ".join(filter(None, [_joined(where, line.get("field") or ""), detail])))
    total = contents.facts("data").get("rows_in", fates.total())
    return {
        "rows_in": total,
        "fates": [(fate, fates[fate]) for fate in FATES],
        "balances": total == sum(fates[fate] for fate in FATES) == fates.total(),
        "bar": charts.balance("balance", "What became of every row", [(fate, fates[fate]) for fate in FATES]),
        "lost_tokens": lost_tokens,
        "repairs": repairs.rows(),
        "rejections": rejections.rows(),
        "checks": failing_first([evidence_row(item) for item in contents.json("data", "data/audit.json")["checks"]]),
    }


class _Tally:
    """Counts kinds of reasons and keeps the first examples of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES and example not in examples:
            examples.append(example)

    def rows(self) -> list[View]:
        return [
            {"reason": reason, "count": count, "examples": self.examples[reason]}
            for reason, count in self.counts.most_common()
        ]


def _joined(where: str, field: str) -> str:
    return f"{where}, {field}" if field else where


def mask_view(contents: Contents) -> View:
    """Real rows in pieces: learned or not, special token or text."""
    rows = contents.json("render", "tokens/example_rows.json")
    return {"rows": in_pieces(rows, contents.json("render", "tokens/template.json"))}


def in_pieces(rows: list[View], template: View) -> list[View]:
    """Rows whose segments are cut into special tokens and text; `template` is what `tokens/template.json` holds."""
    special = special_tokens([template.get("special_tokens"), template.get("stop_tokens")])
    pattern = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    splitter = re.compile(f"({pattern})") if pattern else None
    return [{"id": row["id"], "segments": [_segment(one, splitter) for one in row["segments"]]} for row in rows]


def special_tokens(data: Any) -> list[str]:
    """The texts of special tokens, from lists and from mappings that have the texts as values."""
    if isinstance(data, str):
        return [data] if data else []
    values = list(data.values()) if isinstance(data, dict) else list(data or [])
    return sorted({token for value in values for token in special_tokens(value)})


def _segment(segment: View, splitter: re.Pattern[str] | None) -> View:
    parts = splitter.split(segment["text"]) if splitter else [segment["text"]]
    pieces = [
        {"special": index % 2 == 1, "text": shown(part, shorten=not segment["supervised"])}
        for index, part in enumerate(parts)
        if part
    ]
    return {"supervised": segment["supervised"], "pieces": pieces}


def shown(text: str, shorten: bool) -> Markup:
    """Escaped text with its line ends visible; the middle of a long text that is not learned is left out, and said."""
    if shorten and len(text) > LONGEST_SHOWN:
        head, tail = text[: LONGEST_SHOWN // 2], text[-LONGEST_SHOWN // 4 :]
        left_out = len(text) - len(head) - len(tail)
        note = Markup('<span class="elision"> … {} characters not shown … </span>').format(numbers.count(left_out))
        return _with_line_ends(head) + note + _with_line_ends(tail)
    return _with_line_ends(text)


def _with_line_ends(text: str) -> Markup:
    return Markup('<span class="line-end" aria-hidden="true">↵</span>\n').join(
        escape(part) for part in text.replace("\r", "␍").split("\n")
    )


def lengths_view(contents: Contents) -> View:
    """Histograms of row lengths and of learned tokens."""
    return describe_lengths(contents.json("render", "tokens/lengths.json"))


def describe_lengths(lengths: View) -> View:
    """The same of what `tokens/lengths.json` holds."""
    everything = [*lengths["train"], *lengths["eval"]]
    if not everything:
        return {"rows": 0}
    limit = int(lengths["max_length"])
    return {
        "rows": len(everything),
        "chart": charts.histogram("lengths", "Tokens per row", everything, "tokens per row", limit),
        "supervised_chart": charts.histogram(
            "supervised", "Learned tokens per row", lengths["supervised"], "learned tokens per row", css="bar learned"
        )
        if lengths["supervised"]
        else "",
        "figures": [
            ("longest row", numbers.count(max(everything))),
            ("median row", numbers.count(median(everything))),
            ("max_length", f"{numbers.count(limit)} (from the {lengths['max_length_from']})"),
            ("context of the base", numbers.count(lengths["context"])),
            ("rows longer than max_length", numbers.count(sum(length > limit for length in everything))),
            (
                "learned tokens",
                f"{numbers.count(sum(lengths['supervised']))} of {numbers.count(sum(lengths['train']))}",
            ),
            ("prefix that all rows share", numbers.plural(lengths["shared_prefix_tokens"], "token")),
        ],
    }

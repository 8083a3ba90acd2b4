"""What a check found, as one self-contained page in the frame of the report.

In: a look. Out: an HTML file that loads nothing and needs no script to be read, light or dark. Always: text from the
data is escaped.
"""

import time
from pathlib import Path
from typing import Any

from tunewright.artifacts import read_json, write_text
from tunewright.chat.conversation import conversation_from_json
from tunewright.check.look import Look
from tunewright.check.outcome import Fates, Judged, Kind, Lengths, NamedRow, Outcome
from tunewright.check.rows import View, rows_view, turns_of
from tunewright.report import charts, numbers
from tunewright.report.gates import evidence_row
from tunewright.report.head import GLYPHS
from tunewright.report.page import framed, render_sections
from tunewright.report.rows import describe_lengths

FILES_SHOWN = 200
EXAMPLES = 3
MACROS = ("tunewright.check", "check.html.j2")


def write_page(found: Look, path: Path) -> None:
    write_text(path, render_page(found, numbers.moment(time.time())))


def render_page(found: Look, written_at: str) -> str:
    """The page; `written_at` is shown in its foot."""
    return framed(head_view(found), sections_of(found), written_at, *MACROS)


def render_body(found: Look) -> str:
    """What stands below the head of the page, to stand within another one."""
    return render_sections(sections_of(found), *MACROS)


def sections_of(found: Look) -> list[View]:
    outcome = found.outcome
    sections = [
        section("files", "What was read", files_view(outcome.facts)),
        section("fates", "What became of the rows", fates_view(outcome)),
        section("findings", "What was found", findings_view(outcome)),
        section("lengths", "Lengths", lengths_view(found)),
        section("rows", "Rows to look at", rows_view(found)),
    ]
    return [one for one in sections if one["view"]]


def section(name: str, title: str, view: View | None) -> View:
    return {"id": name, "title": title, "view": view}


def head_view(found: Look) -> View:
    outcome, fates = found.outcome, found.outcome.fates
    verdict = "fail" if outcome.failed else "pass"
    files = list(outcome.facts["formats_by_file"])
    figures = [
        ("Rows in", numbers.count(fates.rows_in), ", ".join(files[:3]) + (" …" if len(files) > 3 else "")),
        ("Kept", numbers.count(fates.kept), f"{numbers.count(fates.repaired)} repaired"),
        ("Truncated", numbers.count(fates.truncated), ""),
        ("Rejected", numbers.count(fates.rejected), ""),
    ]
    if outcome.lengths:
        figures.append(("Longest row", numbers.plural(outcome.lengths.longest, "token"), found.recipe.model))
    return {
        "kicker": "check of the data",
        "name": found.recipe.name or ", ".join(files[:3]),
        "verdict": verdict,
        "word": "failed" if outcome.failed else "passed",
        "glyph": GLYPHS[verdict],
        "sentence": sentence(outcome),
        "figures": [{"label": label, "value": value, "note": note} for label, value, note in figures],
        "hash": "",
    }


def sentence(outcome: Outcome) -> str:
    warnings = sum(item.evidence.verdict == "warn" for item in outcome.evidence)
    verb = "stands" if warnings == 1 else "stand"
    warned = f" {numbers.plural(warnings, 'warning')} {verb} below." if warnings else ""
    if not outcome.failed:
        return f"No gate failed.{warned}"
    names = numbers.listed([item.evidence.name.replace("_", " ") for item in outcome.failed])
    return f"{numbers.plural(len(outcome.failed), 'gate')} failed: {names}.{warned}"


def files_view(facts: dict[str, Any]) -> View:
    rows = [
        {"file": name, "format": format_, "count": numbers.count(count)}
        for name, formats in facts["formats_by_file"].items()
        for format_, count in formats.items()
    ]
    uncertain = facts["uncertain"]
    return {
        "rows": rows[:FILES_SHOWN],
        "more": max(len(rows) - FILES_SHOWN, 0),
        "ignored": [(key, numbers.count(count)) for key, count in facts["ignored_keys"].items()],
        "doubts": [(why, numbers.plural(count, "row")) for why, count in uncertain["rows"].items()],
        "as_understood": [
            {"id": row["id"], "turns": turns_of(conversation_from_json(row))} for row in uncertain["as_understood"]
        ],
    }


def fates_view(outcome: Outcome) -> View:
    fates = outcome.fates
    systems = outcome.facts["system_prompts"]
    parts = [("kept", fates.kept), ("truncated", fates.truncated), ("rejected", fates.rejected)]
    return {
        "fates": [fate_row("rows in", "", fates.rows_in, fates)]
        + [fate_row(name, name, count, fates) for name, count in parts]
        + [fate_row("of the kept or truncated ones repaired", "", fates.repaired, fates)],
        "bar": charts.balance("balance", "What became of every row", parts),
        "repairs": [kind_view(kind) for kind in outcome.repairs],
        "rejections": [kind_view(kind) for kind in outcome.rejections],
        "figures": [
            ("system prompt from the row", numbers.count(systems["row"])),
            ("from the recipe", numbers.count(systems["recipe"])),
            ("no system prompt", numbers.count(systems["none"])),
            ("conversations to train on", numbers.count(outcome.facts["train_rows"])),
            ("held out", numbers.count(outcome.facts["eval_rows"])),
        ],
    }


def fate_row(name: str, fate: str, count: int, fates: Fates) -> tuple[str, str, str, str]:
    return name, fate, numbers.count(count), numbers.percent(count / fates.rows_in)


def kind_view(kind: Kind) -> View:
    return {"reason": kind.what, "count": kind.count, "examples": [place(row) for row in kind.rows[:EXAMPLES]]}


def place(row: NamedRow) -> str:
    return f"{row.row}: {row.excerpt}" if row.excerpt else row.row


def findings_view(outcome: Outcome) -> View:
    return {"rows": [finding_view(item, outcome.accepted) for item in outcome.worst_first]}


def finding_view(item: Judged, accepted: frozenset[str]) -> View:
    """A row of the table, its sentence and what to do without the rows that stand below."""
    row = evidence_row({**item.evidence.as_json(), "examples": []}, accepted)
    return {**row, "detail": " ".join(filter(None, item.in_parts())), "examples": [place(one) for one in item.rows]}


def lengths_view(found: Look) -> View | None:
    """The histogram with the limit; nothing without a base."""
    if found.tokens is None or found.outcome.lengths is None:
        return None
    view = describe_lengths(read_json(found.tokens / "lengths.json"))
    return {**view, "figures": length_figures(found.outcome.lengths)} if view["rows"] else None


def length_figures(lengths: Lengths) -> list[tuple[str, str]]:
    over = lengths.over
    shares = [(f"{share} % have at most", numbers.count(found)) for share, found in lengths.percentiles().items()]
    return [
        ("longest row", numbers.count(lengths.longest)),
        *shares,
        ("max_length", f"{numbers.count(lengths.max_length)} (from the {lengths.max_length_from})"),
        ("rows longer than it", numbers.count(over["rows"])),
        ("tokens beyond it", numbers.count(over["tokens"])),
        ("learned tokens beyond it", numbers.percent(over["supervised_share"])),
        ("smallest that cuts nothing", numbers.count(lengths.longest)),
        ("context of the base", numbers.count(lengths.context)),
    ]

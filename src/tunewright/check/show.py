"""What a check found, for a person at a terminal: what was read, the fates of the rows, lengths, and what to mend.

In: an outcome. Out: text on stdout, in colour only on a terminal, that reads well at 80 columns. The findings are worst
first, and the verdict is the last line.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tunewright.check.outcome import ROWS_SHOWN, Judged, Kind, Lengths, NamedRow, Outcome
from tunewright.report import numbers

FILES_SHOWN = 10
EXCERPT_CHARACTERS = 160
GLYPHS = {"pass": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


def print_outcome(outcome: Outcome) -> None:
    console = Console(highlight=False, emoji=False)
    with console.capture() as captured:
        print_files(console, outcome.facts)
        print_fates(console, outcome)
        if outcome.lengths:
            print_lengths(console, outcome.lengths)
        print_findings(console, outcome)
        console.print(verdict(outcome))
    sys.stdout.write(re.sub(r" +$", "", captured.get(), flags=re.MULTILINE))


def heading(console: Console, text: str) -> None:
    console.print(Text(text, style="bold"))


def said(console: Console, text: str, indent: int = 2, style: str = "") -> None:
    """A paragraph that keeps its indent when it wraps."""
    console.print(Padding(Text(text, style=style), (0, 0, 0, indent)))


def grid(rows: Iterable[tuple[str, str]], indent: int = 2, between: int = 2) -> Padding:
    """Two columns, of which the right one wraps within itself."""
    table = Table.grid(padding=(0, between))
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for left, right in rows:
        table.add_row(Text(left), Text(right))
    return Padding(table, (0, 0, 0, indent))


# What was read


def print_files(console: Console, facts: dict[str, Any]) -> None:
    """Each file with its formats, and two rows as understood where that is not certain."""
    files = list(facts["formats_by_file"].items())
    heading(console, "What was read")
    for name, formats in files[:FILES_SHOWN]:
        said(console, name)
        said(console, listed(formats), 4)
    if len(files) > FILES_SHOWN:
        said(console, f"and {len(files) - FILES_SHOWN} more files; in all {listed(facts['formats'])}")
    if facts["ignored_keys"]:
        said(console, f"Nothing was read from these keys: {listed(facts['ignored_keys'])}.", style="dim")
    print_uncertain(console, facts["uncertain"])
    console.print()


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{numbers.count(count)} × {name}" for name, count in counts.items())


def print_uncertain(console: Console, uncertain: dict[str, Any]) -> None:
    for why, count in uncertain["rows"].items():
        text = Text.assemble(("! ", "yellow"), f"Not certain, in {numbers.plural(count, 'row')}: {why}.")
        console.print(Padding(text, (0, 0, 0, 2)))
    for row in uncertain["as_understood"]:
        said(console, f"{row['id']} is understood as", 4)
        console.print(grid(((turn["role"], short(turn["content"] or "")) for turn in row["messages"]), 6))


def short(text: str, most: int = EXCERPT_CHARACTERS) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


# What became of the rows


def print_fates(console: Console, outcome: Outcome) -> None:
    fates = outcome.fates
    heading(console, "What became of the rows")
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(ratio=1)
    table.add_row(numbers.count(fates.rows_in), "rows in")
    add_fate(table, fates.kept, "kept")
    if fates.repaired:
        among = "kept or truncated" if fates.truncated else "kept"
        table.add_row("", f"  {numbers.count(fates.repaired)} of the {among} ones repaired")
        add_kinds(table, outcome.repairs, 1)
    add_fate(table, fates.truncated, "truncated")
    add_fate(table, fates.rejected, "rejected", "red" if fates.rejected else "")
    add_kinds(table, outcome.rejections)
    console.print(Padding(table, (0, 0, 0, 2)))
    systems = outcome.facts["system_prompts"]
    named = {"row": "from the row", "recipe": "from the recipe", "none": "none"}
    said(console, f"System prompts: {', '.join(f'{numbers.count(systems[key])} {named[key]}' for key in named)}.")
    train, held_out = outcome.facts["train_rows"], outcome.facts["eval_rows"]
    said(console, f"Conversations: {numbers.count(train)} to train on, {numbers.count(held_out)} held out.")
    console.print()


def add_fate(table: Table, count: int, name: str, style: str = "") -> None:
    table.add_row(Text(numbers.count(count), style=style), Text(name, style=style))


def add_kinds(table: Table, kinds: Sequence[Kind], shown: int = ROWS_SHOWN) -> None:
    """Each kind with its count and its first rows."""
    for kind in kinds:
        table.add_row("", Text(f"  {numbers.count(kind.count)} × {kind.what}"))
        for row in kind.rows[:shown]:
            table.add_row("", Padding(Text(place(row), style="dim"), (0, 0, 0, 6)))


def place(row: NamedRow) -> str:
    return f"{row.row}: {short(row.excerpt)}" if row.excerpt else row.row


def print_lengths(console: Console, lengths: Lengths) -> None:
    data = lengths.as_json()
    heading(console, "Lengths in tokens")
    shares = " · ".join(f"{share} %: {numbers.count(found)}" for share, found in data["percentiles"].items())
    cut = data["would_cut"]
    limit = f"{numbers.count(lengths.max_length)} (from the {lengths.max_length_from})"
    cuts = "nothing"
    if cut["rows"]:
        cuts = (
            f"{numbers.plural(cut['rows'], 'row')}, {numbers.plural(cut['tokens'], 'token')}, "
            f"{numbers.percent(cut['supervised_share'])} of what is learned"
        )
    rows = [("rows up to", shares), ("longest", numbers.count(lengths.longest)), ("max_length", limit)]
    rows += [("it cuts", cuts), ("cuts nothing", f"max_length {lengths.longest}")]
    console.print(grid([*rows, ("context of the base", numbers.count(lengths.context))]))
    console.print()


# What was found


def print_findings(console: Console, outcome: Outcome) -> None:
    found = [item for item in outcome.worst_first if item.evidence.verdict != "pass"]
    if found:
        heading(console, "What was found, worst first")
        for item in found:
            print_finding(console, item)
    if outcome.passed:
        said(console, f"Passed: {', '.join(item.evidence.name for item in outcome.passed)}.", 0, "dim")
    console.print()


def print_finding(console: Console, item: Judged) -> None:
    """Its figure and limit, what was found, up to three rows, and what to do about it."""
    evidence = item.evidence
    glyph, colour = GLYPHS[evidence.verdict]
    figure = Text.assemble((f"{glyph} ", colour), (evidence.name, "bold"), f" = {numbers.figure(evidence.value)}")
    figure.append(f" (limit {numbers.limit(evidence.limit)})" if evidence.limit else "", style="dim")
    console.print(Padding(figure, (0, 0, 0, 2)))
    sentence, mend = item.in_parts()
    said(console, sentence, 4)
    for row in item.rows[:ROWS_SHOWN]:
        said(console, place(row), 6, "dim")
    if mend:
        console.print(grid([("→", mend)], 4, 1))
    console.print()


def verdict(outcome: Outcome) -> Text:
    warnings = sum(item.evidence.verdict == "warn" for item in outcome.evidence)
    rest = f" and {numbers.plural(warnings, 'warning')}" if warnings else ""
    if outcome.failed:
        names = numbers.listed([item.evidence.name for item in outcome.failed])
        return Text(f"✗ {numbers.plural(len(outcome.failed), 'gate')} failed{rest}: {names}.", style="red")
    accepted = [item.evidence.name for item in outcome.evidence if item.evidence.verdict == "fail"]
    gates = f"{numbers.listed(accepted)} failed and was accepted" if accepted else "no gate failed"
    return Text(f"✓ {numbers.plural(len(outcome.passed), 'check')} passed{rest}; {gates}.", style="green")

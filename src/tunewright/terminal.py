"""What a person sees in the terminal: stages, progress with speed and time left, evidence, and errors.

Everything for people goes to stderr, so that stdout is free for `--json` and for answers.
"""

import json
import sys
import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tunewright.artifacts import Manifest, RunDirectory
from tunewright.errors import TunewrightError
from tunewright.events import Event
from tunewright.evidence import Evidence

SYMBOLS = {"pass": "[green]✓[/green]", "warn": "[yellow]![/yellow]", "fail": "[red]✗[/red]"}
SECONDS_BETWEEN_LINES = 10.0


class Terminal:
    """Prints events as they come: a live bar on a terminal, a line now and then elsewhere.

    Args:
        quiet_evidence: leave evidence out, for a command that shows it at its end.
    """

    def __init__(self, quiet_evidence: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet_evidence = quiet_evidence
        self._bar: Progress | None = None
        self._task: Any = None
        self._unit = ""
        self._last_line = 0.0

    def __call__(self, event: Event) -> None:
        show = getattr(self, f"_show_{event['kind']}", None)
        if show:
            show(event)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        (self._bar.console if self._bar else self.console).print(text, soft_wrap=True)

    def _show_stage_started(self, event: Event) -> None:
        self._print(f"[bold]{event['stage']}[/bold]")

    def _show_stage_skipped(self, event: Event) -> None:
        self._print(f"[bold]{event['stage']}[/bold] [dim]done before, unchanged[/dim]")

    def _show_stage_finished(self, event: Event) -> None:
        self.close()
        self._print(f"  [dim]{duration(event['seconds'])}[/dim]")

    def _show_evidence(self, event: Event) -> None:
        self.close()
        if event["verdict"] == "pass" or self.quiet_evidence:
            return
        limit = f" (limit {event['limit']})" if event["limit"] else ""
        text = f"{event['name']} = {figure(event['value'])}{limit}: {event['detail']}"
        self._print(f"  {SYMBOLS[event['verdict']]} {escape(text)}")

    def _show_note(self, event: Event) -> None:
        self._print(f"  [dim]{escape(event['text'])}[/dim]")

    def _show_warning(self, event: Event) -> None:
        self._print(f"  {SYMBOLS['warn']} {escape(event['text'])}")

    def _show_metric(self, event: Event) -> None:
        if event.get("eval_loss") is not None:
            self._print(f"  step {event['step']}: evaluation loss {event['eval_loss']:.4f}")
        elif self._bar and self._unit == "steps" and "loss" in event:
            text = f"loss {event['loss']:.3f}, {event['tokens_per_second']:.0f} tokens/s"
            text += f", {event['peak_memory_bytes'] / 2**30:.1f} GiB"
            self._bar.update(self._task, note=text)

    def _show_sample(self, event: Event) -> None:
        prompt, answer = _one_line(event["prompt"], 60), _one_line(event["answer"], 100)
        self._print(f"    [dim]{escape(prompt)} →[/dim] {escape(answer)}")

    def _show_progress(self, event: Event) -> None:
        if not self.console.is_terminal:
            self._progress_line(event)
            return
        if self._bar is None or self._unit != event["unit"]:
            self._open_bar(event)
        assert self._bar is not None  # noqa: S101 - _open_bar has just made it
        speed = f"{amount(event['per_second'], event['unit'])}/s"
        left = f", {duration(event['seconds_left'])} left" if event["seconds_left"] else ""
        self._bar.update(self._task, completed=event["done"], total=event["total"], speed=speed + left)

    def _open_bar(self, event: Event) -> None:
        self.close()
        self._unit = event["unit"]
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[speed]}  {task.fields[note]}[/dim]"),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task(event["unit"], total=event["total"], speed="", note="")
        self._bar.start()

    def _progress_line(self, event: Event) -> None:
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = f", {duration(event['seconds_left'])} left" if event["seconds_left"] else ""
        done, total, speed = (amount(event[key], event["unit"]) for key in ("done", "total", "per_second"))
        self._print(f"  {done.split()[0]} of {total}, {speed}/s{left}")


def _one_line(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def duration(seconds: float) -> str:
    """`48 s`, `5 min 12 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def amount(number: float, unit: str) -> str:
    """`1234 rows`, `0.55 steps`, and of bytes `12.3 MB`."""
    if unit == "bytes":
        return f"{number / 1e6:.1f} MB"
    return f"{number if isinstance(number, int) else format(number, '.3g')} {unit}"


def figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_error(error: TunewrightError, as_json: bool) -> None:
    if as_json:
        print_json(error.as_json())
    else:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red bold]error[/red bold] {escape(str(error))}")


def print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def print_evidence(evidence: dict[str, list[Evidence]]) -> None:
    """One line for each piece of evidence, grouped by stage, on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    for name, items in evidence.items():
        console.print(f"[bold]{name}[/bold]")
        for item in items:
            limit = f" [dim]{escape(item.limit)}[/dim]" if item.limit else ""
            detail = f" [dim]{escape(item.detail)}[/dim]" if item.detail else ""
            console.print(f"  {SYMBOLS[item.verdict]} {item.name} {escape(figure(item.value))}{limit}{detail}")


def print_outcome(run: RunDirectory, stage: str, manifests: dict[str, Manifest], as_json: bool) -> None:
    """What a run came to: all of it as JSON, or the last stage's evidence and where to look."""
    if as_json:
        stages = {
            name: {
                "seconds": manifest.facts["seconds"],
                "evidence": [item.as_json() for item in manifest.evidence],
                "facts": manifest.facts,
            }
            for name, manifest in manifests.items()
        }
        print_json({"run": str(run.path), "stages": stages})
        return
    if stage != "report":
        print_evidence({stage: manifests[stage].evidence})
        return
    # As the report counts them, which cannot count what is checked when it is written.
    checked = [manifest.evidence for name, manifest in manifests.items() if name != "report"]
    counts = Counter(item.verdict for evidence in checked for item in evidence if item.is_check)
    console = Console(highlight=False, soft_wrap=True)
    warnings = f", {counts['warn']} warnings" if counts["warn"] else ""
    accepted = f", {counts['fail']} failures accepted" if counts["fail"] else ""
    console.print(f"{SYMBOLS['pass']} {counts['pass']} checks passed{warnings}{accepted}.")
    console.print(f"  report       {run / 'report.html'}\n  certificate  {run / 'certificate.json'}")
    console.print(f"  serve it     tunewright serve {run.path}\n  talk to it   tunewright chat {run.path} --with-base")


def print_plan(plan: dict[str, Any], evidence: list[Evidence]) -> None:
    """A plan in plain words: how the rows lie, how long it takes, what the memory is made of, and what would fit."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{plan['layout']}: {plan['layout_reason']}")
    seconds = plan["seconds_per_step"]
    takes = f", about {seconds:.1f} s each" if seconds else ""
    console.print(f"{plan['optimizer_steps']} steps of {plan['effective_batch_size']} rows{takes}, in {plan['dtype']}")
    table = Table(box=None, show_header=False)
    for part, size in plan["breakdown"].items():
        table.add_row(part, f"{size / 2**30:8.2f} GiB")
    console.print(table)
    print_evidence({"plan": evidence})


def print_runs(runs: list[dict[str, Any]], where: str) -> None:
    console = Console(highlight=False)
    if not runs:
        console.print(f"No runs in {where}. `tunewright run DATA.jsonl` makes one.")
        return
    table = Table("run", "last stage", "verdict", box=None, header_style="dim")
    for run in runs:
        table.add_row(run["name"], run["last_stage"] or "none", run["verdict"])
    console.print(table)

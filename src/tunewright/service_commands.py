"""`tunewright up` and `tunewright jobs ...`: parse, ask the store or the service, print.

The commands of `jobs` work on the store itself, with or without a service.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.commands import State, overrides_of
from tunewright.errors import JobNotFoundError
from tunewright.options import AsJson

if TYPE_CHECKING:
    from tunewright.jobs.job import Job
    from tunewright.jobs.store import Store

StorePath = Annotated[Path, typer.Option("--store", help="Directory that holds the runs and their jobs.")]
JobNumber = Annotated[int, typer.Argument(min=1, help="Number of a job, as `tunewright jobs list` shows it.")]
RUNS = Path("runs")

jobs = typer.Typer(no_args_is_help=True, help="Runs that wait, run one after the other, and survive a restart.")


def up(
    store: StorePath = RUNS,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    name: Annotated[list[str] | None, typer.Option(help="Name that others call it by, for another --host.")] = None,
    inbox: Annotated[Path | None, typer.Option(help="Train on every file that arrives in this directory.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe for the files of the inbox.")] = None,
    webhook: Annotated[
        list[str] | None,
        typer.Option(help="Tell FORM=URL when a job is done, failed or needs you: json, slack, discord or ntfy."),
    ] = None,
) -> None:
    """Run jobs one after the other, and answer on one port what goes on. Ctrl-C stops it; jobs run on.

    Example: tunewright up --inbox inbox --recipe recipe.yaml
    """
    from tunewright.web.service import Options, serve

    serve(Options(store, host, port, name or [], inbox, recipe, webhooks=webhook or []), announce)


def announce(url: str, token_path: Path) -> None:
    typer.echo(f"{url}\ntoken: in {token_path}\nCtrl-C stops it; jobs run on.")


@jobs.command("list")
def list_jobs(
    store: StorePath = RUNS,
    limit: Annotated[int, typer.Option(min=1, help="How many to show, the newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    State.as_json = as_json
    found = opened(store).jobs(limit=limit)
    if as_json:
        typer.echo(json.dumps([job.as_json() for job in found], ensure_ascii=False))
        return
    for job in found:
        typer.echo(line_of(job))


@jobs.command()
def add(
    target: Annotated[str, typer.Argument(help="A recipe (.yaml) or rows (a file, a directory, a hub data set).")],
    store: StorePath = RUNS,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Base model.")] = None,
    override: Annotated[list[str] | None, typer.Option("-o", help="Override a recipe key. Repeatable.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: the recipe's.")] = None,
    priority: Annotated[int, typer.Option(help="The higher goes first.")] = 0,
    needs: Annotated[list[int] | None, typer.Option(help="Job that has to be done before. Repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Queue a run; `tunewright up` starts it."""
    from tunewright.jobs.adding import add_job
    from tunewright.jobs.store import Store
    from tunewright.targets import recipe_for

    State.as_json = as_json
    wanted = recipe_for([target], overrides_of(override, model=model))
    show(add_job(Store(store), wanted, name, priority, needs or []), as_json)


@jobs.command()
def cancel(job: JobNumber, store: StorePath = RUNS, as_json: AsJson = False) -> None:
    """End a job; what it has done so far stays."""
    State.as_json = as_json
    show(opened(store).want(job, "cancel"), as_json)


@jobs.command()
def stop(job: JobNumber, store: StorePath = RUNS, as_json: AsJson = False) -> None:
    """Have a job save its state and stop; `retry` goes on from there."""
    State.as_json = as_json
    show(opened(store).want(job, "stop"), as_json)


@jobs.command()
def retry(
    job: JobNumber,
    store: StorePath = RUNS,
    accept: Annotated[list[str] | None, typer.Option(help="Evidence that may fail this time. Repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Queue a job again that has ended; its run goes on where it was."""
    State.as_json = as_json
    show(opened(store).retry(job, accept or []), as_json)


@jobs.command()
def log(job: JobNumber, store: StorePath = RUNS) -> None:
    """Print the log of a job's last attempt."""
    known = opened(store)
    attempts = known.attempts(known.job(job).id)
    path = known.log_path(job, attempts[-1].number if attempts else 1)
    if not path.exists():
        raise JobNotFoundError(f"job {job}", "it has not started, so it has no log")
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            typer.echo("".join(letter for letter in line if letter.isprintable() or letter == "\t"))


def opened(path: Path) -> "Store":
    """The store that is there; looking for one makes none."""
    from tunewright.jobs.store import Store

    if not (path / ".service/jobs.sqlite").exists():
        raise JobNotFoundError(str(path), "it holds no jobs", mend="`tunewright jobs add` makes one; or name --store.")
    return Store(path)


def show(job: "Job", as_json: bool) -> None:
    facts: dict[str, Any] = job.as_json()
    typer.echo(json.dumps(facts, ensure_ascii=False) if as_json else line_of(job))


def line_of(job: "Job") -> str:
    wanted = f" ({job.wanted} asked for)" if job.wanted else ""
    reason = f"  {job.reason}" if job.reason else ""
    return f"{job.id:>5}  {job.state:<9}{wanted}  {job.name}{reason}"

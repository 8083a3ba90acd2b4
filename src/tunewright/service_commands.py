"""`tunewright up`, `tunewright jobs ...` and `tunewright runs`: parse, ask the store or a service, print.

The commands of `jobs` work on the store itself, with or without a service; with `--server` they ask one elsewhere.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tunewright.commands import State, overrides_of
from tunewright.errors import JobNotFoundError
from tunewright.options import AsJson

if TYPE_CHECKING:
    from tunewright.jobs.local import LocalJobs
    from tunewright.web.client import RemoteService

StorePath = Annotated[Path, typer.Option("--store", help="Directory that holds the runs and their jobs.")]
JobNumber = Annotated[int, typer.Argument(min=1, help="Number of a job, as `tunewright jobs list` shows it.")]
Server = Annotated[str | None, typer.Option(help="Ask a service elsewhere, such as https://gpu.example.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with its token; default: the variable TUNEWRIGHT_TOKEN.")]
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
    server: Server = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    State.as_json = as_json
    with jobs_of(store, server, token_file) as known:
        found = known.jobs(limit)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
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
    server: Server = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Queue a run; `tunewright up` starts it. With --server the files of rows are sent there first.

    Example: tunewright jobs add recipe.yaml --server https://gpu.example
    """
    from tunewright.targets import recipe_for

    State.as_json = as_json
    wanted = recipe_for([target], overrides_of(override, model=model))
    with jobs_of(store, server, token_file, is_new=True) as known:
        show(known.add(wanted, name, priority, needs or []), as_json)


def wish_command(wish: Literal["cancel", "stop"], summary: str) -> None:
    """Add the command that asks a job for something while it runs."""

    def command(
        job: JobNumber,
        store: StorePath = RUNS,
        server: Server = None,
        token_file: TokenFile = None,
        as_json: AsJson = False,
    ) -> None:
        State.as_json = as_json
        with jobs_of(store, server, token_file) as known:
            show(known.want(job, wish), as_json)

    jobs.command(wish, help=summary)(command)


wish_command("cancel", "End a job; what it has done so far stays.")
wish_command("stop", "Have a job save its state and stop; `retry` goes on from there.")


@jobs.command()
def retry(
    job: JobNumber,
    store: StorePath = RUNS,
    accept: Annotated[list[str] | None, typer.Option(help="Evidence that may fail this time. Repeatable.")] = None,
    server: Server = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Queue a job again that has ended; its run goes on where it was."""
    State.as_json = as_json
    with jobs_of(store, server, token_file) as known:
        show(known.retry(job, accept or []), as_json)


@jobs.command()
def log(
    job: JobNumber,
    store: StorePath = RUNS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    server: Server = None,
    token_file: TokenFile = None,
) -> None:
    """Print the log of a job's last attempt."""
    with jobs_of(store, server, token_file) as known:
        for piece in known.log(job, follow):
            typer.echo("".join(letter for letter in piece if letter.isprintable() or letter in "\t\n"), nl=False)


def runs(
    directory: Annotated[Path, typer.Argument(help="Directory that holds runs.")] = RUNS,
    server: Server = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """List the runs below a directory or of a service: how far each came, and its verdict."""
    from tunewright.terminal import print_json, print_runs

    State.as_json = as_json
    if server is None:
        from tunewright.paths import list_runs

        found = list_runs(directory)
    else:
        with service_at(server, token_file) as known:
            found = known.runs()
    print_json(found) if as_json else print_runs(found, server or str(directory))


def jobs_of(
    store: Path, server: str | None, token_file: Path | None, is_new: bool = False
) -> "LocalJobs | RemoteService":
    """The jobs of a store or of a service elsewhere; looking for a store makes none."""
    from tunewright.jobs.local import LocalJobs
    from tunewright.jobs.store import Store

    if server is not None:
        return service_at(server, token_file)
    if not is_new and not (store / ".service/jobs.sqlite").exists():
        raise JobNotFoundError(str(store), "it holds no jobs", mend="`tunewright jobs add` makes one; or name --store.")
    return LocalJobs(Store(store))


def service_at(url: str, token_file: Path | None) -> "RemoteService":
    from tunewright.web.client import RemoteService, read_token, validate_url

    return RemoteService(validate_url(url), read_token(token_file))


def show(job: dict[str, Any], as_json: bool) -> None:
    typer.echo(json.dumps(job, ensure_ascii=False) if as_json else line_of(job))


def line_of(job: dict[str, Any]) -> str:
    wanted = f" ({job['wanted']} asked for)" if job["wanted"] else ""
    reason = f"  {job['reason']}" if job["reason"] else ""
    line = f"{job['id']:>5}  {job['state']:<9}{wanted}  {job['name']}{reason}"
    return "".join(letter for letter in line if letter.isprintable())

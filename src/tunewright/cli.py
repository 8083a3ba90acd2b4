"""The command line: parse, wire, print. The only place that turns an error into an exit code.

Everything that takes time to import is imported inside the command that needs it, so that `--help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tunewright import push_command, service_commands
from tunewright.commands import State, kept_run, listening, overrides_of, report_evidence, report_verdict, run_until
from tunewright.errors import EnvironmentLackError, TunewrightError, UsageError, environment_error
from tunewright.options import Accept, Again, AsJson, Data, Model, OnBadRow, Override, RunDir, RunTarget, Target

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune a language model on your own data, and ship it knowing that what you serve is what you trained.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 a gate failed, 4 missing on this machine, 130 interrupted.",
)


@app.command()
def run(
    target: Annotated[
        str | None, typer.Argument(help="A recipe (.yaml), rows (a file, a directory, a hub data set), or a run.")
    ] = None,
    model: Model = None,
    override: Override = None,
    run_dir: RunDir = None,
    until: Annotated[str, typer.Option(help="Stop after this stage.")] = "report",
    accept: Accept = None,
    on_bad_row: OnBadRow = None,
    as_json: AsJson = False,
    keys: Annotated[bool, typer.Option("--keys", help="List all recipe keys and leave.")] = False,
) -> None:
    """Do the whole job: data, render, plan, train, merge, export, verify, evaluate, report.

    The same command goes on where an earlier one stopped. Example: tunewright run rows.jsonl --model Qwen/Qwen3-1.7B
    """
    if keys:
        print_keys()
        return
    if target is None:
        raise UsageError(
            "tunewright run", "nothing to run was named", expected="a recipe, a data file or a run directory"
        )
    run_until(until, target, model, override, run_dir, accept, on_bad_row, as_json)


def stage_command(stage: str, summary: str) -> None:
    """Add the command that does one stage, and before it those that it needs and that are not done."""

    def command(
        target: Target,
        model: Model = None,
        override: Override = None,
        run_dir: RunDir = None,
        accept: Accept = None,
        on_bad_row: OnBadRow = None,
        again: Again = False,
        as_json: AsJson = False,
    ) -> None:
        run_until(stage, target, model, override, run_dir, accept, on_bad_row, as_json, again)

    app.command(stage, help=f"{summary} Stages that it needs and that are not done yet are done first.")(command)


@app.command()
def check(
    data: Data,
    model: Model = None,
    override: Override = None,
    on_bad_row: Annotated[
        str | None, typer.Option(help="reject (default) or stop: what to do with rows that cannot be read.")
    ] = None,
    accept: Annotated[list[str] | None, typer.Option(help="Let this gate fail. Repeatable.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with findings and rows to this file.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Write the fate of each row to this file, as JSON Lines.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Keep what was made in this run directory.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what became of every row, what is wrong with the data and, with a model, how long the rows are.

    Nothing is trained and nothing is left behind. Example: tunewright check rows.jsonl --model Qwen/Qwen3-1.7B
    """
    from tunewright.check.look import look, save_ledger
    from tunewright.check.output import validate_output
    from tunewright.check.show import print_outcome
    from tunewright.targets import recipe_for
    from tunewright.terminal import print_json

    State.as_json = as_json
    overrides = overrides_of(override, model=model, accept=accept, on_bad_row=on_bad_row)
    recipe = recipe_for(data, {"on_bad_row": "reject", **overrides})
    for option, path in (("--html", html), ("--ledger", ledger)):
        if path is not None:
            validate_output(path, option, recipe)
    with (
        kept_run(run_dir) as run,
        listening(as_json, run, quiet_evidence=True) as events,
        look(recipe, run, events) as found,
    ):
        if ledger is not None:
            save_ledger(found, ledger)
        if html is not None:
            from tunewright.check.page import write_page

            write_page(found, html)
        print_json(found.outcome.as_json()) if as_json else print_outcome(found.outcome)
    if found.outcome.failed:
        raise typer.Exit(3)


@app.command()
def render(
    data: Data,
    model: Model = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Directory of a tokenizer, in the place of a model.")] = None,
    template: Annotated[str | None, typer.Option(help="Chat template: a file, or chatml, llama-2, zephyr.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 5,
    override: Override = None,
    run_dir: RunDir = None,
    accept: Accept = None,
    on_bad_row: OnBadRow = None,
    again: Again = False,
    as_json: AsJson = False,
) -> None:
    """Show rows as they would be trained, their masks in colour; with --json every row on a line, with its proof.

    Of a recipe or a run the stage is done, and what it needs before it. Example: tunewright render rows.jsonl -m MODEL
    """
    from tunewright.targets import recipe_for, recipe_path

    if tokenizer is None and template is None and len(data) == 1 and (run_dir or recipe_path(data[0])):
        run_until("render", data[0], model, override, run_dir, accept, on_bad_row, as_json, again, looks_only=True)
        return
    from tunewright.masks.request import job_for
    from tunewright.masks.show import print_masks

    State.as_json = as_json
    if model is not None and tokenizer is not None:
        raise UsageError("tunewright render", "--model and --tokenizer were given", "one of them")
    recipe = recipe_for(data, overrides_of(override, model=model))
    print_masks(job_for(recipe, tokenizer, template), rows, as_json)


@app.command()
def plan(
    target: Target,
    model: Model = None,
    override: Override = None,
    run_dir: RunDir = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="Plan for a card with so much memory, such as 24GiB; it need not be here."),
    ] = None,
    accept: Accept = None,
    on_bad_row: OnBadRow = None,
    again: Again = False,
    as_json: AsJson = False,
) -> None:
    """Say how the run will go: layout, steps, time, memory against what there is, and the cheapest change that fits.

    Nothing of the base's weights is loaded. Example: tunewright plan rows.jsonl --model Qwen/Qwen3-8B --gpu 24GiB
    """
    from tunewright.commands import plan_run
    from tunewright.terminal import print_json, print_plan

    plan, evidence = plan_run(target, model, override, run_dir, gpu, accept, on_bad_row, as_json, again)
    if as_json:
        print_json({**plan, "evidence": [item.as_json() for item in evidence]})
    else:
        print_plan(plan, evidence)
    if any(item.verdict == "fail" for item in evidence) and "memory_fits" not in (accept or []):
        raise typer.Exit(3)


stage_command("train", "Train the adapter and record the canaries.")
stage_command("report", "Write certificate.json and report.html.")


@app.command()
def merge(
    target: Annotated[Path | None, typer.Argument(help="A run directory; or name --base, --adapter and --out.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model that the adapter was trained on, unquantized.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Directory with a peft adapter.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory to write the merged checkpoint into.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float16.")] = "auto",
    again: Again = False,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its unquantized base, tensor by tensor, and check every tensor.

    Example: tunewright merge --base Qwen/Qwen3-1.7B --adapter my-adapter --out merged
    """
    if target is not None:
        run_until("merge", str(target), as_json=as_json, again=again)
        return
    if base is None or adapter is None or out is None:
        raise UsageError("tunewright merge", "a path is missing", expected="RUN, or --base, --adapter and --out")
    from tunewright.paths import merge_paths

    with listening(as_json) as listener:
        report_evidence({"merge": merge_paths(base, adapter, out, dtype, listener)}, as_json)


@app.command()
def export(
    target: Annotated[
        Path | None, typer.Argument(help="A run directory, or a 16-bit checkpoint directory with --out.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base model, to export an adapter without merging first.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Directory with a peft adapter, for --base.")] = None,
    out: Annotated[Path | None, typer.Option(help="GGUF file to write, for a checkpoint directory or --base.")] = None,
    gguf_format: Annotated[
        str, typer.Option("--format", help="q8_0, f16, bf16, f32, q6_k, q5_k_m or q4_k_m.")
    ] = "q8_0",
    to: Annotated[
        str | None, typer.Option(help="ollama: make the run's model in a running Ollama, and verify it there.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name in Ollama; default: the run's.")] = None,
    server: Annotated[str | None, typer.Option(help="Where Ollama listens; default: OLLAMA_HOST.")] = None,
    override: Override = None,
    again: Again = False,
    as_json: AsJson = False,
) -> None:
    """Convert to GGUF with llama.cpp's own converter, and write the Modelfile.

    Example: tunewright export merged --out model-q8_0.gguf, or tunewright export runs/triage --to ollama
    """
    if to is not None:
        export_to(to, target, name, server, as_json)
        return
    if target is not None and out is None:
        run_until("export", str(target), override=override, as_json=as_json, again=again)
        return
    from tunewright.paths import export_adapter_paths, export_path

    with listening(as_json) as listener:
        if target is not None and out is not None:
            evidence = export_path(target, out, gguf_format, listener)
        elif base is not None and adapter is not None and out is not None:
            evidence = export_adapter_paths(base, adapter, out, gguf_format, listener)
        else:
            expected = "RUN; a checkpoint directory and --out; or --base, --adapter and --out"
            raise UsageError("tunewright export", "a path is missing", expected=expected)
    report_evidence({"export": evidence}, as_json)


def export_to(to: str, run: Path | None, name: str | None, server: str | None, as_json: bool) -> None:
    if to != "ollama" or run is None:
        raise UsageError("tunewright export", f"found --to {to}", expected="RUN --to ollama")
    from tunewright.endpoints import export_to_ollama

    with listening(as_json) as listener:
        evidence = export_to_ollama(run, name, server, listener)
    report_verdict(evidence, as_json)


@app.command()
def verify(
    target: Annotated[Path, typer.Argument(help="A finished run directory, or any 16-bit checkpoint directory.")],
    endpoint: Annotated[
        str | None, typer.Option(help="A server that serves the run's model, such as http://127.0.0.1:8080/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="What the endpoint calls the model.")] = None,
    api: Annotated[str, typer.Option(help="What the endpoint speaks: openai or ollama.")] = "openai",
    key_variable: Annotated[
        str | None, typer.Option(help="The environment variable that holds the endpoint's key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check again that every artifact is what it claims to be, and that each says what the trained model said.

    With --endpoint a served model is asked instead. Example: tunewright verify RUN --endpoint URL --model NAME
    """
    from tunewright.endpoints import verify_endpoint
    from tunewright.paths import verify_checkpoint, verify_run

    with listening(as_json) as listener:
        if endpoint is not None:
            evidence = verify_endpoint(target, endpoint, model, api, key_variable, listener)
        else:
            whole_run = (target / "manifests").is_dir()
            evidence = verify_run(target, listener) if whole_run else verify_checkpoint(target)
    report_verdict(evidence, as_json)


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(help="A run directory.")],
    override: Override = None,
    again: Again = False,
    as_json: AsJson = False,
) -> None:
    """Answer the held-out rows with the base, the merged model and each GGUF, and compare."""
    run_until("evaluate", str(target), override=override, as_json=as_json, again=again)


@app.command()
def serve(
    target: RunTarget,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8080,
    gguf_format: Annotated[str | None, typer.Option("--format", help="Which GGUF; default: the first one.")] = None,
) -> None:
    """Serve the GGUF behind llama.cpp's OpenAI-compatible server on loopback, with the prompt that was trained.

    Clients need the key that is printed; set TUNEWRIGHT_API_KEY to choose it.
    """
    import signal

    from tunewright.artifacts import RunDirectory
    from tunewright.serve import new_api_key, start, what_to_serve

    api_key = os.environ.get("TUNEWRIGHT_API_KEY") or new_api_key()
    served = what_to_serve(RunDirectory(target), gguf_format)
    # Blocked before anything is started, so that no signal is lost before it is waited for.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    server = start(served, port, api_key)
    typer.echo(f"{served.gguf_path} at {server.address}/v1\nkey: {api_key}\nCtrl-C stops it.")
    while signal.sigtimedwait({signal.SIGINT, signal.SIGTERM}, 1) is None:
        server.validate_running()
    server.close()


@app.command()
def chat(
    target: RunTarget,
    with_base: Annotated[bool, typer.Option("--with-base", help="Show the base's answer beside it.")] = False,
    gguf_format: Annotated[str | None, typer.Option("--format", help="Which GGUF; default: the first one.")] = None,
) -> None:
    """Talk to the tuned model in the terminal. An empty line or Ctrl-D ends it; /new begins afresh."""
    from tunewright.artifacts import RunDirectory
    from tunewright.conversation_loop import talk

    talk(RunDirectory(target), gguf_format, with_base)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do (GPU, memory, disk, llama.cpp, Ollama, converter) and what is missing."""
    from tunewright.doctor import examine_machine

    report_evidence({"doctor": examine_machine()}, as_json, failure_code=EnvironmentLackError.exit_code)


app.command()(service_commands.runs)
app.command()(push_command.push)
app.command()(service_commands.up)
app.add_typer(service_commands.jobs, name="jobs")


def print_keys() -> None:
    from tunewright.recipe import Recipe

    for name, field in Recipe.model_fields.items():
        default = "" if field.is_required() else f" = {field.get_default(call_default_factory=True)!r}"
        typer.echo(f"{name}{default}" + (f"\n    {field.description}" if field.description else ""))


def main() -> None:
    """Run a command; every error that a user can meet becomes one message and its exit code."""
    try:
        app(standalone_mode=True)
    except TunewrightError as error:
        fail(error)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(130)
    except OSError as error:
        fail(environment_error(error))
    except Exception as error:
        if "No space left on device" not in str(error):
            raise
        fail(EnvironmentLackError("disk", "no space is left", mend="Free some and run the same command again."))


def fail(error: TunewrightError) -> None:
    from tunewright.terminal import print_error

    print_error(error, State.as_json)
    sys.exit(error.exit_code)

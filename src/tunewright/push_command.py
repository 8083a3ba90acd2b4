"""`tunewright push`: parse, push, print."""

import sys
from typing import Annotated

import typer

from tunewright.commands import State, listening
from tunewright.options import Accept, AsJson, RunTarget


def push(
    target: RunTarget,
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; it is made if need be.")],
    what: Annotated[str, typer.Option(help="merged, adapter, gguf or all.")] = "all",
    private: Annotated[bool, typer.Option("--private", help="Make a repository that only you can see.")] = False,
    accept: Accept = None,
    as_json: AsJson = False,
) -> None:
    """Publish a finished run on the Hugging Face hub, with its card and certificate, and check what the hub has.

    The token is HF_TOKEN or that of `hf auth login`. Example: tunewright push runs/triage me/triage --private
    """
    from tunewright.push.publish import push as publish
    from tunewright.terminal import print_evidence, print_json

    State.as_json = as_json
    with listening(as_json) as events:
        shows_progress = not as_json and sys.stderr.isatty()
        outcome = publish(target, repo_id, what, private, accept or [], events, shows_progress)
    if as_json:
        print_json(outcome.as_json())
    else:
        print_evidence({"push": outcome.evidence})
        typer.echo(f"{outcome.pushed.url} at {outcome.pushed.commit}")
    if any(item.name.startswith("hub_") and item.verdict == "fail" for item in outcome.evidence):
        raise typer.Exit(3)

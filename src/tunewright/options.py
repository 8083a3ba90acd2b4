"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[
    str, typer.Argument(help="A recipe (.yaml), rows (a file, a directory, a hub data set), or a run directory.")
]
Data = Annotated[
    list[str],
    typer.Argument(metavar="DATA...", help="Files, directories or hub data sets; or one recipe or run directory."),
]
RunTarget = Annotated[Path, typer.Argument(help="A run directory, such as runs/support_triage.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Base model: embedded:…, a directory, or a hub id.")]
Override = Annotated[list[str] | None, typer.Option("-o", help="Override a recipe key: -o lora_r=32. Repeatable.")]
RunDir = Annotated[Path | None, typer.Option(help="Where the run is kept; default: runs/NAME.")]
Accept = Annotated[list[str] | None, typer.Option(help="Go on although this evidence fails; the certificate says so.")]
OnBadRow = Annotated[
    str | None, typer.Option(help="stop (default) or reject: what to do with rows that cannot be read.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Again = Annotated[bool, typer.Option("--again", help="Do the stage again even if it is done.")]

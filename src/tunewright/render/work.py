"""What worker processes do with a block of conversations: render and prove each, and fit it into the row limit.

Everything that comes back is arrays, names, outcomes and counts, in the order of the rows. A process loads the
tokenizer and the template once.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunewright.chat.files import conversation_from_line
from tunewright.chat.rows import RowBlock, shared_prefix
from tunewright.chat.supervise import SupervisedRow, Supervisor
from tunewright.chat.template import chat_template_of
from tunewright.errors import RenderError
from tunewright.models.base import load_tokenizer, stop_token_ids
from tunewright.parallel import Workers, processes_for
from tunewright.render.outcomes import OnLongRow, Outcome, fit, refused
from tunewright.render.tally import Tally

# What a process costs at its start, loading transformers, against what it saves.
BYTES_WORTH_A_PROCESS = 1 << 23
# Imported once for all processes: it is what makes their start dear.
PRELOAD = "transformers.models.auto.tokenization_auto"


@dataclass(frozen=True)
class Job:
    """What every process knows.

    Attributes:
        base: directory of the base.
        model: the base's name, for messages.
        limit: tokens that a row may have.
        chat_template: that the recipe names; None for the base's own.
    """

    base: Path
    model: str
    limit: int
    on_long_row: OnLongRow
    chat_template: str | None = None


@dataclass
class RenderedBlock:
    """A block's conversations, rendered.

    Attributes:
        names, supervised: the name of each token row, and how many of its tokens are learned.
        prefix: what the block's rows begin with (see `shared_prefix`).
    """

    rows: RowBlock
    names: list[str]
    supervised: list[int]
    prefix: NDArray[np.int32]
    outcomes: list[Outcome]
    tally: Tally


@dataclass
class _Process:
    job: Job
    supervisor: Supervisor


_processes: list[_Process] = []


def start(job: Job) -> None:
    _processes[:] = [_Process(job, open_supervisor(job))]


def open_supervisor(job: Job) -> Supervisor:
    tokenizer = load_tokenizer(job.base)
    template = chat_template_of(tokenizer, job.model, job.chat_template)
    return Supervisor(tokenizer, template, stop_token_ids(job.base, tokenizer))


def open_workers(job: Job, total_bytes: int) -> Workers:
    return Workers(processes_for(total_bytes, BYTES_WORTH_A_PROCESS), start, (job,), PRELOAD)


def render_lines(lines: list[bytes]) -> RenderedBlock:
    """Render the conversations on `lines`."""
    (process,) = _processes
    return render_block(lines, process.supervisor, process.job.limit, process.job.on_long_row)


def render_block(lines: list[bytes], supervisor: Supervisor, limit: int, on_long_row: OnLongRow) -> RenderedBlock:
    tally = Tally()
    kept: list[SupervisedRow] = []
    outcomes = []
    for line in lines:
        rows, outcome = render_line(line, supervisor, limit, on_long_row, tally)
        tally.add(outcome, rows)
        kept += rows
        outcomes.append(outcome)
    names, supervised = [row.id for row in kept], [int(np.count_nonzero(row.mask)) for row in kept]
    return RenderedBlock(RowBlock.of(kept), names, supervised, shared_prefix(kept), outcomes, tally)


def render_line(
    line: bytes, supervisor: Supervisor, limit: int, on_long_row: OnLongRow, tally: Tally
) -> tuple[list[SupervisedRow], Outcome]:
    conversation = conversation_from_line(line)
    try:
        rows = supervisor.rows(conversation)
    except RenderError as error:
        return [], refused(conversation, error)
    tally.measure(conversation, rows, limit)
    return fit(conversation, rows, limit, on_long_row)

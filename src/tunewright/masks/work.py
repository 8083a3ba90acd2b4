"""Rows of data to lines of JSON, in as many processes as there are cores.

In: blocks of a file of rows. Out: for each conversation the lines of `render.row_json`, in the order of the rows; a row
that the data stage would leave out is one line with `refused` and the claim `data`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.chat.encoding import Encoder
from tunewright.chat.stops import end_of_turn_ids
from tunewright.chat.supervise import Supervisor
from tunewright.chat.template import chat_template_of
from tunewright.data.account import account_for
from tunewright.data.read import Block, Source, read_all_blocks, rows_of
from tunewright.models.base import generation_stop_ids, load_tokenizer
from tunewright.parallel import Workers, processes_for
from tunewright.recipe import DataKeys
from tunewright.render.row_json import rows_as_json

PRELOAD = "transformers"
BYTES_WORTH_A_PROCESS = 1 << 21
ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class Job:
    """What every process knows.

    Attributes:
        tokenizer: directory of the base, or of a tokenizer alone.
        name: of the base, for messages.
        template: one of the named templates or a file; None for the tokenizer's own.
    """

    config: DataKeys
    sources: tuple[Source, ...]
    tokenizer: Path
    name: str
    template: str | None


_started: list[tuple[Job, Supervisor]] = []


def start(job: Job) -> None:
    _started[:] = [(job, open_supervisor(job))]


def open_supervisor(job: Job) -> Supervisor:
    """The supervisor; where no `generation_config.json` names the stop tokens, they are those of the template."""
    tokenizer = load_tokenizer(job.tokenizer)
    template = chat_template_of(tokenizer, job.name, job.template)
    stops = generation_stop_ids(job.tokenizer) or end_of_turn_ids(Encoder(tokenizer), template)
    end_of_text = tokenizer.eos_token_id
    return Supervisor(tokenizer, template, stops if end_of_text is None else stops | {int(end_of_text)})


def proven_lines(job: Job) -> Iterator[bytes]:
    """The lines of JSON of every row, block by block.

    Raises:
        TunewrightError: the tokenizer has no template, or a file cannot be split into rows.
    """
    total = sum(source.path.stat().st_size for source in job.sources)
    processes = processes_for(total, BYTES_WORTH_A_PROCESS)
    if processes:
        open_supervisor(job)  # What is wrong with the tokenizer is said once, and before any process starts.
    with Workers(processes, start, (job,), PRELOAD) as workers:
        yield from workers.map(prove_block, read_all_blocks(job.sources))


def prove_block(block: Block) -> bytes:
    ((job, supervisor),) = _started
    found: list[dict[str, Any]] = []
    for row in rows_of(block, job.sources):
        account = account_for(row, job.config)
        if account.fault is not None:
            found.append({"row": row.id, "refused": account.fault.reason, "claim": "data"})
        for conversation in account.conversations:
            found.extend(rows_as_json(conversation, supervisor))
    return "".join([ENCODE(one) + "\n" for one in found]).encode()

"""What worker processes do with a block of rows: account for each, look at it, and keep its numbers.

Everything that comes back is bytes, arrays and counts, in the order of the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunewright.chat.files import conversation_line
from tunewright.data.account import Account, account_for
from tunewright.data.audit.rows import AuditRow
from tunewright.data.audit.run import RowChecks, Tally
from tunewright.data.features import as_columns, features_of, hash64
from tunewright.data.ledger import Totals, ledger_line
from tunewright.data.read import Block, Source, rows_of
from tunewright.data.spool import PER_ROW
from tunewright.parallel import Workers, processes_for
from tunewright.recipe import DataKeys


@dataclass(frozen=True)
class Job:
    """What every process knows."""

    config: DataKeys
    sources: tuple[Source, ...]


@dataclass
class Accounted:
    """A block's rows, accounted for: what `Spool.append` takes, with the counts of the ledger and of the audit.

    Attributes:
        reached: bytes of the source that have been read by the end of this block, after unpacking.
    """

    source: int
    reached: int
    ledger: bytes
    conversations: bytes
    columns: dict[str, NDArray[Any]]
    totals: Totals
    tally: Tally


_jobs: list[Job] = []


def start_job(job: Job) -> None:
    _jobs[:] = [job]


def open_workers(config: DataKeys, sources: Sequence[Source]) -> Workers:
    total = sum(source.path.stat().st_size for source in sources)
    return Workers(processes_for(total), start_job, (Job(config, tuple(sources)),), __name__)


@dataclass
class _Collected:
    ledger: list[bytes] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    features: list[tuple[int, ...]] = field(default_factory=list)
    per_row: list[int] = field(default_factory=list)


def account_block(block: Block) -> Accounted:
    """Account for every row of a block."""
    (job,) = _jobs
    collected, totals, checks = _Collected(), Totals(), RowChecks(job.config.audit)
    for row in rows_of(block, job.sources):
        account = account_for(row, job.config)
        totals.add(account, block.source)
        collected.ledger.append(ledger_line(account))
        collected.per_row.append(len(account.conversations))
        for found in account.conversations:
            audit_row = AuditRow(found)
            checks.look(audit_row)
            line = conversation_line(found).encode()
            collected.lines.append(line)
            collected.features.append(_features(audit_row, account, job.config.seed, line))
    return Accounted(
        block.source,
        reached_by(block),
        b"".join(collected.ledger),
        b"".join(collected.lines),
        {**as_columns(collected.features), PER_ROW: np.array(collected.per_row, dtype=np.uint16)},
        totals,
        checks.tally,
    )


def reached_by(block: Block) -> int:
    last = block.records[-1] if block.records else None
    return last.byte_offset + len(last.raw) if last else block.byte_offset + len(block.lines)


def _features(row: AuditRow, account: Account, seed: int, line: bytes) -> tuple[int, ...]:
    key = hash64(f"{seed}:{account.row.sha256}")
    return features_of(row, key, account.stratum, account.row.source.held_out, line)

"""The prompts of all rows, sketched so that near duplicates can be found: a second pass over the spooled rows.

It comes after the first because what wording is common has to be known before a prompt can be sketched.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tunewright.chat.conversation import conversation_from_json
from tunewright.data.audit.columns import smallest_rows
from tunewright.data.audit.rows import AuditRow
from tunewright.data.corpus import Corpus, band_name
from tunewright.data.features import hash64
from tunewright.data.near import BANDS, Shingles, band_keys, common_wording, in_batches, is_own, shingles_of, words_of
from tunewright.data.spool import Spool
from tunewright.events import Events
from tunewright.parallel import Workers

SAMPLE_ROWS = 10_000


def index_prompts(spool: Spool, workers: Workers, events: Events) -> Corpus:
    """The corpus of a spool, its prompts sketched; adds the columns `prompt` and one for each band to the spool."""
    spool.flush()
    common = common_wording(spool_prompts(spool, sample_of(spool)))
    progress = events.progress("prompts", spool.size)
    for prompts, bands in workers.map(partial(sketch_lines, common=common), spool.blocks()):
        spool.append_column("prompt", prompts)
        for band in range(BANDS):
            spool.append_column(band_name(band), bands[:, band])
        progress.advance(len(prompts))
    spool.flush()
    return Corpus(spool, common)


def sample_of(spool: Spool) -> Sequence[int]:
    """The rows with the smallest keys, at most `SAMPLE_ROWS`: the same whatever the order of rows."""
    return sorted(smallest_rows(spool.column("key"), np.uint64(0), SAMPLE_ROWS))


def spool_prompts(spool: Spool, indices: Sequence[int]) -> Iterator[str]:
    return (AuditRow(spool.conversation(index)).prompt for index in indices)


def sketch_lines(lines: bytes, common: Shingles) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """For the conversations of a block of the spool: a hash of each prompt's words, uint64 [N], and its band keys."""
    hashes: list[int] = []
    keys = [np.zeros((0, BANDS), np.uint64)]
    prompts = (AuditRow(conversation_from_json(json.loads(line))).prompt for line in lines.splitlines())
    for batch in in_batches(prompts):
        words = words_of(batch)
        hashes.extend(hash64(own.tobytes()) for own in words)
        shingles = shingles_of(words)
        keys.append(band_keys(shingles.where(is_own(shingles.values, common))))
    return np.array(hashes, dtype=np.uint64), np.concatenate(keys)

"""Write the tensors of a merge: read, compute and write in blocks, on all cores, into shards whose place is known.

In goes an open plan; out come safetensors shards. Always: memory holds a few blocks for each core, never the model; a
number is rounded once; a result that is not finite stops the merge by name. A shard counts as done when it is flushed
to disk and stands in the journal, so that a merge that is killed goes on with the next shard.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tunewright.artifacts import read_json, write_json
from tunewright.errors import ArtifactError, MergeError
from tunewright.events import Events, Progress
from tunewright.models.merge_layout import Shard, tensor_bytes
from tunewright.models.merge_plan import OpenMerge
from tunewright.parallel import threads_for_blocks

JOURNAL = "merging.json"


@dataclass(frozen=True)
class Block:
    """Rows of one tensor, and where their bytes go."""

    name: str
    first: int
    last: int
    position: int


def write_shards(directory: Path, shards: list[Shard], merge: OpenMerge, key: str, events: Events) -> None:
    """Write `shards` into `directory`, except those that an earlier try with the same `key` has finished.

    Raises:
        MergeError: a merged number is not finite.
    """
    done = finished_shards(directory, key)
    sizes = {shard.file: shard.data_bytes for shard in shards}
    progress = events.progress("bytes", sum(sizes.values()), sum(sizes[file] for file in done if file in sizes))
    for stale in directory.glob("*.safetensors"):
        if stale.name not in done:
            stale.unlink()
    with one_thread_each(), ThreadPoolExecutor(threads_for_blocks()) as crew, ThreadPoolExecutor(1) as flusher:
        flushes: deque[Future[None]] = deque()
        for shard in shards:
            if shard.file not in done:
                write_shard(directory / shard.file, shard, merge, crew, progress)
                flushes.append(flusher.submit(finish, directory, shard.file, key, done))
        for flush in flushes:
            flush.result()


def finished_shards(directory: Path, key: str) -> set[str]:
    """The shards that an earlier try finished, if it was to write the same."""
    try:
        journal = read_json(directory / JOURNAL)
    except ArtifactError:
        return set()
    return set(journal["done"]) if journal["key"] == key else set()


def finish(directory: Path, file: str, key: str, done: set[str]) -> None:
    """Flush a shard, then enter it in the journal."""
    with (directory / file).open("rb") as written:
        os.fsync(written.fileno())
    done.add(file)
    write_json(directory / JOURNAL, {"key": key, "done": sorted(done)})


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Each thread of the crew computes by itself; torch's own threads would only get in their way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_shard(path: Path, shard: Shard, merge: OpenMerge, crew: ThreadPoolExecutor, progress: Progress) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    under_way: deque[Future[int]] = deque()
    try:
        write_at(descriptor, memoryview(shard.header), 0)
        for block in blocks_of(shard, merge):
            under_way.append(crew.submit(write_block, descriptor, block, shard, merge))
            if len(under_way) > 2 * threads_for_blocks():
                progress.advance(under_way.popleft().result())
        while under_way:
            progress.advance(under_way.popleft().result())
    finally:
        for future in under_way:
            future.cancel()
        for future in under_way:
            future.cancelled() or future.exception()
        os.close(descriptor)


def blocks_of(shard: Shard, merge: OpenMerge) -> Iterator[Block]:
    for name, position in shard.offsets():
        dtype, shape = shard.tensors[name]
        row_bytes = tensor_bytes(dtype, shape[1:])
        for first, last in merge.plan.tensors[name].blocks():
            yield Block(name, first, last, position + first * row_bytes)


def write_block(descriptor: int, block: Block, shard: Shard, merge: OpenMerge) -> int:
    """Compute and write one block; how many bytes it has."""
    dtype, _ = shard.tensors[block.name]
    rows = merge.rounded(block.name, dtype, block.first, block.last).contiguous()
    if merge.plan.tensors[block.name].is_touched:
        validate_finite(block.name, rows)
    data = memoryview(rows.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    write_at(descriptor, data, block.position)
    return len(data)


def validate_finite(name: str, rows: torch.Tensor) -> None:
    if rows.numel() and not bool(torch.isfinite(torch.stack(rows.aminmax())).all()):
        dtype = str(rows.dtype).removeprefix("torch.")
        raise MergeError(
            name,
            f"merged, it has numbers that are not finite in {dtype}",
            mend="Merge into bfloat16, which has float32's range; if that fails too, the training diverged.",
        )


def write_at(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, position)
        data, position = data[count:], position + count

"""Token rows on disk: the bytes of the file, writing in blocks, reading without loading, and damaged files."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tunewright.chat.rows import RowBlock, RowWriter, TokenRows, shared_prefix, write_rows
from tunewright.chat.supervise import SupervisedRow
from tunewright.errors import ArtifactError


def row(*ids: int, learned: int = 1) -> SupervisedRow:
    mask = np.arange(len(ids)) >= len(ids) - learned
    return SupervisedRow("rows.jsonl:1", np.array(ids, np.int32), mask, len(ids) - learned)


ROWS = st.lists(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9).map(lambda ids: row(*ids)), min_size=0, max_size=12
)


def saved_at_once(path: Path, rows: list[SupervisedRow]) -> bytes:
    empty = np.zeros(0, np.int32)
    save_file(
        {
            "ids": np.concatenate([empty, *(each.ids for each in rows)]),
            "mask": np.concatenate([empty, *(each.mask for each in rows)]).astype(np.uint8),
            "offsets": np.cumsum([0, *(len(each.ids) for each in rows)]).astype(np.int64),
            "prompt_lengths": np.array([each.last_prompt_length for each in rows], dtype=np.int32),
        },
        path,
    )
    return path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, cuts=st.lists(st.integers(0, 12), max_size=4))
def test_rows_written_in_blocks_are_the_bytes_that_the_library_saves_at_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[SupervisedRow], cuts: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("rows")
    with RowWriter(directory / "blocks.safetensors") as writer:
        for start, end in pairwise([0, *sorted(cuts), len(rows)]):
            writer.append(RowBlock.of(rows[start : max(start, end)]))
    assert writer.rows == len(rows)
    assert (directory / "blocks.safetensors").read_bytes() == saved_at_once(directory / "whole.safetensors", rows)


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.safetensors", [row(5, 6, 7), row(8, 9)])
    arrays = load_file(tmp_path / "rows.safetensors")
    assert {name: values.tolist() for name, values in arrays.items()} == {
        "ids": [5, 6, 7, 8, 9],
        "mask": [0, 0, 1, 0, 1],
        "offsets": [0, 3, 5],
        "prompt_lengths": [2, 1],
    }


def test_rows_are_read_back_one_by_one(tmp_path: Path) -> None:
    rows = [row(5, 6, 7, learned=2), row(8, 9)]
    write_rows(tmp_path / "rows.safetensors", rows)
    found = TokenRows(tmp_path / "rows.safetensors")
    assert [each.ids.tolist() for each in found] == [[5, 6, 7], [8, 9]]
    assert [each.mask.tolist() for each in found] == [[False, True, True], [False, True]]
    assert [each.prompt_length for each in found] == [1, 1]
    assert found.lengths == [3, 2]


def test_a_file_without_rows_has_none(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.safetensors", [])
    rows = TokenRows(tmp_path / "rows.safetensors")
    assert (len(rows), rows.lengths, list(rows)) == (0, [], [])


def test_writing_to_a_row_does_not_reach_the_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.safetensors", [row(5, 6, 7)])
    before = (tmp_path / "rows.safetensors").read_bytes()
    TokenRows(tmp_path / "rows.safetensors")[0].ids[0] = 99
    assert (tmp_path / "rows.safetensors").read_bytes() == before


def write_and_stop(path: Path) -> None:
    with RowWriter(path) as writer:
        writer.append(RowBlock.of([row(1, 2)]))
        raise RuntimeError("stopped")


def test_an_error_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        write_and_stop(tmp_path / "rows.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:40],
        lambda data: data[:-3],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data.replace(b'"I32"', b'"F99"'),
        lambda data: data.replace(b'"mask"', b'"musk"'),
        lambda data: data.replace(b"{", b"[", 1),
    ],
    ids=["empty", "header cut", "end cut", "length", "dtype", "name", "header"],
)
def test_a_damaged_file_of_rows_is_named(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "rows.safetensors"
    write_rows(path, [row(5, 6, 7), row(8, 9)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"rows\.safetensors: not a file of rows"):
        TokenRows(path)


def test_a_missing_file_of_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"rows\.safetensors: the file is missing"):
        TokenRows(tmp_path / "rows.safetensors")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(1, 2, 3, 4), row(1, 2, 3, 5)], 2),  # the third token predicts the learned fourth
        ([row(1, 2, 3, 4), row(1, 9, 3, 4)], 1),
        ([row(1, 2, 3, 4)], 2),
        ([row(1, 2, 3, 4, learned=4), row(1, 2, 3, 4)], 0),
        ([], 0),
    ],
)
def test_the_shared_prefix_ends_before_the_token_that_predicts_a_learned_one(
    rows: list[SupervisedRow], expected: int
) -> None:
    assert len(shared_prefix(rows)) == expected

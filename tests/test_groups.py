from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewright.data import groups
from tunewright.data.groups import Unions, equal_rows, first_equal, most_frequent

SMALL = st.lists(st.integers(0, 6), max_size=60)
FACTOR = (2**64 - 1) // 7


def column(directory: Path, values: list[int]) -> Path:
    """A file of values, spread over the whole range of 64 bits; 0 stays 0."""
    np.array([value * FACTOR for value in values], dtype=np.uint64).tofile(directory / "column")
    return directory / "column"


def first_by_comparing(values: list[int]) -> list[int]:
    return [values.index(value) if value else row for row, value in enumerate(values)]


@pytest.mark.parametrize("rows_at_a_time", [1, 7, 1 << 20])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(values=SMALL)
def test_equal_values_are_found_in_however_many_parts_the_column_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_a_time: int, values: list[int]
) -> None:
    monkeypatch.setattr(groups, "ROWS_AT_A_TIME", rows_at_a_time)
    path = column(tmp_path, values)
    first = first_by_comparing(values)
    assert first_equal(path).tolist() == first
    expected = sorted([row for row, start in enumerate(first) if start == one] for one in set(first))
    everywhere = np.ones(len(values), dtype=np.bool_)
    assert sorted(rows.tolist() for rows in equal_rows(path, everywhere)) == [
        rows for rows in expected if len(rows) > 1
    ]
    odd = np.arange(len(values)) % 2 == 1
    among_odd = [[row for row in rows if row % 2] for rows in expected]
    assert sorted(rows.tolist() for rows in equal_rows(path, odd)) == sorted(r for r in among_odd if len(r) > 1)
    counts = {value: values.count(value) for value in values if value}
    best = max(counts.values(), default=0)
    value, count = most_frequent(path)
    assert count == best
    assert best == 0 or counts[value // FACTOR] == best


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_a_group_is_named_by_its_first_row_in_whatever_order_it_grew(pairs: list[tuple[int, int]]) -> None:
    unions = Unions(np.arange(20, dtype=np.int32))
    reached = [{row} for row in range(20)]
    for left, right in pairs:
        unions.join(left, right)
        both = reached[left] | reached[right]
        for row in both:
            reached[row] = both
    assert unions.roots().tolist() == [min(rows) for rows in reached]


def test_rows_that_belong_together_from_the_start_are_joined() -> None:
    unions = Unions(np.array([0, 0, 2, 3], dtype=np.int32))
    unions.join_all(np.array([0, 1, 2, 2], dtype=np.int32))
    assert unions.roots().tolist() == [0, 0, 2, 2]

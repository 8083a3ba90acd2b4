import hashlib
import pickle
import random
from pathlib import Path

import pytest

from damaged_inputs import DAMAGES, Damage, expected_outcomes, outcome_of
from tunewright.data.read import Limits, Record, Source, read_blocks, read_rows, records_of
from tunewright.errors import DataError

EXPECTED = expected_outcomes()


def test_the_table_has_more_than_sixty_kinds_of_damage_and_an_outcome_for_each() -> None:
    assert [damage.name for damage in DAMAGES] == list(EXPECTED)
    assert len(EXPECTED) == len(DAMAGES) > 60


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_damaged_file_gives_its_exact_outcome(tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / damage.file
    path.write_bytes(damage.bytes())
    assert outcome_of(path) == EXPECTED[damage.name]
    path.unlink()


SMALL = Limits(block_bytes=16, block_rows=2, row_bytes=64)


def small_records(path: Path, content: bytes) -> list[Record]:
    """The records of a file read in very small pieces, each block on the way pickled as for another process."""
    path.write_bytes(content)
    blocks = read_blocks(Source(path, path.name), 0, SMALL)
    return [record for block in blocks for record in records_of(pickle.loads(pickle.dumps(block)))]  # noqa: S301


SIZES_OK = [damage for damage in DAMAGES if isinstance(damage.content, bytes) and len(damage.content) < 64]


@pytest.mark.parametrize("damage", SIZES_OK, ids=lambda damage: damage.name)
def test_the_size_of_the_pieces_changes_nothing(tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / damage.file
    path.write_bytes(damage.bytes())
    expected = EXPECTED[damage.name]
    if expected[0].startswith("refused"):
        with pytest.raises(DataError) as caught:
            small_records(path, damage.bytes())
        assert "refused: " + str(caught.value).replace(str(path), path.name) == expected[0]
    else:
        whole = [row.record for row in read_rows(Source(path, path.name))]
        assert list(map(comparable, small_records(path, damage.bytes()))) == list(map(comparable, whole))


def comparable(record: Record) -> tuple[object, ...]:
    return (*record._replace(fault=None), record.fault.reason if record.fault else None)


@pytest.mark.parametrize("ending", [b"\n", b""])
@pytest.mark.parametrize("length", [65, 79, 80, 81, 300])
def test_a_row_beyond_the_limit_is_a_fault_and_the_rows_around_it_are_read(
    tmp_path: Path, length: int, ending: bytes
) -> None:
    long = b'{"a": "' + b"x" * (length - 9) + b'"}'
    content = b'{"a": 1}\n' + long + b'\n{"a": 3}\n\n{"a": 5}' + ending
    first, fault, third, last = small_records(tmp_path / "rows.jsonl", content)
    assert fault.fault is not None
    assert fault.fault.reason == f"row too long: found {length} bytes; expected 64 at most"
    assert (fault.line, fault.byte_offset, fault.raw) == (2, 9, b"")
    assert fault.sha256 == hashlib.sha256(long).hexdigest()
    assert [(row.line, row.raw) for row in (first, third, last)] == [
        (1, b'{"a": 1}'),
        (3, b'{"a": 3}'),
        (5, b'{"a": 5}'),
    ]
    assert content[last.byte_offset :].startswith(last.raw)


def test_a_row_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    (row,) = small_records(tmp_path / "rows.jsonl", b'{"a": "' + b"x" * 55 + b'"}\n')
    assert row.value == {"a": "x" * 55}


def test_a_last_row_beyond_the_limit_is_a_fault_too(tmp_path: Path) -> None:
    first, last = small_records(tmp_path / "rows.jsonl", b'{"a": 1}\n{"a": "' + b"x" * 100)
    assert first.fault is None
    assert last.fault is not None
    assert last.fault.kind == "row too long"


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("rows.json", b'[{"a": 1},\n{"a": "' + b"x" * 100 + b'"}]', "rows.json:2: the row that begins here has more"),
        ("rows.csv", b"a\n1\n" + b"x" * 100, "rows.csv:3: the row that begins here has more than 64 bytes"),
        ("rows.csv", b'a\n1\n"' + b"x\n" * 50, "rows.csv:3: the row that begins here has more than 64 bytes"),
    ],
)
def test_a_row_beyond_the_limit_whose_end_is_not_plain_refuses_the_file(
    tmp_path: Path, name: str, content: bytes, found: str
) -> None:
    with pytest.raises(DataError) as caught:
        small_records(tmp_path / name, content)
    assert found in str(caught.value)


SHORT = [damage for damage in DAMAGES if "100" not in damage.name]


@pytest.mark.parametrize("damage", SHORT, ids=lambda damage: damage.name)
def test_a_byte_changed_anywhere_never_ends_in_anything_but_rows_or_a_data_error(
    tmp_path: Path, damage: Damage
) -> None:
    content = damage.bytes()
    path = tmp_path / damage.file
    dice = random.Random(damage.name)  # noqa: S311
    for _ in range(10):
        changed = bytearray(content)
        for _ in range(2):
            if changed:
                changed[dice.randrange(len(changed))] = dice.randrange(256)
        path.write_bytes(changed)
        assert outcome_of(path)

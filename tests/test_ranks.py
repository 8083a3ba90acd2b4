"""Several processes train what one would have trained."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import RUN_ENVIRONMENT, run_command
from tunewright.artifacts import read_json
from tunewright.chat.rows import TokenRow
from tunewright.train.ranks import Ranks

SHARDED = ["fsdp=true", "gradient_checkpointing=true"]
LENGTHS = st.lists(st.integers(2, 400), min_size=1, max_size=40)


def row(length: int) -> TokenRow:
    return TokenRow(np.arange(length, dtype=np.int32), np.arange(length) > 0, 1)


@given(LENGTHS, st.integers(1, 5))
def test_every_row_of_a_step_is_the_share_of_one_process(lengths: list[int], count: int) -> None:
    shares = [Ranks(rank, count).share([row(length) for length in lengths]) for rank in range(count)]
    assert sorted(len(each.ids) for share in shares for each in share) == sorted(lengths)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shares_are_dealt_back_and_forth_so_that_all_have_about_as_many_tokens() -> None:
    rows = [row(length) for length in (10, 9, 8, 7, 6, 5)]
    assert [[len(each.ids) for each in Ranks(rank, 2).share(rows)] for rank in range(2)] == [[10, 7, 6], [9, 8, 5]]


def test_one_process_alone_sends_nothing() -> None:
    alone = Ranks()
    assert (alone.sum(2.5), alone.tell("word"), alone.is_first) == (2.5, "word", True)


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "more"), [("padded", []), ("shared_prefix", []), ("padded", SHARDED)])
def test_two_processes_have_the_losses_of_one(tiny_recipe: Path, tmp_path: Path, layout: str, more: list[str]) -> None:
    """Rows are dealt out unevenly: five in a step, so that one process makes more passes than the other."""
    keys = ("per_device_train_batch_size=1", "gradient_accumulation_steps=5", f"layout={layout}", *more)
    options = ["--until", "train", *(word for key in keys for word in ("-o", key))]
    alone, both = tmp_path / "alone", tmp_path / "both"
    subprocess.run([*run_command(tiny_recipe, alone), *options], check=True, capture_output=True, env=RUN_ENVIRONMENT)
    words = run_command(tiny_recipe, both)[1:]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port(), *words, *options]
    done = subprocess.run(
        [sys.executable, *launch], capture_output=True, text=True, check=False, env={**os.environ, **RUN_ENVIRONMENT}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_json(run / "adapter/training.json") for run in (alone, both))
    assert [step["loss"] for step in two["steps"]] == pytest.approx([step["loss"] for step in one["steps"]], rel=1e-5)
    assert [each["eval_loss"] for each in two["evaluations"]] == pytest.approx(
        [each["eval_loss"] for each in one["evaluations"]], rel=1e-5
    )
    assert not list(both.glob("checkpoints"))

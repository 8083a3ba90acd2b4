"""What several test files need: a tiny base, a finished tiny run, and the real inputs where they are."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tiny_model import write_tiny_base
from tiny_rows import tiny_rows
from tunewright.artifacts import write_json, write_text
from tunewright.recipe import Bits

if TYPE_CHECKING:
    from web_bench import Site

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    # Tests beside each other, and what they start: threads that wait for one another would wait for the other test.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell lets what it runs in the background ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="module", params=[4, 8])
def bits(request: pytest.FixtureRequest) -> Bits:
    """Of a base that is kept packed."""
    found: Bits = request.param
    return found


@pytest.fixture
def site(tmp_path: Path) -> "Site":
    """The control center over an empty store."""
    from web_bench import site_of

    return site_of(tmp_path / "store")


@pytest.fixture(scope="session")
def battery() -> Path:
    """Real tokenizers, templates and data sets, kept outside the project."""
    default = Path(__file__).parents[2] / "shared" / "battery"
    path = Path(os.environ.get("TUNEWRIGHT_BATTERY") or default)
    if not path.is_dir():
        pytest.skip(f"the battery of real inputs is not at {path}; set TUNEWRIGHT_BATTERY")
    return path


@pytest.fixture(autouse=True)
def _one_thread_is_enough() -> Iterator[None]:
    """Tiny tensors are slower on several threads than on one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TINY_RECIPE = {
    "name": "tiny",
    "data": "rows.jsonl",
    "eval_rows": 6,
    "system_prompt": "You are a careful clerk who answers with one word and nothing else.",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.01,
    "lora_r": 4,
    "lora_alpha": 8,
    "sample_prompts": 1,
    "canaries": 4,
    "canary_tokens": 12,
    "max_new_tokens": 12,
    # A random base is sure of nothing, and of some fifty positions one near tie is two in a hundred.
    "gguf_top1_limit": 0.9,
    # Two epochs on a random base teach it nothing, and its answers show it.
    "accept": ["degenerate_answers", "tuned_not_worse_than_base"],
}


@pytest.fixture(scope="session")
def tiny_recipe(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for a whole run on the tiny base, in seconds."""
    directory = tmp_path_factory.mktemp("tiny-data")
    write_text(directory / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in tiny_rows()))
    write_json(directory / "recipe.yaml", {**TINY_RECIPE, "model": str(tiny_base)})
    return directory / "recipe.yaml"


def run_command(recipe: Path, run: Path) -> list[str]:
    return [sys.executable, "-m", "tunewright", "run", str(recipe), "--run-dir", str(run)]


# One thread: the order of additions, and with it the last bit, may depend on how many there are.
RUN_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def finished_run(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the command line on the tiny base, certificate and report included. Copy it before changing it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    result = subprocess.run(
        run_command(tiny_recipe, run), capture_output=True, text=True, check=False, env=RUN_ENVIRONMENT
    )
    assert result.returncode == 0, result.stderr
    return run

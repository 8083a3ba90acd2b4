"""What several test files need: a tiny base, a finished tiny run, and the real inputs where they are."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_model import write_tiny_base

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("tiny-base"))


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

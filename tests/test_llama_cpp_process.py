"""llama.cpp in a process of its own: it outlives nobody, and when it ends, that is said."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from jobs_bench import is_running, wait_until
from tunewright.engines import llama_cpp
from tunewright.engines.llama_cpp import LlamaCppEngine, start_llama_cpp_server
from tunewright.errors import EngineError

OPENED = """
import sys, time
from pathlib import Path
from tunewright.engines.llama_cpp import start_llama_cpp_server

server = start_llama_cpp_server(Path(sys.argv[1]), 512)
print(server.address, flush=True)
time.sleep(60)
"""


@pytest.fixture
def gguf(finished_run: Path) -> Path:
    return finished_run / "export" / "model-q8_0.gguf"


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def has_ended(engine: LlamaCppEngine) -> bool:
    try:
        engine.server.validate_running()
    except EngineError:
        return True
    return False


def test_a_server_ends_when_it_is_closed_and_when_nobody_holds_it(gguf: Path) -> None:
    before = children()
    server = start_llama_cpp_server(gguf, 512)
    assert httpx.get(f"{server.address}/health", trust_env=False).status_code == 200
    server.close()
    server.close()
    held = start_llama_cpp_server(gguf, 512)
    assert len(children() - before) == 1
    del held
    assert children() == before


def test_a_server_ends_with_whoever_started_it(gguf: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OPENED, str(gguf)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().startswith("http://127.0.0.1:")
        (server,) = psutil.Process(owner.pid).children()
        owner.kill()
    wait_until(lambda: not is_running(server.pid))


def test_a_file_that_llama_cpp_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    before = children()
    with pytest.raises(EngineError, match=r"model.gguf: llama.cpp does not load it \("):
        start_llama_cpp_server(tmp_path / "model.gguf", 512)
    assert children() == before


def test_a_process_that_ends_while_it_loads_is_named(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "PROCESS", "keyword")
    with pytest.raises(EngineError, match=r"llama.cpp ended with code 0 while it loaded"):
        start_llama_cpp_server(gguf, 512)


def test_a_process_that_is_killed_is_named_by_whoever_waits_for_it(gguf: Path) -> None:
    before = children()
    engine = LlamaCppEngine(gguf, "q8_0", 512)
    (server,) = children() - before
    engine.server.validate_running()
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: has_ended(engine))
    with pytest.raises(EngineError, match=r"llama.cpp ended with code -9"):
        engine.server.validate_running()
    with pytest.raises(EngineError, match=r"q8_0: llama.cpp did not answer /tokenize"):
        engine.tokenize("a")
    engine.close()

"""The command line: quick help, exit codes, and one readable message in place of every traceback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_rows import tiny_rows

GOOD = '{"messages": [{"role": "user", "content": "Hallo"}, {"role": "assistant", "content": "Guten Tag!"}]}\n'


def write_rows(directory: Path) -> None:
    """Thirty rows that the audit has nothing against."""
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_rows()[:30]))


def tunewright(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunewright", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def message_of(result: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """What was said on stderr, having seen that it is no traceback and that the exit code is right."""
    assert "Traceback" not in result.stderr
    assert result.returncode == exit_code, result.stderr
    return " ".join(result.stderr.split())


def test_help_imports_nothing_that_takes_long() -> None:
    script = (
        "import sys, tunewright.cli\n"
        "slow = {'torch', 'transformers', 'pydantic', 'numpy', 'rich.console', 'httpx'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "command",
    ["run", "check", "render", "plan", "train", "merge", "export", "verify", "evaluate", "report", "serve", "chat"],
)
def test_every_command_has_help(command: str) -> None:
    result = tunewright(command, "--help")
    assert result.returncode == 0
    assert "Usage: " in result.stdout


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.jsonl: the file does not exist" in message_of(tunewright("run", tmp_path / "nowhere.jsonl"), 2)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    assert "empty.jsonl" in message_of(tunewright("check", tmp_path / "empty.jsonl"), 1)


def test_broken_json_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD * 117 + GOOD.replace('"}]}', '"}]') + GOOD)
    assert "rows.jsonl:118" in message_of(tunewright("check", path, "--on-bad-row", "stop"), 1)


def test_an_unknown_recipe_key_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: rows.jsonl\nnum_train_epoch: 3\n")
    found = message_of(tunewright("run", tmp_path / "r.yaml"), 2)
    assert "unknown recipe key 'num_train_epoch'; expected 'num_train_epochs'" in found


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path)
    result = tunewright("run", "rows.jsonl", "--model", "./no-such-model", cwd=tmp_path)
    assert "./no-such-model: there is no such base model" in message_of(result, 2)


def test_a_hub_model_without_a_network_names_the_way_out(tmp_path: Path) -> None:
    write_rows(tmp_path)
    result = tunewright("run", "rows.jsonl", "--model", "nobody/nothing", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert "hub cannot be reached" in message_of(result, 4)


def test_an_unknown_stage_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(GOOD)
    assert "unknown stage 'trian'" in message_of(tunewright("run", "rows.jsonl", "--until", "trian", cwd=tmp_path), 2)


def test_errors_are_json_if_asked_for(tmp_path: Path) -> None:
    result = tunewright("run", tmp_path / "nowhere.jsonl", "--json")
    assert json.loads(result.stdout)["exit_code"] == result.returncode == 2


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path)
    script = (
        "import errno, os, sys\nfrom tunewright import artifacts, cli\n"
        "def full(path):\n    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))\n"
        "artifacts.flush_to_disk = full\n"
        "sys.argv = ['tunewright', 'run', 'rows.jsonl', '--until', 'data']\ncli.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "no space is left" in message_of(result, 4)
    assert not (tmp_path / "runs" / "rows" / "manifests" / "data.json").exists()


def test_check_leaves_no_run_behind(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(GOOD * 30)
    tunewright("check", "rows.jsonl", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_check_prints_its_evidence_as_json(tmp_path: Path) -> None:
    rows = [GOOD.replace("Hallo", f"Hallo {index}").replace("Tag!", f"Tag {index * 7}!") for index in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    result = tunewright("check", "rows.jsonl", "--json", cwd=tmp_path)
    found = json.loads(result.stdout)
    assert found["rows_in"] == found["kept"] + found["truncated"] + found["rejected"] == 30


def test_runs_lists_nothing_where_nothing_is(tmp_path: Path) -> None:
    assert json.loads(tunewright("runs", tmp_path, "--json").stdout) == []
    assert "there is no such directory" in message_of(tunewright("runs", tmp_path / "none"), 2)


def test_a_port_in_use_is_named_with_a_free_one() -> None:
    from tunewright.errors import EnvironmentLackError
    from tunewright.serve import validate_port_free

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentLackError, match=rf"127\.0\.0\.1:{port}: the port is in use\. .*--port \d+"):
            validate_port_free(port)

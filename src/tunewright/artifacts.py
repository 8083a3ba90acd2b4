"""The run directory: what each stage made, from what, and whether it is still the same.

An artifact appears whole or not at all. A stage writes into a staging directory that mirrors the run directory;
publishing flushes and hashes every file, renames the top-level entries into place, and writes the stage's manifest
(`manifests/STAGE.json`) last. A stage counts as done only if its manifest is there, was made from the same inputs, and
every file in it still has its size and SHA-256.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunewright.errors import ArtifactError
from tunewright.evidence import Evidence, evidence_from_json

Json = Any


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(data: Json) -> str:
    """JSON text that is the same for equal data: sorted keys, no spaces, Unicode kept."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_of_json(data: Json) -> str:
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def read_json(path: Path) -> Json:
    """The JSON in `path`; `ArtifactError` if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(str(path), "the file is missing", mend="Run the stage that writes it again.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            str(path), f"not valid JSON ({error})", mend="Run the stage that writes it again."
        ) from None


def write_json(path: Path, data: Json) -> None:
    """Write `data` atomically: beside its place, flushed, then renamed."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically: beside its place, flushed, then renamed."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place beside `path` for a file that takes its name at the end, flushed; on an error nothing is left of it.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path) if error.filename == str(temporary) else error.filename
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """fsync a file, or a directory and all files below it."""
    for target in [*path.rglob("*"), path] if path.is_dir() else [path]:
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish_directory(temporary: Path, final: Path) -> None:
    """Flush a directory that was written beside its place and rename it there, replacing what stood there."""
    flush_to_disk(temporary)
    if final.is_dir():
        shutil.rmtree(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(final)


def files_below(directory: Path) -> dict[str, Path]:
    """Every file below `directory` by its POSIX path relative to it, sorted."""
    return {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}


@dataclass(frozen=True)
class FileRecord:
    bytes: int
    sha256: str


def record_of_file(path: Path) -> FileRecord:
    return FileRecord(path.stat().st_size, sha256_of_file(path))


@dataclass(frozen=True)
class Manifest:
    """What a stage made, and from what.

    Attributes:
        stage: the stage's name.
        fingerprint: SHA-256 of everything the artifacts depend on: configuration, input files, earlier stages.
        files: each file by its path within the run directory.
        evidence: what the stage measured.
        facts: what later stages and the report need to know, as JSON (versions, durations, choices).
    """

    stage: str
    fingerprint: str
    files: dict[str, FileRecord]
    evidence: list[Evidence] = field(default_factory=list)
    facts: dict[str, Json] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over what was made: paths, sizes and hashes, but not when or how fast."""
        return sha256_of_json({path: asdict(record) for path, record in self.files.items()})


def read_manifest(path: Path) -> Manifest:
    data = read_json(path)
    try:
        return Manifest(
            stage=data["stage"],
            fingerprint=data["fingerprint"],
            files={name: FileRecord(**record) for name, record in data["files"].items()},
            evidence=evidence_from_json(data["evidence"]),
            facts=data["facts"],
        )
    except (KeyError, TypeError) as error:
        raise ArtifactError(str(path), f"not a manifest ({error!r})", mend="Run the stage again.") from None


class RunDirectory:
    """One run: `run.path` is its root; stages read finished artifacts below it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def gguf_files(self) -> dict[str, Path]:
        """Each exported model by its format: `export/model-q8_0.gguf` is `q8_0`."""
        return {path.stem.removeprefix("model-"): path for path in sorted((self / "export").glob("*.gguf"))}

    def manifest_path(self, stage: str) -> Path:
        return self.path / "manifests" / f"{stage}.json"

    def manifest(self, stage: str) -> Manifest | None:
        path = self.manifest_path(stage)
        return read_manifest(path) if path.exists() else None

    def require_manifest(self, stage: str) -> Manifest:
        manifest = self.manifest(stage)
        if manifest is None:
            raise ArtifactError(
                str(self.path), f"the stage {stage!r} has not finished", mend=f"Run `tunewright run {self.path}` first."
            )
        return manifest

    def differences(self, manifest: Manifest) -> list[str]:
        """One sentence for each file of `manifest` that is missing or is not what the stage wrote."""
        return [text for name, record in manifest.files.items() if (text := self._difference(name, record))]

    def _difference(self, name: str, record: FileRecord) -> str:
        path = self.path / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != record.bytes:
            return f"{name} has {size} bytes, {record.bytes} were written"
        found = sha256_of_file(path)
        if found != record.sha256:
            return f"{name} has SHA-256 {found[:16]}, {record.sha256[:16]} was written"
        return ""

    def is_done(self, stage: str, fingerprint: str) -> bool:
        try:
            manifest = self.manifest(stage)
        except ArtifactError:
            return False
        return manifest is not None and manifest.fingerprint == fingerprint and not self.differences(manifest)

    @contextmanager
    def staging(self, stage: str) -> Iterator[Path]:
        """An empty directory to write a stage's artifacts into; removed afterwards, published or not."""
        directory = self.path / f".staging-{stage}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def publish(
        self, stage: str, staging: Path, fingerprint: str, evidence: list[Evidence], facts: dict[str, Json]
    ) -> Manifest:
        """Move everything in `staging` into the run and write the manifest last."""
        flush_to_disk(staging)
        files = {name: record_of_file(path) for name, path in files_below(staging).items()}
        manifest = Manifest(stage, fingerprint, files, evidence, facts)
        self.manifest_path(stage).unlink(missing_ok=True)
        for entry in sorted(staging.iterdir()):
            final = self.path / entry.name
            if final.is_dir() and not final.is_symlink():
                shutil.rmtree(final)
            entry.replace(final)
        flush_directory_entry(self.path)
        write_json(self.manifest_path(stage), asdict(manifest))
        return manifest

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; `ArtifactError` names the process that holds it already."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ArtifactError(
                    str(self.path),
                    f"the run is in use by process {file.read().strip() or 'unknown'}",
                    mend="Wait for it to end, or stop it.",
                ) from None
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield


def flush_directory_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class StageResult:
    """What a stage hands back beside the files in its staging directory."""

    evidence: list[Evidence] = field(default_factory=list)
    facts: dict[str, Json] = field(default_factory=dict)

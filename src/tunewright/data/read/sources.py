"""What a recipe names, as files: files, directories of files, and data sets of the hub.

In: names. Out: one `Source` for each file, with a label that no other has. A directory gives all files of known kinds
in it, in the order of their names; hidden ones are left out. Nothing outside a directory is read through it.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunewright.data.faults import writable
from tunewright.data.read.hub import HubName, fetch_from_hub, hub_name
from tunewright.errors import UsageError

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKINGS = (".gz", ".zst", ".zstd")
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json"}  # about rows, beside them, in Hugging Face's data sets
NO_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True)
class Source:
    """A file of rows.

    Attributes:
        path: where it is.
        label: its name, lengthened by parent directories where two files have the same name.
        held_out: whether it is one of `eval_data`.
    """

    path: Path
    label: str
    held_out: bool = False


@dataclass(frozen=True)
class Found:
    """A file that is to have a label.

    Attributes:
        name: its full path, or what stands for it: `owner/name/path` for a file of the hub.
        parts: how many parts of `name` the label has at least.
    """

    path: Path
    name: Path
    parts: int = 1


def plan_sources(data: list[str], eval_data: list[str]) -> list[Source]:
    """The files of a recipe, each with a label of its own. Data sets of the hub are fetched.

    Raises:
        UsageError: there is no such file, directory or data set, or it cannot be read, or holds no files of rows.
        EnvironmentLackError: the hub cannot be reached.
    """
    found = [(item, False) for name in data for item in find_files(name, held_out=False)]
    found += [(item, True) for name in eval_data for item in find_files(name, held_out=True)]
    labels = unique_labels([item for item, _ in found])
    return [Source(item.path, label, held_out) for (item, held_out), label in zip(found, labels, strict=True)]


def find_files(name: str, held_out: bool) -> list[Found]:
    path = Path(name)
    if path.is_dir():
        return files_in_directory(path)
    wanted = hub_name(name) if not os.path.lexists(path) else None
    if wanted and (wanted.path or kind_of(wanted.id) is None):
        return files_of_hub(wanted, held_out)
    validate_file(path)
    return [Found(path, path.resolve())]


def files_in_directory(directory: Path) -> list[Found]:
    root = directory.resolve()
    validate_directory(directory)
    return [Found(path, path, len(path.relative_to(root).parts) + 1) for path in files_below(root, root)]


def files_of_hub(wanted: HubName, held_out: bool) -> list[Found]:
    """The files of one data set. Its snapshot is made of links into its own part of the hub's cache."""
    snapshot = fetch_from_hub(wanted, [f"*{kind}{packing}" for kind in KINDS for packing in ("", *PACKINGS)])
    paths = [path.relative_to(snapshot) for path in files_below(snapshot, snapshot.resolve().parent.parent)]
    chosen = wanted.choose(paths, held_out)
    return [Found(snapshot / path, Path("/", wanted.id, path), 2 + len(path.parts)) for path in chosen]


def files_below(directory: Path, inside: Path) -> list[Path]:
    """The files of known kinds below a directory, each once, in the order of their names.

    Raises:
        UsageError: there is none, one cannot be read, or a link leads out of `inside`.
    """
    files: dict[Path, Path] = {}
    for path in sorted(visible_paths(directory), key=lambda path: path.parts):
        target = path.resolve()
        if path.is_symlink() and not target.is_relative_to(inside):
            raise UsageError(str(path), f"a link to {target}, outside of the directory", mend="Name that path itself.")
        if kind_of(path.name) and path.name not in DESCRIPTIONS and not path.is_dir():
            validate_file(path)
            files.setdefault(target, path)
    if not files:
        raise UsageError(str(directory), "found no files of rows in it", f"files that end in {', '.join(KINDS)}")
    return list(files.values())


def visible_paths(directory: Path) -> Iterator[Path]:
    """Everything below a directory but what is hidden; links to directories are given but not followed."""
    for parent, directories, names in os.walk(directory, onerror=_refuse):
        directories[:] = [name for name in directories if not name.startswith(".")]
        yield from (Path(parent, name) for name in (*directories, *names) if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise UsageError(str(error.filename), f"cannot be opened ({error.strerror})", mend="Check its permissions.")


def kind_of(name: str) -> str | None:
    """The known suffix of a file's name, that of a packed file's content; None if it has none."""
    name = name.lower()
    packing = next((packing for packing in PACKINGS if name.endswith(packing)), "")
    return next((kind for kind in KINDS if name.removesuffix(packing).endswith(kind)), None)


def validate_directory(directory: Path) -> None:
    if not os.access(directory, os.R_OK | os.X_OK):
        raise UsageError(str(directory), "cannot be opened (Permission denied)", mend="Check its permissions.")


def validate_file(path: Path) -> None:
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind in NO_FILES:
            raise UsageError(str(path), f"found {NO_FILES[kind]}", "a file", "Write the rows to a file first.")
        path.open("rb").close()
    except FileNotFoundError:
        raise UsageError(str(path), "the file does not exist", mend="Check the path.") from None
    except OSError as error:
        raise UsageError(str(path), f"cannot be opened ({error.strerror})", mend="Check its permissions.") from None


def unique_labels(found: list[Found]) -> list[str]:
    """The shortest trailing part of each name that no other name has; the same name again gets `#2`."""
    names = [item.name for item in found]
    labels = []
    for number, item in enumerate(found):
        others = {name for name in names if name != item.name}
        depth = item.parts
        while any(name.parts[-depth:] == item.name.parts[-depth:] for name in others):
            depth += 1
        times = names[: number + 1].count(item.name)
        label = "/".join(item.name.parts[-depth:]).replace("//", "/") + (f"#{times}" if times > 1 else "")
        labels.append(writable(label))
    return labels

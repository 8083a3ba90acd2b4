"""Data sets of the Hugging Face hub: their names, and their files on this machine.

A name is `owner/name`, with `@revision` for a branch, tag or commit and `:path` for one file, one directory or a
pattern such as `data/train-*`. Without a path the files are chosen by the words of the hub's own convention: those of
the test or validation split are `eval_data`, all others are `data`.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from tunewright.errors import EnvironmentLackError, UsageError

NAME = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^:]+))?(:(?P<path>.+))?")
HELD_OUT_WORDS = re.compile(r"(^|[-_./ \d])(test|testing|validation|valid|val|dev|eval|evaluation)([-_./ \d]|$)", re.I)


@dataclass(frozen=True)
class HubName:
    """What a recipe asks of the hub."""

    id: str
    revision: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        return self.id + (f"@{self.revision}" if self.revision else "") + (f":{self.path}" if self.path else "")

    def choose(self, paths: list[Path], held_out: bool) -> list[Path]:
        """The files meant, of all that the data set has.

        Raises:
            UsageError: there is none.
        """
        if self.path is None:
            chosen = [path for path in paths if bool(HELD_OUT_WORDS.search(path.as_posix())) == held_out]
            split = "of a test or validation split" if held_out else "of a training split"
        else:
            chosen = [path for path in paths if self._names(path.as_posix())]
            split = f"at {self.path!r}"
        if not chosen:
            raise UsageError(
                str(self), f"the data set has no files {split}", _listed(paths), "Name one: owner/name:path."
            )
        return chosen

    def _names(self, path: str) -> bool:
        wanted = str(self.path).strip("/")
        return path == wanted or path.startswith(f"{wanted}/") or fnmatchcase(path, wanted)


def _listed(paths: list[Path], most: int = 8) -> str:
    names = [path.as_posix() for path in paths]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def hub_name(text: str) -> HubName | None:
    """A text as the name of a data set; None if it cannot be one."""
    match = NAME.fullmatch(text)
    return HubName(match["id"], match["revision"], match["path"]) if match else None


def fetch_from_hub(wanted: HubName, patterns: list[str]) -> Path:
    """A directory with the files of a data set whose names fit one of the patterns, and perhaps further files.

    Raises:
        UsageError: there is no such data set or revision, or its conditions are not accepted.
        EnvironmentLackError: the hub cannot be reached and the data set is not on this machine.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if wanted.path:
        patterns = [wanted.path, f"{wanted.path.strip('/')}/*"]
    try:
        return Path(
            snapshot_download(wanted.id, repo_type="dataset", revision=wanted.revision, allow_patterns=patterns)
        )
    except HFValidationError:
        raise UsageError(str(wanted), "there is no such file, and it is no data set's name", mend="Check it.") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        _explain(wanted, error)


def _explain(wanted: HubName, error: Exception) -> NoReturn:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        found, mend = "the hub asks for its conditions to be accepted", "Accept them on its page and set HF_TOKEN."
        raise UsageError(str(wanted), found, mend=mend) from None
    if isinstance(error, RevisionNotFoundError):
        raise UsageError(str(wanted), f"it has no revision {wanted.revision!r}", mend="Check the name.") from None
    if isinstance(error, RepositoryNotFoundError):
        found = "there is no such file here, and no such data set on the hub, or it is private"
        raise UsageError(str(wanted), found, mend="Check the name, or set HF_TOKEN.") from None
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise EnvironmentLackError(
        str(wanted),
        f"there is no such file here, and the hub cannot be reached ({reason})",
        mend="Check the path or the network, or name a local file.",
    ) from None

"""A hub's repository of a model: made if need be, filled by one commit, read back.

In go files with their hashes; out comes the commit, and what the hub lists at it. Always: nothing is visible before the
commit, which is one request; the token comes from `HF_TOKEN` or the hub's login, and it stands in no message; an
address in a message has lost its query, which may be signed.
API: huggingface_hub 2.4, `hf_api.py`.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.errors import EnvironmentLackError, HubError, TunewrightError, UsageError

LOGIN = "Set HF_TOKEN to a token that may write, or run `hf auth login`."
AGAIN = "Nothing was published. Run the same command again: what has arrived is not sent twice."
# What the hub means by a status, and what to do about it.
REFUSALS = {
    400: ("the hub does not take what was sent", "Mend what it names."),
    401: ("the hub does not know the token, or it has expired", LOGIN),
    402: ("the hub asks for a paid plan", "Name a repository of your own, or see to the plan."),
    403: ("the token may not write there", LOGIN),
    404: ("the hub has no such user, organization or repository, or hides it from this token", "Check the name."),
    409: ("somebody else is changing the repository", AGAIN),
    412: ("somebody else has changed the repository meanwhile", AGAIN),
    413: ("the hub finds a file too large", "Push less at a time: `--what gguf`."),
    429: ("the hub asks to wait: too many requests", AGAIN),
}
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
SIGNED = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")


@dataclass(frozen=True)
class Sent:
    """A file for the hub: its path there, where its content is, its size and hash."""

    path: str
    content: Path | bytes
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Listed:
    """A file as the hub lists it: by SHA-256 where it is stored apart (LFS, Xet), else by git's hash of a blob."""

    bytes: int
    sha256: str | None
    blob: str

    def is_what_was_sent(self, sent: Sent) -> bool:
        if self.bytes != sent.bytes:
            return False
        return self.sha256 == sent.sha256 if self.sha256 else self.blob == git_blob(sent)


@dataclass(frozen=True)
class Pushed:
    """What a push came to: the commit, its address, and every file that the hub lists at it."""

    commit: str
    url: str
    listed: dict[str, Listed]


class HubRepository:
    """One model repository.

    Args:
        repo_id: `OWNER/NAME`.
        shows_progress: whether the hub's library draws its bars on stderr.

    Raises:
        UsageError: that is no name of a repository.
        EnvironmentLackError: there is no token on this machine.
    """

    def __init__(self, repo_id: str, shows_progress: bool = False) -> None:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils.tqdm import disable_progress_bars

        validate_repo_id(repo_id)
        self.repo_id = repo_id
        self._token = get_token() or ""
        if not self._token:
            raise EnvironmentLackError("the hub", "there is no token on this machine", mend=LOGIN)
        if not shows_progress:
            disable_progress_bars()
        self._api = HfApi(token=self._token, library_name="tunewright")

    def make(self, private: bool) -> str:
        """Make the repository unless it is there; the commit that it stands at.

        Raises:
            HubError: the hub refuses, or the repository is public where a private one was asked for.
            EnvironmentLackError: the hub does not answer.
        """
        with self._explained():
            self._api.create_repo(self.repo_id, private=private or None, exist_ok=True, repo_type="model")
            found = self._api.repo_info(self.repo_id, repo_type="model")
        if private and not found.private:
            mend = "Make it private in its settings, or name another one."
            raise HubError(self.repo_id, "the repository is there already and is public", "a private one", mend)
        return str(found.sha)

    def send(self, files: Sequence[Sent], message: str, parent: str) -> Pushed:
        """Add the files by one commit on top of `parent`, and read back what the hub lists at it.

        Raises:
            HubError: the hub refuses, or somebody else has committed since.
            EnvironmentLackError: the hub does not answer.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.content) for file in files]
        with self._explained():
            commit = self._api.create_commit(
                self.repo_id, operations, commit_message=message, repo_type="model", parent_commit=parent
            )
            tree = self._api.list_repo_tree(self.repo_id, recursive=True, revision=commit.oid, repo_type="model")
            listed = {entry.path: as_listed(entry) for entry in tree if hasattr(entry, "blob_id")}
        return Pushed(str(commit.oid), f"{self._api.endpoint}/{self.repo_id}", listed)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Every failure of the hub's library as one of ours; which ones its transports raise, it does not promise."""
        try:
            yield
        except Exception as error:
            raise self._explanation(error) from None

    def _explanation(self, error: Exception) -> TunewrightError:
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        causes = list(chain(error))
        answer = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
        if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
            return EnvironmentLackError(self.repo_id, "HF_HUB_OFFLINE is set", mend="Unset it to push.")
        if answer is not None:
            return self._refusal(answer)
        said = self._safe(f"{type(causes[-1]).__name__}: {causes[-1]}")
        if any(is_of_the_network(cause) for cause in causes):
            return EnvironmentLackError(self.repo_id, f"the hub cannot be reached ({said})", mend=AGAIN)
        return HubError(self.repo_id, f"the push failed ({said})", mend=AGAIN)

    def _refusal(self, error: Any) -> HubError:
        status = int(error.response.status_code)
        fallback = f"the hub answered {status}"
        found, mend = REFUSALS.get(status, (fallback, AGAIN))
        said = self._safe(str(error.server_message or ""))
        return HubError(self.repo_id, f"{found} ({status}{': ' + said if said else ''})", mend=mend)

    def _safe(self, text: str) -> str:
        """The first line of a message, without the token and without the queries of addresses."""
        line = (text.strip().splitlines() or [""])[0]
        return SIGNED.sub(r"\1", line).replace(self._token, "[token]").rstrip(".")


def validate_repo_id(repo_id: str) -> None:
    if not REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise UsageError("REPO_ID", f"found {repo_id!r}", "OWNER/NAME, of letters, digits, -, _ and .")


def as_listed(entry: Any) -> Listed:
    return Listed(int(entry.size), entry.lfs.sha256 if entry.lfs else None, str(entry.blob_id))


def git_blob(sent: Sent) -> str:
    """The hash by which git knows a file's content; the hub shows no other of files that it keeps in git itself."""
    content = sent.content if isinstance(sent.content, bytes) else sent.content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, the outermost first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def is_of_the_network(error: BaseException) -> bool:
    """Whether a connection could not be made or broke; the classes are those of the hub's own HTTP library."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(names & {"TransportError", "NetworkError"})

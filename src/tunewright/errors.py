"""Every error that a user can meet, in one tree, each with the exit code that the command line answers with.

A message reads `where: what was found; expected what was expected. How to mend it.`
"""

import errno


class TunewrightError(Exception):
    """The root of the tree: something failed and the message says where, what and how to mend it.

    Args:
        where: the place, such as `train.jsonl:118: message 3` or `merged/config.json`.
        found: what stood there.
        expected: what should have stood there, if that is not plain from `found`.
        mend: what to do about it, as one or more full sentences.
    """

    exit_code = 1

    def __init__(self, where: str, found: str, expected: str = "", mend: str = "") -> None:
        self.where = where
        self.found = found
        self.expected = expected
        self.mend = mend
        message = f"{where}: {found}"
        if expected:
            message += f"; expected {expected}"
        if not message.endswith((".", "!", "?")):
            message += "."
        if mend:
            message += f" {mend}"
        super().__init__(message)

    def __reduce__(self) -> tuple[type["TunewrightError"], tuple[str, ...]]:
        """What a worker process raised reaches the process that waits for it as it was."""
        return type(self), (self.where, self.found, self.expected, self.mend)

    def as_json(self) -> dict[str, str | int]:
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "where": self.where,
            "found": self.found,
            "expected": self.expected,
            "mend": self.mend,
        }


class UsageError(TunewrightError):
    """The command or the recipe asks for something that does not exist or makes no sense."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that cannot be read, or has an unknown key or a value out of range."""


class ModelNotFoundError(UsageError):
    """A base model that is neither embedded, nor a local directory, nor to be had from the hub."""


class DataError(TunewrightError):
    """Rows that cannot be read or do not add up."""


class RenderError(TunewrightError):
    """A conversation whose supervised tokens cannot be proven.

    Args:
        claim: the letter of the claim that does not hold (see `tunewright.chat.proof`), if it is one of those.
    """

    def __init__(self, where: str, found: str, expected: str = "", mend: str = "", claim: str = "") -> None:
        super().__init__(where, found, expected, mend)
        self.claim = claim

    def __reduce__(self) -> tuple[type["TunewrightError"], tuple[str, ...]]:
        return type(self), (self.where, self.found, self.expected, self.mend, self.claim)


class ModelError(TunewrightError):
    """A model that did not load as what it claims to be."""


class TrainingError(TunewrightError):
    """Training that cannot go on, such as a loss that is not finite."""


class MergeError(TunewrightError):
    """An adapter and a base that do not fit each other."""


class ExportError(TunewrightError):
    """A merged model that could not be converted."""


class EngineError(TunewrightError):
    """An engine that did not start or did not answer as agreed."""


class HubError(TunewrightError):
    """A hub that refused what was sent to it, or lists something else than was sent."""


class ArtifactError(TunewrightError):
    """A run directory whose files are missing, changed, or in use by another process."""


class JobError(TunewrightError):
    """A job that does not exist, or is not in a state in which it could do what was asked."""


class JobNotFoundError(JobError):
    """A job, or a run of the service, that does not exist."""


class GateError(TunewrightError):
    """At least one piece of evidence failed and was not accepted by name."""

    exit_code = 3


class EnvironmentLackError(TunewrightError):
    """This machine lacks something: a package, a network, disk space, memory, a free port."""

    exit_code = 4


def environment_error(error: OSError) -> TunewrightError:
    """What an error of the operating system means to the user."""
    where = str(error.filename or "disk")
    if error.errno == errno.ENOSPC:
        return EnvironmentLackError(where, "no space is left", mend="Free some and run the same command again.")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return EnvironmentLackError(where, "it may not be read or written", mend="Check the permissions.")
    return EnvironmentLackError(where, f"the system answered {error.strerror or error}")

"""Push a finished run to a hub: in go the run and a repository's name, out comes evidence of what the hub has.

Always: a run whose certificate is not whole is not pushed, one whose verdict is not `pass` only where that is accepted
by name; either way the verdict stands on the card. What the hub lists is compared with what was sent.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, read_json
from tunewright.certificate import CERTIFICATE_NAME, check_certificate, read_manifests
from tunewright.errors import UsageError
from tunewright.events import Events
from tunewright.evidence import Evidence, as_verdict, equal, validate_gates
from tunewright.push.contents import What, files_to_send, validate_unchanged, validate_what
from tunewright.push.hub import HubRepository, Pushed, Sent
from tunewright.report.contents import Contents
from tunewright.report.head import verdict_sentence

VERDICT = "certificate_pass"
# What a hub puts into a repository by itself.
OF_THE_HUB = {".gitattributes"}


@dataclass(frozen=True)
class Outcome:
    """What was pushed where, and what the hub lists."""

    repo_id: str
    pushed: Pushed
    files: list[Sent]
    evidence: list[Evidence]

    def as_json(self) -> dict[str, Any]:
        files = [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in self.files]
        where = {"repo_id": self.repo_id, "url": self.pushed.url, "commit": self.pushed.commit}
        return {**where, "files": files, **as_verdict(self.evidence)}


def push(
    path: Path,
    repo_id: str,
    what: str,
    private: bool,
    accept: Collection[str],
    events: Events,
    shows_progress: bool = False,
) -> Outcome:
    """Send the run's card, certificate and `what` of its models to the repository, by one commit.

    Raises:
        UsageError: there is no run, or no such thing to push, or no such name.
        ArtifactError: the run is not finished, or its files are not what its stages wrote.
        GateError: the certificate is not whole, or its verdict is not `pass` and that was not accepted.
        HubError: the hub refuses.
        EnvironmentLackError: there is no token, or no way to the hub.
    """
    events.stage = "push"
    wanted = validate_what(what)
    contents = finished(path)
    evidence = check_run(contents)
    validate_gates(evidence, frozenset(accept) & {VERDICT}, str(path))
    repository = HubRepository(repo_id, shows_progress)
    files = files_of(contents, wanted, repo_id)
    events.note(f"Sending {len(files)} files, {sum(file.bytes for file in files) / 1e6:,.1f} MB, to {repo_id}")
    parent = repository.make(private)
    pushed = repository.send(files, f"{contents.certificate['name']}, by tunewright", parent)
    return Outcome(repo_id, pushed, files, [*evidence, *check_listed(files, pushed)])


def finished(path: Path) -> Contents:
    run = RunDirectory(path)
    if not (run / "manifests").is_dir():
        raise UsageError(str(path), "it is no run directory", expected="a directory with manifests/")
    run.require_manifest("report")
    return Contents(run, dict(read_json(run / CERTIFICATE_NAME)), read_manifests(run))


def files_of(contents: Contents, what: What, repo_id: str) -> list[Sent]:
    validate_unchanged(contents.run, what)
    return files_to_send(contents, what, repo_id)


def check_run(contents: Contents) -> list[Evidence]:
    """That the certificate is whole, and says `pass`."""
    whole = check_certificate(contents.run)
    if any(item.verdict == "fail" for item in whole):
        return whole
    verdict = contents.certificate["verdict"]
    return [*whole, equal(VERDICT, verdict, "pass", verdict_sentence(contents.certificate))]


def check_listed(files: Sequence[Sent], pushed: Pushed) -> list[Evidence]:
    """That the hub lists every file with the hash of what was sent; what else lies there is named."""
    wrong = [file.path for file in files if not is_there(file, pushed)]
    detail = f"All {len(files)} files have the hash of what was sent."
    if wrong:
        detail = f"The hub lists {', '.join(wrong)} otherwise than sent, or not at all. Push again."
    others = sorted(pushed.listed.keys() - {file.path for file in files} - OF_THE_HUB)
    left = "Nothing else lies in the repository."
    if others:
        left = f"From before there are also {', '.join(others)}, of which this certificate says nothing."
    return [equal("hub_files_other", len(wrong), 0, detail), equal("hub_files_left", len(others), 0, left).softened()]


def is_there(file: Sent, pushed: Pushed) -> bool:
    listed = pushed.listed.get(file.path)
    return listed is not None and listed.is_what_was_sent(file)

"""A service elsewhere, as the command line talks to it: `--server URL`.

In: its address and its token, which comes from a file or from the environment and goes into a header alone. Out: jobs
and runs as the store itself would give them, or an error in words. The token is sent over TLS, or within this machine,
and to no address but the one that was named.
"""

import json
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tunewright import __version__
from tunewright.errors import (
    EnvironmentLackError,
    JobError,
    JobNotFoundError,
    TunewrightError,
    UsageError,
)
from tunewright.jobs.job import ENDED
from tunewright.recipe import Recipe
from tunewright.web.access import LOOPBACK
from tunewright.web.recipe_text import described

TOKEN_VARIABLE = "TUNEWRIGHT_TOKEN"  # noqa: S105 - its name
SECONDS_TO_ANSWER = 30.0
SECONDS_TO_KEEP_A_FILE = 600.0
SECONDS_BETWEEN_LOOKS = 1.0
MOST_AT_ONCE = 1000
ERRORS: dict[int, type[TunewrightError]] = {
    401: UsageError,
    404: JobNotFoundError,
    409: JobError,
    413: UsageError,
    421: UsageError,
    422: UsageError,
    503: EnvironmentLackError,
}
MENDS = {
    401: f"Name the file that holds its token with --token-file, or put the token into {TOKEN_VARIABLE}.",
    421: "Name it as it calls itself: `tunewright up --name` there says by which names it may be called.",
}


def read_token(path: Path | None) -> str:
    """The token of a service elsewhere, out of a file, or else of the environment.

    Raises:
        UsageError: there is none, or it is no token.
    """
    where = str(path) if path else TOKEN_VARIABLE
    try:
        token = path.read_text(encoding="ascii").strip() if path else os.environ.get(TOKEN_VARIABLE, "").strip()
    except FileNotFoundError:
        raise UsageError(where, "there is no such file", "a file that holds the token of the service") from None
    except UnicodeDecodeError:
        raise UsageError(where, "it holds no token", "one line of letters and digits") from None
    if not token:
        raise UsageError("--server", f"no token: {where} is empty", "the token of the service", MENDS[401])
    if not token.isprintable() or " " in token:
        raise UsageError(where, "it holds no token", "one line of letters and digits")
    return token


def validate_url(url: str) -> str:
    """The address, without a slash at its end.

    Raises:
        UsageError: it is none, it holds a secret, or the token would travel in the open.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError("--server", "found no address", "one such as https://gpu.example") from None
    if parts.username is not None or parts.query or parts.fragment:
        mend = f"The token stands in a file (--token-file) or in {TOKEN_VARIABLE}."
        raise UsageError("--server", "found more than an address", "scheme, host and port alone", mend)
    if parts.scheme not in {"http", "https"} or not host or parts.path not in {"", "/"}:
        raise UsageError(
            "--server", f"found {url!r}", "an address such as https://gpu.example or http://127.0.0.1:7860"
        )
    if parts.scheme == "http" and host not in {*LOOPBACK, "::1"}:
        mend = "Put a proxy with TLS before the service, or tunnel its port: ssh -L 7860:127.0.0.1:7860 HOST."
        raise UsageError(url, "nothing would encrypt the token on its way", "https://…", mend)
    return url.rstrip("/")


class RemoteService:
    """A service that answers at an address; every method asks it once or a few times.

    Raises:
        UsageError: the address or the token is wrong, or the service is of another version.
        EnvironmentLackError: nothing answers there, or it cannot be trusted.
    """

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url = validate_url(url)
        self._client = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {token}"},
            timeout=SECONDS_TO_ANSWER,
            trust_env=False,
            verify=ssl.create_default_context(),
            transport=transport,
        )
        self._validate_version()

    def __enter__(self) -> "RemoteService":
        return self

    def __exit__(self, *reason: object) -> None:
        self._client.close()

    # -- jobs -------------------------------------------------------------------------------------------------------

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """The newest jobs, the newest first."""
        found: list[dict[str, Any]] = []
        while len(found) < limit:
            place = {"before": found[-1]["id"]} if found else {}
            wanted = min(limit - len(found), MOST_AT_ONCE)
            block = self._ask("GET", "/jobs", params={"limit": wanted, **place})
            found += block
            if len(block) < wanted:
                break
        return found

    def add(self, recipe: Recipe, name: str | None, priority: int, needs: list[int]) -> dict[str, Any]:
        """Queue a run of the recipe; the files of rows that are here are sent first."""
        keys = described(recipe)["recipe"]
        for key in ("data", "eval_data"):
            if key in keys:
                keys[key] = [self._sent(Path(path)) if Path(path).is_absolute() else path for path in keys[key]]
        body = {"recipe": keys, "priority": priority, "needs": needs, **({"name": name} if name else {})}
        return dict(self._ask("POST", "/jobs", json=body))

    def want(self, job: int, wish: str) -> dict[str, Any]:
        return dict(self._ask("POST", f"/jobs/{job}/{wish}", json={}))

    def retry(self, job: int, accept: list[str]) -> dict[str, Any]:
        return dict(self._ask("POST", f"/jobs/{job}/retry", json={"accept": accept}))

    def log(self, job: int, follow: bool) -> Iterator[str]:
        """The log of a job's last attempt, piece by piece; with `follow` until the job has ended."""
        attempt, place = 0, 0
        while True:
            known = self._ask("GET", f"/jobs/{job}")
            if len(known["attempts"]) != attempt:
                attempt, place = len(known["attempts"]), 0
            if not attempt and not follow:
                raise JobNotFoundError(f"job {job}", "it has not started, so it has no log")
            while attempt and (piece := self._piece(job, attempt, place))["text"]:
                yield piece["text"]
                place = piece["next"]
            if not follow or known["state"] in ENDED:
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _piece(self, job: int, attempt: int, place: int) -> dict[str, Any]:
        try:
            return dict(self._ask("GET", f"/jobs/{job}/log", params={"attempt": attempt, "after": place}))
        except JobNotFoundError:
            return {"text": "", "next": place}

    def _sent(self, path: Path) -> str:
        """Where a file of this machine lies after it was sent; a path that is not here is one of the service's."""
        if path.is_dir():
            raise UsageError(str(path), "a directory cannot be sent", "files", "Name its files, or copy it there.")
        if not path.exists():
            return str(path)
        with path.open("rb") as file:
            headers = {"content-type": "application/octet-stream"}
            name = {"name": path.name[-200:]}
            sent = self._ask(
                "PUT", "/files", params=name, content=file, headers=headers, timeout=SECONDS_TO_KEEP_A_FILE
            )
        return str(sent["path"])

    # -- runs -------------------------------------------------------------------------------------------------------

    def runs(self) -> list[dict[str, Any]]:
        """Every run as `tunewright runs` lists it, by name."""
        found: list[dict[str, Any]] = []
        total = 1
        while len(found) < total:
            answer = self._ask("GET", "/runs", params={"after": len(found), "limit": MOST_AT_ONCE})
            total = answer["total"] if answer["runs"] else 0
            found += answer["runs"]
        keys = ("name", "last_stage", "verdict")
        shown = [{key: run[key] and printable(str(run[key])) for key in keys} for run in found]
        return sorted(shown, key=lambda run: str(run["name"]))

    # -- asking -----------------------------------------------------------------------------------------------------

    def _validate_version(self) -> None:
        status = self._ask("GET", "/status")
        if not isinstance(status, dict) or not isinstance(status.get("version"), str):
            raise UsageError(self.url, "what answers there is no tunewright", "the address of `tunewright up`")
        if _release(status["version"]) != _release(__version__):
            found = f"it is tunewright {printable(status['version'])[:30]}"
            raise UsageError(self.url, found, f"{_release(__version__)}, as here", "Update one of the two.")

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        try:
            answer = self._client.request(method, f"/api/v1{path}", **request)
        except httpx.TimeoutException:
            found = f"it has not answered within {SECONDS_TO_ANSWER:.0f} seconds"
            raise EnvironmentLackError(self.url, found, mend="Try again, or look after it there.") from None
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if answer.is_redirect:
            raise UsageError(self.url, "it sends its visitors elsewhere", mend="Name the address itself.")
        said = None
        with suppress(ValueError):
            said = json.loads(answer.content)
        if answer.is_success and said is not None:
            return said
        raise self._refused(answer.status_code, said)

    def _unreachable(self, error: httpx.TransportError) -> TunewrightError:
        words = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in words:
            mend = "Use the name that is in it; SSL_CERT_FILE names the file of an authority of your own."
            return EnvironmentLackError(self.url, f"its certificate cannot be trusted ({_reason(words)})", mend=mend)
        if "SSL" in words:
            return EnvironmentLackError(self.url, "it does not speak TLS", mend="Is the port the one of the proxy?")
        mend = "Is `tunewright up` running there, and is the port open?"
        return EnvironmentLackError(self.url, f"nothing answers there ({printable(words)[:200]})", mend=mend)

    def _refused(self, status: int, said: Any) -> TunewrightError:
        kind = ERRORS.get(status, TunewrightError)
        if not isinstance(said, dict) or not isinstance(said.get("found"), str):
            return kind(self.url, f"it answered {status}, which is no answer of tunewright", mend="Check the address.")
        where, found, expected, mend = (
            printable(str(said.get(key) or "")) for key in ("where", "found", "expected", "mend")
        )
        if status in MENDS:
            return kind(self.url, found, mend=MENDS[status])
        return kind(where, found, expected, mend)


def _release(version: str) -> str:
    """The part of a version that has to be the same: `0.1` of `0.1.3`."""
    return ".".join(version.split(".")[:2])


def _reason(words: str) -> str:
    """What OpenSSL says of a certificate: `self-signed certificate`."""
    return printable(words.partition("verify failed: ")[2].partition(" (_ssl")[0] or words)[:200]


def printable(text: str) -> str:
    """The text without what would speak to a terminal."""
    return "".join(letter for letter in text if letter.isprintable())

"""`--server URL`: the same jobs from elsewhere, and every way in which that can fail said in words."""

import asyncio
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from jobs_bench import add, finish_all
from test_web_api import make_run
from tunewright.cli import app
from tunewright.errors import (
    EnvironmentLackError,
    JobError,
    JobNotFoundError,
    TunewrightError,
    UsageError,
)
from tunewright.jobs.local import LocalJobs
from tunewright.recipe import build_recipe
from tunewright.web import client as client_module
from tunewright.web.client import RemoteService, read_token, validate_url
from web_bench import URL, Site, free_port


class InProcess(httpx.BaseTransport):
    """The application of a site, as if a network lay between."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        return asyncio.run(self._ask(request, body))

    async def _ask(self, request: httpx.Request, body: bytes) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.site.app)) as client:
            answer = await client.request(request.method, request.url, headers=request.headers, content=body)
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.fixture
def remote(site: Site) -> RemoteService:
    return RemoteService(URL, site.access.token, InProcess(site))


def test_jobs_from_elsewhere_are_the_jobs_of_the_store(site: Site, remote: RemoteService) -> None:
    for index in range(3):
        add(site.store, f"job{index}")
    here = LocalJobs(site.store)
    assert remote.jobs(2) == here.jobs(2)
    assert remote.want(1, "cancel")["state"] == "cancelled"
    assert remote.retry(1, ["leakage"])["arguments"] == ["--accept", "leakage"]
    assert remote.want(2, "stop")["state"] == "stopped"
    assert remote.jobs(50) == here.jobs(50)


def test_more_jobs_than_come_at_once_come_in_pages(
    site: Site, remote: RemoteService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MOST_AT_ONCE", 2)
    for index in range(5):
        add(site.store, f"job{index}")
        make_run(site, f"run{index}")
    assert [job["id"] for job in remote.jobs(10)] == [5, 4, 3, 2, 1]
    assert [run["name"] for run in remote.runs()] == [f"run{index}" for index in range(5)]
    assert remote.runs()[0] == {"name": "run0", "last_stage": "report", "verdict": "pass"}


def test_rows_are_sent_with_the_recipe_and_lie_there_as_they_were(
    site: Site, remote: RemoteService, tmp_path: Path
) -> None:
    rows = tmp_path / "rows of mine.jsonl"
    rows.write_bytes(b'{"a": 1}\n' * 100_000)
    recipe = build_recipe({"data": [str(rows)], "eval_data": ["owner/rows"], "lr": 0.01}, "here")
    job = remote.add(recipe, "mine", 3, [])
    kept = build_recipe(json.loads(json.dumps(_recipe_of(site, job["id"]))), "there")
    assert (job["name"], job["priority"], kept.learning_rate) == ("mine", 3, 0.01)
    assert Path(kept.data[0]).read_bytes() == rows.read_bytes()
    assert Path(kept.data[0]).is_relative_to(site.store.private / "files")
    assert list(kept.eval_data) == ["owner/rows"]


def _recipe_of(site: Site, job: int) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(site.store.job(job).recipe))


def test_a_directory_cannot_be_sent_and_a_path_of_neither_machine_is_refused(
    remote: RemoteService, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="a directory cannot be sent"):
        remote.add(build_recipe({"data": [str(tmp_path)]}, "here"), None, 0, [])
    with pytest.raises(UsageError, match="no such file on the machine of the service"):
        remote.add(build_recipe({"data": ["/nowhere/rows.jsonl"]}, "here"), None, 0, [])


@pytest.mark.parametrize("follow", [False, True])
def test_a_log_from_elsewhere_is_the_log(site: Site, remote: RemoteService, follow: bool) -> None:
    job = add(site.store, "one", "exit 1")
    with pytest.raises(JobNotFoundError, match="it has not started"):
        list(remote.log(job.id, False))
    finish_all(site.board.scheduler)
    site.store.log_path(job.id, 1).write_text("loss 0.5\n" * 60_000)
    assert "".join(remote.log(job.id, follow)) == "loss 0.5\n" * 60_000
    assert "".join(LocalJobs(site.store).log(job.id, follow)) == "loss 0.5\n" * 60_000


def test_refusals_come_over_as_the_errors_that_they_are(remote: RemoteService) -> None:
    with pytest.raises(JobNotFoundError, match="job 9: there is no such job"):
        remote.want(9, "stop")


def test_a_second_end_of_a_job_is_refused_with_the_words_of_the_service(site: Site, remote: RemoteService) -> None:
    add(site.store, "one")
    remote.want(1, "cancel")
    with pytest.raises(JobError, match="it is cancelled already"):
        remote.want(1, "cancel")


# What can be wrong


def test_a_wrong_token_is_said_with_where_to_put_the_right_one(site: Site) -> None:
    with pytest.raises(UsageError, match="--token-file") as refused:
        RemoteService(URL, "wrong", InProcess(site))
    assert "wrong" not in str(refused.value).replace("missing or wrong", "")


def test_a_name_that_the_service_does_not_go_by_is_said(site: Site) -> None:
    with pytest.raises(UsageError, match="--name"):
        RemoteService("https://other.example", site.access.token, InProcess(site))


def answering(answer: httpx.Response) -> httpx.BaseTransport:
    return httpx.MockTransport(lambda request: answer)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (httpx.Response(200, json={"version": "9.3.1"}), "it is tunewright 9.3; expected 0.1"),
        (httpx.Response(200, json={"version": "0.1\x1b]0;x\x07.9"}), "it is tunewright 0.1"),
        (httpx.Response(200, json=[1]), "no tunewright"),
        (httpx.Response(200, text="<html>"), "no answer of tunewright"),
        (httpx.Response(404, text="not found"), "answered 404"),
        (httpx.Response(502, text="bad gateway"), "answered 502"),
        (httpx.Response(302, headers={"location": "https://evil.example"}), "sends its visitors elsewhere"),
        (httpx.Response(503, json={"where": "x", "found": "full\x1b[2J", "mend": "Wait."}), "x: full"),
    ],
)
def test_what_is_no_service_or_another_version_is_said(answer: httpx.Response, found: str) -> None:
    with pytest.raises(TunewrightError) as refused:
        RemoteService("https://gpu.example", "t" * 40, answering(answer))
    message = str(refused.value)
    assert found.replace("9.3;", "9.3.1;") in message
    assert "\x1b" not in message
    assert "t" * 40 not in message


def test_a_small_difference_of_versions_is_none() -> None:
    RemoteService("https://gpu.example", "t", answering(httpx.Response(200, json={"version": "0.1.99"})))


def test_nothing_that_listens_is_said() -> None:
    with pytest.raises(EnvironmentLackError, match="nothing answers there"):
        RemoteService(f"http://127.0.0.1:{free_port()}", "t")


def test_a_service_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SECONDS_TO_ANSWER", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(EnvironmentLackError, match="has not answered"),
    ):
        RemoteService(f"http://127.0.0.1:{silent.getsockname()[1]}", "t")


class Plain(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Says nothing."""


@contextmanager
def serving(certificate: Path | None) -> Iterator[int]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Plain)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def test_a_port_without_tls_is_said() -> None:
    with serving(None) as port, pytest.raises(EnvironmentLackError, match="does not speak TLS"):
        RemoteService(f"https://127.0.0.1:{port}", "t")


def test_a_certificate_that_nobody_signed_is_not_trusted(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here to make a certificate")
    path = tmp_path / "both.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=gpu.example"
    subprocess.run(
        ["openssl", *words.split(), "-keyout", path, "-out", tmp_path / "c"], check=True, capture_output=True
    )
    path.write_text(path.read_text() + (tmp_path / "c").read_text())
    with serving(path) as port, pytest.raises(EnvironmentLackError, match="self-signed certificate") as refused:
        RemoteService(f"https://127.0.0.1:{port}", "t")
    assert "SSL_CERT_FILE" in refused.value.mend


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://gpu.example", "nothing would encrypt the token"),
        ("http://10.0.0.7:7860", "nothing would encrypt the token"),
        ("https://user:secret@gpu.example", "more than an address"),
        ("https://gpu.example/?token=secret", "more than an address"),
        ("gpu.example", "an address such as"),
        ("ftp://gpu.example", "an address such as"),
        ("https://gpu.example:99999", "no address"),
        ("https://[::1", "no address"),
    ],
)
def test_an_address_that_would_tell_the_token_is_refused(url: str, found: str) -> None:
    with pytest.raises(UsageError, match=found) as refused:
        validate_url(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["https://gpu.example", "https://gpu.example:8443/", "http://127.0.0.1:7860", "http://[::1]:1"]
)
def test_an_address_over_tls_or_of_this_machine_is_taken(url: str) -> None:
    assert validate_url(url) == url.rstrip("/")


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNEWRIGHT_TOKEN", raising=False)
    path = tmp_path / "token"
    path.write_text("from-a-file\n")
    assert read_token(path) == "from-a-file"
    with pytest.raises(UsageError, match="no token: TUNEWRIGHT_TOKEN is empty"):
        read_token(None)
    monkeypatch.setenv("TUNEWRIGHT_TOKEN", "from-the-environment")
    assert read_token(None) == "from-the-environment"
    with pytest.raises(UsageError, match="no such file"):
        read_token(tmp_path / "nowhere")
    path.write_text("two words\nand lines")
    with pytest.raises(UsageError, match="it holds no token"):
        read_token(path)


def test_the_commands_ask_the_service_in_place_of_a_store(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(site.store, "one")
    make_run(site, "good")
    real = client_module.RemoteService
    monkeypatch.setattr(client_module, "RemoteService", lambda url, token: real(url, token, InProcess(site)))
    there = ["--server", URL, "--token-file", str(site.store.private / "token")]

    def said(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, *there])
        assert result.exit_code == 0, result.output
        return result.output

    assert "queued     one" in said("jobs", "list")
    assert "stopped    one" in said("jobs", "stop", "1")
    assert "queued     one" in said("jobs", "retry", "1")
    assert "good" in said("runs")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert "queued     rows" in said("jobs", "add", str(tmp_path / "rows.jsonl"))
    assert json.loads(said("jobs", "list", "--json"))[0]["name"] == "rows"

"""Attacks on the service, each on every route that there is, and on what it reads; docs/attacks.md names them all."""

import asyncio
import gzip
import os
import pickle
import socket
import stat
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from jobs_bench import add, finish_all
from test_web_api import make_run
from tunewright.data.read.blocks import LIMITS, records_of
from tunewright.data.read.files import read_blocks
from tunewright.data.read.sources import Source
from tunewright.errors import DataError, EnvironmentLackError, ModelNotFoundError, UsageError
from tunewright.models.base import find_base
from tunewright.recipe import ModelKeys
from tunewright.service_commands import line_of
from tunewright.web import guard
from tunewright.web.access import hosts_of, read_token
from tunewright.web.service import Options, validate_options
from web_bench import PORT, URL, Site

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


def every_path(site: Site) -> list[str]:
    """Each route with something in its places, and two that are none."""
    paths = site.ask("GET", "/api/v1/openapi.json").json()["paths"]
    look = f"{0:013d}-00000000"
    review = "0" * 32
    places = {"job": 1, "wish": "stop", "name": "run", "look": look, "path": "recipe.yaml", "chat": "0" * 16}
    places |= {"review": review, "row": 1}
    pages = ["/", "/runs", "/runs/run", "/runs/run/report", "/runs/run/artifacts", "/runs/run/chat", "/compare"]
    pages += ["/data", f"/data/{look}", "/new", "/settings", "/wall", "/parts/home", "/parts/runs", "/parts/runs/run"]
    pages += ["/parts/runs/run/votes", f"/parts/data/{look}", f"/parts/plan/{look}", "/parts/doctor", "/parts/wall"]
    pages += [f"/opening/{look}", f"/parts/opening/{look}", f"/reviews/{review}", f"/reviews/{review}/rows/1"]
    pages += [f"/reviews/{review}/next", f"/reviews/{review}/finish"]
    return [*(path.format(**places) for path in paths), *pages, "/nowhere", "/api/v1/openapi.json", "/docs"]


def answers(site: Site, methods: tuple[str, ...] = METHODS, token: bool = True, **headers: str) -> set[int]:
    """The status of every route and method."""
    found = set()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    for path in every_path(site):
        for method in methods:
            if (method, path) != ("POST", "/api/v1/session"):
                found.add(site.ask(method, path, token=token, headers=named, content=b"{}").status_code)
    return found


def test_nothing_is_answered_without_the_token(site: Site) -> None:
    assert answers(site, token=False) == {401}


@pytest.mark.parametrize("given", ["Bearer wrong", "Bearer ", "Basic Og==", "Bearer \xff"])
def test_nothing_is_answered_to_a_wrong_token(site: Site, given: str) -> None:
    answer = site.ask("GET", "/api/v1/jobs", token=False, headers={"authorization": given.encode("latin-1")})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1.evil.example:{PORT}", ""],
)
def test_a_foreign_host_is_refused_everywhere(site: Site, host: str) -> None:
    """A page whose name was pointed at this machine sends its own name."""
    assert answers(site, host=host) == {421}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", f"{URL}.evil.example"])
def test_a_foreign_origin_is_refused_everywhere(site: Site, origin: str) -> None:
    assert answers(site, origin=origin) == {403}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_a_form_can_send_is_refused_everywhere(site: Site, kind: str) -> None:
    methods = ("POST", "PUT", "PATCH", "DELETE")
    assert answers(site, methods, content_type=kind) == {415}
    login = site.ask("POST", "/api/v1/session", content=b"{}", headers={"content-type": kind})
    assert login.status_code == 415


def test_the_token_in_an_address_is_worth_nothing(site: Site) -> None:
    assert site.ask("GET", f"/api/v1/jobs?token={site.access.token}", token=False).status_code == 401


def test_the_cookie_lets_in_a_browser_and_changes_nothing_without_its_origin(site: Site) -> None:
    login = site.ask("POST", "/api/v1/session", token=False, json={"token": site.access.token})
    cookie = login.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert site.access.token not in cookie
    sent = {"cookie": cookie.partition(";")[0]}
    assert site.ask("GET", "/api/v1/jobs", token=False, headers=sent).status_code == 200
    assert site.ask("POST", "/api/v1/jobs/1/stop", token=False, json={}, headers=sent).status_code == 401
    with_origin = {**sent, "origin": URL}
    assert site.ask("POST", "/api/v1/jobs/1/stop", token=False, json={}, headers=with_origin).status_code == 404


def test_a_login_with_a_wrong_token_gives_no_cookie(site: Site) -> None:
    login = site.ask("POST", "/api/v1/session", token=False, json={"token": "wrong"})
    assert login.status_code == 401
    assert "set-cookie" not in login.headers


def test_every_answer_says_what_a_page_may_do(site: Site) -> None:
    for path in every_path(site):
        if not path.endswith("/events"):
            headers = site.ask("GET", path).headers
            assert "default-src 'none'" in headers["content-security-policy"], path
            assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        *("/api/v1/runs/..", "/api/v1/runs/../../etc/certificate", "/api/v1/runs/..%2f..%2fetc/certificate"),
        *("/api/v1/runs/%2e%2e/certificate", "/api/v1/runs/.service/certificate", "/api/v1/runs/a%00b/certificate"),
        *("/api/v1/runs/link/certificate", "/api/v1/runs/linked-file/certificate", "/api/v1/runs/pipe/certificate"),
    ],
)
def test_no_name_leads_out_of_the_store(site: Site, tmp_path: Path, path: str) -> None:
    outside = make_run(site, "inside").rename(tmp_path / "outside")
    (site.store.root / "link").symlink_to(outside)
    for name in ("linked-file", "pipe"):
        (site.store.root / name).mkdir()
    (site.store.root / "linked-file/certificate.json").symlink_to(outside / "certificate.json")
    os.mkfifo(site.store.root / "pipe/certificate.json")
    assert site.ask("GET", path).status_code in {404, 422}


@pytest.mark.parametrize(
    "path",
    [
        *("/api/v1/jobs/99999999999999999999999", "/api/v1/jobs/-1", "/api/v1/jobs/1e9", "/api/v1/jobs/NaN"),
        *(
            "/api/v1/jobs?limit=1000000000",
            "/api/v1/jobs?before=-1",
            "/api/v1/runs?after=1e400",
            "/api/v1/jobs?state=x",
        ),
        f"/api/v1/jobs/{'9' * 5000}",
    ],
)
def test_giant_and_odd_numbers_are_refused_in_words(site: Site, path: str) -> None:
    answer = site.ask("GET", path)
    assert answer.status_code == 422
    assert len(answer.content) < 2000


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"[" * 100_000,
            b'{"recipe": {"data": "\\ud800"}}',
            b'{"recipe": {"data": 1e999}}',
            b"\xff\xfe",
            b"",
            b"null",
        ),
        b'{"recipe": {"data": ' + b"9" * 10_000 + b"}}",
        b'{"recipe": ' + b'{"roles":' * 5_000 + b"1" + b"}" * 5_001,
    ],
)
def test_bodies_that_break_parsers_are_refused(site: Site, body: bytes) -> None:
    answer = site.ask("POST", "/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(site: Site) -> None:
    body = b" " * (guard.MOST_BODY_BYTES + 1)
    headers = {"content-type": "application/json"}
    assert site.ask("POST", "/api/v1/jobs", content=body, headers=headers).status_code == 413
    said_less = {**headers, "content-length": "2"}
    assert site.ask("POST", "/api/v1/jobs", content=body, headers=said_less).status_code == 413


def test_a_body_that_comes_too_slowly_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS_FOR_A_BODY", 0.05)

    async def slow() -> guard.Message:
        await asyncio.sleep(5)
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def ask() -> None:
        await guard.read_body({}, slow)

    with pytest.raises(guard.RefusedError) as refused:
        asyncio.run(ask())
    assert refused.value.status == 408


def test_the_token_is_in_no_answer(site: Site) -> None:
    make_run(site, "run")
    for path in every_path(site):
        if not path.endswith("/events"):
            assert site.access.token not in site.ask("GET", path).text


def test_the_token_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = read_token(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_token(path) == token
    path.chmod(0o644)
    with pytest.raises(EnvironmentLackError, match="others can read the token"):
        read_token(path)


def test_another_address_needs_a_name_and_a_word_on_tls(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing encrypts"):
        validate_options(Options(tmp_path, host="0.0.0.0"))  # noqa: S104 - that is the point
    validate_options(Options(tmp_path, host="0.0.0.0", names=["gpu.example"]))  # noqa: S104
    assert "gpu.example" in hosts_of(PORT, ["GPU.example"])


def test_a_host_or_an_origin_that_is_named_twice_is_refused(site: Site) -> None:
    """A proxy before the service and the service itself might each read another one of the two."""
    own = f"127.0.0.1:{PORT}"
    for hosts in ([own, "evil.example"], ["evil.example", own], [own, own], []):
        with pytest.raises(guard.RefusedError) as refused:
            site.app.validate_host({"host": hosts})
        assert refused.value.status == 421
    with pytest.raises(guard.RefusedError):
        site.app.validate_host({"host": [own], "origin": [URL, "https://evil.example"]})


ADDRESSES = (
    *("http://127.0.0.1/rows.jsonl", "http://2130706433/rows.jsonl", "http://0x7f.1/rows.jsonl", "http://[::1]/a"),
    *("http://[::ffff:127.0.0.1]/a", "http://169.254.169.254/latest/meta-data", "https://evil.example/redirects"),
    *("file:///etc/passwd", "ftp://127.0.0.1/a", "data:text/plain,{}", "//127.0.0.1/share", "\\\\127.0.0.1\\share"),
)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("route", ["jobs", "checks", "plans", "recipes"])
def test_no_address_is_ever_fetched_as_data(
    site: Site, monkeypatch: pytest.MonkeyPatch, route: str, address: str
) -> None:
    """Rows are files or data sets of the hub: so there is no redirect to follow and no name to point elsewhere."""
    asked: list[object] = []

    def look_up(*words: object, **_: object) -> list[object]:
        asked.append(words)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    answer = site.ask("POST", f"/api/v1/{route}", json={"recipe": {"data": address}})
    assert (answer.status_code, asked) == (422, [])
    assert site.store.jobs() == []


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "pipe"])
def test_a_device_or_a_pipe_is_no_data(site: Site, tmp_path: Path, path: str) -> None:
    """One would never end, the other never begin."""
    os.mkfifo(tmp_path / "pipe")
    given = path if path.startswith("/") else str(tmp_path / path)
    answer = site.ask("POST", "/api/v1/checks", json={"recipe": {"data": given}})
    assert answer.status_code == 422
    assert "no regular file" in answer.text


def test_the_token_is_in_no_file_but_its_own(site: Site) -> None:
    """Looked for in what a job, its log and its recipe leave behind, when the token is in every place to say it."""
    secret = site.access.token
    login = site.ask("POST", "/api/v1/session", token=False, json={"token": secret})
    cookie = login.headers["set-cookie"].partition("=")[2].partition(";")[0]
    add(site.store, "one", "exit 1")
    finish_all(site.board.scheduler)
    files = [path for path in site.store.root.rglob("*") if path.is_file() and path.name != "token"]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes()
        assert secret.encode() not in content, path
        assert cookie.encode() not in content, path


def test_words_of_a_job_do_not_speak_to_a_terminal(site: Site) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\u009b31m\u202eone"
    site.store.add(hostile, "exit 1", site.store.root / "one")
    shown = line_of(site.store.job(1).as_json())
    assert shown.endswith("]0;owned[2J31mone")
    assert shown.isprintable()


def test_a_bomb_of_gzip_is_read_in_small_pieces_and_its_row_refused(tmp_path: Path) -> None:
    """Sixty-four MiB in sixty-four KiB; what is unpacked is counted as it goes by, and never held."""
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(64):
            file.write(b" " * (1 << 20))
        file.write(b'{"a": 1}\n')
    limits = replace(LIMITS, row_bytes=1 << 20)
    tracemalloc.start()
    records = [record for block in read_blocks(Source(path, path.name), 0, limits) for record in records_of(block)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [record.fault.kind for record in records if record.fault] == ["row too long"]
    assert peak < 32 << 20


def test_an_archive_is_never_unpacked_so_its_names_lead_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "inside/rows.jsonl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped.jsonl", b"{}")
    try:
        records = [record for block in read_blocks(Source(path, path.name), 0) for record in records_of(block)]
    except DataError:
        records = []
    assert [record for record in records if record.fault is None] == []
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["inside", "rows.jsonl"]


class Evil:
    """What would run if somebody unpickled it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def test_weights_that_are_a_pickle_are_not_loaded(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(ModelNotFoundError, match="pickle files are not loaded"):
        find_base(ModelKeys(model=str(base)))
    assert not (tmp_path / "ran").exists()
    pickle.loads((base / "pytorch_model.bin").read_bytes())  # noqa: S301 - so it would have run
    assert (tmp_path / "ran").exists()

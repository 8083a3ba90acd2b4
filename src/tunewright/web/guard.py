"""Stands before every route, known or not: host, origin, token, kind and size of the body; and headers on every answer.

A request that comes through has one known Host, no foreign Origin, the token or the cookie (but for the one route that
gives the cookie, and the files that every page loads), and, if it changes something, a whole JSON body of bounded size.
A browser without the cookie gets the page that asks for the token in place of any other.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any

from tunewright.web.access import COOKIE, Access

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY_BYTES = 1 << 20
SECONDS_FOR_A_BODY = 10.0
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SESSION_PATH = "/api/v1/session"
# Here a body is no JSON and may be large: what takes it bounds it as it comes.
UPLOAD_PATH = "/api/v1/files"
UPLOAD_TYPE = "application/octet-stream"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass
class RefusedError(Exception):
    """A request that is not let through."""

    status: HTTPStatus
    found: str
    expected: str = ""


class Guard:
    """The application, with the guard before it.

    Args:
        open_paths: what may be read without the token.
        login_page: what a browser is shown that has no cookie.
    """

    def __init__(
        self, app: App, access: Access, open_paths: frozenset[str] = frozenset(), login_page: bytes = b""
    ) -> None:
        self.app = app
        self.access = access
        self.open_paths = open_paths
        self.login_page = login_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        send = with_headers(send)
        try:
            headers = headers_of(scope)
            self.validate_host(headers)
            self.validate_caller(scope, headers)
            receive = await self.checked_body(scope, headers, receive)
        except RefusedError as refused:
            await self.answer_refused(refused, scope, send)
            return
        await self.app(scope, receive, send)

    def validate_host(self, headers: dict[str, list[str]]) -> None:
        """The Host is one of ours, which no other site can make it by pointing its name here; nor is the Origin."""
        hosts = [value.lower() for value in headers.get("host", [])]
        if len(hosts) != 1 or hosts[0] not in self.access.hosts:
            raise RefusedError(HTTPStatus.MISDIRECTED_REQUEST, "the Host header is not one of this service's names")
        if not self.access.origins.issuperset(headers.get("origin", [])):
            raise RefusedError(HTTPStatus.FORBIDDEN, "the request comes from another site")

    def validate_caller(self, scope: Scope, headers: dict[str, list[str]]) -> None:
        if scope["path"] == SESSION_PATH and scope["method"] == "POST":
            return
        if scope["path"] in self.open_paths and scope["method"] in {"GET", "HEAD"}:
            return
        kind, _, token = headers.get("authorization", [""])[0].partition(" ")
        if kind.lower() == "bearer" and self.access.knows_token(token.strip()):
            return
        # A browser sends an Origin with whatever changes something; a cookie without one is used by something else.
        may_use_cookie = scope["method"] in SAFE_METHODS or "origin" in headers
        if may_use_cookie and self.access.knows_cookie(cookie_of(headers)):
            return
        expected = "the header `Authorization: Bearer TOKEN`, or the cookie that a login gives"
        raise RefusedError(HTTPStatus.UNAUTHORIZED, "the token is missing or wrong", expected)

    async def checked_body(self, scope: Scope, headers: dict[str, list[str]], receive: Receive) -> Receive:
        if scope["method"] in SAFE_METHODS:
            return receive
        kind = headers.get("content-type", [""])[0].partition(";")[0].strip().lower()
        if (scope["method"], scope["path"], kind) == ("PUT", UPLOAD_PATH, UPLOAD_TYPE):
            return receive
        body = await read_body(headers, receive)
        if kind != "application/json" and (body or scope["method"] != "DELETE"):
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the content type is {kind!r}", "application/json")
        validate_json(body)
        return handing_out(body, receive)

    async def answer_refused(self, refused: RefusedError, scope: Scope, send: Send) -> None:
        accepted = headers_of(scope).get("accept", [""])[0]
        if refused.status == HTTPStatus.UNAUTHORIZED and scope["method"] == "GET" and "text/html" in accepted:
            await answer(refused.status, "text/html; charset=utf-8", self.login_page, send)
            return
        body = json.dumps(problem("request", refused.found, refused.expected)).encode()
        await answer(refused.status, "application/json", body, send)


def headers_of(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def cookie_of(headers: dict[str, list[str]]) -> str:
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load("; ".join(headers.get("cookie", [])))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


async def read_body(headers: dict[str, list[str]], receive: Receive) -> bytes:
    """The whole body; refused if it is too large, or too slow."""
    too_large = RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large", f"{MOST_BODY_BYTES} bytes")
    said = headers.get("content-length", ["0"])[0]
    if not said.isdecimal() or len(said) > 12 or int(said) > MOST_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS_FOR_A_BODY):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise RefusedError(HTTPStatus.BAD_REQUEST, "the request broke off")
                body += message.get("body", b"")
                if len(body) > MOST_BODY_BYTES:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "the body came too slowly") from None


def validate_json(body: bytes) -> None:
    """Refuse what is no JSON, is nested without end, or holds half characters, which no file and no store takes."""
    try:
        json.dumps(json.loads(body or b"{}"), ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the body cannot be read", "JSON in UTF-8") from None


def handing_out(body: bytes, receive: Receive) -> Receive:
    """What hands out the body that was read, and then what the server says."""
    waiting = [body]

    async def next_message() -> Message:
        return {"type": "http.request", "body": waiting.pop(), "more_body": False} if waiting else await receive()

    return next_message


def with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in given]
            message["headers"] = [*message["headers"], *own]
        await send(message)

    return send_with_headers


async def answer(status: HTTPStatus, kind: str, body: bytes, send: Send) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in {HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT}:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def problem(where: str, found: str, expected: str = "", mend: str = "") -> dict[str, str]:
    """An error as the API answers it: the parts of every message of tunewright."""
    return {"where": where, "found": found, "expected": expected, "mend": mend}

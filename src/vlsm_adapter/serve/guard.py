"""What stands before every route: who may ask, how much may be sent, which headers an answer carries.

A plain ASGI middleware, so that a body is counted as it arrives and one that is too large is never in memory as a whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlsm_adapter.serve.problems import Refused, busy, log_fault
from vlsm_adapter.serve.service import Service
from vlsm_adapter.serve.settings import MIB, is_loopback

logger = logging.getLogger("vlsm_adapter")

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
SMALL_BODY = MIB  # of a request that carries no file or mask
# Routes with a body, and the type it must have.
_BODIES = {
    "/v1/images": "multipart/form-data",
    "/v1/segment/file": "multipart/form-data",
    "/v1/segment": "application/json",
    "/v1/download": "application/json",
    "/v1/corrections": "application/json",
}
_WITH_FILES = frozenset(_BODIES) - {"/v1/segment"}
CLIENT_GONE = 499  # in log and metrics: nobody was there to be answered
_BODY_SECONDS = 60.0  # for a client to send its body
_DRAIN_SECONDS = 5.0  # that a refused client may go on sending, so that it comes to read the answer


class Guard:
    """Checks before the routes, headers and measurements after them.

    Args:
        app: the routes.
        service: for its limits, its token and its metrics.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._settings = service.settings
        token = service.settings.token
        self._token = _digest(token) if token else None
        self._under_way = 0
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(self, scope, receive, send)
        started = time.perf_counter()
        metrics = self._service.metrics
        self._under_way += 1
        metrics.under_way.set(self._under_way)
        try:
            try:
                self._check(scope)
                await self._answer(scope, request)
            except Exception:
                if request.refused is None:
                    raise
            if request.refused is not None:
                raise request.refused
        except Refused as refused:
            await request.refuse(refused)
        except Exception as error:
            log_fault(f"request {request.number}", error)
            await request.refuse(Refused(500, f"a fault of the server, logged as {request.number}"))
        finally:
            self._under_way -= 1
            self._held -= request.body_bytes
            metrics.under_way.set(self._under_way)
            metrics.body_bytes.set(self._held)
            seconds = time.perf_counter() - started
            route = _route(scope)
            metrics.answered(scope["method"], route, request.status, seconds)
            if not _is_routine(route):
                logger.info("%s %s %d %.0f ms", scope["method"], route, request.status, seconds * 1000)

    async def _answer(self, scope: Scope, request: _Request) -> None:
        """Run the routes. Where the client goes before its answer, they are cancelled, and its questions leave the queue.

        Raises:
            Refused: it went.
        """
        work = asyncio.ensure_future(self._app(scope, request.receive, request.send))
        gone = asyncio.ensure_future(request.gone())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not request.answered:
                work.cancel()
            await asyncio.wait((work,))
        finally:
            gone.cancel()
            work.cancel()
        if work.cancelled():
            raise Refused(CLIENT_GONE, "the client is gone")
        work.result()

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if not self._is_our_name(host):
            raise Refused(421, "this name is not the server's: start it with --allow-host NAME")
        origin = headers.get("origin")
        if origin and scope["method"] not in ("GET", "HEAD") and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "a page of another site asked: only the server's own page may")
        if _is_open(path):
            return
        if self._token is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip()), self._token):
                raise Refused(401, "a token is needed: send the header 'Authorization: Bearer TOKEN'")
        if self._under_way > self._settings.most_requests:
            raise busy(f"{self._settings.most_requests} requests are under way: ask again later", 2)

        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != _BODIES.get(path, kind):
            raise Refused(415, f"the body must be {_BODIES[path]}, not {shown(kind)}")

    def _is_our_name(self, host: str) -> bool:
        """Against pages that have their own name resolved to this machine (DNS rebinding)."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in {other.lower() for other in self._settings.hosts}:
            return True
        if self._settings.loopback:
            return is_loopback(name)
        # Where others may reach it, its names are not known, and the token stands guard.
        return self._token is not None or not self._settings.hosts or is_loopback(name)

    def hold(self, count: int) -> None:
        """Count bytes of a body that are now in memory.

        Raises:
            Refused: 503, all requests together hold too many.
        """
        if self._held + count > self._settings.most_waiting_bytes:
            raise busy("too much is being sent at once: send it again later", 2)
        self._held += count
        self._service.metrics.body_bytes.set(self._held)

    @property
    def stopping(self) -> bool:
        """Whether the service was told to stop."""
        return self._service.stopping

    def most_body(self, path: str) -> int:
        """Bytes that a request to ``path`` may have."""
        return (
            self._settings.most_body_bytes if path in _WITH_FILES else min(SMALL_BODY, self._settings.most_body_bytes)
        )


class _Request:
    """One request: counts what comes in, adds headers to what goes out."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.number = secrets.token_hex(6)
        self.status = 0
        self.body_bytes = 0
        self.refused: Refused | None = None
        self.answered = False
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        self._most = guard.most_body(scope["path"])
        self._until = time.monotonic() + _BODY_SECONDS
        self._whole = False
        self._sent_all = asyncio.Event()

    async def receive(self) -> Message:
        """The next part of the body.

        Raises:
            Refused: 413, too large; 408, too slow; 499, the client went; 503, the server holds too much, or is to stop.
        """
        if self._whole:  # the client goes, which may be never
            return await self._receive()
        try:
            stated = Headers(scope=self._scope).get("content-length", "")
            if stated.isdecimal() and int(stated[:20]) > self._most:
                raise self._too_large()
            message = await self._next()
            if message["type"] == "http.request":
                count = len(message.get("body", b""))
                self._whole = not message.get("more_body", False)
                if self._whole:
                    self._sent_all.set()
                if self.body_bytes + count > self._most:
                    raise self._too_large()
                self._guard.hold(count)
                self.body_bytes += count
            elif message["type"] == "http.disconnect":
                raise Refused(CLIENT_GONE, "the client is gone")
            return message
        except Refused as refused:
            self.refused = refused  # whatever the routes make of it
            raise

    async def _next(self) -> Message:
        """What the client sends next, if it comes in time and before the service is told to stop."""
        while True:
            left = self._until - time.monotonic()
            try:
                return await asyncio.wait_for(self._receive(), min(left, 1.0))
            except TimeoutError:
                if left <= 1.0:
                    raise Refused(408, f"the body did not come within {_BODY_SECONDS:g} s") from None
                if self._guard.stopping:
                    raise busy("the service is stopping", 5) from None

    async def gone(self) -> None:
        """Return when the client has gone, or has its answer; while its body is read, the reader notices."""
        await self._sent_all.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, message: Message) -> None:
        """A part of the answer."""
        if self.refused is not None and self.status == 0:
            return  # the refusal is sent instead of what the routes made of it
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
            headers["X-Request-Id"] = self.number
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.answered = True

    async def refuse(self, refused: Refused) -> None:
        """Answer with an error, if no answer has begun."""
        if self.status:
            return
        if refused.status == CLIENT_GONE:
            self.status = CLIENT_GONE
            return
        self.refused = None
        content = json.dumps(refused.body()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        if refused.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if refused.retry_after is not None:
            headers.append((b"retry-after", str(refused.retry_after).encode()))
        if not self._whole:
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content, "more_body": True})
        await self._drain()
        await self.send({"type": "http.response.body", "body": b""})

    async def _drain(self) -> None:
        """Let a client that is still sending finish, within bounds, and throw away what it sends: most read no answer before."""
        until, left = time.monotonic() + _DRAIN_SECONDS, 2 * self._guard.most_body("/v1/images")
        while not self._whole and left > 0:
            try:
                message = await asyncio.wait_for(self._receive(), until - time.monotonic())
            except TimeoutError:
                return
            if message["type"] != "http.request":
                return
            left -= len(message.get("body", b""))
            self._whole = not message.get("more_body", False)

    def _too_large(self) -> Refused:
        return Refused(413, f"the request has more than {self._most / MIB:g} MiB, which is the most allowed here")


def shown(value: str) -> str:
    """A short, printable form of what a client sent, for a message to it."""
    kept = "".join(char for char in value if char.isprintable())
    return f"'{kept[:60]}'" if kept else "without a type"


def _digest(text: str) -> bytes:
    # Of equal length whatever was sent: comparing takes as long for every wrong token.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _is_open(path: str) -> bool:
    """Whether ``path`` needs no token: the page, which asks for the token, and what tells nothing of anyone's data."""
    return path in ("/", "/docs", "/docs.css", "/openapi.json", "/healthz", "/readyz") or path.startswith("/static/")


def _is_routine(route: str) -> bool:
    return route in ("/healthz", "/readyz", "/metrics") or route.startswith("/static")


def _route(scope: Scope) -> str:
    """The path as the API names it, without what the client put into it."""
    return getattr(scope.get("route"), "path", None) or "unknown"

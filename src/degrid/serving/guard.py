"""The server's access checks and limits: who may send requests, how large, and how many at a time."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from degrid.serving.served import MIB, ServeLimits, Worker

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN = frozenset(("/", "/page.css", "/page.js", "/health"))
"""Paths that need no token: the page itself, where it is entered."""
_DRAINED = 4
"""How many times the limit of a request is read and thrown away, so that its sender hears the answer."""
_DRAIN_SECONDS, _IDLE_SECONDS = 10.0, 1.0
"""How long, in all, and without anything that arrives."""
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_HEADER_BYTES = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


def is_local(host: str) -> bool:
    """Whether only programs on this machine reach a server at this address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets requests through that may ask, are small enough and find a place.

    - Without a token, only requests that name this machine in their Host, and no other site in their Origin: a page of
      somebody else's in the user's browser cannot ask, even where it gives its own name this machine's address.
    - With a token, only requests that have it as "Authorization: Bearer TOKEN".
    - Uploads are counted as they arrive, whatever their headers say; those that arrive too slowly are given up.
    - Uploads take a place in the worker's queue, from their first byte to their answer's. 503 if there is none.
    - What a request has left unread is read and thrown away, within bounds, before the answer is sent: senders that
      have not finished would see a broken connection otherwise.
    """

    def __init__(self, app: App, worker: Worker, limits: ServeLimits, token: str | None) -> None:
        self.app, self.worker, self.limits, self.token = app, worker, limits, token

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """See ASGI's specification."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=dict(scope))
        body = _Body(receive, self.limits, waits=headers.get("expect", "").lower() == "100-continue")
        refused = self._refused(scope, headers)
        placed = refused is None and scope["method"] == "POST"
        if placed and not self.worker.take_place():
            placed = False
            wait = str(self.worker.seconds_to_wait())
            refused = (
                503,
                "the models are busy; retry after the number of seconds in Retry-After",
                {"retry-after": wait},
            )

        async def answer(message: Message) -> None:
            nonlocal placed
            if message["type"] == "http.response.start":
                await body.drain()
                if placed:
                    placed = False
                    self.worker.give_back()
                message = {**message, "headers": [*message.get("headers", ()), *_HEADER_BYTES]}
            await send(message)

        try:
            if refused is None:
                await self.app(scope, body.receive, answer)
            else:
                status, detail, others = refused
                await JSONResponse({"detail": detail}, status, others)(scope, body.receive, answer)
        finally:
            if placed:
                self.worker.give_back()

    def _refused(self, scope: MutableMapping[str, Any], headers: Headers) -> tuple[int, str, dict[str, str]] | None:
        """Status, sentence and headers for a request that is not let through."""
        if self.token is None:
            host = headers.get("host", "")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if not is_local(name.lower().strip("[]")):
                return 403, "this server answers requests to localhost only; start it with --token for others", {}
            origin = headers.get("origin")
            if origin is not None and origin.partition("://")[2].lower() != host.lower():
                return 403, "this server does not answer pages of other sites", {}
        elif scope["path"] not in OPEN:
            kind, _, given = headers.get("authorization", "").partition(" ")
            right = secrets.compare_digest(given.encode(errors="replace"), self.token.encode())
            if kind.lower() != "bearer" or not right:
                challenge = {"www-authenticate": "Bearer"}
                return 401, "expected the header Authorization: Bearer TOKEN with the server's token", challenge
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 15 or int(length) > self.limits.upload):
            return 413, _too_large(self.limits), {}
        return None


class _Body:
    """The body of a request as it arrives, within the limits.

    Args:
        waits: its sender sends it when it is asked for, so that nothing needs to be thrown away.
    """

    def __init__(self, receive: Receive, limits: ServeLimits, waits: bool) -> None:
        self._receive, self._limits, self._waits = receive, limits, waits
        self._bytes = 0
        self._complete = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        """The next message.

        Raises:
            HTTPException: too many bytes, or too slow.
        """
        if self._complete:
            return await self._receive()
        self._waits = False
        self._deadline = self._deadline or asyncio.get_running_loop().time() + self._limits.seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._next()
        except TimeoutError:
            self._complete = True  # the rest is not read
            raise HTTPException(
                408, f"the request took longer than {self._limits.seconds:g} seconds to arrive"
            ) from None
        if self._bytes > self._limits.upload:
            raise HTTPException(413, _too_large(self._limits))
        return message

    async def drain(self) -> None:
        """Read the rest of the request, as far as a few times the limit."""
        most, loop = _DRAINED * self._limits.upload, asyncio.get_running_loop()
        end = loop.time() + _DRAIN_SECONDS
        with contextlib.suppress(TimeoutError):
            while not self._complete and not self._waits and self._bytes <= most:
                async with asyncio.timeout_at(min(end, loop.time() + _IDLE_SECONDS)):
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        self._bytes += len(message.get("body", b""))
        return message


def _too_large(limits: ServeLimits) -> str:
    return f"a request may have {limits.upload / MIB:g} MiB; send smaller images, or fewer at a time"

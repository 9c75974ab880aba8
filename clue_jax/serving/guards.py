"""What stands before the application: size and pace of requests, their log, slow connections."""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import re
import secrets
import termios
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_log = logging.getLogger("clue_jax.requests")
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
HEADER_SECONDS = 10.0  # for the head of a request
HEADER_BYTES = 1 << 16
BODY_SECONDS = 10.0  # for its body
_LINGER_SECONDS = 1.0
_LINGER = 8  # of the largest body, so much is read of one that is too large
SEND_SECONDS = 10.0  # in which a client must read something of its answer

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Refused(Exception):
    """A request that is answered with an error.

    Args:
      status: of HTTP.
      message: for the client.
      headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


async def body_of(receive: Receive, declared: str | None, most: int) -> bytes:
    """The body of a request.

    Args:
      receive: of ASGI.
      declared: the header Content-Length.
      most: bytes.

    Raises:
      Refused: 413 if it is larger, 408 if it does not come in time, 400 if the client has gone.
    """
    too_large = Refused(413, f"the body is larger than {most} bytes", {"Connection": "close"})
    if declared is not None and declared.isdecimal() and int(declared) > _LINGER * most:
        raise too_large
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS) as limit:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the client went away")
                size += len(message.get("body", b""))
                # A little more is read and thrown away: who is still sending would not see the
                # answer, but that the connection broke.
                if size <= most:
                    body += message.get("body", b"")
                else:
                    limit.reschedule(asyncio.get_running_loop().time() + _LINGER_SECONDS)
                if size > _LINGER * most or (size > most and not message.get("more_body")):
                    raise too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        if size > most:
            raise too_large from None
        seconds = f"{BODY_SECONDS:g} s"
        raise Refused(
            408, f"the body did not come within {seconds}", {"Connection": "close"}
        ) from None


class Logged:
    """Logs every request, gives it an id, and closes connections while the server drains.

    Args:
      app: the application.
      draining: whether the server is about to stop.
    """

    def __init__(self, app: App, draining: Callable[[], bool]):
        self._app, self._draining = app, draining

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        name = given if _ID.fullmatch(given) else secrets.token_hex(8)
        fields: dict[str, Any] = {"id": name, "method": scope["method"], "path": scope["path"]}
        scope["log"] = fields
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", name.encode())]
                if self._draining():
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            try:
                async with asyncio.timeout(SEND_SECONDS):  # a client that does not read is left
                    await send(message)
            except (
                RuntimeError
            ) as error:  # of uvloop, where a pipelined request outlives its client
                if "closed" not in str(error):
                    raise
                raise ConnectionResetError("the client went away") from error

        try:
            await self._app(scope, receive, send_on)
        except TimeoutError:
            fields["error"] = "the client did not read the answer"
        except ConnectionResetError as error:
            fields["error"] = str(error)
        except Exception:  # it was answered with 500
            _log.exception("fault", extra={"fields": fields})
        finally:
            fields |= {"status": status, "ms": round((time.monotonic() - started) * 1000, 2)}
            quiet = scope["path"] in ("/health", "/ready", "/metrics")
            _log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})


class Protocol(HttpToolsProtocol):
    """uvicorn's, that gives up connections which keep it waiting: with the head of a request, with
    bytes that belong to none, or by not reading an answer."""

    _head_timer: asyncio.TimerHandle | None = None
    _head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        before = self._head_timer
        super().data_received(data)
        if self._head_timer is None:
            if not self._is_answering():  # bytes behind an answer, that begin no request
                self._start_timer()
        elif self._head_timer is before:  # the same head goes on
            self._head += len(data)
            if self._head > HEADER_BYTES:
                self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start_timer()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.loop.call_later(SEND_SECONDS, self._give_up_unread, self._written())

    def shutdown(self) -> None:
        """Closes the connection behind what it has asked; a request that has come but was not read
        yet is answered, and that closes it (see `Logged`)."""
        if self._is_answering() or not self._has_unread():
            super().shutdown()

    def _has_unread(self) -> bool:
        count = array.array("i", [0])
        fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, count)
        return count[0] > 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_timer(self) -> None:
        self._head = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if self._is_answering():  # it waits for us, with a part of its next request sent
            self._start_timer()
        else:
            self.transport.abort()

    def _written(self) -> int:
        """Bytes that wait to be sent; a closed connection has none."""
        return 0 if self.parser is None else self.transport.get_write_buffer_size()

    def _give_up_unread(self, before: int) -> None:
        waiting = self._written()
        if before and waiting >= before:  # nothing was read in that time
            self.transport.abort()
        elif before and waiting:
            self.loop.call_later(SEND_SECONDS, self._give_up_unread, waiting)

"""A process that serves: uvicorn, that stops without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket

import uvicorn

from clue_jax.errors import UserError
from clue_jax.serving.app import Settings, build
from clue_jax.serving.guards import Logged, Protocol
from clue_jax.serving.models import Served

_log = logging.getLogger(__name__)
_CONNECTIONS = 4000  # open at the same time; more get a 503
_LAST_REQUESTS = 1.0  # seconds for the requests of those that connected last, on a busy machine
_MARGIN = 30  # seconds beyond the longest request for what is still answered at the end


class _Server(uvicorn.Server):
    """Says that it will stop, and closes connections behind answers, before it takes no more."""

    def __init__(self, config: uvicorn.Config, drain: float):
        super().__init__(config)
        self.state = config.app._app.state.server  # type: ignore[union-attr]
        self._drain = drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.state.draining = True
        _log.info("draining", extra={"fields": {"seconds": self._drain}})
        await asyncio.sleep(self._drain)
        # Who has connected but was not accepted yet would be cut off with the listening socket.
        spares = [listener.dup() for listener in sockets or ()]
        for server in self.servers:
            server.close()
        for spare in spares:
            await self._accept_all(spare)
        await asyncio.sleep(_LAST_REQUESTS)
        await super().shutdown(sockets)

    async def _accept_all(self, listener: socket.socket) -> None:
        """Takes all connections that wait, and then no more."""
        listener.setblocking(False)
        waiting = []
        with listener, contextlib.suppress(BlockingIOError):
            while True:
                waiting.append(listener.accept()[0])
        for connection in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)


def serve(
    models: dict[str, Served], settings: Settings, host: str, port: int, drain: float
) -> None:
    """Serves until a signal says to stop.

    Args:
      models: see `clue_jax.serving.models.parse`.
      settings: of the application.
      host, port: where; port 0 takes a free one, which the log says.
      drain: seconds between the signal and the moment from which no more connections are taken.

    Raises:
      UserError: if the address cannot be had, or no model can be loaded.
    """
    try:
        listener = socket.create_server((host, port), family=_family(host), backlog=2048)
    except OSError as error:
        # Python adds the address to the system's reason; names that are not known have no number.
        reason = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror
        raise UserError(f"{host}:{port}: cannot listen ({reason})") from error

    def failed() -> None:
        server.should_exit = True

    _allow_files(_CONNECTIONS + 100)
    app = build(models, settings, failed)
    longest_stop = int(settings.limits.timeout) + _MARGIN
    guarded = Logged(app, lambda: app.state.server.draining)
    config = uvicorn.Config(
        guarded, http=Protocol, ws="none", log_config=None, access_log=False, server_header=False,
        limit_concurrency=_CONNECTIONS, timeout_graceful_shutdown=longest_stop,
        timeout_keep_alive=30,
    )  # fmt: skip
    server = _Server(config, drain)
    place = listener.getsockname()
    fields = {"host": place[0], "port": place[1]}
    shown = f"[{place[0]}]" if ":" in place[0] else place[0]
    _log.info("listening on http://%s:%d", shown, place[1], extra={"fields": fields})
    with listener:
        server.run([listener])
    if all(model.state == "failed" for model in models.values()):
        reasons = "; ".join(f"{model.name}: {model.error}" for model in models.values())
        raise UserError(f"no model can be served ({reasons})")


def _allow_files(number: int) -> None:
    """Lets the process have so many files open, as far as the system allows it: every connection is
    one, and the usual limit is 1024."""
    try:
        import resource
    except ImportError:  # no such limit there
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET

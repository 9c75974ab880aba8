"""Serves models over HTTP, with a page to try them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from clue_jax.compilation import keep_compiled
from clue_jax.errors import UserError, run_command


@dataclass(frozen=True)
class Settings:
    """Serves models over HTTP: a page at /, its description at /docs, predictions by
    POST /v1/models/NAME:predict. SIGTERM stops it when all that was accepted is answered."""

    model: tyro.conf.UseAppendAction[list[str]]
    """NAME=DIR, a model directory and the name it is served under, without / and :; required, and
    may be given several times."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 lets other machines in; there is no password."""
    port: int = 8000
    """Port to listen on; 0 takes a free one, which the log says."""
    warm_up: Literal["own", "all", "none"] = "own"
    """Programs that are compiled before the server is ready: of what each model was trained for, of
    all that it can predict, or none."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; bfloat16 is faster on new processors, at slightly other probabilities."""
    queue_tokens: int = 65536
    """Tokens of all requests that wait or are computed; more are answered with 429."""
    batch_tokens: int = 1024
    """Tokens that are computed together. More is a little faster, and lets others wait longer."""
    max_inputs: int = 512
    """Inputs of a request at most; more are answered with 422."""
    max_characters: int = 20000
    """Characters of a text at most; more are answered with 422."""
    max_body: int = 4194304
    """Bytes of a request at most; more are answered with 413."""
    timeout: float = 30.0
    """Seconds that a request may take; it may ask for less with "timeout", not for more."""
    drain: float = 1.0
    """Seconds between SIGTERM and the moment from which no more connections are taken."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged to standard error, as JSON lines."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line."""
    settings = tyro.cli(Settings, args=argv)
    try:
        from clue_jax.serving import app, logs, models, requests, server
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed; pip install -e '.[serve]' brings what a server needs"
        ) from error
    for name in ("queue_tokens", "batch_tokens", "max_inputs", "max_characters", "max_body"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 <= settings.port <= 65535:
        raise UserError(f"--port {settings.port} must lie between 0 and 65535")
    if not 0 < settings.timeout <= 3600 or not 0 <= settings.drain <= 3600:
        raise UserError("--timeout must be above 0 and --drain at least 0, both up to 3600 s")
    served = models.parse(settings.model)
    logs.start_logging(settings.log_level)
    keep_compiled()
    limits = requests.Limits(
        inputs=settings.max_inputs, characters=settings.max_characters, body=settings.max_body,
        timeout=settings.timeout,
    )  # fmt: skip
    how = app.Settings(
        limits=limits, queue_tokens=settings.queue_tokens, batch_tokens=settings.batch_tokens,
        warm_up=settings.warm_up, dtype=settings.dtype,
    )  # fmt: skip
    server.serve(served, how, settings.host, settings.port, settings.drain)


if __name__ == "__main__":
    run_command(main)

"""Damaged requests for a running server: none may stop it or bring out a fault of its own."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any

import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.prediction.inputs import FIELDS
from tools.result import print_result

_JUNK = (
    None, True, -1, 1e308, "", [], {}, "\ud834", "[MASK]" * 99, ["x"], {"text": {}},
    {"text": {"a": [[[]]]}}, {"text": "好", "choices": []}, {"text": "", "question": ""},
    {"text": "\x00\u202e"},
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Sends damaged requests to a server on this machine; ends with one line of JSON."""

    port: int
    """Port of the server."""
    models: tuple[str, ...]
    """Names of the models that it serves."""
    requests: int = 2000
    """How many requests to send."""
    seed: int = 0
    """Seed of the damage: the same requests for the same seed."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    counts = fuzz(settings.port, settings.models, settings.requests, settings.seed)
    unexpected = sum(n for status, n in counts.items() if status >= 500 and status != 503)
    result = {
        "benchmark": "fuzz",
        "requests": settings.requests,
        "statuses": {str(status): n for status, n in sorted(counts.items())},
        "unexpected": unexpected,
    }
    print_result(result)
    return result


def fuzz(port: int, models: tuple[str, ...], count: int, seed: int) -> Counter[int]:
    """How often each status was answered; 0 is a connection that was closed without an answer.

    Args:
      port: of a server on this machine.
      models: that it serves.
      count: of requests.
      seed: of the damage.
    """
    numbers = random.Random(seed)
    counts: Counter[int] = Counter()
    for _ in range(count):
        with _connection(port) as connection:
            try:
                connection.sendall(_damaged(numbers, models))
                answer = _answer(connection)
            except ConnectionError:
                answer = b""
        counts[int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0] += 1
    return counts


def _connection(port: int) -> socket.socket:
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=60)
    except OSError as error:
        raise UserError(
            f"port {port}: no server answers on this machine ({error.strerror}); start one with "
            f"tools.serve --port {port}"
        ) from error


def _answer(connection: socket.socket) -> bytes:
    """The beginning of an answer; a server that waits for more is told that there is none."""
    connection.settimeout(0.15)
    try:
        return connection.recv(65536)
    except TimeoutError:
        connection.settimeout(60)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(65536)


def _damaged(numbers: random.Random, models: tuple[str, ...]) -> bytes:
    """A request that is wrong in one of several ways, or by chance in none."""
    data = bytearray(_request(numbers.choice(models), "predict", {
        "inputs": [{"text": "清晨五点[MASK]"}], "top_k": 2
    }))  # fmt: skip
    way = numbers.randrange(5)
    if way == 0:
        for _ in range(numbers.randint(1, 8)):
            data[numbers.randrange(len(data))] = numbers.randrange(256)
    elif way == 1:
        del data[numbers.randrange(len(data)) :]
    elif way == 2:
        at = numbers.randrange(len(data))
        data[at:at] = numbers.randbytes(numbers.randint(1, 50))
    elif way == 3:
        names = ("inputs", "top_k", "timeout", "text")
        body = {name: numbers.choice(_JUNK) for name in names if numbers.random() < 0.4}
        if numbers.random() < 0.8:
            body["inputs"] = [numbers.choice(_JUNK) for _ in range(numbers.randint(0, 4))]
        model = numbers.choice([*models, "none", "%00", "..", "a" * 5000])
        return _request(model, numbers.choice(["predict", *FIELDS, "x"]), body)
    else:
        return numbers.randbytes(numbers.randint(1, 300))
    return bytes(data)


def _request(model: str, method: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/models/{model}:{method} HTTP/1.1\r\nHost: x\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


if __name__ == "__main__":
    run_command(main)

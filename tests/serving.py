"""Real server processes for tests, and a small client."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import ROOT


@dataclass
class Server:
    """A running server.

    Attributes:
      log: the lines that it has written so far.
    """

    process: subprocess.Popen
    port: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)

    def request(
        self, method: str, path: str, body: bytes | str | dict | None = None, timeout: float = 60,
        **headers: str,
    ) -> tuple[int, Any, dict[str, str]]:  # fmt: skip
        """Status, body (parsed where it is JSON) and headers of an answer."""
        if isinstance(body, dict):
            body = json.dumps(body)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            data = body.encode() if isinstance(body, str) else body
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            content = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        if found.get("content-type") == "application/json":
            return answer.status, json.loads(content), found
        return answer.status, content.decode(), found

    def predict(self, model: str, inputs: list[Any], kind: str = "predict", **more: Any) -> Any:
        """The outputs of a prediction that must succeed."""
        status, found, _ = self.request(
            "POST", f"/v1/models/{model}:{kind}", {"inputs": inputs, **more}
        )
        assert status == 200, found
        return found["outputs"]

    def queued(self) -> float:
        """Tokens waiting or computed."""
        text = self.request("GET", "/metrics")[1]
        return next(float(x.split()[1]) for x in text.splitlines() if x.startswith("clue_queue"))

    def wait_until_ready(self, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.request("GET", "/ready")[0] == 200:
                return
            assert self.process.poll() is None, self.log
            time.sleep(0.1)
        raise TimeoutError(f"not ready after {seconds} s: {self.log}")


@contextlib.contextmanager
def running(
    models: dict[str, Path | str], *options: str, ready: bool = True, without: str = ""
) -> Iterator[Server]:
    """A server process on a free port, stopped at the end; packages may be missing to it."""
    names = [part for name, path in models.items() for part in ("--model", f"{name}={path}")]
    environment = os.environ | {"XLA_FLAGS": ""}
    if without:
        folder = ROOT / "tests" / "without"
        environment |= {"CLUE_JAX_WITHOUT": without, "PYTHONPATH": f"{folder}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.serve", *names, "--port", "0", *options],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    server = Server(process)
    listening = threading.Event()

    def follow() -> None:
        for line in process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"message": line.rstrip()}
            server.log.append(entry)
            if entry["message"].startswith("listening on"):
                server.port = entry["port"]
                listening.set()
        listening.set()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        assert listening.wait(120) and server.port, server.log
        if ready:
            server.wait_until_ready()
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            thread.join(10)
            process.stderr.close()

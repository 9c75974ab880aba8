"""tools.serve as a process: overload, loading, stopping, what it needs, what it refuses."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT
from serving import running
from test_predictor import LINES


def test_a_full_queue_answers_429_at_once(kinds):
    with running({"m": kinds["classification"]}, "--queue-tokens", "32300") as server:

        def during(others):
            """The answer to a request that fills the queue, and to others while it is computed."""
            large = {"inputs": ["好" * 60] * 512}  # 31,744 tokens
            with ThreadPoolExecutor(1) as pool:
                busy = pool.submit(server.request, "POST", "/v1/models/m:predict", large)
                while not server.queued() and not busy.done():
                    time.sleep(0.001)
                seen = []
                while not busy.done():
                    started = time.monotonic()
                    answer = server.request("POST", "/v1/models/m:predict", others)
                    seen.append((*answer, time.monotonic() - started))
                return busy.result(), seen

        (status, found, _), seen = during({"inputs": ["好" * 60] * 10})
        assert status == 200 and len(found["outputs"]) == 512
        refused = [x for x in seen if x[0] == 429]
        assert refused and {x[0] for x in seen} <= {200, 429}
        assert all(headers["retry-after"] == "1" for _, _, headers, _ in refused)
        assert "too much is waiting" in refused[0][1]["error"]
        assert sorted(seconds for *_, seconds in refused)[len(refused) // 2] < 0.1
        assert server.predict("m", ["好"])  # there is room again

        _, seen = during({"inputs": ["好"], "timeout": 0.001})
        late = [x for x in seen if x[0] == 503]
        assert late and "longer than 0.001 s and was given up" in late[0][1]["error"]
        assert all(seconds < 0.5 for *_, seconds in late)

        status, found, _ = server.request(
            "POST", "/v1/models/m:predict", {"inputs": ["好" * 200] * 512}
        )
        assert status == 413 and "tokens; a request takes 32300" in found["error"]


def test_who_goes_away_is_not_waited_for(kinds):
    with running({"m": kinds["classification"]}) as server:
        body = json.dumps({"inputs": ["好" * 60] * 512}).encode()
        head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        for _ in range(6):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
                connection.sendall(head % len(body) + body)
                time.sleep(0.05)
        started = time.monotonic()
        assert server.predict("m", ["好"])
        assert time.monotonic() - started < 3
        assert server.queued() == 0
        time.sleep(0.2)
        gone = [line for line in server.log if line.get("error") == "the client went away"]
        assert len(gone) >= 4


def test_a_ready_model_answers_while_another_is_loaded(kinds):
    models = {"first": kinds["classification"], "second": kinds["spans"]}
    with running(models, ready=False) as server:
        state, seconds = {}, []
        while state.get("second") != "ready":
            _, found, _ = server.request("GET", "/ready")
            state = found["models"]
            if state["first"] == "ready" and state["second"] == "compiling":
                started = time.monotonic()
                assert server.predict("first", ["好"])
                seconds.append(time.monotonic() - started)
            time.sleep(0.05)
        assert len(seconds) > 3 and sorted(seconds)[len(seconds) // 2] < 0.5


def test_readiness_comes_with_the_compiled_programs(kinds):
    with running({"m": kinds["classification"]}, ready=False) as server:
        status, found, _ = server.request("GET", "/ready")
        assert status == 503 and found["models"]["m"] in ("loading", "compiling")
        assert server.request("GET", "/health")[0] == 200
        status, found, headers = server.request("POST", "/v1/models/m:predict", {"inputs": ["好"]})
        assert status == 503 and "m is" in found["error"] and headers["retry-after"] == "2"
        server.wait_until_ready()
        assert server.predict("m", ["好"])


def test_a_signal_loses_no_request(kinds):
    """Clients that keep their connections; every request that is sent gets its answer."""
    with running({"m": kinds["classification"]}, "--warm-up", "none") as server:
        server.predict("m", LINES)
        stopped = threading.Event()
        lost, answered, after = [], [], []

        def client(number):
            import http.client

            connection = None
            for i in range(10_000):
                try:
                    if connection is None:
                        connection = http.client.HTTPConnection(
                            "127.0.0.1", server.port, timeout=60
                        )
                        connection.connect()
                except ConnectionRefusedError:
                    return  # it takes no more connections
                try:
                    body = json.dumps({"inputs": [LINES[(number + i) % len(LINES)]] * 8})
                    connection.request("POST", "/v1/models/m:predict", body)
                    answer = connection.getresponse()
                    answer.read()
                except OSError as error:
                    lost.append(repr(error))
                    return
                except http.client.HTTPException as error:
                    lost.append(repr(error))
                    return
                (after if stopped.is_set() else answered).append(answer.status)
                if answer.getheader("connection") == "close":
                    connection.close()
                    connection = None

        threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        stopped.set()
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert server.process.wait(60) in (0, -signal.SIGTERM)
        assert not lost
        assert set(answered) == {200} and len(answered) > 20
        assert after and set(after) == {200}


def _names(lines) -> dict[str, str]:
    """Requirements by name."""
    found = [line.strip() for line in lines if line.strip() and not line.startswith(("#", "-"))]
    return {re.match(r"[\w-]+", line)[0].lower().replace("_", "-"): line for line in found}


def test_a_server_needs_what_its_requirements_say_and_no_more(kinds):
    """Everything else that is installed is missing to it; the Dockerfile copies what there is."""
    everything = _names((ROOT / "requirements.txt").read_text().splitlines())
    serve = _names((ROOT / "requirements-serve.txt").read_text().splitlines())
    extra = _names(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"]["serve"])  # fmt: skip
    assert serve == {name: line for name, line in (everything | extra).items() if name in serve}
    assert extra.keys() <= serve.keys()
    missing = [name.replace("-", "_") for name in everything.keys() - serve.keys()]
    missing += ["tensorflow", "orbax", "torch", "transformers", "tokenizers"]
    with running(
        {"m": kinds["classification"]}, "--warm-up", "none", without=",".join(missing)
    ) as server:
        assert server.predict("m", ["好"])
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(copied) == 3
    assert all((ROOT / name).exists() for line in copied for name in line.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "x"], "error: --model x: expected NAME=DIR, without / and : in the name"),
        (["--model", "a/b=x"], "error: --model a/b=x: expected NAME=DIR"),
        (["--model", "a=x", "--model", "a=y"], "error: --model a=y: there are two models of this"),
        (["--model", "a=nowhere"], "error: no model can be served (a: nowhere: no such file"),
        (["--model", "a=x", "--host", "no.such.host.invalid"], "cannot listen"),
        (["--model", "a=x", "--port", "70000"], "error: --port 70000 must lie between 0 and 65535"),
        (["--model", "a=x", "--timeout", "0"], "error: --timeout must be above 0"),
        (["--model", "a=x", "--queue-tokens", "0"], "error: --queue-tokens must be at least 1"),
    ],
)
def test_what_the_command_refuses(options, message):
    done = subprocess.run(
        [sys.executable, "-m", "tools.serve", "--port", "0", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


def test_an_address_in_use_is_said(kinds):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "tools.serve", "--model", "a=x", "--port", str(port)],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"127.0.0.1:{port}: cannot listen (Address already in use)" in done.stderr

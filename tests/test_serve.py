"""tools.serve: a real process, real HTTP; what is answered, what is refused, who is given up."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import running
from test_predictor import INPUTS, LINES, _numbers

import clue_jax
from tools.fuzz_serve import fuzz

OWN = [kind for kind in INPUTS if kind not in ("embedding", "similarity")]


@pytest.fixture(scope="module")
def server(kinds, tmp_path_factory):
    """A server of every kind of model, and of one whose weights are missing."""
    broken = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(kinds["score"], broken)
    (broken / "model.safetensors").unlink()
    with running({**kinds, "broken": broken}, "--warm-up", "none") as found:
        yield found


@pytest.mark.parametrize("kind", INPUTS)
def test_answers_are_the_predictors(server, kinds, kind):
    own = kind if kind in kinds else "fill-mask"
    expected = clue_jax.Predictor(kinds[own]).predict(INPUTS[kind], kind, top_k=3)
    method = kind if own != kind else random.choice([kind, "predict"])
    found = server.predict(own, INPUTS[kind], method, top_k=3)
    (shape, numbers), (other_shape, others) = _numbers(found), _numbers(expected)
    assert shape == other_shape
    assert numbers == pytest.approx(others, abs=1e-5)


def test_requests_at_the_same_time_share_batches_and_answers_stay_the_same(server, kinds):
    texts = LINES * 4
    expected = clue_jax.Predictor(kinds["classification"]).predict(texts)
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda text: server.predict("classification", [text])[0], texts))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["labels"] == [pytest.approx(x, abs=1e-5) for x in theirs["labels"]]
    _, text, _ = server.request("GET", "/metrics")
    from prometheus_client.parser import text_string_to_metric_families as families

    samples = {
        (s.name, s.labels.get("model"), s.labels.get("le")): s.value
        for family in families(text)
        for s in family.samples
    }
    batches = samples["clue_batch_inputs_count", "classification", None]
    assert batches < len(texts)  # some were computed together
    assert samples["clue_batch_inputs_sum", "classification", None] >= len(texts)
    assert samples["clue_queue_tokens", None, None] == 0
    assert samples["clue_model_ready", "classification", None] == 1
    assert samples["clue_model_ready", "broken", None] == 0
    assert samples["process_resident_memory_bytes", None, None] > 1e7


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON"),
        (b'{"inputs": [', "the body is not valid JSON (Expecting value: line 1 column 13"),
        (b'\xff\xfe{"inputs": []}', "the body is not UTF-8 text (byte 0)"),
        (b"[" * 200_000, "the body is not valid JSON"),
        (b'{"inputs": [' + b"[" * 500 + b"]" * 500 + b"]}", "input 1: an input is a text or"),
        (b'{"inputs": [{"text": ' + b"[" * 900 + b"]" * 900 + b"}]}", '"text" must be a text'),
        ({"inputs": [{"text": "#idiom1#" * 60, "choices": ["好"] * 60}]}, "3600 choices so far"),
        ({"inputs": ["[MASK]" * 300]}, "input 1: 300 [MASK] so far; a request takes 256"),
        (b'{"inputs": [NaN]}', "NaN is no JSON"),
        (b'{"inputs": [' + b"1" * 10_000 + b"]}", "the body is not valid JSON"),
        (b"[1]", 'must be a JSON object such as {"inputs": [{"text": ".."}]}'),
        ({}, '"inputs" must be a list'),
        ({"inputs": "好"}, '"inputs" must be a list'),
        ({"inputs": []}, '"inputs" is empty'),
        ({"inputs": ["好"] * 513}, "513 inputs; a request takes 512"),
        ({"inputs": ["好"], "topk": 1}, 'unknown field "topk"; known: inputs, top_k, timeout'),
        ({"inputs": ["好"], "top_k": 0}, '"top_k" must be a whole number between 1 and 200'),
        ({"inputs": ["好"], "timeout": -1}, '"timeout" must be seconds above 0 and up to 30'),
        ({"inputs": ["好", 3]}, "input 2: an input is a text or an object with texts, got a int"),
        ({"inputs": [{"txt": "好"}]}, 'input 1: classification needs "text", found "txt"'),
        ({"inputs": [{"text": "好", "question": "?"}]}, 'classification takes "text", "text_pair"'),
        ({"inputs": [{"text": None}]}, 'input 1: classification needs "text", found nothing'),
        ({"inputs": ["好", "好" * 100_000]}, "input 2: a text of 100000 characters; a request tak"),
        ({"inputs": [{"text": "", "target": {"a": "好" * 30_000}}]}, "a text of 30000 characters"),
        ({"inputs": ["好\ud800"]}, "input 1: U+D800 at place 1 is half a surrogate pair"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(server, body, message):
    status, found, _ = server.request("POST", "/v1/models/classification:predict", body)
    assert status == 422
    assert message in found["error"]
    assert server.predict("classification", ["好"])


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v1/models/none:predict", 404, "no model 'none'; there are classification"),
        ("GET", "/v1/models/none", 404, "no model 'none'"),
        ("POST", "/v1/models/spans:guess", 404, "no method 'guess'; there are predict, classif"),
        ("GET", "/v1/models/spans:predict", 405, "/v1/models/spans:predict takes POST, not GET"),
        ("DELETE", "/health", 405, "/health does not take DELETE"),
        ("GET", "/../../etc/passwd", 404, "nothing is at"),
        ("GET", "/docs/..%2f..%2fsetup.py", 404, "nothing is at"),
    ],
)
def test_addresses_that_are_not_there(server, method, path, status, message):
    found, answer, _ = server.request(method, path, "{}")
    assert found == status
    assert message in answer["error"]


def test_a_kind_that_a_model_cannot_make(server):
    status, found, _ = server.request("POST", "/v1/models/spans:score", {"inputs": ["好"]})
    assert status == 422 and found["error"].startswith("model spans makes no score; it makes spans")


def test_a_model_that_cannot_be_loaded_harms_no_other(server):
    status, found, _ = server.request("POST", "/v1/models/broken:predict", {"inputs": ["好"]})
    assert status == 503
    assert "model broken could not be loaded" in found["error"]
    assert "a model directory without weights (no model.safetensors)" in found["error"]
    _, about, _ = server.request("GET", "/v1/models/broken")
    assert about["state"] == "failed" and about["error"]
    assert server.request("GET", "/ready")[0] == 200


def test_models_tell_what_they_are(server):
    _, found, _ = server.request("GET", "/v1/models")
    models = {model["name"]: model for model in found["models"]}
    assert models["entities"]["kinds"] == ["entities", "embedding", "similarity"]
    assert models["classification"]["labels"] == ["军事", "体育", "财经"]
    assert models["classification"]["tokens"] == 64 and models["spans"]["state"] == "ready"


def test_bodies_that_are_too_large_are_not_read(server):
    head = "POST /v1/models/score:predict HTTP/1.1\r\nHost: x\r\n"
    for rest in (
        "Content-Length: 99999999\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n" + ("10000\r\n" + "x" * 65536 + "\r\n") * 70,
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            with contextlib.suppress(OSError):  # it may hang up while we still send
                connection.sendall((head + rest).encode())
            with connection.makefile("rb") as file:
                answer = file.read().decode()
        assert answer.startswith("HTTP/1.1 413") and "larger than 4194304 bytes" in answer


def test_request_ids_come_back_and_logs_hold_no_text(server):
    secret = "绝不能写进日志的话"
    body = {"inputs": [secret]}
    name = "abc-123"
    answer = server.request(
        "POST", "/v1/models/classification:predict", body, **{"X-Request-ID": name}
    )
    assert answer[2]["x-request-id"] == name
    bad = server.request("GET", "/health", **{"X-Request-ID": "a b\tc"})
    assert len(bad[2]["x-request-id"]) == 16
    time.sleep(0.2)
    (line,) = [line for line in server.log if line.get("id") == name]
    assert line["status"] == 200 and line["inputs"] == 1 and line["ms"] > 0
    assert line["model"] == "classification" and line["tokens"] == len(secret) + 2
    assert secret not in json.dumps(server.log, ensure_ascii=False)


def test_the_description_needs_nothing_from_outside(server):
    _, page, _ = server.request("GET", "/docs")
    assert "/docs/swagger-ui-bundle.js" in page and "https://" not in page
    assert server.request("GET", "/docs/swagger-ui-bundle.js")[0] == 200
    _, found, _ = server.request("GET", "/openapi.json")
    paths = [path for path in found["paths"] if path.startswith("/v1/models/{name}:")]
    assert len(paths) == 10
    for path in paths:
        (content,) = found["paths"][path]["post"]["requestBody"]["content"].values()
        example = content["schema"]["example"]
        kind = path.rpartition(":")[2]
        model = kind if kind in OWN else "classification"
        assert server.predict(model, example["inputs"], kind, top_k=example["top_k"])


def test_slow_clients_are_given_up(server):
    """Who does not send a head or a body, sends what begins no request, or does not read; others
    are answered meanwhile."""
    head = b"POST /v1/models/score:predict HTTP/1.1\r\nHost: x\r\n"
    health = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    results = {}

    def send(name, *pieces):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            for piece in pieces[:-1]:
                connection.sendall(piece)
                found = b""
                while b'"ok"' not in found:
                    found += connection.recv(65536)
            connection.sendall(pieces[-1])
            started = time.monotonic()
            try:
                answer = connection.recv(65536)
            except ConnectionResetError:
                answer = b""
            results[name] = (answer, time.monotonic() - started)

    def never_read():
        body = json.dumps({"inputs": ["[MASK]" * 60] * 4, "top_k": 200}).encode()
        request = b"POST /v1/models/fill-mask:predict HTTP/1.1\r\nHost: x\r\n"
        request += b"Content-Length: %d\r\n\r\n" % len(body) + body
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(60)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(request * 12)  # their answers are more than the system takes
            time.sleep(30)
            size = 0
            with contextlib.suppress(ConnectionResetError):
                while piece := connection.recv(1 << 20):
                    size += len(piece)
            results["unread"] = size

    threads = [
        threading.Thread(target=send, args=("nothing", b"")),
        threading.Thread(target=send, args=("head", head)),
        threading.Thread(target=send, args=("body", head + b"Content-Length: 100\r\n\r\n{")),
        threading.Thread(target=send, args=("behind", health + b"\r\n", b"\r\n")),
        threading.Thread(
            target=send, args=("unasked", health + b"Content-Length: 9\r\n\r\n", b"x")
        ),
        threading.Thread(target=never_read),
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert server.predict("score", ["好"])
        time.sleep(0.5)
    for name in ("nothing", "head", "behind", "unasked"):
        assert results[name][0] == b"", name
        assert 8 < results[name][1] < 16, name
    assert results["body"][0].startswith(b"HTTP/1.1 408") and 8 < results["body"][1] < 16
    assert results["unread"] < 10_000_000  # of 25 MB; it was cut off


def test_pipelined_requests_are_answered_in_turn(server):
    """The rest of a large request and the beginning of the next one come together."""
    bodies = [json.dumps({"inputs": ["好" * n] * 40}).encode() for n in (900, 2)]
    requests = [
        b"POST /v1/models/classification:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        % len(body) + body
        for body in bodies
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        both = requests[0] + requests[1]
        connection.sendall(both[: len(requests[0]) + 20])
        time.sleep(0.3)
        connection.sendall(both[len(requests[0]) + 20 :])
        found = b""
        while found.count(b'"outputs"') < 2:
            piece = connection.recv(1 << 20)
            assert piece, found[:200]
            found += piece
    assert found.count(b"HTTP/1.1 200") == 2


def test_heads_that_are_too_large_are_refused(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\nX: " + b"x" * 2_000_000)
            answer = connection.recv(65536)
        except OSError:
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert server.request("GET", "/health")[0] == 200


def test_fuzzed_requests_are_survived(server):
    counts = fuzz(server.port, (*OWN, "broken"), 400, seed=0)
    assert not {status for status in counts if status >= 500} - {503}, counts
    assert counts.get(422, 0) > 40 and counts.get(400, 0) > 20
    assert server.process.poll() is None and server.predict("score", ["好"])
    assert not [line["traceback"] for line in server.log if "traceback" in line]

"""Downloads from a real server that misbehaves, and archives that try to leave their folder."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import struct
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clue_jax import fetch
from clue_jax.archives import unpack
from clue_jax.errors import UserError
from clue_jax.fetch import NotThere

PAYLOAD = b"PK" + bytes(range(256)) * 4000  # 1 MB


class Server:
    """A server whose answers are given by a function of the handler; requests are recorded."""

    def __init__(self, answer):
        self.requests: list[tuple[str, dict]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append((self.path, dict(self.headers)))
                answer(self, len(outer.requests))
                self.close_connection = True

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def reply(handler, status=200, body=b"", **headers):
    handler.send_response(status)
    for name, value in {"Content_Length": len(body), **headers}.items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(body)


def ranged(handler, body=PAYLOAD, etag='"v1"', cut=None):
    """Answers as a good server does, but ends after `cut` bytes of the body."""
    asked = handler.headers.get("Range")
    if asked and handler.headers.get("If-Range") == etag:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        part = body[start:]
        headers = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        status = 206
    else:
        part, headers, status = body, {}, 200
    reply(handler, status, part[:cut], Content_Length=len(part), ETag=etag, **headers)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("CLUE_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fetch, "TIMEOUT_S", 5.0)
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def get(url: str, path: Path, **options) -> fetch.Fetched:
    return fetch.fetch(url, path, pause_s=0.01, **options)


def test_a_file_arrives_and_is_recorded(tmp_path):
    with Server(lambda h, n: ranged(h)) as server:
        first = get(f"{server.url}/a", tmp_path / "x" / "a.bin")
        second = get(f"{server.url}/a", tmp_path / "x" / "b.bin")
    assert (tmp_path / "x" / "a.bin").read_bytes() == PAYLOAD
    assert first.sha256 == hashlib.sha256(PAYLOAD).hexdigest() and first.size == len(PAYLOAD)
    assert (first.recorded, second.recorded) == (True, False)
    lock = json.loads((tmp_path / "home" / "downloads.json").read_text())
    assert lock[f"{server.url}/a"]["sha256"] == first.sha256
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["a.bin", "b.bin"]


def test_cut_connections_are_gone_on_with(tmp_path):
    with Server(lambda h, n: ranged(h, cut=300_000 if n < 4 else None)) as server:
        get(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == PAYLOAD
    asked = [headers.get("Range") for _, headers in server.requests]
    assert asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_the_next_call_goes_on_as_well(tmp_path):
    with Server(lambda h, n: ranged(h, cut=100_000 if n <= fetch.ATTEMPTS else None)) as server:
        address = f"{server.url}/a"
        with pytest.raises(UserError, match="500000 bytes are kept in .*a.part and the same comm"):
            get(address, tmp_path / "a")
        assert not (tmp_path / "a").exists()
        get(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == PAYLOAD
    assert server.requests[-1][1]["Range"] == "bytes=500000-"


def test_a_file_that_changed_meanwhile_is_not_mixed(tmp_path):
    other = PAYLOAD[::-1]

    def answer(handler, number):
        if number == 1:
            ranged(handler, cut=300_000)
        else:
            ranged(handler, other, '"v2"')

    with Server(answer) as server:
        get(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == other


@pytest.mark.parametrize("mark", [None, 'W/"weak"'])
def test_without_a_mark_it_starts_again(tmp_path, mark):
    def answer(handler, number):
        body = PAYLOAD if number > 1 else PAYLOAD[:1000]
        reply(handler, 200, body, Content_Length=len(PAYLOAD), ETag=mark)

    with Server(answer) as server:
        get(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == PAYLOAD
    assert "Range" not in server.requests[1][1]


def test_a_server_that_answers_another_range(tmp_path):
    def answer(handler, number):
        if number == 1:
            ranged(handler, cut=1000)
        elif number == 2:
            reply(handler, 206, PAYLOAD[5:], Content_Range=f"bytes 5-9/{len(PAYLOAD)}", ETag='"v1"')
        else:
            ranged(handler)

    with Server(answer) as server:
        get(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == PAYLOAD


@pytest.mark.parametrize("said", [len(PAYLOAD) + 10, len(PAYLOAD) * 1000])
def test_a_length_that_is_too_large(tmp_path, said):
    with (
        Server(lambda h, n: reply(h, 200, PAYLOAD, Content_Length=said)) as server,
        pytest.raises(UserError, match=f"{len(PAYLOAD)} of {said} bytes arrived, after 5"),
    ):
        get(f"{server.url}/a", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert len(server.requests) == fetch.ATTEMPTS


def test_a_length_that_is_too_small_is_caught_by_the_next_check(tmp_path):
    """HTTP ends there, so the file is short: a zip shows it, a recorded digest too."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a", PAYLOAD)
    body = buffer.getvalue()
    with (
        Server(lambda h, n: reply(h, 200, body, Content_Length=len(body) // 2)) as server,
        pytest.raises(UserError, match="what came is no zip file"),
    ):
        get(f"{server.url}/a.zip", tmp_path / "a.zip")
    assert list(tmp_path.glob("*a.zip*")) == []


def test_a_damaged_first_download_does_not_bar_the_right_one(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a", PAYLOAD)
    body = buffer.getvalue()
    damaged = bytearray(body)
    damaged[len(body) // 2] ^= 1

    def check(part):
        if b"error" in part.read_bytes():
            raise UserError(f"{part}: is no config")

    with Server(lambda h, n: reply(h, 200, bytes(damaged) if n == 1 else body)) as server:
        with pytest.raises(UserError, match="what arrived is not right: a.zip: damaged"):
            get(f"{server.url}/a.zip", tmp_path / "a.zip")
        assert get(f"{server.url}/a.zip", tmp_path / "a.zip").recorded
    answers = [b'{"error": "busy"}', b'{"hidden_size": 312}']
    with Server(lambda h, n: reply(h, 200, answers[n - 1])) as server:
        with pytest.raises(UserError, match=r"not right: config\.json: is no config"):
            get(f"{server.url}/config.json", tmp_path / "config.json", check=check)
        assert get(f"{server.url}/config.json", tmp_path / "config.json", check=check).recorded
    assert {p.name for p in tmp_path.iterdir()} == {"a.zip", "config.json", "home"}


def _fetch_in_a_process(arguments: tuple[str, Path]) -> str:
    url, path = arguments
    return get(url, path).sha256


def test_processes_that_want_the_same_file_do_not_mix_it(tmp_path, monkeypatch):
    """Four at once, from a server that is slow and gives no mark to go on from."""
    monkeypatch.setenv("CLUE_JAX_HOME", str(tmp_path / "home"))

    def slow(handler, count):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(PAYLOAD)))
        handler.end_headers()
        for i in range(0, len(PAYLOAD), 200_000):
            handler.wfile.write(PAYLOAD[i : i + 200_000])
            handler.wfile.flush()
            time.sleep(0.05)

    with (
        Server(slow) as server,
        multiprocessing.get_context("spawn").Pool(4) as pool,
    ):
        jobs = [(f"{server.url}/a", tmp_path / "a.bin")] * 4
        digests = pool.map(_fetch_in_a_process, jobs, chunksize=1)
    assert digests == [hashlib.sha256(PAYLOAD).hexdigest()] * 4
    assert (tmp_path / "a.bin").read_bytes() == PAYLOAD


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_faults_are_tried_again(tmp_path, status):
    with Server(lambda h, n: reply(h, status) if n < 3 else ranged(h)) as server:
        get(f"{server.url}/a", tmp_path / "a")
    assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "kind"), [(404, NotThere), (410, NotThere), (403, UserError)])
def test_lasting_faults_are_not(tmp_path, status, kind):
    with Server(lambda h, n: reply(h, status)) as server, pytest.raises(kind, match=str(status)):
        get(f"{server.url}/a", tmp_path / "a")
    assert len(server.requests) == 1


def test_redirects_are_followed_and_their_digest_kept(tmp_path):
    digest = hashlib.sha256(PAYLOAD).hexdigest()

    def answer(handler, number):
        if handler.path == "/a":
            reply(handler, 302, Location="/b", X_Linked_Etag=f'"{digest}"')
        else:
            ranged(handler, cut=100_000 if number == 2 else None)

    with Server(answer) as server:
        get(f"{server.url}/a", tmp_path / "a")
        digest = "0" * 64
        with pytest.raises(UserError, match="not the one announced"):
            get(f"{server.url}/a", tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == PAYLOAD
    assert not (tmp_path / "c").exists()


def test_a_redirect_in_circles_ends(tmp_path):
    with (
        Server(lambda h, n: reply(h, 302, Location="/a")) as server,
        pytest.raises(UserError, match=f"{server.url}/a"),
    ):
        get(f"{server.url}/a", tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.zip", b"<!DOCTYPE html><title>Sign in</title>"),
        ("a.zip", b"\n  <HTML><body>quota exceeded</body></HTML>"),
        ("model.safetensors", b"<html></html>"),
        ("config.json", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"),
    ],
)
@pytest.mark.parametrize("kind", ["text/html", "application/zip"])
def test_a_web_page_instead_of_the_file(tmp_path, name, body, kind):
    with (
        Server(lambda h, n: reply(h, 200, body, Content_Type=kind)) as server,
        pytest.raises(UserError, match=f"a web page came instead of {name}"),
    ):
        get(f"{server.url}/{name}", tmp_path / name)
    assert list(tmp_path.glob(f"*{name}*")) == []
    assert not (tmp_path / "home" / "downloads.json").exists()


def test_a_changed_file_is_refused_even_from_a_mirror(tmp_path):
    with Server(lambda h, n: ranged(h)) as server:
        get(f"{server.url}/a", tmp_path / "a")
        key = f"{server.url}/a"
    (tmp_path / "mirrored").write_bytes(PAYLOAD)
    assert not get(str(tmp_path / "mirrored"), tmp_path / "b", key=key).recorded
    (tmp_path / "mirrored").write_bytes(PAYLOAD[:-1] + b"!")
    with pytest.raises(UserError, match=r"at the first download they were others: .* 1024002"):
        get(str(tmp_path / "mirrored"), tmp_path / "c", key=key)
    assert not (tmp_path / "c").exists()


def test_proxies_of_the_environment_are_used(tmp_path, monkeypatch):
    with Server(lambda h, n: ranged(h)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        get("http://models.example/a.bin", tmp_path / "a")
    assert proxy.requests[0][0] == "http://models.example/a.bin"
    assert (tmp_path / "a").read_bytes() == PAYLOAD


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be reached .*, after 5 attempts$"):
        get("http://127.0.0.1:9/a", tmp_path / "a")


# ---- Archives ------------------------------------------------------------------------------------


def archive(tmp_path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    path = tmp_path / "in" / "x.zip"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


BAD = {
    "parent": [("ok.txt", b"x"), ("../out.txt", b"x")],
    "parent within": [("a/../../out.txt", b"x")],
    "absolute": [("/tmp/clue_jax_out.txt", b"x")],
    "drive": [("C:/out.txt", b"x")],
    "backslash": [("..\\out.txt", b"x")],
    "link": [(special("link", 0o120777), b"/etc/passwd")],
    "link, then through it": [(special("d", 0o120777), b"/tmp"), ("d/out.txt", b"x")],
    "pipe": [(special("pipe", 0o010644), b"")],
    "device": [(special("dev", 0o060644), b"")],
    "twice in other case": [("vocab.txt", b"x"), ("VOCAB.txt", b"y")],
    "bomb": [(f"zeros{i}", bytes(40 << 20)) for i in range(3)],
}


@pytest.mark.parametrize("name", BAD)
def test_archives_that_would_do_harm(tmp_path, name):
    path = archive(tmp_path, *BAD[name])
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"nothing was unpacked"):
        unpack(path, tmp_path / "out")
    assert set(tmp_path.rglob("*")) == before
    assert not Path("/tmp/clue_jax_out.txt").exists()


def test_an_archive_that_lies_about_sizes(tmp_path):
    """The announced size is all that is written, and the checksum of it does not fit."""
    path = archive(tmp_path, ("a", b"0" * 1_000_000))
    data = bytearray(path.read_bytes())
    for signature, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        start = data.index(signature)
        data[start + at : start + at + 4] = struct.pack("<I", 10)
    path.write_bytes(data)
    with pytest.raises(UserError, match="x.zip: damaged"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["flipped", "truncated", "encrypted", "text"])
def test_damaged_archives(tmp_path, fault):
    path = archive(tmp_path, ("a/b.txt", bytes(range(256)) * 50))
    data = bytearray(path.read_bytes())
    if fault == "flipped":
        data[60] ^= 255
    elif fault == "truncated":
        data = data[:-30]
    elif fault == "encrypted":
        data[data.index(b"PK\1\2") + 8] |= 1
    else:
        data = b"not a zip"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x.zip: (damaged|'a/b.txt' is refused: it is encrypted)"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_good_archive(tmp_path):
    path = archive(tmp_path, ("m/", b""), ("m/vocab.txt", b"x\n"), ("m/deep/er.txt", b"y"))
    assert unpack(path, tmp_path / "out") == ["m/vocab.txt", "m/deep/er.txt"]
    assert (tmp_path / "out/m/vocab.txt").read_bytes() == b"x\n"
    assert (tmp_path / "out/m/deep/er.txt").read_bytes() == b"y"

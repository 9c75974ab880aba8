"""What a broken server, a full disk or an odd zip does to downloads: nothing half looks whole."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import zipfile

import pytest
from checkpoints import equal
from test_fetch import PAYLOAD, Server, get, ranged, reply

from clue_jax import fetch
from clue_jax.archives import unpack
from clue_jax.convert import source
from clue_jax.errors import UserError
from tools import convert


@pytest.fixture
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("CLUE_JAX_HOME", str(tmp_path / "home"))


@pytest.mark.usefixtures("_home")
@pytest.mark.parametrize("cut", [0, 10, 300_000])
def test_a_cut_chunked_answer_is_not_whole(tmp_path, cut):
    def answer(handler, number):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        cut_here = len(PAYLOAD) if number > 1 else cut
        handler.wfile.write(f"{len(PAYLOAD):x}\r\n".encode() + PAYLOAD[:cut_here])
        if number > 1:
            handler.wfile.write(b"\r\n0\r\n\r\n")

    with Server(answer) as server:
        got = get(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == PAYLOAD and got.size == len(PAYLOAD)
    assert len(server.requests) == 2


@pytest.mark.usefixtures("_home")
def test_a_part_that_is_too_long_is_started_again(tmp_path):
    """The server answers 416: there is nothing behind what is here."""
    (tmp_path / "a.part").write_bytes(PAYLOAD)
    with Server(lambda h, n: reply(h, 416) if h.headers.get("Range") else ranged(h)) as server:
        (tmp_path / "a.part.json").write_text(
            json.dumps({"url": f"{server.url}/a", "mark": '"v1"'})
        )
        get(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == PAYLOAD


@pytest.mark.usefixtures("_home")
def test_a_part_of_another_address_is_not_gone_on_with(tmp_path):
    (tmp_path / "a.part").write_bytes(b"something else")
    (tmp_path / "a.part.json").write_text(json.dumps({"url": "http://other/", "mark": '"v1"'}))
    with Server(lambda h, n: ranged(h)) as server:
        get(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == PAYLOAD
    assert "Range" not in server.requests[0][1]


@pytest.mark.usefixtures("_home")
@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [({"Content_Encoding": "gzip"}, PAYLOAD, "packs what it sends"), ({}, b"", "is empty")],
)
def test_answers_that_are_no_file(tmp_path, headers, body, message):
    with (
        Server(lambda h, n: reply(h, 200, body, **headers)) as server,
        pytest.raises(UserError, match=message),
    ):
        get(f"{server.url}/a", tmp_path / "a")
    assert not (tmp_path / "home" / "downloads.json").exists()


@pytest.mark.usefixtures("_home")
def test_addresses_in_other_scripts(tmp_path):
    with Server(lambda h, n: ranged(h)) as server:
        get(f"{server.url}/中文/a b", tmp_path / "a")
    assert server.requests[0][0] == "/%E4%B8%AD%E6%96%87/a%20b"
    with pytest.raises(UserError, match="not a valid address"):
        get("http://[bad/x", tmp_path / "b")


def _fetch_local(arguments):
    place, number, lock = arguments
    fetch.fetch(str(place / "in"), place / f"out{number}", key=f"key{number}", lock=lock)


def test_processes_share_the_record(tmp_path):
    (tmp_path / "in").write_bytes(b"x")
    lock = tmp_path / "downloads.json"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(_fetch_local, [(tmp_path, i, lock) for i in range(16)], chunksize=1)
    assert len(json.loads(lock.read_text())) == 16


@pytest.mark.usefixtures("_home")
def test_a_full_disk_is_seen_before_unpacking(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a", "b" * 1000)
    usage = shutil.disk_usage(tmp_path)._replace(free=999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="needs 1000 bytes in .*, which has 999 left"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_mac_adds_to_a_zip_is_passed_over(micro_model, tmp_path):
    convert.main([str(micro_model), str(tmp_path / "tf"), "--to", "tf"])
    with zipfile.ZipFile(tmp_path / "M.ZIP", "w") as file:
        for path in (tmp_path / "tf").iterdir():
            file.write(path, f"model/{path.name}")
            file.writestr(f"__MACOSX/model/._{path.name}", "x")
            file.write(path, f"second/{path.name}")
    with pytest.raises(UserError, match=r"M.ZIP: holds 2 models: .*M.ZIP/model.*M.ZIP/second"):
        source.load(tmp_path / "M.ZIP")
    assert equal(source.load(tmp_path / "M.ZIP" / "second").params, source.load(micro_model).params)


def test_zips_packed_in_other_ways_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a", "b" * 1000)
    with pytest.raises(UserError, match="packed in an unusual way"):
        unpack(tmp_path / "x.zip", tmp_path / "out")

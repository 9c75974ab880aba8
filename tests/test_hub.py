"""--push-to-hub against a stand-in that speaks the hub's protocol."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT


class Hub:
    """As much of the hub as an upload needs: repositories, small files in commits, large ones by
    git-lfs."""

    def __init__(self, token: str):
        self.files: dict[str, bytes] = {}
        self.created: list[dict] = []
        objects: dict[str, bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def answer(self, value, status=200):
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_PUT(self):
                objects[self.path.split("/")[-1]] = self.body()
                self.answer({})

            def do_GET(self):
                self.answer({"error": "not found"}, 404)

            def do_POST(self):
                data = self.body()
                if self.headers.get("Authorization") != f"Bearer {token}":
                    return self.answer({"error": "Invalid username or password."}, 401)
                if self.path == "/api/validate-yaml":
                    assert "license: mit" in json.loads(data)["content"]
                    return self.answer({"errors": [], "warnings": []})
                if self.path == "/api/repos/create":
                    outer.created.append(json.loads(data))
                    return self.answer({"url": f"{outer.url}/someone/tiny", "id": "someone/tiny"})
                if self.path.endswith("/preupload/main"):
                    return self.answer({"files": [
                        {"path": f["path"], "shouldIgnore": False,
                         "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                        for f in json.loads(data)["files"]
                    ]})  # fmt: skip
                if self.path.endswith("/info/lfs/objects/batch"):
                    asked = json.loads(data)["objects"]
                    return self.answer({"transfer": "basic", "objects": [
                        {**o, "actions": {"upload": {"href": f"{outer.url}/lfs/{o['oid']}"}}}
                        for o in asked
                    ]})  # fmt: skip
                if "/commit/" in self.path:
                    for line in data.splitlines():
                        entry = json.loads(line)
                        value = entry["value"]
                        if entry["key"] == "file":
                            outer.files[value["path"]] = base64.b64decode(value["content"])
                        elif entry["key"] == "lfsFile":
                            outer.files[value["path"]] = objects[value["oid"]]
                    return self.answer({"commitUrl": f"{outer.url}/someone/tiny/commit/0123",
                                        "commitOid": "0123", "pullRequestUrl": None})  # fmt: skip
                return self.answer({"error": self.path}, 404)

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


def push(micro_model, target, hub, token):
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(target.parent / "hf_home"), "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "tools.convert", str(micro_model), str(target), "--to", "model"]
        + ["--license", "mit", "--push-to-hub", "someone/tiny"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_every_file_arrives(micro_model, tmp_path):
    pytest.importorskip("huggingface_hub")
    with Hub("secret") as hub:
        done = push(micro_model, tmp_path / "out", hub, "secret")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["uploaded"].endswith("/commit/0123")
    assert hub.created[0]["name"] == "tiny" and hub.created[0]["organization"] == "someone"
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files == written
    assert b"license: mit" in hub.files["README.md"]


def test_a_refusal_is_one_line_and_the_directory_stays(micro_model, tmp_path):
    pytest.importorskip("huggingface_hub")
    with Hub("secret") as hub:
        done = push(micro_model, tmp_path / "out", hub, "wrong")
    assert done.returncode == 1 and not hub.files
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "someone/tiny: cannot upload" in line and "HF_TOKEN" in line
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_only_model_directories_are_uploaded(micro_model, tmp_path):
    from clue_jax.errors import UserError
    from tools import convert

    with pytest.raises(UserError, match="--push-to-hub needs --to model"):
        convert.main([str(micro_model), str(tmp_path / "o"), "--to", "tf", "--push-to-hub", "a/b"])

"""The published models: what the table says, and downloads of stand-ins for them."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from checkpoints import equal, written
from conftest import micro_config, random_params
from test_fetch import Server, ranged, reply

import clue_jax
from clue_jax import zoo
from clue_jax.convert import source
from clue_jax.convert.names import shapes
from clue_jax.errors import UserError
from tools import convert, download

NAME = "RoBERTa-large-clue"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("CLUE_JAX_HOME", str(tmp_path / "home"))


@pytest.fixture
def released(tmp_path, tokenizer) -> Path:
    """What stands for a released large model: more rows than vocabulary lines; a mirror of it."""
    config = micro_config(tokenizer.vocab_size + 30, hidden_act="gelu_tanh")
    params = random_params(config)
    bert = {"bert": params["bert"]}
    folder = written(tmp_path / "work", config, bert, form="tf")
    (folder / "clue_jax.json").unlink()
    shutil.copy(tokenizer.vocab_file, folder / "vocab.txt")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with zipfile.ZipFile(mirror / f"{NAME}.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in folder.iterdir():
            file.write(path, f"{NAME}/{path.name}")
    # The hub's files: called roberta, "gelu", with heads that were never trained.
    hub = mirror / zoo.ZOO[NAME].hf_id
    written(hub, config, params)
    values = json.loads((hub / "config.json").read_text())
    values |= {"model_type": "roberta", "hidden_act": "gelu"}
    (hub / "config.json").write_text(json.dumps(values))
    (hub / "clue_jax.json").unlink()
    shutil.copy(tokenizer.vocab_file, hub / "vocab.txt")
    return mirror


def test_the_table_counts_right():
    for model in zoo.ZOO.values():
        for rows, expected in ((8021, model.parameters), (model.rows, model.released)):
            sizes = shapes(model.config.replace(vocab_size=rows), ("pooler",))
            assert sum(math.prod(shape) for shape in sizes.values()) == expected
    assert len(zoo.ZOO) == 6
    assert zoo.find_model("clue/roberta_chinese_pair_tiny") is zoo.ZOO["RoBERTa-tiny-pair"]
    assert zoo.find_model("roberta-LARGE-clue") is zoo.ZOO[NAME]


def test_a_published_model_is_loaded_by_name(released, tokenizer, tmp_path, capsys):
    result = download.main(["model", NAME, "--mirror", str(released)])
    assert json.loads(capsys.readouterr().out) == result
    assert not result["cached"]
    assert result["fetched"][0]["address"] == str(released / f"{NAME}.zip")
    assert download.main(["model", NAME])["cached"]  # offline from now on
    model = clue_jax.load(NAME)
    assert model.config.vocab_size == tokenizer.vocab_size  # the dead rows are gone
    assert model.info["heads"]["masked_lm"] == "missing"
    assert model.info["source"] == f"{NAME}, tf files"
    words = source.load(tmp_path / "work", crop=True).params["bert"]["embeddings"]
    np.testing.assert_array_equal(
        model.params["bert"]["embeddings"]["word_embeddings"], words["word_embeddings"]
    )
    text = clue_jax.Predictor(model).embed(["天气很好"])
    assert text.shape == (1, 32)


def test_the_hub_s_files_are_read_for_what_they_are(released, tokenizer, tmp_path):
    out = tmp_path / "out"
    options = ["--source", "hf", "--output", str(out)]
    download.main(["model", NAME, *options, "--mirror", str(released)])
    convert.main([str(out), str(tmp_path / "m"), "--to", "model", "--crop-vocab"])
    loaded = source.load(tmp_path / "m")
    assert loaded.config.hidden_act == "gelu_tanh"
    assert loaded.info["heads"]["masked_lm"] == "fresh"  # although the values look trained
    assert loaded.config.vocab_size == tokenizer.vocab_size
    assert download.main(["model", NAME, *options])["cached"]
    with pytest.raises(UserError, match="holds another download"):
        download.main(["model", "RoBERTa-tiny-clue", "--output", str(out)])
    (out / "vocab.txt").write_text("cut")
    with pytest.raises(UserError, match="vocab.txt: missing or not as it was downloaded"):
        download.main(["model", NAME, *options])


@pytest.mark.parametrize("way", ["HF_ENDPOINT", "--mirror"])
def test_the_hub_over_http(released, tmp_path, monkeypatch, way):
    """Cut connections, redirects and files that are not there, as the hub and its mirrors do."""
    model = zoo.ZOO["RoBERTa-large-clue"]
    prefix = f"/{model.hf_id}/resolve/main" if way == "HF_ENDPOINT" else f"/m/{model.hf_id}"

    def answer(handler, number):
        path = handler.path
        if path.startswith(prefix):
            name = path.removeprefix(f"{prefix}/")
            if not (released / model.hf_id / name).exists():
                reply(handler, 404)
            else:
                reply(handler, 307, Location=f"/storage/{name}")
        elif not path.startswith("/storage/"):
            reply(handler, 404)
        else:
            file = released / model.hf_id / path.removeprefix("/storage/")
            body = file.read_bytes()
            ranged(handler, body, cut=len(body) // 2 if "Range" not in handler.headers else None)

    with Server(answer) as server:
        if way == "HF_ENDPOINT":
            monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
            options = []
        else:
            options = ["--mirror", f"{server.url}/m"]
        monkeypatch.setattr("clue_jax.fetch.fetch.__kwdefaults__", {
            "key": None, "lock": None, "pause_s": 0.01
        })  # fmt: skip
        result = download.main(["model", NAME, "--source", "hf", *options])
    assert set(result["files"]) == {"config.json", "vocab.txt", "model.safetensors"}
    assert not list(tmp_path.rglob("*.part*"))
    loaded = zoo.load(NAME, "hf")
    assert equal(
        {"bert": {"pooler": loaded.params["bert"]["pooler"]}},
        {"bert": {"pooler": source.load(tmp_path / "work", crop=True).params["bert"]["pooler"]}},
    )


def test_a_mirror_with_another_content_is_refused(released, tmp_path):
    download.main(["model", NAME, "--mirror", str(released), "--output", str(tmp_path / "a")])
    with zipfile.ZipFile(released / f"{NAME}.zip", "a") as file:
        file.writestr("more.txt", "x")
    with pytest.raises(UserError, match="at the first download they were others"):
        download.main(["model", NAME, "--mirror", str(released), "--output", str(tmp_path / "b")])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RoBERTa-huge"], "unknown model 'RoBERTa-huge'; known: RoBERTa-tiny-clue, "),
        ([NAME, "--mirror", "/nowhere"], f"/nowhere/{NAME}.zip: no such file"),
        (
            [NAME, "--source", "hf", "--mirror", "/nowhere"],
            "has no config.json, vocab.txt, model.s",
        ),
    ],
)
def test_what_cannot_be_downloaded(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        download.main(["model", *arguments, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_not_recorded(released, tmp_path):
    """A server that ends too early, with a length that fits: the next download is not barred."""
    hub = released / zoo.ZOO[NAME].hf_id
    halved = []

    def answer(handler, count):
        name = handler.path.rsplit("/", 1)[-1]
        if not (hub / name).exists():
            return reply(handler, 404)
        body = (hub / name).read_bytes()
        if name == "model.safetensors" and not halved:
            halved.append(name)
            body = body[: len(body) // 2]
        return reply(handler, 200, body)

    options = ["--source", "hf", "--output", str(tmp_path / "out")]
    with Server(answer) as server:
        command = ["model", NAME, *options, "--mirror", server.url]
        with pytest.raises(UserError, match="not right: model.safetensors: damaged"):
            download.main(command)
        assert not (tmp_path / "out").exists()
        assert not download.main(command)["cached"]
    assert source.load(tmp_path / "out", crop=True).config.hidden_size == 32


def test_a_kill_before_the_record_leaves_nothing(released, tmp_path, monkeypatch):
    """The folder appears with its record, or not at all."""
    with monkeypatch.context() as patch:
        patch.setattr(zoo, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            download.main(["model", NAME, "--mirror", str(released)])
    folder = tmp_path / "home" / "models" / f"{NAME}-tf"
    assert not folder.exists()
    assert not download.main(["model", NAME, "--mirror", str(released)])["cached"]


def test_a_flipped_byte_in_the_cache_is_found(released):
    result = download.main(["model", NAME, "--mirror", str(released)])
    (data,) = Path(result["output"]).rglob("*.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    with pytest.raises(UserError, match="not as it was downloaded; remove"):
        clue_jax.load(NAME)


def test_a_folder_with_something_else_is_left_alone(released, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="mine: is not empty"):
        download.main(
            ["model", NAME, "--mirror", str(released), "--output", str(tmp_path / "mine")]
        )
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_names_that_are_nothing():
    with pytest.raises(UserError, match="no such file, and no published model"):
        clue_jax.load("RoBERTa-middle")


def test_the_list(capsys):
    result = download.main(["list"])
    assert result["models"]["RoBERTa-tiny-clue"]["parameters"] == 7_449_936
    assert json.loads(capsys.readouterr().out) == result

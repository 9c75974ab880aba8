"""Checkpoints with something wrong in them: each is refused, and everything wrong is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import all_heads, written
from conftest import micro_config

from clue_jax.convert import source
from clue_jax.convert.tf_bundle import read_bundle, write_bundle
from clue_jax.convert.weights import read_weights, write_safetensors
from clue_jax.errors import UserError
from tools import convert

Q = "bert/encoder/layer_1/attention/self/query/kernel"
WORDS = "bert/embeddings/word_embeddings"
UP = "bert/encoder/layer_0/intermediate/dense/kernel"


def remove(*names):
    return lambda t: {n: a for n, a in t.items() if n not in names}


def add(**arrays):
    return lambda t: t | {n.replace("__", "/"): a for n, a in arrays.items()}


def rename(old, new):
    return lambda t: {new if n == old else n: a for n, a in t.items()}


def change(name, function):
    return lambda t: t | {name: function(t[name])}


def each(*mutations):
    def apply(tensors):
        for mutation in mutations:
            tensors = mutation(tensors)
        return tensors

    return apply


X = np.ones(3, np.float32)
# What is done to the tensors of a TF-BERT checkpoint, and every difference that must be named.
MUTATIONS = [
    (remove(Q), [f"missing {Q}"]),
    (remove(WORDS), [f"missing {WORDS}"]),
    (remove("bert/embeddings/position_embeddings"), ["missing bert/embeddings/position_emb"]),
    (remove("bert/embeddings/token_type_embeddings"), ["missing bert/embeddings/token_type"]),
    (remove("bert/embeddings/LayerNorm/gamma"), ["missing bert/embeddings/LayerNorm/gamma"]),
    (remove("bert/pooler/dense/bias"), ["missing bert/pooler/dense/bias"]),
    (remove("cls/predictions/output_bias"), ["missing cls/predictions/output_bias"]),
    (remove("cls/predictions/transform/dense/kernel"), ["missing cls/predictions/transform/d"]),
    (remove("cls/seq_relationship/output_weights"), ["missing cls/seq_relationship/output_w"]),
    (remove("output_bias"), ["missing output_bias"]),
    (remove("output_weights"), ["missing output_weights"]),
    (remove("cls/squad/output_bias"), ["missing cls/squad/output_bias"]),
    (remove(Q, WORDS, "output_bias"), [f"missing {Q}", f"missing {WORDS}", "missing output_bias"]),
    (add(strange=X), ["unknown strange"]),
    (add(bert__encoder__layer_2__output__dense__bias=X), ["unknown bert/encoder/layer_2/"]),
    (add(bert__adam=X), ["unknown bert/adam"]),
    (add(output_weights_2=X, bert__pooler__kernel=X), ["unknown output_weights_2", "unknown bert"]),
    (rename(Q, "bert/encoder/layer_1/attention/query/kernel"), [f"missing {Q}", "unknown bert/"]),
    (rename("output_bias", "output_Bias"), ["missing output_bias", "unknown output_Bias"]),
    (rename("bert/pooler/dense/kernel", "pooler/dense/kernel"), ["missing bert/pool", "unknown p"]),
    (rename(WORDS, "embeddings/word_embeddings"), [f"missing {WORDS}", "unknown embeddings/word"]),
    (change(UP, np.transpose), [f"{UP} has shape [64, 32], the config needs [32, 64]"]),
    (change(WORDS, np.transpose), [f"{WORDS} has shape [32, 50], the config needs [", "32 rows"]),
    (change("output_weights", np.transpose), ["output_weights has shape [32, 3], the config n"]),
    (change("cls/seq_relationship/output_weights", np.transpose), ["has shape [32, 2]"]),
    (change("bert/embeddings/position_embeddings", np.transpose), ["has shape [32, 64]"]),
    (change(Q, np.int32), [f"{Q} has type int32, expected floating point"]),
    (change(Q, np.float64), [f"{Q} has type float64, the others float32"]),
    (change(Q, np.float16), [f"{Q} has type float16, the others float32"]),
    (change("output_bias", np.int64), ["output_bias has type int64, expected floating point"]),
    (change(WORDS, lambda a: a[:-1]), ["49 rows, bert_config.json says 50", "output_bias has"]),
    (change(WORDS, lambda a: np.concatenate([a, a])), ["100 rows, bert_config.json says 50"]),
    (change("cls/predictions/output_bias", lambda a: a[:-3]), ["has shape [47], the config needs"]),
    (change("bert/embeddings/position_embeddings", lambda a: a[:8]), ["has shape [8, 32]"]),
    (change("bert/embeddings/token_type_embeddings", lambda a: a[:1]), ["has shape [1, 32]"]),
    (change("output_bias", lambda a: a[:2]), ["output_weights has shape [3, 32]"]),
    (change("cls/squad/output_weights", lambda a: a[:1]), ["squad/output_weights has shape [1,"]),
    (change(Q, lambda a: a[:, :16]), [f"{Q} has shape [32, 16], the config needs [32, 32]"]),
    (change(Q, lambda a: a.reshape(32, 4, 8)), [f"{Q} has shape [32, 4, 8]"]),
    (change(Q, lambda a: a.reshape(-1)), [f"{Q} has shape [1024]"]),
    (change(WORDS, lambda a: a.reshape(-1)), [f"{WORDS} has shape [1600]"]),
    (change("bert/pooler/dense/bias", lambda a: a[:0]), ["bert/pooler/dense/bias has shape [0]"]),
    (change("bert/pooler/dense/bias", lambda a: a[0]), ["bert/pooler/dense/bias has shape []"]),
    (lambda t: {}, [f"missing {WORDS}", f"missing {Q}", f"missing {UP}"]),
    (
        each(remove(Q), change(UP, np.transpose), add(odd=X), change("output_bias", np.float64)),
        [f"missing {Q}", f"{UP} has shape", "unknown odd", "output_bias has type float64"],
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mutations") / "tf"
    config = micro_config(50)
    return written(folder, config, all_heads(config), form="tf")


def refused(folder: Path, parts: list[str], file: str, target: Path) -> None:
    with pytest.raises(UserError) as error:
        convert.main([str(folder), str(target), "--to", "model"])
    for part in (*parts, file):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not target.exists()


@pytest.mark.parametrize("number", range(len(MUTATIONS)))
def test_mutated_tensors_are_refused(checkpoint, tmp_path, number):
    mutation, parts = MUTATIONS[number]
    folder = tmp_path / "tf"
    shutil.copytree(checkpoint, folder)
    write_bundle(folder / "bert_model.ckpt", mutation(read_bundle(folder / "bert_model.ckpt")))
    refused(folder, parts, str(folder / "bert_model.ckpt"), tmp_path / "out")


def test_the_unmutated_checkpoint_is_taken(checkpoint, tmp_path):
    convert.main([str(checkpoint), str(tmp_path / "out"), "--to", "model"])
    assert len(MUTATIONS) + 14 >= 50  # with the damaged files below


def flip(at):
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data[:-1],
    "empty": lambda data: b"",
    "flipped at the start": flip(1),
    "flipped in the middle": flip(1001),
    "flipped at the end": flip(-60),
}


@pytest.mark.parametrize("fault", DAMAGE)
@pytest.mark.parametrize("name", ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"])
def test_damaged_tf_files_are_refused(checkpoint, tmp_path, name, fault):
    folder = tmp_path / "tf"
    shutil.copytree(checkpoint, folder)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(DAMAGE[fault](data))
    refused(folder, [], name, tmp_path / "out")


def test_every_damaged_tensor_is_named(checkpoint, tmp_path):
    folder = tmp_path / "tf"
    shutil.copytree(checkpoint, folder)
    path = folder / "bert_model.ckpt.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[0] ^= 1  # the first tensor by name, and the last
    data[-1] ^= 1
    path.write_bytes(data)
    names = sorted(read_bundle(checkpoint / "bert_model.ckpt"))
    refused(folder, [names[0], names[-1], "checksum"], path.name, tmp_path / "out")


@pytest.mark.parametrize("fault", [*DAMAGE, "header of another length", "a hole"])
def test_damaged_model_directories_are_refused(checkpoint, tmp_path, fault):
    """Ours carry digests; a foreign safetensors has none, so there the parser must see it."""
    folder = tmp_path / "model"
    convert.main([str(checkpoint), str(folder), "--to", "model"])
    path = folder / "model.safetensors"
    data = path.read_bytes()
    if fault == "header of another length":
        damaged = (len(data) * 3).to_bytes(8, "little") + data[8:]
    elif fault == "a hole":
        damaged = data + b"\0\0\0\0"
    else:
        damaged = DAMAGE[fault](data)
    path.write_bytes(damaged)
    refused(folder, [], "model.safetensors", tmp_path / "out")
    (folder / "clue_jax.json").unlink()
    if fault.startswith("flipped") and fault != "flipped at the start":
        return
    refused(folder, [], "model.safetensors", tmp_path / "out")


def test_mutated_hugging_face_names_are_refused(checkpoint, tmp_path):
    folder = tmp_path / "model"
    convert.main([str(checkpoint), str(folder), "--to", "model"])
    (folder / "clue_jax.json").unlink()
    path = folder / "model.safetensors"
    tensors = {name: np.array(array) for name, array in read_weights(path).items()}
    tensors["bert.encoder.layer.0.intermediate.dense.weight"] = np.ones((32, 64), np.float32)
    tensors["bert.extra"] = X
    del tensors["bert.pooler.dense.bias"]
    write_safetensors(path, tensors)
    parts = [
        "bert.encoder.layer.0.intermediate.dense.weight has shape [32, 64], the config needs [64,",
        "unknown bert.extra", "missing bert.pooler.dense.bias", "3 differences",
    ]  # fmt: skip
    refused(folder, parts, str(path), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "missing vocab_size"),
        (json.dumps({"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2,
                     "num_attention_heads": 5, "intermediate_size": 64}), "is not a multiple"),
        (json.dumps({"vocab_size": "50", "hidden_size": 32, "num_hidden_layers": 2,
                     "num_attention_heads": 4, "intermediate_size": 64}), "whole number"),
    ],
)  # fmt: skip
def test_damaged_configs_are_refused(checkpoint, tmp_path, content, message):
    folder = tmp_path / "tf"
    shutil.copytree(checkpoint, folder)
    (folder / "bert_config.json").write_text(content)
    refused(folder, [message], "bert_config.json", tmp_path / "out")


def test_labels_that_do_not_fit_are_refused(checkpoint, tmp_path):
    folder = tmp_path / "tf"
    shutil.copytree(checkpoint, folder)
    info = json.loads((folder / "clue_jax.json").read_text()) | {"labels": ["a", "b"]}
    (folder / "clue_jax.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="has 3 classes, .* names 2"):
        source.load(folder)

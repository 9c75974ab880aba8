"""tools.export: every form in its own runtime, against the model's own outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, micro_config, random_params, save_kind

import clue_jax
from clue_jax.convert import model_dir
from clue_jax.errors import UserError
from clue_jax.export.function import exported, params_of
from tools import export

KINDS = ["classification", "score", "choice", "spans", "entities", "fill-mask", "embedding"]
SHAPES = [(1, 1), (1, 7), (3, 33), (8, 64)]


def inputs(shape, vocab_size: int, seed: int = 0):
    """Ids, a mask with padding, segments."""
    random = np.random.default_rng(seed)
    ids = random.integers(1, vocab_size, shape)
    lengths = random.integers(1, shape[1] + 1, (shape[0], 1))
    lengths[0] = shape[1]
    mask = (np.arange(shape[1]) < lengths).astype(np.int64)
    return ids, mask, random.integers(0, 2, shape)


def expected(folder, kind, given):
    model = clue_jax.load(folder)
    arrays = [np.asarray(x, np.int32) for x in given]
    found = exported(model, kind)(params_of(model, kind), *arrays)
    return {name: np.asarray(value) for name, value in found.items()}


def run(folder, to, output, kind):
    return export.main(
        ["--model", str(folder), "--to", to, "--output", str(output), "--task", kind]
    )


def own(kinds, kind):
    return kinds["fill-mask"] if kind == "embedding" else kinds[kind]


def compare(found, wanted, tolerance=1e-4):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].shape == value.shape and found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_gives_the_same(kinds, kind, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    run(own(kinds, kind), "onnx", tmp_path / "out", kind)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["kind"] == kind and result["bytes"] > 100_000
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [x.name for x in session.get_inputs()] == [
        "input_ids", "attention_mask", "token_type_ids"
    ]  # fmt: skip
    names = [x.name for x in session.get_outputs()]
    for shape in SHAPES:
        given = inputs(shape, 787)
        fed = dict(zip(("input_ids", "attention_mask", "token_type_ids"), given, strict=True))
        found = dict(zip(names, session.run(None, fed), strict=True))
        compare(found, expected(own(kinds, kind), kind, given))
    about = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    assert about["kind"] == kind and about["max_position_embeddings"] == 64
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == (
        own(kinds, kind) / "vocab.txt"
    ).read_bytes()


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf", "relu", "tanh", "linear"])
def test_onnx_has_every_activation_and_an_untied_head(activation, tokenizer, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    config = micro_config(
        tokenizer.vocab_size, hidden_act=activation, tie_word_embeddings=activation != "relu"
    )
    model_dir.save(
        tmp_path / "m", random_params(config), config, tokenizer, source="random numbers"
    )
    run(tmp_path / "m", "onnx", tmp_path / "out", "fill-mask")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    given = inputs((2, 9), tokenizer.vocab_size)
    fed = dict(zip(("input_ids", "attention_mask", "token_type_ids"), given, strict=True))
    compare({"logits": session.run(None, fed)[0]}, expected(tmp_path / "m", "fill-mask", given))


def test_int8_is_small_and_near(kinds, tmp_path):
    """Its accuracy is measured on real data; here that it is the same model."""
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = kinds["classification"]
    whole = run(folder, "onnx", tmp_path / "whole", "classification")
    eighth = run(folder, "onnx-int8", tmp_path / "int8", "classification")
    assert eighth["bytes"] < 0.75 * whole["bytes"]  # vocabulary and tokenizer included
    path = tmp_path / "int8" / "model.onnx"
    quantized = pytest.importorskip("onnx").load(path).graph.initializer
    types = {x.data_type for x in quantized if x.name.endswith("_quantized")}
    assert types == {2}, types  # UINT8: the products of INT8 overflow on CPUs without VNNI
    session = onnxruntime.InferenceSession(path)
    given = inputs((8, 32), 787)
    fed = dict(zip(("input_ids", "attention_mask", "token_type_ids"), given, strict=True))
    wanted = expected(folder, "classification", given)["logits"]
    difference = np.abs(session.run(None, fed)[0] - wanted).max()
    assert 0 < difference < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "kind", [pytest.param("classification", marks=pytest.mark.slow), "spans", "fill-mask"]
)
def test_tensorflow_gives_the_same(kinds, kind, tmp_path):
    """In a process that has neither jax nor this project."""
    pytest.importorskip("tensorflow")
    folder = kinds[kind]
    run(folder, "savedmodel", tmp_path / "out", kind)
    cases = [inputs(shape, 787) for shape in SHAPES]
    np.savez(tmp_path / "given.npz", *[array for case in cases for array in case])
    code = """
import sys
sys.modules["jax"] = None  # tensorflow would import it where it is installed
import numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1] + "/out").signatures["serving_default"]
arrays = list(np.load(sys.argv[1] + "/given.npz").values())
found = {}
for i in range(0, len(arrays), 3):
    names = ("input_ids", "attention_mask", "token_type_ids")
    given = {n: tf.constant(a, tf.int32) for n, a in zip(names, arrays[i : i + 3])}
    for name, value in serve(**given).items():
        found[f"{i // 3}/{name}"] = value.numpy()
np.savez(sys.argv[1] + "/found.npz", **found)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, env=environment, check=True,
        capture_output=True,
    )  # fmt: skip
    with np.load(tmp_path / "found.npz") as found:
        for i, given in enumerate(cases):
            wanted = expected(folder, kind, given)
            compare({name: found[f"{i}/{name}"] for name in wanted}, wanted)
    assert (tmp_path / "out" / "assets.extra" / "vocab.txt").exists()
    program = (tmp_path / "out" / "saved_model.pb").read_bytes()
    assert str(ROOT).encode() not in program  # no paths of this machine


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_of_jax_gives_the_same(kinds, kind, tmp_path):
    from clue_jax.export import stablehlo

    folder = own(kinds, kind)
    run(folder, "stablehlo", tmp_path / "out", kind)
    function = stablehlo.read(tmp_path / "out")
    for shape in SHAPES[1:3]:
        given = [np.asarray(x, np.int32) for x in inputs(shape, 787)]
        found = {name: np.asarray(value) for name, value in function(*given).items()}
        compare(found, expected(folder, kind, given), 1e-5)
    assert str(ROOT).encode() not in (tmp_path / "out" / stablehlo.PROGRAM).read_bytes()


def test_the_program_is_read_without_this_project(kinds, tmp_path):
    """By jax and safetensors alone, as the documentation shows."""
    run(kinds["classification"], "stablehlo", tmp_path / "out", "classification")
    code = """
import sys, json
import jax, numpy as np
from jax import export
from safetensors.numpy import load_file
program = export.deserialize(bytearray(open("program.stablehlo", "rb").read()))
params = {}
for path, array in load_file("params.safetensors").items():
    node = params
    *parents, name = path.split("/")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = array
ids = np.array([[1, 2, 3]], np.int32)
print(json.dumps(program.call(params, ids, ids * 0 + 1, ids * 0)["logits"].tolist()))
print("clue_jax" in sys.modules or "flax" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True,
        check=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    logits, has_project = done.stdout.splitlines()
    given = (np.array([[1, 2, 3]]), np.ones((1, 3)), np.zeros((1, 3)))
    wanted = expected(kinds["classification"], "classification", given)["logits"]
    np.testing.assert_allclose(json.loads(logits), wanted, atol=1e-5)
    assert has_project == "False"


def test_what_is_refused(kinds, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="makes no spans; it makes classification, embedding$"):
        run(kinds["classification"], "onnx", tmp_path / "out", "spans")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        run(kinds["classification"], "onnx", tmp_path / "full", "classification")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx is not installed; pip install \.\[export\]"):
        run(kinds["classification"], "onnx", tmp_path / "out", "classification")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match="tensorflow is not installed; pip install tensorflow"):
        run(kinds["classification"], "savedmodel", tmp_path / "out", "classification")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_too_large_for_onnx_is_refused(tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    from clue_jax.export import onnx_graph

    folder = save_kind(tmp_path / "m", "score", tokenizer)
    model = clue_jax.load(folder)
    monkeypatch.setattr(onnx_graph, "LARGEST", 100_000)
    with pytest.raises(UserError, match="an ONNX file holds less than 2 GB"):
        onnx_graph.graph(params_of(model, "score"), model.config, "score")

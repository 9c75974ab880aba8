"""TF-BERT checkpoints and model directories, judged by tensorflow and transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import micro_config, random_params

from clue_jax.convert import merge, model_dir, names, tf_bundle
from clue_jax.errors import UserError
from clue_jax.model import PretrainingModel


def recorded_bundles(shared):
    folder = shared / "fixtures/tf_checkpoint"
    listing = json.loads((folder / "listing.json").read_text())
    for name, variant in listing.items():
        if name.startswith("f_v1"):
            continue  # the older format, one file without an index
        yield folder / name.split("/")[0] / Path(variant["prefix"]).name, variant["tensors"]


def test_every_recorded_checkpoint_reads_exactly(shared):
    import hashlib

    count = 0
    for prefix, expected in recorded_bundles(shared):
        tensors = tf_bundle.read_bundle(prefix)
        assert set(tensors) == set(expected)
        for name, entry in expected.items():
            tensor = tensors[name]
            assert list(tensor.shape) == entry["shape"]
            assert str(tensor.dtype) == entry["dtype"]
            assert hashlib.sha256(tensor.tobytes()).hexdigest() == entry["sha256"]
            count += 1
    assert count > 200


def test_a_written_bundle_is_read_by_tensorflow(tmp_path):
    tf = pytest.importorskip("tensorflow")
    random = np.random.default_rng(0)
    tensors = {
        f"scope/{i % 7}/variable_{i}": random.normal(size=(i % 5 + 1, 3)).astype(np.float32)
        for i in range(200)
    }
    tensors |= {"empty": np.zeros((0, 4), np.float32), "step": np.array(7, np.int64)}
    tensors["half"] = np.arange(4, dtype=np.float16)
    prefix = tmp_path / "some.ckpt"
    tf_bundle.write_bundle(prefix, tensors)
    reader = tf.train.load_checkpoint(str(prefix))
    assert reader.get_variable_to_shape_map() == {n: list(t.shape) for n, t in tensors.items()}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(reader.get_tensor(name), tensor)
    ours = tf_bundle.read_bundle(prefix)
    assert all((ours[name] == tensor).all() for name, tensor in tensors.items())


def test_a_bundle_of_tensorflow_is_read(tmp_path):
    tf = pytest.importorskip("tensorflow")
    random = np.random.default_rng(0)
    names_ = [f"bert/layer_{i}/kernel" for i in range(40)]
    values = [random.normal(size=(3, 5)).astype(np.float32) for _ in names_]
    prefix = str(tmp_path / "by_tf.ckpt")
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=names_, shape_and_slices=[""] * 40, tensors=values
    )
    tensors = tf_bundle.read_bundle(prefix)
    for name, value in zip(names_, values, strict=True):
        np.testing.assert_array_equal(tensors[name], value)


@pytest.fixture
def bundle(tmp_path):
    tf_bundle.write_bundle(tmp_path / "x.ckpt", {"a": np.arange(9.0), "b": np.ones((2, 3))})
    return tmp_path / "x.ckpt"


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
@pytest.mark.parametrize("fault", ["missing", "truncated", "empty", "flipped"])
def test_damaged_bundles_are_refused(bundle, suffix, fault):
    path = Path(f"{bundle}{suffix}")
    data = path.read_bytes()
    if fault == "missing":
        path.unlink()
    elif fault == "flipped":
        for at in range(0, len(data), 5):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            # The footer has unused padding: only there may a flipped bit do no harm.
            if suffix == ".index" and len(data) - 48 <= at < len(data) - 8:
                continue
            with pytest.raises(UserError, match="x.ckpt"):
                tf_bundle.read_bundle(bundle)
        return
    else:
        path.write_bytes(data[: len(data) // 2 if fault == "truncated" else 0])
    with pytest.raises(UserError, match="x.ckpt"):
        tf_bundle.read_bundle(bundle)


def test_differences_are_reported_together():
    config = micro_config(50)
    tensors = merge.to_named_tensors(random_params(config), config, "tf")
    tensors["bert/strange"] = np.ones(3, np.float32)
    tensors["bert/pooler/dense/bias"] = np.ones(31, np.float32)
    del tensors["bert/embeddings/LayerNorm/gamma"]
    del tensors["cls/predictions/output_bias"]
    with pytest.raises(UserError) as error:
        merge.from_named_tensors(tensors, config, "tf", "some.ckpt")
    for part in (
        "some.ckpt: 4 differences",
        "missing bert/embeddings/LayerNorm/gamma",
        "missing cls/predictions/output_bias",
        "bert/pooler/dense/bias has shape [31], the config needs [32]",
        "unknown bert/strange",
    ):
        assert part in str(error.value)


def test_heads_are_whole_or_absent():
    config = micro_config(50)
    tensors = merge.to_named_tensors(random_params(config), config, "tf")
    encoder = {name: t for name, t in tensors.items() if name.startswith("bert/")}
    params, dropped = merge.from_named_tensors(encoder, config, "tf", "x")
    assert set(params) == {"bert"}
    assert dropped == []


def test_table_is_one_to_one():
    rows = names.rows(micro_config(50))
    for field in ("ours", "tf", "hf"):
        given = [getattr(row, field) for row in rows if getattr(row, field)]
        assert len(set(given)) == len(given)


def test_model_directory_round_trip(micro_model, tokenizer):
    loaded = model_dir.load(micro_model)
    expected = merge.flatten(random_params(micro_config(tokenizer.vocab_size)))
    for path, value in merge.flatten(loaded.params).items():
        np.testing.assert_array_equal(value, expected[path])
    assert loaded.info["heads"] == {
        "pooler": "trained", "masked_lm": "trained", "next_sentence": "fresh",
        "classifier": "missing", "span": "missing",
    }  # fmt: skip
    assert loaded.info["gelu"] == "tanh"
    assert loaded.tokenizer.vocabulary == tokenizer.vocabulary


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt"])
def test_a_changed_model_directory_is_refused(micro_model, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(micro_model, folder)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(UserError, match=f"{name}: damaged or replaced"):
        model_dir.load(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        model_dir.load(folder)


def test_foreign_directory_with_another_vocabulary_is_refused(micro_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(micro_model, folder)
    (folder / "clue_jax.json").unlink()
    model_dir.load(folder)
    with (folder / "vocab.txt").open("a") as file:
        file.write("extra\n")
    with pytest.raises(UserError, match="787 rows, config.json says 787, .* has 788 lines"):
        model_dir.load(folder)


def test_transformers_gives_our_logits(micro_model, tokenizer):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    loaded = model_dir.load(micro_model)
    text = "今天的天气很好，我们去公园。"
    ids = [tokenizer.cls_id, *tokenizer.encode(text).ids, tokenizer.sep_id]
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(micro_model)
    assert theirs_tokenizer(text)["input_ids"] == ids
    model = transformers.BertForMaskedLM.from_pretrained(micro_model).eval()
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits.numpy()
    array = np.array([ids], np.int32)
    ours, _ = PretrainingModel(loaded.config).apply(
        {"params": loaded.params}, array, np.ones_like(array), array * 0, np.arange(len(ids))[None]
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_loaded_parameters_reach_devices(micro_model):
    params = jax.device_put(model_dir.load(micro_model).params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))

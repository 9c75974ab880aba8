"""tools.convert reads what others wrote: directories of transformers, PyTorch files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints import all_heads, equal, written
from conftest import micro_config, random_params

from clue_jax.convert import source
from clue_jax.convert.weights import read_weights, write_safetensors
from clue_jax.errors import UserError
from clue_jax.model import Bert, PretrainingModel
from tools import convert


@pytest.fixture
def foreign(tmp_path, tokenizer):
    """A directory as transformers would leave it: no file of ours."""
    config = micro_config(tokenizer.vocab_size)
    params = random_params(config)
    folder = written(tmp_path / "foreign", config, params, tokenizer)
    (folder / "clue_jax.json").unlink()
    return folder, params


def rewrite(folder: Path, change) -> None:
    tensors = {n: np.array(a) for n, a in read_weights(folder / "model.safetensors").items()}
    write_safetensors(folder / "model.safetensors", change(tensors))


def words_are_those_of_transformers(loaded, places) -> None:
    """Our logits of every word, and those of the directories' models in transformers."""
    import torch
    import transformers

    ids = np.arange(5, 25, dtype=np.int32)[None]
    ours = PretrainingModel(loaded.config.without_dropout()).apply(
        {"params": loaded.params}, ids, ids > 0, ids * 0, ids - 5, method="masked_lm_only"
    )
    for place in places:
        model = transformers.BertForMaskedLM.from_pretrained(place).eval()
        with torch.no_grad():
            theirs = model(torch.tensor(ids.astype(np.int64))).logits.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_old_and_missing_name_parts(foreign):
    folder, params = foreign

    def change(tensors):
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): array
            for name, array in tensors.items()
        }
        old["bert.embeddings.position_ids"] = np.arange(64)[None]
        old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
        old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"]
        return old

    rewrite(folder, change)
    loaded = source.load(folder)
    assert equal(params, loaded.params)
    assert loaded.dropped == ["bert.embeddings.position_ids"]
    assert loaded.config.tie_word_embeddings


def test_the_encoder_alone_without_its_prefix(foreign):
    folder, params = foreign
    rewrite(
        folder,
        lambda tensors: {
            name.removeprefix("bert."): array
            for name, array in tensors.items()
            if name.startswith("bert.") and "pooler" not in name
        },
    )
    loaded = source.load(folder)
    heads = set(loaded.info["heads"].values())
    del params["bert"]["pooler"]
    assert equal({"bert": params["bert"]}, loaded.params)
    assert heads == {"missing"}
    output = Bert(loaded.config).apply(
        {"params": loaded.params["bert"]}, *[np.ones((1, 4), int)] * 3
    )
    assert output.pooled_output is None


def test_an_untied_decoder_is_kept_and_used(foreign, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder, _ = foreign
    decoder = np.random.default_rng(5).normal(size=(787, 32)).astype(np.float32)
    rewrite(
        folder,
        lambda tensors: (
            tensors
            | {
                "cls.predictions.decoder.weight": decoder,
                "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
            }
        ),
    )
    values = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(values))
    convert.main([str(folder), str(tmp_path / "b"), "--to", "model"])
    loaded = source.load(tmp_path / "b")
    np.testing.assert_array_equal(loaded.params["masked_lm"]["decoder"], decoder)
    words_are_those_of_transformers(loaded, (folder, tmp_path / "b"))
    with pytest.raises(UserError, match="TF-BERT has no place for it; --drop-heads masked_lm"):
        convert.main([str(folder), str(tmp_path / "tf"), "--to", "tf"])
    assert not (tmp_path / "tf").exists()
    convert.main([str(folder), str(tmp_path / "tf"), "--to", "tf", "--drop-heads", "masked_lm"])
    assert source.load(tmp_path / "tf").info["heads"]["masked_lm"] == "missing"


def test_the_bias_of_an_untied_decoder_is_its_own(foreign, tmp_path):
    """As transformers 5 leaves it after training; with a tied one, two biases are refused."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder, _ = foreign
    random = np.random.default_rng(5)
    own = {
        "cls.predictions.decoder.weight": random.normal(size=(787, 32)).astype(np.float32),
        "cls.predictions.decoder.bias": random.normal(size=787).astype(np.float32),
    }
    rewrite(folder, lambda tensors: tensors | own)
    values = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(values))
    result = convert.main([str(folder), str(tmp_path / "b"), "--to", "model"])
    assert any("decoder.bias was taken" in note for note in result["notes"])
    loaded = source.load(tmp_path / "b")
    words_are_those_of_transformers(loaded, (folder, tmp_path / "b"))


def test_sharded_directories(foreign):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, params = foreign
    model = transformers.BertForPreTraining.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert equal(params, source.load(folder).params)
    # The same as .bin shards, which older versions wrote.
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for shard in shards:
        tensors = {n: torch.tensor(np.array(a)) for n, a in read_weights(shard).items()}
        torch.save(tensors, folder / shard.with_suffix(".bin").name)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    places = {n: p.replace(".safetensors", ".bin") for n, p in index["weight_map"].items()}
    path = folder / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": places}))
    assert equal(params, source.load(folder).params)
    first = next(iter(places))
    for wrong, message in (
        ("../model.bin", "no file name"),
        ("other.bin", "other.bin"),
        (sorted(set(places.values()) - {places[first]})[0], "does not place there"),
    ):
        path.write_text(json.dumps({"weight_map": places | {first: wrong}}))
        with pytest.raises(UserError, match=message):
            source.load(folder)


@pytest.mark.parametrize("layout", ["zip", "older"])
def test_pytorch_files(foreign, layout):
    """A .bin as transformers wrote it, its buffers, tied decoder and metadata included."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, params = foreign
    values = json.loads((folder / "config.json").read_text()) | {"model_type": "roberta"}
    model = transformers.BertForPreTraining.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(values))
    state = model.state_dict()
    assert "cls.predictions.decoder.weight" in state
    state["bert.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=layout == "zip")
    loaded = source.load(folder)
    assert equal(params, loaded.params)
    assert any("roberta" in note for note in loaded.notes)


def test_kinds_of_tensors_in_pytorch_files(tmp_path):
    """Transposed, shared, offset, half-precision and empty tensors, and parameters."""
    torch = pytest.importorskip("torch")
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "whole": whole, "transposed": whole.T, "part": whole[1:3, 2:], "empty": torch.zeros(0, 3),
        "half": whole.half(), "bfloat": whole.bfloat16(), "long": torch.tensor(7),
        "parameter": torch.nn.Parameter(whole * 2), "byte": torch.tensor([1, 2], dtype=torch.uint8),
        "bool": torch.tensor([True, False]), "double": whole.double(),
    }  # fmt: skip
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.bin"
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
        read = read_weights(path)
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            expected = tensor.detach()
            expected = expected.float().numpy() if name == "bfloat" else expected.numpy()
            assert read[name].dtype == (ml_dtypes.bfloat16 if name == "bfloat" else expected.dtype)
            np.testing.assert_array_equal(read[name].astype(expected.dtype), expected)


def test_transformers_loads_every_class(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    config = micro_config(tokenizer.vocab_size)
    params = all_heads(config)
    written(
        tmp_path / "m",
        config,
        {"bert": params["bert"], "classifier": params["classifier"]},
        tokenizer,
    )
    written(tmp_path / "lm", config, random_params(config), tokenizer)
    for folder, cls in (
        ("m", "AutoModel"), ("m", "AutoModelForSequenceClassification"),
        ("m", "BertForSequenceClassification"), ("lm", "BertForMaskedLM"),
        ("lm", "AutoModelForMaskedLM"), ("lm", "BertForPreTraining"), ("lm", "AutoModel"),
    ):  # fmt: skip
        model, report = getattr(transformers, cls).from_pretrained(
            tmp_path / folder, output_loading_info=True
        )
        assert not report["missing_keys"], cls
        assert not report["mismatched_keys"], cls
        words = model.get_input_embeddings().weight.detach().numpy()
        own = params if folder == "m" else random_params(config)
        np.testing.assert_array_equal(words, own["bert"]["embeddings"]["word_embeddings"])
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "m")("天气").input_ids[1:-1] == (
        tokenizer.encode("天气").ids
    )


def test_fresh_and_trained_heads_are_told_apart(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    config = micro_config(tokenizer.vocab_size)
    written(tmp_path / "a", config, {"bert": random_params(config)["bert"]}, tokenizer)
    assert source.load(tmp_path / "a").info["heads"]["masked_lm"] == "missing"
    # transformers draws the missing heads at random, and says nothing in what it saves.
    model = transformers.BertForPreTraining.from_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    shutil.copy(tmp_path / "a" / "vocab.txt", tmp_path / "b")
    heads = source.load(tmp_path / "b").info["heads"]
    assert heads["masked_lm"] == heads["next_sentence"] == "fresh"
    assert heads["pooler"] == "trained"
    convert.main([str(tmp_path / "b"), str(tmp_path / "c"), "--to", "model"])
    assert "masked_lm | fill-mask | **fresh**" in (tmp_path / "c" / "README.md").read_text()


def test_roberta_s_own_layout_is_refused(foreign):
    folder, _ = foreign
    rewrite(folder, lambda t: {n.replace("bert.", "roberta."): a for n, a in t.items()})
    with pytest.raises(UserError, match="layout of RoBERTa itself"):
        source.load(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("position_embedding_type", "relative_key"), ("is_decoder", True)]
)
def test_configs_that_compute_something_else_are_refused(foreign, key, value):
    folder, _ = foreign
    values = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"{key} {value!r} is not supported"):
        source.load(folder)


def test_the_gelu_of_a_foreign_config_is_said_and_overridden(foreign, capsys, tmp_path):
    folder, _ = foreign
    values = json.loads((folder / "config.json").read_text()) | {"hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(values))
    assert source.load(folder).config.hidden_act == "gelu_erf"
    convert.main([str(folder), str(tmp_path / "a"), "--to", "model"])
    assert "--gelu tanh overrides" in capsys.readouterr().err
    convert.main([str(folder), str(tmp_path / "b"), "--to", "model", "--gelu", "tanh"])
    assert source.load(tmp_path / "b").config.hidden_act == "gelu_tanh"

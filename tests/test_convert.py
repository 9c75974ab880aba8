"""tools.convert: every form in, every form out, nothing lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import arguments, micro_config, random_params

from clue_jax.config import PRESETS, ModelConfig
from clue_jax.convert import merge, source, tf_bert, tf_bundle
from clue_jax.convert.compare import compare
from clue_jax.convert.loaded import LoadedModel
from clue_jax.convert.names import HEADS, shapes
from clue_jax.convert.target import write
from clue_jax.convert.weights import read_weights, write_safetensors
from clue_jax.errors import UserError
from clue_jax.model import Bert, PretrainingModel
from pretraining import run
from tools import bench_convert, convert, inspect_checkpoint

CLASSES = 3


def all_heads(config: ModelConfig, seed: int = 0) -> dict:
    """Random parameters, every head included."""
    random = np.random.default_rng(seed)
    return merge.nest(
        {
            path: random.normal(0, 0.1, shape).astype(np.float32)
            for path, shape in shapes(config, tuple(HEADS), CLASSES).items()
        }
    )


def written(folder: Path, config: ModelConfig, params: dict, tokenizer=None, form="model") -> Path:
    write(LoadedModel(config, params, tokenizer, {}, "random numbers"), folder, form)
    return folder


def equal(a: dict, b: dict) -> bool:
    a, b = merge.flatten(a), merge.flatten(b)
    return a.keys() == b.keys() and all(
        a[path].dtype == b[path].dtype and np.asarray(a[path]).tobytes() == b[path].tobytes()
        for path in a
    )


# ---- The recordings ------------------------------------------------------------------------------

RECORDED = {
    "tf_checkpoint/a_adam_slots": (),
    "tf_checkpoint/b_no_cls": (),
    "tf_checkpoint/c_classifier": (),
    "tf_checkpoint/d_sharded": (),
    "tf_checkpoint/e_vocab_mismatch": ("--pad-vocab", "40"),
    "tf_checkpoint/f_v1_format": (),
    "tf_checkpoint/g_other_prefix/model.ckpt-best": (),
    "tf_checkpoint/g_other_prefix/roberta_zh_large_model.ckpt": (),
    "tf_bert_original/bert_model.ckpt": (),
    "tf_bert_original/trained.ckpt": (),
    "finetune_training/initial": ("--config", "finetune_training/bert_config.json"),
    "finetune_training/final": ("--config", "finetune_training/bert_config.json"),
}


def recorded_digests(shared, name: str) -> dict:
    """Tensor -> its recorded shape, type and digest."""
    folder, _, rest = name.partition("/")
    if folder == "tf_checkpoint":
        listing = json.loads((shared / "fixtures/tf_checkpoint/listing.json").read_text())
        return listing[rest]["tensors"]
    if folder == "finetune_training":
        listing = json.loads((shared / "fixtures/finetune_training/checkpoints.json").read_text())
        return next(v for k, v in listing.items() if k.startswith(rest))
    return {}


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_checkpoint_goes_there_and_back(shared, tmp_path, name):
    if name.endswith("f_v1_format"):
        pytest.importorskip("tensorflow")
    options = [
        str(shared / "fixtures" / option) if option.endswith(".json") else option
        for option in RECORDED[name]
    ]
    path = shared / "fixtures" / name
    there = convert.main([str(path), str(tmp_path / "model"), "--to", "model", *options])
    convert.main([str(tmp_path / "model"), str(tmp_path / "tf"), "--to", "tf"])
    before = tf_bert.read_variables(Path(there["source"]))
    after = tf_bundle.read_bundle(tmp_path / "tf" / "bert_model.ckpt")
    assert set(before) - set(there["dropped"]) == set(after)
    for tensor in after:
        assert before[tensor].dtype == after[tensor].dtype
        assert before[tensor].shape == after[tensor].shape
        assert before[tensor].tobytes() == after[tensor].tobytes()
    recorded = recorded_digests(shared, name)
    assert recorded or name.startswith("tf_bert_original")
    for tensor, array in after.items() if recorded else ():
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        if name.endswith("e_vocab_mismatch") and len(array) == 40:
            continue  # padded
        assert digest == recorded[tensor]["sha256"]


def test_outputs_after_conversion_are_the_recorded_ones(shared, tmp_path):
    """Through our forward pass, and through transformers on the written directory."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = shared / "fixtures/tf_bert_original"
    convert.main([str(folder / "bert_model.ckpt"), str(tmp_path / "m"), "--to", "model"])
    recorded = np.load(folder / "forward.npz")
    loaded = source.load(tmp_path / "m")
    inputs = [recorded[f"in_{n}"] for n in ("input_ids", "input_mask", "segment_ids")]
    ours = jax.jit(Bert(loaded.config).apply)({"params": loaded.params["bert"]}, *inputs)
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "m").eval()
    tensors = [torch.tensor(x.astype(np.int64)) for x in inputs]
    with torch.no_grad():
        encoded = theirs.bert(tensors[0], tensors[1], tensors[2])
        both = theirs(tensors[0], tensors[1], tensors[2])
    positions = recorded["in_masked_lm_positions"]
    logits = np.take_along_axis(both.prediction_logits.numpy(), positions[..., None], axis=1)
    log_probs = torch.log_softmax(torch.tensor(logits), -1).numpy()
    expected = recorded["masked_lm_log_probs"]
    pairs = {
        "ours": (ours.sequence_output, recorded["sequence_output"]),
        "ours, pooled": (ours.pooled_output, recorded["pooled_output"]),
        "transformers": (encoded.last_hidden_state.numpy(), recorded["sequence_output"]),
        "transformers, pooled": (encoded.pooler_output.numpy(), recorded["pooled_output"]),
        "transformers, masked LM": (log_probs.reshape(expected.shape), expected),
    }
    for name, (got, wanted) in pairs.items():
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("when", ["before", "after"])
def test_classifier_logits_are_the_recorded_ones(shared, tmp_path, when):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = shared / "fixtures/finetune_training"
    config = str(folder / "bert_config.json")
    if when == "after":
        convert.main(
            [str(folder / "final"), str(tmp_path / "m"), "--to", "model", "--config", config]
        )
    else:  # the recording keeps the new classifier's initial values apart
        loaded = source.load(folder / "initial", config=config)
        inputs = np.load(folder / "inputs.npz")
        params = {
            "bert": loaded.params["bert"],
            "classifier": {
                "kernel": inputs["initial_output_weights"].T,
                "bias": inputs["initial_output_bias"],
            },
        }
        written(tmp_path / "m", loaded.config, params)
    inputs = np.load(folder / "inputs.npz")
    arrays = [inputs[f"eval_{n}"] for n in ("input_ids", "input_mask", "segment_ids")]
    expected = np.load(folder / "expected_gather.npz")[f"eval_logits_{when}"]
    loaded = source.load(tmp_path / "m")
    pooled = jax.jit(Bert(loaded.config).apply)({"params": loaded.params["bert"]}, *arrays)[1]
    head = loaded.params["classifier"]
    np.testing.assert_allclose(pooled @ head["kernel"] + head["bias"], expected, atol=1e-5)
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        logits = theirs(*[torch.tensor(x.astype(np.int64)) for x in arrays]).logits
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-5)


def test_two_prefixes_in_a_folder_are_both_named(shared):
    with pytest.raises(UserError, match=r"holds 2 models: .*best.*roberta_zh_large_model.ckpt"):
        source.load(shared / "fixtures/tf_checkpoint/g_other_prefix")


# ---- Round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("base", "large") else [])
        for name in PRESETS
    ],
)
def test_a_preset_goes_there_and_back(tmp_path, preset):
    """With every bit pattern that float32 has: NaN, infinities, -0, denormals."""
    config = PRESETS[preset]
    random = np.random.default_rng(1)
    params = merge.nest(
        {
            path: random.integers(0, 1 << 32, shape, np.uint32).view(np.float32)
            for path, shape in shapes(config).items()
        }
    )
    written(tmp_path / "tf", config, params, form="tf")
    convert.main([str(tmp_path / "tf"), str(tmp_path / "model"), "--to", "model"])
    convert.main([str(tmp_path / "model"), str(tmp_path / "tf2"), "--to", "tf"])
    assert equal(params, source.load(tmp_path / "model").params)
    for name in ("index", "data-00000-of-00001"):
        first, second = (tmp_path / f / f"bert_model.ckpt.{name}" for f in ("tf", "tf2"))
        assert first.read_bytes() == second.read_bytes()


def test_all_heads_go_there_and_back(tmp_path, tokenizer):
    config = micro_config(tokenizer.vocab_size)
    params = all_heads(config)
    written(tmp_path / "a", config, params, tokenizer)
    for form, before, after in (("tf", "a", "b"), ("model", "b", "c")):
        convert.main([str(tmp_path / before), str(tmp_path / after), "--to", form])
    for folder in "abc":
        loaded = source.load(tmp_path / folder)
        assert equal(params, loaded.params)
        assert loaded.tokenizer.vocabulary == tokenizer.vocabulary
        assert loaded.config == config
    for name in ("model.safetensors", "config.json", "vocab.txt", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_what_is_known_of_a_model_survives(tmp_path, tokenizer):
    config = micro_config(tokenizer.vocab_size)
    info = {
        "heads": {"masked_lm": "fresh"}, "labels": ["坏", "好", "?"], "task": "tnews",
        "normalization": "t2s", "max_seq_length": 17, "license": "mit", "source": "somewhere",
    }  # fmt: skip
    loaded = LoadedModel(config, all_heads(config), tokenizer, info, "x")
    write(loaded, tmp_path / "a", "tf")
    convert.main([str(tmp_path / "a"), str(tmp_path / "b"), "--to", "model"])
    after = source.load(tmp_path / "b").info
    assert after["heads"]["masked_lm"] == "fresh"
    assert {name: after[name] for name in info if name != "heads"} == {
        name: value for name, value in info.items() if name != "heads"
    }
    values = json.loads((tmp_path / "b" / "config.json").read_text())
    assert values["id2label"] == {"0": "坏", "1": "好", "2": "?"}
    card = (tmp_path / "b" / "README.md").read_text()
    for part in ("license: mit", "`坏`", "somewhere", "fresh", "| layers L | 2 |"):
        assert part in card


def test_a_written_checkpoint_restores_in_a_tensorflow_graph(tmp_path, tokenizer):
    """As the original restores: variables of a graph, by name, out of the folder's newest."""
    tf = pytest.importorskip("tensorflow")
    config = micro_config(tokenizer.vocab_size)
    params = all_heads(config)
    params.pop("span")
    written(tmp_path / "tf", config, params, tokenizer, form="tf")
    tensors = merge.to_named_tensors(params, config, "tf")
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variables = {
            name: v1.get_variable(name, array.shape, tf.as_dtype(array.dtype))
            for name, array in tensors.items()
        }
        newest = tf.train.latest_checkpoint(str(tmp_path / "tf"))
        v1.train.Saver(variables).restore(session, newest)
        for name, variable in variables.items():
            np.testing.assert_array_equal(session.run(variable), tensors[name])


# ---- Foreign directories -------------------------------------------------------------------------


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
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
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
    ids = np.arange(5, 25, dtype=np.int32)[None]
    ours = PretrainingModel(loaded.config.without_dropout()).apply(
        {"params": loaded.params}, ids, ids > 0, ids * 0, ids - 5, method="masked_lm_only"
    )
    for place in (folder, tmp_path / "b"):
        model = transformers.BertForMaskedLM.from_pretrained(place).eval()
        with torch.no_grad():
            theirs = model(torch.tensor(ids.astype(np.int64))).logits.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="TF-BERT has no place for it; --drop-heads masked_lm"):
        convert.main([str(folder), str(tmp_path / "tf"), "--to", "tf"])
    assert not (tmp_path / "tf").exists()
    convert.main([str(folder), str(tmp_path / "tf"), "--to", "tf", "--drop-heads", "masked_lm"])
    assert source.load(tmp_path / "tf").info["heads"]["masked_lm"] == "missing"


def test_the_bias_of_an_untied_decoder_is_its_own(foreign, tmp_path):
    """As transformers 5 leaves it after training; with a tied one, two biases are refused."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
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
    ids = np.arange(5, 25, dtype=np.int32)[None]
    ours = PretrainingModel(loaded.config.without_dropout()).apply(
        {"params": loaded.params}, ids, ids > 0, ids * 0, ids - 5, method="masked_lm_only"
    )
    for place in (folder, tmp_path / "b"):
        model = transformers.BertForMaskedLM.from_pretrained(place).eval()
        with torch.no_grad():
            theirs = model(torch.tensor(ids.astype(np.int64))).logits.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


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


# ---- The vocabulary ------------------------------------------------------------------------------


@pytest.fixture
def oversized(tmp_path, tokenizer):
    """As the released large models: more embedding rows than vocabulary lines."""
    config = micro_config(tokenizer.vocab_size + 100)
    folder = written(tmp_path / "large", config, random_params(config), form="tf")
    shutil.copy(tokenizer.vocab_file, folder / "vocab.txt")
    return folder


@pytest.mark.parametrize("form", ["tf", "model"])
def test_dead_rows_are_refused_cut_or_named(oversized, tmp_path, tokenizer, form):
    lines = tokenizer.vocab_size
    target = tmp_path / "out"
    with pytest.raises(UserError, match=f"{lines + 100} rows, .* {lines + 100}, .* {lines} lines"):
        convert.main([str(oversized), str(target), "--to", form])
    assert not target.exists()
    result = convert.main([str(oversized), str(target), "--to", form, "--crop-vocab", "--check"])
    assert result["tensors_equal"] and result["largest_output_difference"] < 1e-6
    assert result["outputs"] == ["masked_lm", "next_sentence", "pooled_output", "sequence_output"]
    loaded = source.load(target)
    assert loaded.config.vocab_size == lines == len(loaded.params["masked_lm"]["bias"])
    # Against the uncut file, read by itself: the first rows are kept, and no output changes.
    uncut = merge.nest(
        merge.flatten(
            tf_bert.load(
                oversized / "bert_model.ckpt", loaded.config.replace(vocab_size=lines + 100)
            )[0]
        )
    )
    kept = loaded.params["bert"]["embeddings"]["word_embeddings"]
    np.testing.assert_array_equal(kept, uncut["bert"]["embeddings"]["word_embeddings"][:lines])
    ids = np.random.default_rng(0).integers(0, lines, (3, 16)).astype(np.int32)
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), ids.shape)
    before, after = (
        PretrainingModel(loaded.config.replace(vocab_size=size).without_dropout()).apply(
            {"params": params}, ids, ids >= 0, ids * 0, positions, method="masked_lm_only"
        )
        for size, params in ((lines + 100, uncut), (lines, loaded.params))
    )
    np.testing.assert_allclose(after, before[..., :lines], atol=1e-6)
    padded = tmp_path / "padded"
    convert.main([str(oversized), str(padded), "--to", form, "--pad-vocab", str(lines + 100)])
    loaded = source.load(padded)
    assert loaded.tokenizer.vocab_size == loaded.config.vocab_size == lines + 100
    assert loaded.tokenizer.vocabulary[:lines] == tokenizer.vocabulary
    assert len(set(loaded.tokenizer.vocabulary)) == lines + 100


def test_a_difference_is_told(micro_model):
    """A cropped, a changed and a broken model, against the one they were made of."""
    before = source.load(micro_model)
    words = before.params["bert"]["embeddings"]["word_embeddings"]
    same = compare(before, before)
    assert same["tensors_equal"] and same["largest_tensor_difference"] == 0
    assert same["largest_output_difference"] == 0
    changed = jax.tree.map(np.array, before.params)
    changed["bert"]["embeddings"]["word_embeddings"] = np.roll(words, 1, axis=0)
    found = compare(before, dataclasses.replace(before, params=changed))
    expected = np.abs(words - np.roll(words, 1, axis=0)).max()
    assert not found["tensors_equal"] and found["largest_tensor_difference"] == expected
    assert found["largest_output_difference"] > 0.1
    changed = jax.tree.map(np.array, before.params)
    changed["bert"]["pooler"]["bias"][3] = np.nan
    found = compare(before, dataclasses.replace(before, params=changed))
    assert not found["tensors_equal"] and found["largest_tensor_difference"] is None
    assert found["largest_output_difference"] is None
    del changed["bert"]["pooler"]
    found = compare(before, dataclasses.replace(before, params=changed))
    assert found["only_in_one"] == ["bert/pooler/bias", "bert/pooler/kernel"]


def test_padded_rows_are_never_predicted(tmp_path, micro_model, tokenizer):
    size = tokenizer.vocab_size + 5
    convert.main([str(micro_model), str(tmp_path / "p"), "--to", "model", "--pad-vocab", str(size)])
    before, after = source.load(micro_model), source.load(tmp_path / "p")
    ids = np.arange(10, 20, dtype=np.int32)[None]
    logits = [
        PretrainingModel(m.config.without_dropout()).apply(
            {"params": m.params}, ids, ids > 0, ids * 0, ids - 10, method="masked_lm_only"
        )
        for m in (before, after)
    ]
    np.testing.assert_allclose(logits[1][..., :-5], logits[0], atol=1e-6)
    assert (logits[1][..., -5:] < -9000).all()
    assert np.isfinite(logits[1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--crop-vocab", "--pad-vocab", "900"), "exclude each other"),
        (("--pad-vocab", "800"), "--pad-vocab 800 is too small"),
        (("--vocab", "missing.txt"), "missing.txt: cannot read"),
    ],
)
def test_wrong_sizes_are_refused(oversized, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert.main([str(oversized), str(tmp_path / "out"), "--to", "model", *options])
    assert not (tmp_path / "out").exists()


def test_a_config_of_another_model_is_refused(shared, tmp_path):
    folder = shared / "fixtures/tf_checkpoint/e_vocab_mismatch"
    wrong = ["--config", str(folder / "bert_config.wrong.json")]
    with pytest.raises(UserError, match=r"40 rows, bert_config.wrong.json says \d+, .*31 lines"):
        convert.main([str(folder), str(tmp_path / "o"), "--to", "model", *wrong])
    values = json.loads((folder / "bert_config.json").read_text()) | {"vocab_size": 99}
    (tmp_path / "other.json").write_text(json.dumps(values))
    wrong[1] = str(tmp_path / "other.json")
    for options in (["--crop-vocab"], ["--pad-vocab", "120"]):  # no number agrees with this one
        with pytest.raises(UserError, match=r"another model: .* 40 rows, other.json says 99, .*31"):
            convert.main([str(folder), str(tmp_path / "o"), "--to", "model", *wrong, *options])


# ---- The command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", ["tf", "model"])
def test_half_precision_is_rounded_once(micro_model, tmp_path, dtype, form):
    convert.main([str(micro_model), str(tmp_path / "h"), "--to", form, "--dtype", dtype])
    expected = merge.flatten(source.load(micro_model).params)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    for path, array in merge.flatten(source.load(tmp_path / "h").params).items():
        np.testing.assert_array_equal(array, expected[path].astype(kind))
    convert.main([str(tmp_path / "h"), str(tmp_path / "f"), "--to", form, "--dtype", "float32"])
    assert source.load(tmp_path / "f").params["bert"]["pooler"]["bias"].dtype == np.float32


def test_numbers_beyond_float16_are_refused(tmp_path, tokenizer):
    config = micro_config(tokenizer.vocab_size)
    params = random_params(config)
    params["bert"]["pooler"]["bias"][3] = 1e6
    written(tmp_path / "a", config, params, tokenizer)
    with pytest.raises(UserError, match="pooler/dense/bias holds numbers too large for float16"):
        convert.main([str(tmp_path / "a"), str(tmp_path / "b"), "--to", "tf", "--dtype", "float16"])


def test_zips_are_read_directly(micro_model, tmp_path, tokenizer):
    convert.main([str(micro_model), str(tmp_path / "tf"), "--to", "tf"])
    archive = tmp_path / "RoBERTa-tiny-clue.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tmp_path / "tf").iterdir():
            file.write(path, f"RoBERTa-tiny-clue/{path.name}")
    result = convert.main([str(archive), str(tmp_path / "model"), "--to", "model"])
    assert result["source"] == f"{archive}/RoBERTa-tiny-clue/bert_model.ckpt"
    loaded = source.load(tmp_path / "model")
    assert equal(loaded.params, source.load(micro_model).params)
    assert loaded.tokenizer.vocabulary == tokenizer.vocabulary


def test_an_unfinished_run_converts(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    final = source.load(tmp_path / "run" / "model").params
    for place, form in (
        ("run", "checkpoint"),
        ("run/checkpoints", None),
        ("run/checkpoints/6", None),
    ):
        out = tmp_path / place.replace("/", "_")
        options = ["--from", form] if form else []
        result = convert.main([str(tmp_path / place), f"{out}_m", "--to", "model", *options])
        assert result["notes"][0] == "training checkpoint of step 6"
        assert equal(source.load(f"{out}_m").params, final)
    result = convert.main(
        [str(tmp_path / "run/checkpoints/2"), str(tmp_path / "two"), "--to", "tf"]
    )
    assert not equal(source.load(tmp_path / "two").params, final)
    shutil.rmtree(tmp_path / "run/checkpoints/6/params")
    with pytest.raises(UserError, match="checkpoints/6"):
        convert.main(
            [str(tmp_path / "run"), str(tmp_path / "x"), "--to", "tf", "--from", "checkpoint"]
        )


def test_training_starts_from_any_form(shards, micro_model, tmp_path):
    """The same first losses from a directory, its TF-BERT files, and those in a zip."""
    convert.main([str(micro_model), str(tmp_path / "tf"), "--to", "tf"])
    shutil.make_archive(str(tmp_path / "tf"), "zip", tmp_path / "tf")
    losses = {
        run.main(arguments(shards, tmp_path / f"run{i}", init, steps=2, mesh="data=1"))[
            "masked_lm_loss"
        ]
        for i, init in enumerate((micro_model, tmp_path / "tf", tmp_path / "tf.zip"))
    }
    assert len(losses) == 1


def test_training_starts_from_an_encoder_alone(shards, micro_model, tmp_path):
    loaded = source.load(micro_model)
    bert = {name: loaded.params["bert"][name] for name in ("embeddings", "encoder")}
    written(tmp_path / "e", loaded.config, {"bert": bert}, loaded.tokenizer)
    run.main(arguments(shards, tmp_path / "run", tmp_path / "e", steps=2, mesh="data=1"))
    heads = source.load(tmp_path / "run" / "model").info["heads"]
    assert heads["masked_lm"] == "trained"
    assert heads["pooler"] == heads["next_sentence"] == "fresh"


def test_targets_that_would_destroy_something_are_refused(micro_model, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("x")
    source_, model = str(micro_model), ["--to", "model"]
    for options in ([], ["--overwrite"]):
        with pytest.raises(UserError, match="out: (exists and is not empty|holds something else)"):
            convert.main([source_, str(target), *model, *options])
    for place in (micro_model, micro_model / "within", micro_model.parent):
        with pytest.raises(UserError, match="is the source, within it or around it"):
            convert.main([source_, str(place), *model, "--overwrite"])
    with pytest.raises(UserError, match="is a file"):
        convert.main([source_, str(target / "thesis.txt"), *model])
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]
    convert.main([source_, str(tmp_path / "fine"), *model])
    convert.main([source_, str(tmp_path / "fine"), "--to", "tf", "--overwrite"])
    assert (tmp_path / "fine" / "bert_config.json").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "nothing: no such file or folder"),
        ("empty", "empty: holds no model or checkpoint"),
        ("vocab", "holds no model or checkpoint"),
    ],
)
def test_paths_that_are_no_model(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "vocab").mkdir()
    (tmp_path / "vocab" / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(UserError, match=message):
        convert.main([str(tmp_path / path), str(tmp_path / "out"), "--to", "model"])
    assert not (tmp_path / "out").exists()


def test_inspection_tells_what_is_there(micro_model, oversized, capsys):
    result = inspect_checkpoint.main([str(micro_model), "--json"])
    assert json.loads(capsys.readouterr().out) == result
    assert result["agrees"] and result["form"] == "hf"
    assert result["heads"]["next_sentence"] == "fresh"
    bias = merge.flatten(source.load(micro_model).params)["masked_lm/bias"]
    tensor = result["tensors"]["cls.predictions.bias"]
    assert tensor["shape"] == [787] and tensor["dtype"] == "float32"
    np.testing.assert_allclose(tensor["norm"], np.linalg.norm(bias), rtol=1e-6)
    result = inspect_checkpoint.main([str(oversized)])
    assert not result["agrees"] and "887 rows" in result["differences"]
    assert (result["embedding_rows"], result["vocabulary_lines"]) == (887, 787)
    assert "bert/pooler/dense/kernel" in capsys.readouterr().out


def test_tensors_are_listed_without_a_config(shared, capsys):
    path = shared / "fixtures/finetune_training/final"
    result = inspect_checkpoint.main([str(path), "--json"])
    assert not result["agrees"] and "--config names it" in result["differences"]
    recorded = recorded_digests(shared, "finetune_training/final")
    assert {n: t["shape"] for n, t in result["tensors"].items()} == {
        n: t["shape"] for n, t in recorded.items()
    }
    assert json.loads(capsys.readouterr().out) == result


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_the_largest_model_stays_within_time_and_memory(tmp_path, dtype):
    """1.25 GB; nothing is held twice, also when the numbers are rounded on the way."""
    options = ["--dtype", dtype] if dtype else []
    result = bench_convert.main(
        ["--preset", "large", "--runs", "1", "--work", str(tmp_path), *options]
    )
    for way in ("to_model", "to_tf"):
        assert result[way]["peak_mb"] < result["memory_limit_mb"]
        assert result[way]["median_seconds"] < 60
        assert result[way]["heavy_packages_loaded"] == []


def test_conversion_loads_no_heavy_package():
    result = bench_convert.main(["--preset", "tiny", "--runs", "1"])
    for way in ("to_model", "to_tf"):
        assert result[way]["heavy_packages_loaded"] == []
        assert result[way]["peak_mb"] < result["memory_limit_mb"]

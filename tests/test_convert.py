"""tools.convert: every form in, every form out, nothing lost."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from checkpoints import all_heads, equal, recorded_digests, written
from conftest import arguments, micro_config, random_params

from clue_jax.config import PRESETS
from clue_jax.convert import merge, source, tf_bert, tf_bundle
from clue_jax.convert.loaded import LoadedModel
from clue_jax.convert.names import shapes
from clue_jax.convert.target import write
from clue_jax.errors import UserError
from clue_jax.model import Bert
from pretraining import run
from tools import bench_convert, convert

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

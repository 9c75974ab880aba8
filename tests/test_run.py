"""Training runs: what they leave, meshes, resuming and kills."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, arguments, build, metrics

from clue_jax import sharding
from clue_jax.checkpoint import load_params
from clue_jax.convert import merge, model_dir, source, tf_bert, tf_bundle
from clue_jax.convert.names import PRETRAINING_HEADS, head_of, rows
from clue_jax.errors import UserError
from clue_jax.files import read_json
from clue_jax.model import PretrainingModel
from pretraining import run
from pretraining.masking import Masking
from pretraining.settings import Settings
from pretraining.stages import planned


def test_a_run_leaves_everything(finished):
    assert {path.name for path in finished.iterdir()} == {
        "model", "tf", "checkpoints", "metrics.jsonl", "tensorboard", "settings.json",
        "config.json", "vocab.txt", "clue_jax.json",
    }  # fmt: skip
    assert {path.name for path in (finished / "tf").iterdir()} == {
        "bert_config.json", "bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index",
        "checkpoint", "vocab.txt", "clue_jax.json",
    }  # fmt: skip
    assert [line["step"] for line in metrics(finished)] == [2, 4, 6]
    text = (finished / "metrics.jsonl").read_text()
    assert text.count("held_out/masked_lm_accuracy") == 2
    assert any((finished / "tensorboard").iterdir())
    loaded = model_dir.load(finished / "model")
    assert loaded.info["heads"] == {
        "pooler": "trained", "masked_lm": "trained", "next_sentence": "fresh",
        "classifier": "missing", "span": "missing",
    }  # fmt: skip
    tf_params, _ = tf_bert.load(finished / "tf" / "bert_model.ckpt", loaded.config)
    ours, theirs = merge.flatten(loaded.params), merge.flatten(tf_params)
    assert all((ours[path] == theirs[path]).all() for path in ours)


def pretraining_names(config) -> set[str]:
    """The TF-BERT names of encoder and pretraining heads."""
    return {row.tf for row in rows(config) if head_of(row.ours) in (None, *PRETRAINING_HEADS)}


def test_tensorflow_lists_the_originals_variables(finished):
    tf = pytest.importorskip("tensorflow")
    prefix = str(finished / "tf" / "bert_model.ckpt")
    config = model_dir.load(finished / "model").config
    listed = dict(tf.train.list_variables(prefix))
    assert set(listed) == pretraining_names(config)  # the 39-variable layout, no slots
    assert listed["bert/encoder/layer_1/attention/self/query/kernel"] == [32, 32]
    assert listed["cls/seq_relationship/output_weights"] == [2, 32]
    assert tf.train.latest_checkpoint(str(finished / "tf")) == prefix
    reader = tf.train.load_checkpoint(prefix)
    params = merge.to_named_tensors(model_dir.load(finished / "model").params, config, "tf")
    for name, value in params.items():
        np.testing.assert_array_equal(reader.get_tensor(name), value)


def test_the_variable_names_are_those_the_original_wrote(shared):
    """Against the listing of a checkpoint that the original's own code saved."""
    folder = shared / "fixtures/tf_bert_original"
    from clue_jax import ModelConfig

    config = ModelConfig.from_tf_bert(folder / "bert_config.json")
    entries, _ = tf_bundle.read_index(folder / "bert_model.ckpt")
    recorded = {n for n in entries if "adam" not in n and n != "global_step"}
    assert pretraining_names(config) == recorded


def test_transformers_gives_the_logits_of_a_trained_model(finished, agree):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    loaded = model_dir.load(finished / "model")
    ids = np.random.default_rng(0).integers(104, loaded.config.vocab_size, (2, 20))
    model = transformers.BertForMaskedLM.from_pretrained(finished / "model").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    positions = np.broadcast_to(np.arange(20), (2, 20))
    ours, _ = PretrainingModel(loaded.config).apply(
        {"params": loaded.params}, ids, np.ones_like(ids), ids * 0, positions
    )
    agree("logits of transformers' BertForMaskedLM, shrunken model", ours, theirs, 1e-4)


def test_a_finished_run_exports_again_without_training(finished, shards, micro_model, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    shutil.rmtree(output / "model")
    result = run.main(arguments(shards, output, micro_model, eval_every=3))
    assert result["masked_lm_loss"] is None
    same = (finished / "model" / "model.safetensors").read_bytes()
    assert (output / "model" / "model.safetensors").read_bytes() == same


SLOW = [
    pytest.param(m, marks=pytest.mark.slow) for m in ("data=8", "data=2,fsdp=4", "data=2,model=4")
]


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,model=2", *SLOW])
def test_every_mesh_gives_the_losses_of_one_device(shards, micro_model, tmp_path, mesh, one_device):
    """20 steps, dropout on."""
    output = tmp_path / "out"
    run.main(arguments(shards, output, micro_model, steps=20, log_every=1, mesh=mesh))
    losses = [line["masked_lm_loss"] for line in metrics(output)]
    np.testing.assert_allclose(losses, one_device, rtol=1e-5)
    assert len(losses) == 20


def test_the_generator_of_the_device_trains_and_is_tied_to_its_mesh(
    shards, micro_model, tmp_path, one_device
):
    given = {"prng": "rbg", "log_every": 1}
    for name, steps in (("whole", 6), ("cut", 4), ("cut", 6)):
        run.main(
            arguments(shards, tmp_path / name, micro_model, **given, steps=steps, mesh="data=8")
        )
    whole, cut = (
        [line["masked_lm_loss"] for line in metrics(tmp_path / name)] for name in ("whole", "cut")
    )
    assert whole[4:] != one_device[4:6]  # other masks of dropout
    assert np.isfinite(whole).all() and len(cut) == 6
    with pytest.raises(UserError, match="holds a run with mesh"):
        run.main(arguments(shards, tmp_path / "cut", micro_model, **given, steps=8, mesh="data=4"))


@pytest.fixture(scope="module")
def one_device(shards, micro_model, tmp_path_factory) -> list[float]:
    output = tmp_path_factory.mktemp("one") / "out"
    run.main(arguments(shards, output, micro_model, steps=20, log_every=1, mesh="data=1"))
    without = tmp_path_factory.mktemp("without") / "out"
    run.main(
        arguments(shards, without, micro_model, steps=2, log_every=1, mesh="data=1", dropout=0)
    )
    losses = [line["masked_lm_loss"] for line in metrics(output)]
    assert losses[0] != metrics(without)[0]["masked_lm_loss"]  # dropout was indeed on
    return losses


def test_the_state_is_sharded(shards, micro_model):
    params = model_dir.load(micro_model).params
    mesh = sharding.make_mesh("data=2,fsdp=2,model=2")
    placed = jax.device_put(params, sharding.state_shardings(params, mesh))
    kernel = placed["bert"]["encoder"]["layer_0"]["feed_forward"]["intermediate"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 32)
    words = placed["bert"]["embeddings"]["word_embeddings"]
    v = words.shape[0]
    assert words.addressable_shards[0].data.shape == (v // 2 if v % 2 == 0 else v, 16)


def test_an_odd_dimension_stays_whole_and_says_so(caplog):
    mesh = sharding.make_mesh("data=1,fsdp=1,model=8")
    sharding._say_replicated.cache_clear()
    for _ in range(2):
        spec = sharding.partition("bert/embeddings/word_embeddings", (8021, 312), mesh)
    assert spec == jax.sharding.PartitionSpec(None, "fsdp")
    assert caplog.text.count("8021") == 2  # one line: the shape and the dimension
    assert "is not a multiple of model=8 and stays whole" in caplog.text


def test_resuming_on_another_mesh_gives_the_same_losses(shards, micro_model, tmp_path, one_device):
    output = tmp_path / "out"
    for steps, mesh in ((6, "data=8"), (11, "data=2,fsdp=2"), (16, "data=2"), (20, "data=8")):
        # The number of steps shapes the learning rate, so the run is cut, not shortened.
        cut_at(shards, output, micro_model, steps, mesh)
    losses = [line["masked_lm_loss"] for line in metrics(output)]
    np.testing.assert_allclose(losses, one_device, rtol=1e-5)


def cut_at(shards, output, model, step, mesh):
    """Runs towards 20 steps but stops after one of them, as an interrupt would."""
    original = run.RunLog.advance

    def advance(log, at):
        original(log, at)
        if at == step + 1:
            raise KeyboardInterrupt

    run.RunLog.advance = advance
    try:
        run.main(arguments(shards, output, model, steps=20, log_every=1, mesh=mesh))
    except KeyboardInterrupt:
        pass
    finally:
        run.RunLog.advance = original


def start_run(arguments_) -> subprocess.Popen:
    command = [sys.executable, "-m", "pretraining.run", *arguments_]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, stderr=quiet, stdout=quiet)


def assert_same_run(output: Path, whole: Path, steps: int) -> None:
    for name in ("model/model.safetensors", "tf/bert_model.ckpt.data-00000-of-00001"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
    assert [line["step"] for line in metrics(output)] == list(range(2, steps + 1, 2))
    assert metrics(output)[-1]["masked_lm_loss"] == metrics(whole)[-1]["masked_lm_loss"]


def test_a_killed_run_ends_with_the_same_bits(shards, micro_model, tmp_path):
    """SIGKILL twice, at different places; then the same command to the end."""
    options = {"steps": 40, "save_every": 3, "mesh": "data=2"}
    run.main(arguments(shards, tmp_path / "whole", micro_model, **options))
    output = tmp_path / "killed"
    for after in (3, 18):
        process = start_run(arguments(shards, output, micro_model, **options))
        deadline = time.monotonic() + 120
        while not any((output / "checkpoints" / str(s)).exists() for s in range(after, 40)):
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (output / "model").exists()
    assert start_run(arguments(shards, output, micro_model, **options)).wait() == 0
    assert_same_run(output, tmp_path / "whole", 40)


def test_stages_are_one_run(shards, vocab_file, micro_model, tmp_path):
    """Short rows, then long ones, the learning rate over both; cut in the second and started
    again: as without a cut."""
    long_rows = tmp_path / "long"
    build(vocab_file, long_rows, "--seq-len", "48", "--held-out", "0.2")
    stages = f"{shards}:5,{long_rows}:4:16"
    given = {"steps": None, "stages": stages, "eval_every": 3, "log_every": 1}
    given["max_predictions"] = None
    given |= {"save_every": 2, "mesh": "data=1"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = run.main(arguments(None, whole, micro_model, **given))
    assert result["steps"] == 9
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, 10))
    rates = [line["learning_rate"] for line in lines]
    np.testing.assert_allclose(rates, [0, 5e-4, *(1e-3 * np.arange(7, 0, -1) / 7)], rtol=1e-6)
    # Epochs are those of the stage: 8 rows a step of the first, 16 of the second.
    counts = [read_json(path / "manifest.json")["rows"] for path in (shards, long_rows)]
    np.testing.assert_allclose(lines[4]["epoch"], 40 / counts[0])
    np.testing.assert_allclose(lines[6]["epoch"], 32 / counts[1])
    text = (whole / "metrics.jsonl").read_text().splitlines()
    held_out = {json.loads(x)["step"]: json.loads(x) for x in text if "held_out/" in x}
    assert list(held_out) == [3, 5, 6, 9]  # the end of a stage as well
    rows = [held_out[step]["held_out/sequences"] for step in (5, 6)]
    expected = [read_json(p / "held-out/manifest.json")["rows"] for p in (shards, long_rows)]
    assert rows == expected
    assert model_dir.load(whole / "model").info["max_seq_length"] == 48

    shutil.copytree(whole, cut)
    for step in (8, 9):
        shutil.rmtree(cut / "checkpoints" / str(step))
    run.main(arguments(None, cut, micro_model, **given))
    first, second = (load_params(path / "checkpoints")[0] for path in (whole, cut))
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True))
    other = given | {"stages": f"{shards}:4,{long_rows}:5:16"}
    with pytest.raises(UserError, match="holds a run with stages"):
        run.main(arguments(None, cut, micro_model, **other))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": None}, "--data and --steps are needed"),
        ({"stages": "a:5,b"}, "'b' is not of the form DATA:STEPS"),
        ({"stages": "a:0"}, "'a:0' is not of the form DATA:STEPS"),
        ({"stages": "a:5:12"}, "--batch-size 12 is not a multiple"),
    ],
)
def test_impossible_stages_are_refused(shards, micro_model, tmp_path, given, message):
    options = {"steps": None} | given
    with pytest.raises(UserError, match=re.escape(message)):
        run.main(arguments(None, tmp_path / "out", micro_model, **options))
    with pytest.raises(UserError, match="leave those out|are needed"):
        run.main(arguments(shards, tmp_path / "out", micro_model, **options))
    assert not (tmp_path / "out").exists()


def test_stages_are_parsed():
    settings = Settings(output="o", batch_size=8, learning_rate=1.0, stages="gs://b/x:10, y:2:16")
    assert planned(settings) == [("gs://b/x", 10, 8), ("y", 2, 16)]


def test_masks_by_length():
    """As BERT's: 20 of 128, 77 of 512."""
    assert [Masking().slots(t) for t in (64, 128, 512)] == [10, 20, 77]
    assert Masking(max_predictions=5).slots(512) == 5


def test_the_average_is_exported(shards, micro_model, tmp_path):
    """Three steps, by hand from the checkpoint of each."""
    options = {"steps": 3, "warmup_steps": 0, "save_every": 1, "ema_decay": 0.3, "mesh": "data=2"}
    run.main(arguments(shards, tmp_path / "out", micro_model, **options))
    average = merge.flatten(model_dir.load(micro_model).params)
    for count in (1, 2, 3):
        params = merge.flatten(load_params(tmp_path / "out" / "checkpoints", count)[0])
        decay = min(0.3, count / (count + 9))
        average = {k: decay * average[k] + (1 - decay) * params[k] for k in params}
    exported = merge.flatten(model_dir.load(tmp_path / "out" / "model").params)
    kernel = "bert/encoder/layer_0/attention/query/kernel"
    assert np.abs(exported[kernel] - params[kernel]).max() > 1e-5
    for path, array in exported.items():
        np.testing.assert_allclose(array, average[path], rtol=1e-6, atol=1e-7, err_msg=path)
    shutil.rmtree(tmp_path / "out" / "model")
    converted = source.load(tmp_path / "out", form="checkpoint")
    for path, array in merge.flatten(converted.params).items():
        np.testing.assert_array_equal(array, exported[path], err_msg=path)

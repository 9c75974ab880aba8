"""Fine-tuning end to end: what a run leaves, resuming, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from clue_jax.convert import model_dir, source
from clue_jax.errors import UserError
from finetune import evaluate, predict, run
from finetune.data import read_split
from finetune.forms.labels import rows as label_rows
from finetune.tasks import TASKS

CHARACTERS = "清晨五点渔港的灯一盏接地亮了起来"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """AFQMC's files with an easy rule: the label is whether the first text starts with 清."""
    folder = tmp_path_factory.mktemp("data") / "afqmc"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 90), ("dev", 37), ("test", 21)):
        lines = []
        for i in range(count):
            label = int(random.integers(2))
            first = ("清" if label else "灯") * 9 + "".join(
                random.choice(list(CHARACTERS), random.integers(1, 36))
            )
            record = {"sentence1": first, "sentence2": "来" * int(random.integers(1, 9))}
            record |= {"id": 1000 + i} if split == "test" else {"label": str(label)}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        (folder / f"{split}.json").write_text("".join(lines), encoding="utf-8")
    return folder


def options(data, output, model, **changes) -> list[str]:
    given = {
        "task": "afqmc", "model": model, "data_dir": data, "output": output, "epochs": 2,
        "batch_size": 16, "learning_rate": 3e-3, "seq_len": 64, "eval_every": 4, "log_every": 4,
        "dropout": 0.1, "mesh": "data=1",
    }  # fmt: skip
    out = []
    for name, value in {**given, **changes}.items():
        if value is not None:
            out += [f"--{name.replace('_', '-')}", str(value)]
    return out


@pytest.fixture(scope="module")
def finished(data, micro_model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("finetuned") / "out"
    run.main(options(data, output, micro_model, epochs=8, eval_every=8))
    return output


def test_a_run_learns_and_leaves_everything(finished, data):
    assert {path.name for path in finished.iterdir()} == {
        "best", "result.json", "metrics.jsonl", "settings.json", "tensorboard",
        "afqmc_predict.json",
    }  # fmt: skip
    result = json.loads((finished / "result.json").read_text())
    assert result["best_value"] > 0.9 and result["metric"] == "accuracy"
    assert result["best_value"] == max(entry["accuracy"] for entry in result["dev"])
    assert [entry["step"] for entry in result["dev"]] == [8, 16, 24, 32, 40, 48]
    lines = (finished / "afqmc_predict.json").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(1000, 1021))
    texts = (data / "test.json").read_text(encoding="utf-8").splitlines()
    right = [
        json.loads(line)["label"] == str(int(json.loads(text)["sentence1"].startswith("清")))
        for line, text in zip(lines, texts, strict=True)
    ]
    assert np.mean(right) > 0.8


def test_a_finished_run_is_not_run_again(finished, data, micro_model, capsys):
    before = (finished / "result.json").read_bytes()
    started = time.monotonic()
    run.main(options(data, finished, micro_model, epochs=8, eval_every=8))
    assert time.monotonic() - started < 5
    assert (finished / "result.json").read_bytes() == before


def test_transformers_reads_the_best_model(finished, data):
    """Its logits on the dev set are ours, and its labels the task's."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(finished / "best")
    assert theirs.config.id2label == {0: "0", 1: "1"}
    theirs = theirs.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished / "best")
    examples = read_split(TASKS["afqmc"], data, "dev")
    loaded = source.load(finished / "best")
    rows = label_rows(examples, TASKS["afqmc"], loaded.tokenizer, str, 64)
    correct = 0
    for i, example in enumerate(examples):
        encoded = tokenizer(example.text_a, example.text_b, return_tensors="pt")
        assert encoded["input_ids"][0].tolist() == rows.ids[i]
        with torch.no_grad():
            logits = theirs(**encoded).logits[0].numpy()
        correct += int(logits.argmax()) == rows.labels[i]
    result = json.loads((finished / "result.json").read_text())
    assert correct / len(examples) == result["best_value"]


@pytest.mark.parametrize(("mesh", "batch_size"), [("data=1", 64), ("data=8", 8)])
def test_evaluation_counts_every_example_once(finished, data, tmp_path, mesh, batch_size):
    result = json.loads((finished / "result.json").read_text())
    for n in (1, 7, 8, 9, 37):
        lines = (data / "dev.json").read_bytes().split(b"\n")[:n]
        (tmp_path / "dev.json").write_bytes(b"\n".join(lines) + b"\n")
        found = evaluate.main(
            ["--model", str(finished / "best"), "--input", str(tmp_path / "dev.json")]
            + ["--task", "afqmc", "--mesh", mesh, "--batch-size", str(batch_size)]
        )
        assert found["examples"] == n
        assert sum(part["examples"] for part in found["by_length"].values()) == n
        assert round(found["accuracy"] * n, 6) % 1 == 0
    assert found["accuracy"] == result["best_value"]


def test_the_confusion_matrix_is_drawn(finished, data, tmp_path):
    command = ["--model", str(finished / "best"), "--input", str(data / "dev.json")]
    evaluate.main([*command, "--confusion", str(tmp_path / "c.png")])
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_prediction_keeps_order_and_ids(finished, data, tmp_path):
    out = tmp_path / "p.json"
    command = ["--task", "afqmc", "--model", str(finished / "best"), "--output", str(out)]
    predict.main([*command, "--input", str(data / "test.json")])
    assert out.read_bytes() == (finished / "afqmc_predict.json").read_bytes()
    predict.main([*command, "--input", str(data / "dev.json"), "--batch-size", "8"])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(37))  # without ids, the row numbers


@pytest.mark.slow
def test_any_mesh_gives_the_same_training(data, micro_model, tmp_path):
    histories = []
    for mesh in ("data=1", "data=8", "data=2,fsdp=2,model=2"):
        # One bucket and one evaluation: two programs to compile for each mesh.
        changes = {"mesh": mesh, "epochs": 1, "seq_len": 32, "eval_every": 0}
        run.main(options(data, tmp_path / mesh, micro_model, **changes))
        histories.append(json.loads((tmp_path / mesh / "result.json").read_text())["dev"])
    for other in histories[1:]:
        for a, b in zip(histories[0], other, strict=True):
            assert a["step"] == b["step"]
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)


@pytest.mark.parametrize(
    "together, second", [(1, "8"), pytest.param(4, "10", marks=pytest.mark.slow)]
)
def test_a_killed_run_ends_with_the_same_bits(data, micro_model, tmp_path, together, second):
    """SIGKILL after the second evaluation, then the same command again; with several updates in a
    call an evaluation comes at the call's end."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes = {"mesh": "data=1", "epochs": 3, "steps_per_call": together}
    run.main(options(data, whole, micro_model, **changes))
    command = [sys.executable, "-m", "finetune.run"]
    command += options(data, cut, micro_model, **changes)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if (cut / "checkpoints" / second).is_dir():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (cut / "result.json").exists()
    run.main(options(data, cut, micro_model, **changes))
    results = [json.loads((f / "result.json").read_text()) for f in (whole, cut)]
    assert results[0]["dev"] == results[1]["dev"]
    for name in ("best/model.safetensors", "afqmc_predict.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()


def test_several_updates_in_a_call_on_a_mesh(data, micro_model, tmp_path):
    """What falls due inside a call comes at its end: 6 updates an epoch, 4 and 2 in a call."""
    changes = {"mesh": "data=2", "steps_per_call": 4, "eval_every": 5, "log_every": 3}
    run.main(options(data, tmp_path / "out", micro_model, **changes))
    text = (tmp_path / "out" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [4, 6, 10, 12]
    assert [line["step"] for line in lines if "dev/loss" in line] == [6, 10, 12]
    with pytest.raises(UserError, match="holds a run with steps_per_call 4, now 1"):
        run.main(options(data, tmp_path / "out", micro_model, **changes | {"steps_per_call": 1}))


def test_a_head_is_new_unless_it_is_kept(finished, data, micro_model, tmp_path):
    """One step at no rate to speak of: kept, the classifier is the trained one; new, another."""
    trained = source.load(finished / "best").params
    for head in ("keep", "new"):
        run.main(
            options(data, tmp_path / head, micro_model, init_from=finished / "best", head=head,
                    epochs=0.1, learning_rate=1e-9)
        )  # fmt: skip
        params = source.load(tmp_path / head / "best").params
        words = params["bert"]["embeddings"]["word_embeddings"]
        np.testing.assert_allclose(
            words, trained["bert"]["embeddings"]["word_embeddings"], atol=1e-6
        )
        difference = np.abs(params["classifier"]["kernel"] - trained["classifier"]["kernel"]).max()
        assert (difference < 1e-6) == (head == "keep")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "afqm"}, "--task 'afqm' is unknown; known: afqmc, "),
        ({"task": "diagnostics"}, "has no training set"),
        ({"task": "tnews"}, "holds no train.json of tnews|no field 'sentence'"),
        ({"data_dir": "/nowhere"}, "/nowhere: no such file or folder"),
        ({"model": "/nowhere"}, "/nowhere: no such file or folder"),
        ({"seq_len": 65}, "--seq-len 65: the model takes 4..64"),
        ({"batch_size": 12, "mesh": "data=8"}, "--batch-size 12 is not a multiple of 8"),
        ({"accumulate": 3}, "--batch-size 16 is not a multiple of --accumulate 3 times 1 devices"),
        ({"epochs": 0}, "--epochs 0.0 must be positive"),
        ({"limit": 0}, "--limit at least 1"),
        ({"head": "keep"}, "has no classifier to keep; --head new starts one"),
        ({"layer_decay": 0}, "--layer-decay in"),
        ({"seed": -1}, "--seed -1 must lie in 0..4294967295"),
        ({"seed": 2**32}, "--seed 4294967296 must lie in"),
        ({"dropout": 1}, r"--dropout 1.0 must lie in \[0, 1\)"),
        ({"epochs": "inf"}, "--epochs inf must be positive"),
        ({"weight_decay": -1}, "--weight-decay -1.0 must be finite"),
        ({"text": "t"}, "--text, --text-pair, --label and --kind belong to --task generic"),
        ({"kind": "multi"}, "belong to --task generic"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    data, micro_model, tmp_path, changes, message
):
    with pytest.raises(UserError, match=message):
        given = options(data, tmp_path / "out", changes.pop("model", micro_model), **changes)
        run.main(given)
    assert not list(tmp_path.iterdir())


def test_random_weights_leave_nothing_to_keep(finished, data, micro_model, tmp_path):
    for extra in (["--head", "keep"], ["--init-from", str(finished / "best")]):
        given = [*options(data, tmp_path / "out", micro_model), "--random-weights", *extra]
        with pytest.raises(UserError, match="--random-weights leaves nothing to keep"):
            run.main(given)
    assert not list(tmp_path.iterdir())


def test_own_files_must_lie_in_a_folder(data, micro_model, tmp_path):
    for place, message in ((data / "dev.json", "not a folder; unpack"), ("/no", "no such folder")):
        with pytest.raises(UserError, match=message):
            run.main(options(place, tmp_path / "out", micro_model, task="generic"))


def test_a_fault_in_a_test_file_is_found_first(data, micro_model, tmp_path):
    """Not after hours of training."""
    folder = tmp_path / "afqmc"
    shutil.copytree(data, folder)
    with (folder / "test.json").open("a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match="test.json, line 22: no field 'sentence1'"):
        run.main(options(folder, tmp_path / "out", micro_model))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_is_refused(finished, data, micro_model, tmp_path):
    """Other settings, other weights, and data that were edited since."""
    given = {"epochs": 8, "eval_every": 8}
    with pytest.raises(UserError, match="holds a run with seed 0, now 1"):
        run.main(options(data, finished, micro_model, seed=1, **given))
    tuned = finished / "best"
    with pytest.raises(UserError, match="holds a run with init_from None, now "):
        run.main(options(data, finished, micro_model, init_from=tuned, **given))
    shutil.copytree(micro_model, tmp_path / "model")
    loaded = source.load(micro_model)
    pooler = loaded.params["bert"]["pooler"]
    pooler["bias"] = pooler["bias"] + 1
    model_dir.save(tmp_path / "model", loaded.params, loaded.config, loaded.tokenizer, source="x")
    before = (finished / "settings.json").read_text()
    moved = before.replace(str(micro_model), str(tmp_path / "model"))
    (finished / "settings.json").write_text(moved)
    with pytest.raises(UserError, match="holds a run with model_sha256"):
        run.main(options(data, finished, tmp_path / "model", **given))
    config = loaded.config.replace(hidden_act="relu")
    model_dir.save(
        tmp_path / "model", source.load(micro_model).params, config, loaded.tokenizer, source="x"
    )
    with pytest.raises(UserError, match="holds a run with config_sha256"):
        run.main(options(data, finished, tmp_path / "model", **given))
    (finished / "settings.json").write_text(before)
    for split in ("train", "dev", "test"):
        folder = tmp_path / split / "afqmc"
        shutil.copytree(data, folder)
        text = (folder / f"{split}.json").read_text(encoding="utf-8")
        (folder / f"{split}.json").write_text(text.replace("来", "亮", 1), encoding="utf-8")
        with pytest.raises(UserError, match=f"holds a run with {split}_sha256"):
            run.main(options(folder, finished, micro_model, **given))


def test_a_run_that_was_moved_says_where_it_is(finished, data, micro_model, tmp_path):
    """With its data; settings that it knows nothing of are no reason to refuse it."""
    shutil.copytree(finished, tmp_path / "moved")
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "moved" / "settings.json"
    known = json.loads(path.read_text())
    known.pop("layer_decay")
    path.write_text(json.dumps(known | {"gone": 1}))
    given = options(tmp_path / "data", tmp_path / "moved", micro_model, epochs=8, eval_every=8)
    result = run.main(given)
    assert result["best"] == str(tmp_path / "moved" / "best")
    assert result["prediction"] == str(tmp_path / "moved" / "afqmc_predict.json")


def test_a_run_goes_on_on_other_devices(data, micro_model, tmp_path, monkeypatch):
    """Cut after its second evaluation on one device, ended on eight."""
    given = {"epochs": 2, "seq_len": 32, "dropout": 0.1}
    whole = run.main(options(data, tmp_path / "whole", micro_model, **given))
    with monkeypatch.context() as patch:
        patch.setattr(run.evaluation, "evaluate", fail_at(run.evaluation.evaluate, 3))
        with pytest.raises(KeyboardInterrupt):
            run.main(options(data, tmp_path / "cut", micro_model, **given))
    assert {p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()} == {"4", "8"}
    result = run.main(options(data, tmp_path / "cut", micro_model, **{**given, "mesh": "data=8"}))
    assert [entry["step"] for entry in result["dev"]] == [4, 8, 12]
    for ours, theirs in zip(result["dev"], whole["dev"], strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)


def fail_at(function, count):
    """The function, whose call of that number is interrupted."""
    calls = []

    def counted(*args):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        return function(*args)

    return counted


def test_a_model_of_another_task_is_refused(finished, data):
    for module in (evaluate, predict):
        command = ["--model", str(finished / "best"), "--input", str(data / "dev.json")]
        if module is predict:
            command += ["--output", "/nowhere/x"]
        with pytest.raises(UserError, match="is a model of afqmc with 2 labels"):
            module.main([*command, "--task", "tnews"])


def test_a_model_that_says_less(finished, data, tmp_path):
    """A directory as transformers writes it: the task must be named, the length is the model's."""
    shutil.copytree(finished / "best", tmp_path / "model")
    (tmp_path / "model" / "clue_jax.json").unlink()
    command = ["--model", str(tmp_path / "model"), "--input", str(data / "dev.json")]
    with pytest.raises(UserError, match="does not say what task it was trained on; --task names"):
        evaluate.main(command)
    result = json.loads((finished / "result.json").read_text())
    assert evaluate.main([*command, "--task", "afqmc"])["accuracy"] == result["best_value"]
    with pytest.raises(UserError, match=r"an unknown task with 2 labels \(0, 1\), not of tnews"):
        evaluate.main([*command, "--task", "tnews"])
    with pytest.raises(UserError, match="--seq-len 65: the model takes 4..64"):
        evaluate.main([*command, "--task", "afqmc", "--seq-len", "65"])


def test_half_a_surrogate_pair_is_kept(finished, tmp_path):
    """JSON may hold what UTF-8 cannot; as an id it comes back as it was."""
    row = '{"sentence1": "清\\ud83d", "sentence2": "来", "id": "\\ud800清"}\n'
    (tmp_path / "test.json").write_text(row, encoding="utf-8")
    predict.main(
        ["--model", str(finished / "best"), "--input", str(tmp_path / "test.json")]
        + ["--output", str(tmp_path / "p.json")]
    )
    line = (tmp_path / "p.json").read_bytes().decode("utf-8")
    assert json.loads(line)["id"] == "\ud800清" and "清" in line


def test_a_model_of_other_columns_is_refused(finished, data):
    command = ["--model", str(finished / "best"), "--input", str(data / "dev.json")]
    with pytest.raises(UserError, match="was not made by --task generic; its columns are unknown"):
        evaluate.main([*command, "--task", "generic"])
    with pytest.raises(UserError, match="--seq-len 0: the model takes 4..64"):
        evaluate.main([*command, "--seq-len", "0"])


def test_a_model_without_a_classifier_is_refused(micro_model, data):
    with pytest.raises(UserError, match="has no head for a task; finetune.run makes one"):
        evaluate.main(["--model", str(micro_model), "--input", str(data / "dev.json")])

"""Sweeps: each cell is the run alone; tables; cut and started again; refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT

from clue_jax import sharding
from clue_jax.errors import UserError
from finetune import evaluate, run, sweep
from finetune.job import dropout_key, prepare
from finetune.sweep_report import Cell

RATES, SEEDS = ("0.0003", "0.001"), ("0", "1", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """TNEWS's files with an easy rule."""
    folder = tmp_path_factory.mktemp("sweep_data") / "tnews"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 150), ("dev", 70), ("test", 20)):
        lines = []
        for i in range(count):
            which = int(random.integers(3))
            text = "清灯亮"[which] + "".join(
                random.choice(list("来村的水五"), random.integers(1, 24))
            )
            record = {"sentence": text}
            record |= {"id": i} if split == "test" else {"label": str(100 + which)}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        (folder / f"{split}.json").write_text("".join(lines), encoding="utf-8")
    return folder


def options(data, output, model) -> list[str]:
    return [
        "--task", "tnews", "--model", str(model), "--data-dir", str(data), "--output", str(output),
        "--epochs", "3", "--batch-size", "14", "--seq-len", "32", "--eval-every", "11",
        "--log-every", "1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def swept(data, micro_model, tmp_path_factory) -> Path:
    """Six cells on eight devices, so that two of them only fill up."""
    output = tmp_path_factory.mktemp("swept") / "out"
    given = ["--learning-rate", *RATES, "--seed", *SEEDS]
    sweep.main([*options(data, output, micro_model), *given])
    return output


def losses(output: Path, prefix: str = "") -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line[f"{prefix}loss"] for line in lines if f"{prefix}loss" in line]


def test_each_cell_is_the_run_alone(swept, data, micro_model, tmp_path):
    """Dropout on, 33 steps: losses, evaluations and what is chosen; the last batch is smaller."""
    result = json.loads((swept / "result.json").read_text())
    assert len(result["cells"]) == 6
    seen = []
    for cell in result["cells"]:
        rate, seed = cell["learning_rate"], cell["seed"]
        output = tmp_path / f"{rate}-{seed}"
        given = ["--no-buckets", "--mesh", "data=1", "--learning-rate", str(rate)]
        run.main([*options(data, output, micro_model), *given, "--seed", str(seed)])
        alone = losses(output)
        assert len(alone) == 33
        np.testing.assert_allclose(losses(swept, f"lr{rate:g}-seed{seed}/"), alone, rtol=1e-5)
        expected = json.loads((output / "result.json").read_text())
        assert cell["best_step"] == expected["best_step"]
        for ours, theirs in zip(cell["dev"], expected["dev"], strict=True):
            assert ours["accuracy"] == theirs["accuracy"] and ours["step"] == theirs["step"]
            np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
        seen.append(alone)
    distinct = {tuple(np.round(row, 4)) for row in seen}
    assert len(distinct) == 6, "two cells are the same run"


def test_side_by_side_as_in_turn(data, micro_model, tmp_path):
    """As accelerators and as CPUs take the cells, two on each of three devices."""
    settings = sweep.Settings(
        "tnews", str(micro_model), str(tmp_path / "out"), data_dir=str(data), batch_size=14,
        epochs=3, seq_len=32, buckets=False,
    )  # fmt: skip
    job = prepare(sweep._of_a_run(settings), sharding.make_mesh("data=1"))
    cells = [Cell(rate, seed) for rate in (3e-4, 1e-3) for seed in (0, 1, 2)]
    mesh = sharding.make_mesh("data=3")
    seeds = np.array([cell.seed for cell in cells])
    keys = sweep._put(jax.vmap(dropout_key)(seeds), mesh)
    rates = sweep._put(np.array([cell.learning_rate for cell in cells], np.float32), mesh)
    losses = []
    for side_by_side in (True, False):
        step = sweep.make_step(job, mesh, side_by_side)
        state = sweep.start_state(job, cells, mesh)
        rows = []
        for number in range(20):
            batches = [job.batch(number, cell.seed) for cell in cells]
            batch = {name: np.stack([b[name] for b in batches]) for name in batches[0]}
            state, sums = step(state, sweep._put(batch, mesh), keys, rates)
            rows.append(np.asarray(sums["loss_sum"]))
        assert int(state.step) == 20
        losses.append(np.array(rows))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(np.unique(losses[0][-1].round(3))) == 6


def test_the_table_by_hand(swept, data):
    result = json.loads((swept / "result.json").read_text())
    for row in result["rates"]:
        cells = [c for c in result["cells"] if c["learning_rate"] == row["learning_rate"]]
        values = [c["best_value"] for c in cells]
        mean = sum(values) / 3
        deviation = (sum((v - mean) ** 2 for v in values) / 2) ** 0.5
        np.testing.assert_allclose([row["mean"], row["deviation"]], [mean, deviation], atol=1e-12)
        assert row["best"] == max(values) and row["seeds"] == 3
        line = f"| {row['learning_rate']:g} | {100 * mean:.2f} | {100 * deviation:.2f} |"
        assert line in (swept / "table.md").read_text()
    assert result["best_value"] == max(c["best_value"] for c in result["cells"])
    assert (swept / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    # The model in best/ is the one that the table names.
    command = ["--model", str(swept / "best"), "--input", str(data / "dev.json")]
    assert evaluate.main(command)["accuracy"] == result["best_value"]
    assert len((swept / "tnews11_predict.json").read_text().splitlines()) == 20


@pytest.mark.slow
def test_cells_in_groups_and_cut_are_the_same(swept, data, micro_model, tmp_path):
    """Two groups of three, killed within the second."""
    given = options(data, tmp_path / "out", micro_model)
    given += ["--learning-rate", *RATES, "--seed", *SEEDS, "--at-once", "3", "--mesh", "data=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune.sweep", *given], cwd=ROOT, env=os.environ,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "out/group1/checkpoints/11").is_dir():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    sweep.main(given)
    results = [json.loads((p / "result.json").read_text()) for p in (swept, tmp_path / "out")]
    for ours, theirs in zip(results[0]["cells"], results[1]["cells"], strict=True):
        assert ours["best_step"] == theirs["best_step"]
        for a, b in zip(ours["dev"], theirs["dev"], strict=True):
            assert a["accuracy"] == b["accuracy"]
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    assert results[0]["best_cell"] == results[1]["best_cell"]


def test_a_sweep_goes_on_on_other_devices(swept, data, micro_model, tmp_path, monkeypatch):
    """Cut on one device, ended on eight, the grid named in another order."""
    rates, seeds = ["--learning-rate", *RATES], ["--seed", *SEEDS]
    evaluated = sweep._evaluate
    monkeypatch.setattr(
        sweep, "_evaluate",
        lambda *args: evaluated(*args) if args[-1] < 22 else pytest.fail("cut here"),
    )  # fmt: skip
    given = options(data, tmp_path / "out", micro_model)
    with pytest.raises(pytest.fail.Exception, match="cut here"):
        sweep.main([*given, *rates, *seeds, "--mesh", "data=1"])
    monkeypatch.undo()
    assert (tmp_path / "out/checkpoints/11").is_dir()
    result = sweep.main([*given, *rates[:1], *reversed(RATES), "--seed", *reversed(SEEDS)])
    expected = json.loads((swept / "result.json").read_text())
    for ours, theirs in zip(result["cells"], expected["cells"], strict=True):
        assert (ours["learning_rate"], ours["seed"]) == (theirs["learning_rate"], theirs["seed"])
        assert [entry["step"] for entry in ours["dev"]] == [11, 22, 33]
        for a, b in zip(ours["dev"], theirs["dev"], strict=True):
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_the_best_of_all_groups_is_kept(data, micro_model, tmp_path):
    """The first of two groups is the better one: the other comes apart, so that its loss is large,
    whatever it guesses."""
    given = ["--learning-rate", "1e-3", "30", "--at-once", "1", "--mesh", "data=1"]
    given += ["--epochs", "12", "--eval-every", "66", "--dropout", "0"]
    output = tmp_path / "out"
    result = sweep.main([*options(data, output, micro_model), *given])
    first, last = (cell["dev"][-1] for cell in result["cells"])
    assert first["accuracy"] > last["accuracy"] and 10 * first["loss"] < last["loss"]
    assert result["best_cell"]["learning_rate"] == 1e-3
    command = ["--model", str(output / "best"), "--input", str(data / "dev.json")]
    assert evaluate.main(command)["loss"] == pytest.approx(first["loss"])
    # Started again, it only tells.
    (output / "group0" / "checkpoints").mkdir()
    assert sweep.main([*options(data, output, micro_model), *given]) == result
    assert not (output / "group0" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--seed", "1", "1"], "--seed needs one or more different numbers"),
        (["--learning-rate", "1e-3", "1e-3"], "--learning-rate needs different positive numbers"),
        (["--learning-rate", "1e-3", "0"], "--learning-rate 0.0 must be positive"),
        (
            ["--seed", "0", "4294967296"],
            "--seed needs one or more different numbers from 0 to 4294",
        ),
        (["--at-once", "0"], "--at-once 0 must be at least 1"),
    ],
)
def test_impossible_grids_are_refused(data, micro_model, tmp_path, given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        sweep.main([*options(data, tmp_path / "out", micro_model), *given])
    assert not (tmp_path / "out").exists()


def test_a_sweep_of_another_grid_is_refused(swept, data, micro_model):
    given = ["--learning-rate", RATES[0], "--seed", *SEEDS]
    with pytest.raises(UserError, match="holds a run with learning_rate"):
        sweep.main([*options(data, swept, micro_model), *given])

"""Several real processes on this machine, which talk over its loopback, against one."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, arguments, metrics

from clue_jax import distributed, sharding
from clue_jax.checkpoint import load_params
from clue_jax.convert import merge, model_dir
from clue_jax.errors import UserError
from pretraining import run

STEPS = 50
LONG = {"steps": STEPS, "warmup_steps": 5, "save_every": 20, "log_every": 10, "eval_every": 25}


def start(count: int, given: list[str], output: Path, others: dict | None = None) -> list:
    """A run of so many processes, a device each; `others` maps a process to other options."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    output.mkdir(parents=True, exist_ok=True)
    processes = []
    for number in range(count):
        own = ["--coordinator", f"127.0.0.1:{port}", "--process-id", str(number)]
        own += ["--processes", str(count), *(others or {}).get(number, [])]
        with (output / f"process{number}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "pretraining.run", *given, *own],
                    cwd=ROOT, env=environment, stdout=log, stderr=log,
                )
            )  # fmt: skip
    return processes


def end(processes: list, seconds: float = 240) -> list[int]:
    """Their exit statuses."""
    deadline = time.monotonic() + seconds
    try:
        return [process.wait(deadline - time.monotonic()) for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_for(path: Path, processes: list, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes), path
        time.sleep(0.01)


@pytest.fixture(scope="module")
def alone(shards, micro_model, tmp_path_factory) -> Path:
    """The run in one process on one device, dropout on."""
    output = tmp_path_factory.mktemp("alone") / "out"
    run.main([*arguments(shards, output, micro_model, **LONG), "--mesh", "data=1"])
    return output


@pytest.mark.parametrize(
    ("count", "mesh"),
    [
        (2, "data=2"),
        pytest.param(4, "data=4", marks=pytest.mark.slow),
        pytest.param(4, "data=2,fsdp=2", marks=pytest.mark.slow),
    ],
)
def test_several_processes_are_as_one(alone, shards, micro_model, tmp_path, count, mesh):
    output = tmp_path / "out"
    given = [*arguments(shards, output, micro_model, **LONG), "--mesh", mesh]
    statuses = end(start(count, given, tmp_path))
    logs = [(tmp_path / f"process{i}.log").read_text() for i in range(count)]
    assert statuses == [0] * count, logs
    for ours, theirs in zip(metrics(output), metrics(alone), strict=True):
        assert ours["step"] == theirs["step"]
        np.testing.assert_allclose(ours["masked_lm_loss"], theirs["masked_lm_loss"], rtol=1e-5)
    lines = [(path / "metrics.jsonl").read_text() for path in (output, alone)]
    assert lines[0].count("held_out/most_frequent") == lines[1].count("held_out/most_frequent") == 2
    first, second = (
        merge.flatten(model_dir.load(path / "model").params) for path in (output, alone)
    )
    assert first.keys() == second.keys()
    scale = max(np.abs(array).max() for array in second.values())
    for path, array in second.items():
        np.testing.assert_allclose(first[path], array, rtol=1e-6, atol=1e-6 * scale, err_msg=path)
    # Process 0 alone speaks and writes.
    assert '"steps": 50' in logs[0] and not any('"steps"' in log for log in logs[1:])
    # The checkpoint goes on in one process, on other devices.
    params, step = load_params(output / "checkpoints")
    assert step == STEPS
    np.testing.assert_array_equal(
        merge.flatten(params)["bert/pooler/kernel"], first["bert/pooler/kernel"]
    )


@pytest.mark.slow
def test_sigterm_to_one_stops_all_at_the_same_step(shards, micro_model, tmp_path):
    output = tmp_path / "out"
    endless = LONG | {"steps": 100_000, "eval_every": 0, "save_every": 20, "steps_per_call": 5}
    processes = start(2, arguments(shards, output, micro_model, **endless), tmp_path)
    wait_for(output / "checkpoints" / "20", processes)
    processes[1].send_signal(signal.SIGTERM)
    statuses = end(processes, 60)
    logs = [(tmp_path / f"process{i}.log").read_text() for i in range(2)]
    assert statuses == [143, 143], logs
    said = [log.split("stopped by SIGTERM; step ")[1].split(" ")[0] for log in logs]
    assert said[0] == said[1]
    assert load_params(output / "checkpoints")[1] == int(said[0])


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_dead_process_ends_the_other(shards, micro_model, tmp_path, victim):
    output = tmp_path / "out"
    endless = LONG | {"steps": 100_000, "eval_every": 0, "save_every": 20}
    processes = start(2, arguments(shards, output, micro_model, **endless), tmp_path)
    wait_for(output / "checkpoints" / "20", processes)
    processes[victim].kill()
    killed = time.monotonic()
    statuses = end(processes, 60)
    seconds = time.monotonic() - killed
    print(f"the other left after {seconds:.1f} s")
    assert seconds < 60
    other = (tmp_path / f"process{1 - victim}.log").read_text()
    assert statuses[1 - victim] != 0
    # Which of the two comes first is chance: ours, or that of jax's own watch.
    assert re.search(
        "error: the processes of this run cannot go on together|another task died", other
    ), other
    assert load_params(output / "checkpoints")[1] >= 20


def test_processes_with_other_commands_are_refused(shards, micro_model, tmp_path):
    output = tmp_path / "out"
    given = arguments(shards, output, micro_model)
    processes = start(2, given, tmp_path, {1: ["--seed", "5"]})
    assert end(processes) == [1, 1]
    for i in range(2):
        log = (tmp_path / f"process{i}.log").read_text()
        assert "error: process 1 has another command or data than process 0" in log
    assert not output.exists() or not any(output.iterdir())


def test_half_named_processes_are_refused(monkeypatch):
    with pytest.raises(UserError, match="given together"):
        distributed.start("127.0.0.1:1234", 0, None)
    with pytest.raises(UserError, match="expected HOST:PORT"):
        distributed.start("localhost", 0, 2)
    with pytest.raises(UserError, match="must lie in 0..1"):
        distributed.start("localhost:1234", 2, 2)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UserError, match="JAX_PROCESS_ID is 'first', expected a number"):
        distributed.start()


def test_one_process_has_all_rows():
    mesh = sharding.make_mesh("data=2,fsdp=4")
    assert distributed.own_rows(16, mesh).tolist() == list(range(16))
    whole = distributed.to_host({"x": jax.numpy.arange(4.0)}, mesh)["x"]
    assert isinstance(whole, np.ndarray) and whole.tolist() == [0, 1, 2, 3]

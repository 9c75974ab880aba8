"""Runs that are cut end with the bits of those that were not: wherever the cut falls, whatever the
batches look like, on any number of devices, with several updates in one program."""

from __future__ import annotations

import os
import random
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
from orbax.checkpoint import v1 as ocp
from test_run import assert_same_run, start_run

from clue_jax.errors import UserError
from clue_jax.files import read_json
from pretraining import run


def assert_same_bits(one: Path, other: Path, step: int) -> None:
    """Of parameters, optimizer state and step, as they lie in the checkpoints."""
    read = [checkpoint(path, step) for path in (one, other)]
    assert read[0].keys() == read[1].keys() and any("opt_state" in name for name in read[0])
    for name, array in read[0].items():
        assert array.tobytes() == read[1][name].tobytes(), name


def checkpoint(output: Path, step: int) -> dict[str, np.ndarray]:
    parts = ("params", "opt_state")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def like(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

    with ocp.training.Checkpointer(output / "checkpoints") as checkpointer:
        known = checkpointer.checkpointables_metadata(step).metadata
        items = checkpointer.load_checkpointables(
            step, {part: jax.tree.map(like, known[part]) for part in parts}
        )
    leaves = jax.tree_util.tree_leaves_with_path(items)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


# ---- Several updates in one program --------------------------------------------------------------


def test_several_steps_in_a_call(shards, micro_model, tmp_path):
    """Seven steps in calls of four, whole and cut; the numbers are those of single steps."""
    given = {"steps": 7, "log_every": 4, "save_every": 4, "mesh": "data=2"}
    one, four, cut = (tmp_path / name for name in ("one", "four", "cut"))
    for output, count in ((one, 1), (four, 4)):
        run.main(arguments(shards, output, micro_model, **given, steps_per_call=count))
    shutil.copytree(four, cut)
    shutil.rmtree(cut / "checkpoints" / "7")
    run.main(arguments(shards, cut, micro_model, **given, steps_per_call=4))
    assert_same_bits(four, cut, 7)
    assert [line["step"] for line in metrics(four)] == [4, 7]
    lines = [metrics(output) for output in (one, four, cut)]
    for name in ("masked_lm_loss", "gradient_norm", "learning_rate", "epoch"):
        numbers = [[line[name] for line in some] for some in lines]
        np.testing.assert_allclose(numbers[1:], [numbers[0]] * 2, rtol=1e-6)
    first = checkpoint(one, 7)
    for name, array in checkpoint(four, 7).items():
        np.testing.assert_allclose(array, first[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", ["save_every", "log_every", "eval_every"])
def test_calls_end_where_something_is_due(shards, micro_model, tmp_path, name):
    given = {"save_every": 4, "log_every": 4, "eval_every": 4} | {name: 6}
    with pytest.raises(UserError, match=f"{name.replace('_', '-')} 6 is not a multiple of"):
        run.main(arguments(shards, tmp_path / "no", micro_model, **given, steps_per_call=4))


# ---- Kills ---------------------------------------------------------------------------------------

# A run that ends itself with SIGKILL where the n-th save is: argument POINT:N.
KILLED_INSIDE = """
import os, shutil, signal, sys
from orbax.checkpoint import v1 as ocp
from clue_jax import checkpoint
point, left = sys.argv.pop(1).split(":")
left = int(left)

def die_at(owner, name, here, after=False, only=lambda *given: True):
    function = getattr(owner, name)
    def wrapped(*given, **named):
        global left
        hit = here == point and only(*given)
        left -= hit
        result = function(*given, **named) if after or not (hit and left == 0) else None
        if hit and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapped)

takes_its_name = lambda source, target: os.path.basename(str(target)).isdigit()
die_at(checkpoint, "checksums", "before anything is written")
die_at(ocp.training.Checkpointer, "save_checkpointables_async", "while arrays are written", True)
die_at(os, "rename", "before it takes its name", only=takes_its_name)
die_at(os, "rename", "after it took its name", True, takes_its_name)
die_at(shutil, "rmtree", "before an old one is removed")
from pretraining import run
run.main()
"""
POINTS = (
    "before anything is written", "while arrays are written", "before it takes its name",
    "after it took its name", "before an old one is removed",
)  # fmt: skip


@pytest.mark.slow
def test_twenty_kills_end_with_the_same_bits(shards, micro_model, tmp_path):
    """Ten inside a save, at five places, and ten at random moments of start-up, training and
    saving; then the same command to the end. Dropout is on."""
    options = {"steps": 1200, "save_every": 5, "mesh": "data=2"}
    whole, output = tmp_path / "whole", tmp_path / "killed"
    run.main(arguments(shards, whole, micro_model, **options))
    given = arguments(shards, output, micro_model, **options)
    script = tmp_path / "killed_inside.py"
    script.write_text(KILLED_INSIDE)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    chance = random.Random(0)
    done = 0
    for kill in range(20):
        if kill % 2:
            place = f"{POINTS[kill // 2 % len(POINTS)]}:{chance.randint(4, 8)}"
            command = [sys.executable, str(script), place, *given]
            with (tmp_path / "log").open("w") as log:
                status = subprocess.run(command, env=environment, stdout=log, stderr=log).returncode
            assert status == -signal.SIGKILL, (place, (tmp_path / "log").read_text())
        else:
            process = start_run(given)
            target, deadline = chance.choice((None, done + 15)), time.monotonic() + 120
            if target is None:  # while it starts, or soon after
                time.sleep(chance.uniform(0.5, 8))
            else:
                while newest(output) < target:
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.002)
                time.sleep(chance.uniform(0, 0.1))
            assert process.poll() is None, "ended before it could be killed"
            process.kill()
            process.wait()
        assert newest(output) >= done  # nothing that was saved is lost
        done = newest(output)
    print(f"killed 20 times on the way to step {done}")
    assert 50 < done < 1200 and not (output / "model").exists()
    assert start_run(given).wait() == 0
    assert_same_run(output, whole, 1200)
    assert_same_bits(output, whole, 1200)


def newest(output: Path) -> int:
    steps = [int(path.name) for path in (output / "checkpoints").glob("*") if path.name.isdigit()]
    return max(steps, default=0)


# ---- Every kind of batch -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["lossless", "original"])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_cut_changes_no_bit(packing, accumulate, devices, vocab_file, micro_model, tmp_path):
    """Cut at the last step of an epoch, where the next batch has rows of two, and in the middle of
    one; packed rows and padded ones. Dropout is on."""
    data = tmp_path / "shards"
    build(vocab_file, data, "--packing", packing)
    rows = read_json(data / "manifest.json")["rows"]
    edge = rows // 32  # the batch behind it begins in one epoch and ends in the next
    assert rows % 32 and edge >= 2
    given = {"steps": edge + 4, "save_every": 1, "batch_size": 32, "accumulate": accumulate}
    given["mesh"] = f"data={devices}"
    whole = tmp_path / "whole"

    for cut in (edge, edge + 2):
        # Runs end at their checkpoints; the newest three are kept.
        output = tmp_path / f"cut{cut}"
        stop_after(cut, lambda o=output: run.main(arguments(data, o, micro_model, **given)))
        assert newest(output) == cut
        run.main(arguments(data, output, micro_model, **given))
        if not whole.exists():
            run.main(arguments(data, whole, micro_model, **given))
        assert_same_bits(output, whole, edge + 4)
        names = ("model/model.safetensors", "tf/bert_model.ckpt.data-00000-of-00001")
        assert all((output / n).read_bytes() == (whole / n).read_bytes() for n in names)


def stop_after(step: int, start) -> None:
    """Ends a run as an interrupt would, behind the save of a step."""
    save = run.Checkpoints.save

    def save_and_stop(checkpoints, state, meta):
        save(checkpoints, state, meta)
        if int(state.step) == step:
            checkpoints.wait()
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.Checkpoints, "save", save_and_stop)
        start()

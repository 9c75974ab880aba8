"""Damaged checkpoints: found, passed over, never taken for whole ones."""

from __future__ import annotations

import dataclasses
import errno
import gc
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import arguments, metrics

from clue_jax import optim, sharding
from clue_jax.checkpoint import Checkpoints, checksums
from clue_jax.errors import UserError
from clue_jax.train_state import TrainState, abstract, new_state
from pretraining import run


@pytest.fixture
def unawaited():
    """Orbax leaves coroutines and callbacks behind when it cannot read; Python says so when they
    are freed, which is to happen here and not in some later test."""
    yield
    gc.collect()


def saved(directory, steps=(2, 4)) -> TrainState:
    """Checkpoints of a small state whose arrays differ by step; the one that was saved last."""
    random = np.random.default_rng(0)
    mesh = sharding.make_mesh("data=2,fsdp=2,model=2")
    params = {"bert": {"pooler": {"kernel": random.normal(size=(16, 8)).astype(np.float32)}}}
    state = new_state(lambda: params, optim.adamw(lambda s: 0.1, b2=0.9), mesh)
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            arrays = jax.tree.map(lambda x: x + 1, state.params)
            state = dataclasses.replace(state, step=jnp.int32(step), params=arrays)
            state = jax.device_put(state, sharding.state_shardings(state, mesh))
            checkpoints.save(state, {"some": "settings"})
    return state


def same(a: TrainState, b: TrainState) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("unawaited")
def test_any_flipped_byte_is_found(tmp_path, caplog):
    """Whatever byte of the newest checkpoint flips: what is read is what was saved, or the
    checkpoint before it is read and said; never anything else."""
    state = saved(tmp_path / "whole")
    before = saved(tmp_path / "before", steps=(2,))
    files = sorted(path for path in (tmp_path / "whole" / "4").rglob("*") if path.is_file())
    random = np.random.default_rng(1)
    found = {"whole": 0, "before": 0}
    for i, file in enumerate(files * 2):
        directory = tmp_path / f"flipped{i}"
        shutil.copytree(tmp_path / "whole", directory)
        victim = directory / file.relative_to(tmp_path / "whole")
        content = bytearray(victim.read_bytes())
        if not content:
            continue
        content[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
        victim.write_bytes(content)
        caplog.clear()
        with Checkpoints(directory) as checkpoints:
            restored = checkpoints.restore(abstract(state))
        step = int(restored.step)
        assert same(restored, {4: state, 2: before}[step]), victim
        found["whole" if step == 4 else "before"] += 1
        if step == 2:
            assert f"{directory}/4: " in caplog.text
            assert "going on from step 2" in caplog.text
            assert (directory / "damaged-4").is_dir()
    assert found["before"] >= 8  # other flips hit what nobody reads


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    """And stays where it is: it is not damaged."""
    state = saved(tmp_path)
    bigger = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*x.shape[:-1], 16), x.dtype, sharding=x.sharding)
        if x.ndim else x,
        abstract(state),
    )  # fmt: skip
    with Checkpoints(tmp_path) as checkpoints:
        message = r"kernel is of shape \[16, 8\] there, of shape \[16, 16\] in this run; it is"
        with pytest.raises(UserError, match=message):
            checkpoints.restore(bigger)
        kernel = abstract(state).params["bert"]["pooler"]["kernel"]
        for params, fault in (
            (
                {"bert": {"pooler": {"kernel": kernel, "more": kernel}}},
                "more is absent there, of",
            ),
            (
                {"bert": {"pooler": {"other": kernel}}},
                "kernel is of shape .* there, absent in this",
            ),
        ):
            like = dataclasses.replace(abstract(state), params=params)
            with pytest.raises(UserError, match=fault):
                checkpoints.restore(like)
        with pytest.raises(UserError, match="opt_state.* there, absent in this run"):
            checkpoints.restore(dataclasses.replace(abstract(state), opt_state=()))
        assert same(checkpoints.restore(abstract(state)), state)
    assert {path.name for path in tmp_path.iterdir()} == {"2", "4"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("unawaited")
def test_changed_numbers_are_found_even_if_the_files_are_sound(tmp_path, monkeypatch, caplog):
    state = saved(tmp_path)
    directory = tmp_path / "other"
    with Checkpoints(directory) as checkpoints:
        wrong = checksums({"params": state.params, "opt_state": state.opt_state})
        wrong["params/bert/pooler/kernel"] ^= 1
        monkeypatch.setattr("clue_jax.checkpoint.checksums", lambda tree: wrong)
        checkpoints.save(state, {})
        checkpoints.wait()
        monkeypatch.undo()
        with pytest.raises(UserError, match=r"all checkpoints are damaged \(steps 4\)"):
            checkpoints.restore(abstract(state))
    assert "damaged; params/bert/pooler/kernel is not what was saved" in caplog.text


def test_checksums_see_every_change_and_no_mesh():
    random = np.random.default_rng(0)
    array = random.normal(size=(8, 6)).astype(np.float32)
    plain = checksums({"a": array})
    mesh = sharding.make_mesh("data=1,fsdp=4,model=2")
    split = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "model"))
    assert checksums({"a": jax.device_put(array, split)}) == plain
    words = array.view(np.uint32).astype(np.uint64).ravel()
    weights = (np.arange(48, dtype=np.uint64) * 2654435761 % 2**32) | 1
    assert plain == {"a": int(np.sum(words * weights % 2**32) % 2**32)}
    for i in range(48):
        for bit in range(32):
            changed = array.copy()
            changed.view(np.uint32).ravel()[i] ^= np.uint32(1 << bit)
            assert int(np.sum(changed.view(np.uint32).ravel() * weights) % 2**32) != plain["a"]
    assert checksums({"a": array[::-1]}) != plain


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("unawaited")
def test_damaged_checkpoints_are_passed_over(finished, shards, micro_model, tmp_path, caplog):
    """The two newest of three are damaged: the run goes on from the third, to the same end."""
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    shutil.rmtree(output / "model")
    for step in (4, 6):
        for path in (output / "checkpoints" / str(step) / "params").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:10])
    with caplog.at_level(logging.WARNING):
        run.main(arguments(shards, output, micro_model, eval_every=3))
    assert "checkpoints/6: cannot be read" in caplog.text
    assert "checkpoints/4: cannot be read" in caplog.text
    assert "going on from step 2" in caplog.text
    weights = "model/model.safetensors"
    assert (output / weights).read_bytes() == (finished / weights).read_bytes()
    assert [line["step"] for line in metrics(output)] == [2, 4, 6]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("unawaited")
def test_a_run_never_starts_anew_by_itself(finished, shards, micro_model, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    for step in (2, 4, 6):
        shutil.rmtree(output / "checkpoints" / str(step) / "params")
    for _ in range(2):  # nor when it is started once more
        message = r"all checkpoints are damaged \(steps 6, 4, 2\); remove"
        with pytest.raises(UserError, match=message):
            run.main(arguments(shards, output, micro_model, eval_every=3))
    assert [line["step"] for line in metrics(output)] == [2, 4, 6]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        OSError(errno.EMFILE, "Too many open files"),
        ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes."),
    ],
)
def test_what_the_machine_lacks_is_no_damage(tmp_path, monkeypatch, error):
    """A checkpoint that cannot be read now keeps its name, and is read the next time."""
    state = saved(tmp_path)

    def refuse(*_):
        raise RuntimeError("loading failed") from error

    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(type(checkpoints._checkpointer), "load_checkpointables", refuse)
            with pytest.raises(UserError, match=r"4: cannot be read .*; it is left as it is"):
                checkpoints.restore(abstract(state))
        assert same(checkpoints.restore(abstract(state)), state)

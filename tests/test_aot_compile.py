"""Compiling for a TPU that is not there, and reading what the compiler says of the program."""

import importlib.util
import json
import math
import re
import subprocess
import sys

import pytest
from conftest import ROOT, micro_config

from clue_jax.config import PRESETS
from clue_jax.convert.names import shapes
from clue_jax.data.batches import PRETRAINING_BATCH
from clue_jax.sharding import make_mesh
from pretraining.examples import Examples
from pretraining.masking import Masking
from pretraining.program import NEXT_SENTENCE_ONLY
from tools import aot_compile, hlo
from tools.chips import flops_per_token, peak_teraflops

# Two operations in the entry, and a loop of three trips around one operation and one sum of two
# arrays over all devices.
PROGRAM = """HloModule step, is_scheduled=true

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]) parameter(0)
  %fusion.2 = bf16[4,8]{1,0:T(8,128)(2,1)} fusion(%p), calls=%f, metadata={op_name="jit(step)/layer_0/mul"}, backend_config={"estimated_cycles":"100"}
  %all-reduce.1 = (f32[4,8]{1,0}, bf16[3]{0}) all-reduce(%fusion.2), to_apply=%add
}

%cond (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[], f32[4,8]) parameter(0)
}

%scattered (b: f32[4,8]) -> f32[2,8] {
  %b = f32[4,8]{1,0} parameter(0)
  ROOT %reduce-scatter.2 = f32[2,8]{1,0} reduce-scatter(%b), dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %dot.1 = f32[4,8]{1,0} dot(%a, %a), metadata={op_name="jit(step)/layer_1/mul"}, backend_config={"estimated_cycles":"7"}
  %copy.5 = f32[4,8]{0,1} copy(%dot.1), backend_config={"estimated_cycles":"20"}
  %gather_fusion = f32[4,8]{0,1} fusion(%copy.5), kind=kCustom, calls=%picked, metadata={op_name="jit(step)/jit(_take)/gather"}
  %scatter.9 = f32[2,8]{1,0} fusion(%copy.5), kind=kCustom, calls=%scattered
  %start = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%a), dimensions={0}
  %done = f32[16,8]{1,0} all-gather-done(%start)
  ROOT %while.1 = (s32[], f32[4,8]) while(%copy.5), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU's compiler, is not there"
)


def test_cycles_and_messages_count_once_a_trip():
    read = hlo.read(PROGRAM)
    assert read.cycles == {"layer/mul": 7 + 3 * 100, "copy": 20}
    assert read.total_cycles == 327
    assert read.counts == {"all-reduce": 3, "all-gather": 1, "reduce-scatter": 1}
    assert read.collectives == {
        "all-reduce": 3 * (4 * 8 * 4 + 3 * 2),
        "all-gather": 16 * 8 * 4,
        "reduce-scatter": 2 * 8 * 4,  # within a fusion
    }


def test_what_has_no_estimate_is_counted():
    assert hlo.read(PROGRAM).without_estimate == {"jit(_take)/gather": 1}


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match=r"trips of loop while\.1 are not known"):
        hlo.read(PROGRAM.replace("known_trip_count", "other"))
    with pytest.raises(ValueError, match="no entry"):
        hlo.read("nothing")


@pytest.mark.parametrize(
    ("preset", "seq_len", "mflop"),
    [
        ("tiny", 128, 32.4), ("tiny", 512, 38.0), ("tiny3l312", 128, 24.9),
        ("tiny3l768", 128, 137), ("base", 128, 530), ("base", 512, 572), ("large", 512, 1971),
    ],
)  # fmt: skip
def test_arithmetic_of_a_token(preset, seq_len, mflop):
    """Against figures worked out apart from this code."""
    masked = 20 * seq_len / 128
    assert flops_per_token(PRESETS[preset], seq_len, masked) / 1e6 == pytest.approx(mflop, rel=4e-3)


def test_peaks_are_of_a_device():
    assert peak_teraflops("TPU v3") == 61.5  # a core, of which a chip has two
    assert peak_teraflops("NVIDIA H200") == peak_teraflops("NVIDIA H100 80GB HBM3")
    assert peak_teraflops("cpu") is None


def test_the_table_of_a_batch_is_what_a_batch_is(shards):
    """What is compiled without data has the shapes of the data."""
    batch = Examples(shards, None, Masking("whole-word", 0.15, 5), 0).step(0, 4, 0)
    letters = {"B": 4, "T": 32, "M": 5}
    described = {
        name: (tuple(letters[letter] for letter in dims), dtype)
        for name, (dims, dtype) in PRETRAINING_BATCH.items()
    }
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == described


def test_data_parallel_devices_exchange_each_gradient_once():
    """The word embedding, which is used twice, is no exception."""
    config = micro_config(1003).replace(max_position_embeddings=64)
    settings = aot_compile.Settings(
        topology="", batch_size=64, seq_len=32, dtype="float32", prng="threefry2x32"
    )
    read = hlo.read(aot_compile.lower(settings, config, make_mesh("data=8")).compile().as_text())
    assert set(read.counts) == {"all-reduce"}
    trained = sum(
        math.prod(shape) for path, shape in shapes(config).items()
        if not re.search(NEXT_SENTENCE_ONLY, path)
    )  # fmt: skip
    sums = 16  # losses and counts, numbers each
    assert 0 <= read.collectives["all-reduce"] - 4 * trained <= 4 * sums


def run(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.aot_compile", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is there")
def test_without_the_compiler_it_says_what_to_install():
    done = run("--topology", "v3:2x2", "--batch-size", "64")
    assert done.returncode == 1
    assert "pip install" in done.stderr and done.stderr.count("\n") == 1


@needs_libtpu
def test_an_unknown_topology_is_refused():
    done = run("--topology", "v99:2x2", "--batch-size", "64")
    assert done.returncode == 1
    assert "--topology v99:2x2" in done.stderr.splitlines()[-1]


@needs_libtpu
@pytest.mark.slow
def test_a_step_for_eight_cores():
    options = ["--topology", "v3:2x2", "--preset", "tiny3l312", "--batch-size", "64"]
    result = json.loads(run(*options).stdout.splitlines()[-1])
    assert result["fits"] and result["devices"] == 8
    assert 0 < result["estimated_ms_per_step"] < 20
    assert result["hbm_bytes_per_device"] < 1e9
    assert set(result["collectives"]) == {"all-reduce"}


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_said():
    options = ["--topology", "v3:2x2", "--preset", "tiny3l312", "--batch-size", "32768"]
    result = json.loads(run(*options).stdout.splitlines()[-1])
    assert not result["fits"] and result["reason"]
    assert aot_compile.TPUS["TPU v3"].hbm == 16 * 2**30

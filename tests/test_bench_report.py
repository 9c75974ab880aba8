"""Results as the benchmarks print them become tables of the page, and the page is kept to them."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from clue_jax.errors import UserError
from tools import bench_report, bench_step
from tools.result_tables import TABLES

PAGE = """# Results

<!-- results: step step_*.json -->
old
<!-- end of results -->

Words behind.
"""


@pytest.fixture
def results(tmp_path):
    """A page and the results of two models."""
    (tmp_path / "page.md").write_text(PAGE)
    folder = tmp_path / "results"
    folder.mkdir()
    for preset, ms in (("base", 1234.56), ("tiny", 250.0)):
        result = {
            "preset": preset, "batch_size": 32, "seq_len": 128, "dtype": "float32",
            "device": "cpu", "ms_per_step": ms, "slots_per_second": 4096000 / ms, "mfu": None,
            "command": f"python -m tools.bench_step --preset {preset}", "date": "2026-11-26",
            "machine": "2 cores, any", "jax": "0.10.2",
        }  # fmt: skip
        (folder / f"step_{preset}.json").write_text(json.dumps(result))
    return tmp_path


def report(folder, *options: str) -> dict:
    given = ["--page", str(folder / "page.md"), "--results", str(folder / "results")]
    return bench_report.main([*given, *options])


def test_a_table_has_the_numbers_and_their_commands(results):
    assert report(results)["changed"]
    assert (
        (results / "page.md").read_text()
        == """# Results

<!-- results: step step_*.json -->

| model | B | T | type | device | ms a step | slots a second |
| --- | --- | --- | --- | --- | --- | --- |
| tiny | 32 | 128 | float32 | 2 cores, any | 250.0 | 16,384 |
| base | 32 | 128 | float32 | 2 cores, any | 1,234.6 | 3,318 |

2026-11-26, 2 cores, any, jax 0.10.2.

```
python -m tools.bench_step --preset tiny
python -m tools.bench_step --preset base
```

<!-- end of results -->

Words behind.
"""
    )
    assert not report(results)["changed"]


def test_a_page_that_is_not_what_the_results_give_is_refused(results):
    with pytest.raises(UserError, match="its tables are not those of"):
        report(results, "--check")
    assert "old" in (results / "page.md").read_text()
    report(results)
    assert not report(results, "--check")["changed"]


def test_what_is_missing_or_unknown_is_said(results):
    page = results / "page.md"
    page.write_text(PAGE.replace("step_*", "stop_*"))
    with pytest.raises(UserError, match=r"holds no stop_\*\.json"):
        report(results)
    page.write_text(PAGE.replace("results: step", "results: stop"))
    with pytest.raises(
        UserError, match="no table of kind 'stop'; known: agreement, shards, .*, tpu, step"
    ):
        report(results)


def test_the_picture_shows_the_steps_of_a_v3_8(results):
    result = {"topology": "v3:2x2", "job": "train", "preset": "tiny", "batch_size": 1024}
    result["estimated_ms_per_step"] = 40.0
    (results / "results" / "tpu_v3_tiny.json").write_text(json.dumps(result))
    report(results, "--picture", str(results / "speed.png"))
    assert (results / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_of_this_project_is_made_of_its_results():
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench_report", "--check"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_step_is_timed_and_says_how(capsys):
    given = ["--preset", "tiny3l312", "--batch-size", "8", "--seq-len", "16", "--mesh", "data=1"]
    bench_step.main([*given, "--steps", "1", "--windows", "2"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["ms_per_step_min"] <= printed["ms_per_step"] <= printed["ms_per_step_max"]
    assert printed["slots_per_second"] == pytest.approx(128_000 / printed["ms_per_step"], rel=0.01)
    assert printed["date"] and printed["machine"] and printed["command"].startswith("python ")
    assert all(of(printed) is not None for _, of in TABLES["step"])


def test_runs_tell_of_their_evaluations(results):
    """A run is a row with the score of every evaluation, and its curve a row for each."""
    run = {
        "task": "tnews", "metric": "accuracy", "best_value": 0.5, "train_examples": 1000,
        "steps": 8, "seconds": 61.2, "date": "2026-11-27", "machine": "any",
        "command": "python -m x --seq-len 64",
        "curve": [
            {"step": 4, "accuracy": 0.4, "masked_lm_loss": 2.0, "masked_lm_accuracy": 0.2},
            {"step": 8, "accuracy": 0.5, "masked_lm_loss": 1.0, "masked_lm_accuracy": 0.3},
        ],
    }  # fmt: skip
    (results / "results" / "run.json").write_text(json.dumps(run))
    blocks = [f"<!-- results: {kind} run.json -->\n<!-- end of results -->" for kind in
              ("finetuning", "curve")]  # fmt: skip
    (results / "page.md").write_text("\n".join(blocks))
    report(results)
    page = (results / "page.md").read_text()
    assert "| tnews | 1,000 | 64 | 8 | accuracy | 40.00, 50.00 | 50.00 % | 61 |" in page
    assert "| 4 | 2.000 | 20.0 % |\n| 8 | 1.000 | 30.0 % |" in page

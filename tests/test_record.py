"""A command's last line of JSON is kept with how it came about, and the curve of its run."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from clue_jax.errors import UserError
from tools import record

PROGRAM = """
import json, sys
print("working")
print(json.dumps({"task": "tnews", "best_value": 0.5, "given": sys.argv[1:]}))
print()
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def test_the_result_of_a_command_is_kept(program, tmp_path, capfd):
    output = tmp_path / "kept.json"
    record.main(["--output", str(output), "--", "python", program, "--rate", "2e-4", "a b"])
    kept = json.loads(output.read_text())
    assert kept["given"] == ["--rate", "2e-4", "a b"]
    assert kept["command"] == f"python {program} --rate 2e-4 'a b'"
    assert kept["best_value"] == 0.5 and kept["command_seconds"] < 60
    assert {"date", "revision", "machine", "python", "jax"} <= kept.keys()
    assert capfd.readouterr().out.splitlines()[0] == "working"


def test_memory_is_that_of_the_command(tmp_path):
    """Each in a process of its own, since a process knows the largest of all its children only."""
    peaks = []
    for size in (1, 400_000_000):
        code = f"block = b'x' * {size}; print('{{}}')"
        command = [sys.executable, "-m", "tools.record", "--output", str(tmp_path / "kept.json")]
        subprocess.run(
            [*command, "--", sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True
        )
        peaks.append(json.loads((tmp_path / "kept.json").read_text())["peak_mb"])
    assert peaks[1] > 400 and peaks[1] - peaks[0] > 200


def test_the_curve_is_what_was_measured_on_held_out_data(program, tmp_path):
    lines = [
        {"step": 1, "loss": 2.0, "accuracy": 0.1},
        {"step": 1, "dev/loss": 2.5, "dev/accuracy": 0.2},
        {"step": 2, "held_out/masked_lm_loss": 3.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "kept.json"
    record.main(["--output", str(output), "--curve", str(tmp_path), "--", "python", program])
    assert json.loads(output.read_text())["curve"] == [
        {"step": 1, "loss": 2.5, "accuracy": 0.2},
        {"step": 2, "masked_lm_loss": 3.0},
    ]


@pytest.mark.parametrize(
    "code, said",
    [
        ("raise SystemExit(3)", "ended with status 3"),
        ("print('done')", "does not end with a line of JSON but with 'done'"),
        ("", "does not end with a line of JSON but with ''"),
        ("print('[1, 2]')", "does not end with an object of JSON"),
    ],
)
def test_nothing_is_kept_of_a_command_without_a_result(code, said, tmp_path):
    output = tmp_path / "kept.json"
    with pytest.raises(UserError, match=said):
        record.main(["--output", str(output), "--", sys.executable, "-c", code])
    assert not output.exists()


@pytest.mark.parametrize(
    "command, said",
    [([], "say what to run behind --"), (["no-such-program"], "no-such-program: ")],
)
def test_a_command_that_cannot_run_is_refused(command, said, tmp_path):
    with pytest.raises(UserError, match=said):
        record.main(["--output", str(tmp_path / "kept.json"), "--", *command])

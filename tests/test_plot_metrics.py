"""Pictures of runs show the numbers of their metrics."""

from __future__ import annotations

import json

import pytest

from clue_jax.errors import UserError
from tools import plot_metrics


def write(folder, *records):
    folder.mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 9, "lo')  # cut short by a kill
    return str(folder)


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.pyplot.close", figures.append)
    return figures


def lines_of(axis) -> dict:
    return {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}


def test_a_run_of_pretraining(tmp_path, drawn):
    run = write(
        tmp_path / "run",
        {"step": 1, "masked_lm_loss": 3.0, "masked_lm_accuracy": 0.25},
        {"step": 2, "masked_lm_loss": 2.0, "masked_lm_accuracy": 0.5},
        {"step": 2, "held_out/masked_lm_loss": 2.5, "held_out/masked_lm_accuracy": 0.375,
         "held_out/most_frequent_token_accuracy": 0.125},
    )  # fmt: skip
    found = plot_metrics.main(["--run", run, "--output", str(tmp_path / "a.png")])
    assert found["steps"] == 2 and (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    loss, accuracy = drawn[0].axes
    assert lines_of(loss) == {"training": [[1, 3], [2, 2]], "held out": [[2, 2.5]]}
    assert lines_of(accuracy)["held out"] == [[2, 0.375]]
    floor = lines_of(accuracy)["always the most frequent token"]
    assert {height for _, height in floor} == {0.125}


def test_runs_of_fine_tuning_together(tmp_path, drawn):
    """Each by the score that chooses its best."""
    a = write(tmp_path / "a", {"step": 3, "dev/loss": 1.5, "dev/accuracy": 0.9, "dev/f1": 0.5})
    b = write(
        tmp_path / "b", {"step": 1, "loss": 2.0, "accuracy": 0.25},
        {"step": 4, "dev/loss": None, "dev/accuracy": 0.75},
    )  # fmt: skip
    plot_metrics.main(["--run", a, b, "--output", str(tmp_path / "a.svg")])
    loss, score = drawn[0].axes
    assert lines_of(score) == {
        "a, dev": [[3, 0.5]], "b, training": [[1, 0.25]], "b, dev": [[4, 0.75]],
    }  # fmt: skip
    assert lines_of(loss)["b, training"] == [[1, 2]]


def test_what_is_no_run(tmp_path):
    write(tmp_path / "empty")
    with pytest.raises(UserError, match="holds no entry yet"):
        plot_metrics.main(["--run", str(tmp_path / "empty"), "--output", "/nowhere/x.png"])
    (tmp_path / "metrics.jsonl").write_text("x\ny\n")
    with pytest.raises(UserError, match="not the metrics of a run"):
        plot_metrics.main(["--run", str(tmp_path), "--output", "/nowhere/x.png"])
    run = write(tmp_path / "run", {"step": 1, "loss": 1.0})
    with pytest.raises(UserError, match="x.abc: "):
        plot_metrics.main(["--run", run, "--output", str(tmp_path / "x.abc")])

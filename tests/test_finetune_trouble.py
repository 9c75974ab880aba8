"""Fine-tuning that does not go well: what is said of it, and when it stops."""

from __future__ import annotations

import io
import json
import logging

import pytest
from test_finetune import data, fail_at, options  # noqa: F401 (a fixture)

from clue_jax.errors import UserError
from finetune import run


def test_a_run_without_gain_stops_early(data, micro_model, tmp_path):  # noqa: F811
    """At no rate to speak of nothing gets better after the first evaluation."""
    given = options(
        data, tmp_path / "out", micro_model, learning_rate=1e-30, patience=2, eval_every=1
    )
    result = run.main(given)
    assert (result["best_step"], result["last_step"], result["steps"]) == (1, 3, 12)
    assert (tmp_path / "out" / "afqmc_predict.json").exists()


def test_a_run_that_training_undid_is_told(data, micro_model, tmp_path, caplog, monkeypatch):  # noqa: F811
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)  # as absl leaves one: level and module before the text
    handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers, handler])
    for name, rate in (("dead", 3.0), ("alive", 3e-3)):
        run.main(options(data, tmp_path / name, micro_model, learning_rate=rate, eval_every=12))
    last = f"{tmp_path / 'dead'}, step 12: the model answers the same whatever it reads; if that"
    assert last in [line[: len(last)] for line in stream.getvalue().splitlines()]
    assert "answers the same" in caplog.text and "alive" not in caplog.text


def test_a_run_that_came_apart_goes_on(data, micro_model, tmp_path, monkeypatch):  # noqa: F811
    """Numbers that are none stand in its log as null, and are worse than any when read again."""
    given = options(data, tmp_path / "out", micro_model, learning_rate=1e30, eval_every=2, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(run.evaluation, "evaluate", fail_at(run.evaluation.evaluate, 2))
        with pytest.raises(KeyboardInterrupt):
            run.main(given)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("dev/loss", 0) is None for line in lines)
    with pytest.raises(UserError, match="the gradient was not finite in steps 3 to 5"):
        run.main(given)

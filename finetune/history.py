"""The evaluations of a run: which is the best, and when to stop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from clue_jax.files import read_text
from finetune.forms import FORMS
from finetune.task import Task

Entry = dict[str, Any]


def better(a: Entry, b: Entry, task: Task) -> bool:
    """Whether evaluation `a` beats the earlier `b`: a higher score, or the same with less loss;
    what is not a number is worse than any."""
    metric = FORMS[task.kind].metric
    (score, loss), (other, other_loss) = ((e[metric], -e["loss"]) for e in (a, b))
    return (_at_worst(score), _at_worst(loss)) > (_at_worst(other), _at_worst(other_loss))


def _at_worst(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def best(history: list[Entry], task: Task) -> Entry | None:
    """The best evaluation; of equal ones the earliest."""
    chosen = None
    for entry in history:
        if chosen is None or better(entry, chosen, task):
            chosen = entry
    return chosen


def stopped(history: list[Entry], patience: int, task: Task) -> bool:
    """Whether the last `patience` evaluations brought nothing better."""
    if not patience or not history:
        return False
    return len(history) - 1 - history.index(best(history, task)) >= patience


def dev_history(output: Path, step: int, prefix: str = "dev/") -> list[Entry]:
    """The evaluations up to a step, out of the metrics of a run that was cut.

    Args:
      output: of the run.
      step: later ones are left out.
      prefix: of their names in metrics.jsonl.
    """
    path = output / "metrics.jsonl"
    if not path.exists():
        return []
    history = []
    for line in read_text(path).split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line that a kill cut short
        if f"{prefix}loss" in record and record["step"] <= step:
            dev = {k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)}
            dev = {k: math.nan if v is None else v for k, v in dev.items()}
            history.append({"step": record["step"], **dev})
    return history

"""What a form of task has to be able to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clue_jax.text import Tokenizer
from finetune.rows import Rows
from finetune.task import Content, Task

# Of each unit; arrays of their own where they are as long as the row.
Logits = np.ndarray | list[np.ndarray]


@dataclass(frozen=True)
class Form:
    """How a kind of task goes from files to rows, and from logits to answers.

    Attributes:
      read: (task, content, labelled, answers) -> examples; raises UserError with file and line.
      rows: (examples, task, tokenizer, normalize, T) -> rows.
      scores: (task, rows, logits) -> named numbers.
      answers: (task, rows, logits) -> id and answer of each example, in order.
      metric: the score that chooses the best checkpoint; larger is better.
      details: (task, rows, logits) -> what else an evaluation tells.
      per_token: whether logits are as long as the rows.
    """

    read: Callable[[Task, Content, bool, Content | None], list[Any]]
    rows: Callable[[Sequence[Any], Task, Tokenizer, Callable[[str], str], int], Rows]
    scores: Callable[[Task, Rows, Logits], dict[str, float]]
    answers: Callable[[Task, Rows, Logits], list[tuple[Any, Any]]]
    metric: str
    details: Callable[[Task, Rows, Logits], dict[str, Any]] = lambda task, rows, logits: {}
    per_token: bool = False

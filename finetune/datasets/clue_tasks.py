"""The tasks of CLUE for TFDS: `tfds.load("clue_tasks/tnews")`.

The texts are those of fine-tuning: marks, joined keywords and the like are in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from finetune.data import download, is_published, read_split
from finetune.forms import choices, labels, spans, tags
from finetune.task import Task
from finetune.tasks import TASKS

_ABOUT = "CLUE, a Chinese language understanding evaluation benchmark: https://cluebenchmarks.com"
_CITATION = """\
@inproceedings{xu-etal-2020-clue,
  title = "{CLUE}: A {C}hinese Language Understanding Evaluation Benchmark",
  author = "Xu, Liang and others",
  booktitle = "Proceedings of the 28th International Conference on Computational Linguistics",
  year = "2020",
}"""


class ClueTask(tfds.core.BuilderConfig):
    """A task and the version of the benchmark, which chooses the test set.

    Attributes:
      task: its name.
      benchmark: "1.0" or "1.1".
    """

    def __init__(self, name: str, task: str, benchmark: str):
        super().__init__(name=name, description=f"{task}, CLUE {benchmark}")
        self.task = task
        self.benchmark = benchmark


def _configs() -> list[ClueTask]:
    """`NAME` is the task as in CLUE 1.1; where the test set of 1.0 was another, `NAME_1.0` too."""
    configs = []
    for name, task in TASKS.items():
        if is_published(task):
            configs.append(ClueTask(name, name, "1.1"))
            if task.test.get("1.0", task.test.get("1.1")) != task.test.get("1.1"):
                configs.append(ClueTask(f"{name}_1.0", name, "1.0"))
    return configs


def _label_features(task: Task) -> dict[str, Any]:
    text = tfds.features.Text()
    return {"text_a": text, "text_b": text, "label": tfds.features.ClassLabel(names=task.labels)}


def _label_values(example: labels.Example) -> dict[str, Any]:
    label = -1 if example.label is None else example.label
    return {"text_a": example.text_a, "text_b": example.text_b or "", "label": label}


def _span_features(task: Task) -> dict[str, Any]:
    text = tfds.features.Text()
    answers = tfds.features.Sequence({"text": text, "answer_start": np.int32})
    return {"context": text, "question": text, "answers": answers}


def _span_values(example: spans.Question) -> dict[str, Any]:
    answers = [{"text": text, "answer_start": start} for text, start in example.answers]
    return {"context": example.context, "question": example.question, "answers": answers}


def _choice_features(task: Task) -> dict[str, Any]:
    text = tfds.features.Text()
    choices = tfds.features.Sequence(text)
    return {"passage": text, "question": text, "choices": choices, "label": np.int64}


def _choice_values(example: choices.Question | choices.Blank) -> dict[str, Any]:
    """Of a blank, the question is its tag in the passage."""
    is_question = isinstance(example, choices.Question)
    return {
        "passage": example.passage if is_question else "".join(example.words),
        "question": example.question if is_question else example.tag,
        "choices": list(example.choices),
        "label": -1 if example.label is None else example.label,
    }


def _tag_features(task: Task) -> dict[str, Any]:
    tags = tfds.features.Sequence(tfds.features.ClassLabel(names=task.labels))
    return {"units": tfds.features.Sequence(tfds.features.Text()), "tags": tags}


def _tag_values(example: tags.Tagged) -> dict[str, Any]:
    return {"units": list(example.units), "tags": list(example.tags)}


# Of each form: what an example holds beside its id.
_FORMS = {
    "single": (_label_features, _label_values),
    "spans": (_span_features, _span_values),
    "choice": (_choice_features, _choice_values),
    "tags": (_tag_features, _tag_values),
}


class ClueTasks(tfds.core.GeneratorBasedBuilder):
    """Texts, label and id of every example; without labels in a test set they are -1 or empty.

    Args:
      source: a folder with the official zips or with their files, or a zip; default the official
        address, downloaded to clue_jax's cache.
      mirror: a folder or URL with the zips, in place of that address.
      kwargs: TFDS's own, such as `config` and `data_dir`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = _configs()

    def __init__(
        self, *, source: str | os.PathLike | None = None, mirror: str | None = None, **kwargs: Any
    ):
        self._source = source
        self._mirror = mirror
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        task = TASKS[self.builder_config.task]
        return self.dataset_info_from_configs(
            description=_ABOUT,
            homepage="https://github.com/CLUEbenchmark/CLUE",
            citation=_CITATION,
            features=tfds.features.FeaturesDict(
                _FORMS[task.kind][0](task) | {"id": tfds.features.Text()}
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # the project's own downloads resume, and are compared with the first one
        config = self.builder_config
        task = TASKS[config.task]
        place = self._source or download(task, mirror=self._mirror)[0]
        splits = {"train": task.train, "validation": task.dev, "test": task.test[config.benchmark]}
        of_files = {"validation": "dev"}
        found = {
            name: read_split(task, place, of_files.get(name, name), config.benchmark)
            for name, file in splits.items()
            if file
        }
        return {name: self._generate_examples(e) for name, e in found.items() if e is not None}

    def _generate_examples(self, examples: list[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        values = _FORMS[TASKS[self.builder_config.task].kind][1]
        for number, example in enumerate(examples):
            yield number, values(example) | {"id": str(example.id)}

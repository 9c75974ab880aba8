"""Work on pieces by Apache Beam: on this machine, or by Flink, Spark or Dataflow on many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clue_jax.errors import Interrupted, UserError
from clue_jax.files import write_json

if TYPE_CHECKING:
    from pretraining.pieces import Task


def run_tasks(tasks: Sequence[Task], options: Sequence[str]) -> None:
    """Runs all tasks; each leaves its result in its file, wherever it ran.

    Args:
      tasks: with results that all machines can reach.
      options: of Beam, such as --runner=FlinkRunner.

    Raises:
      UserError: without Apache Beam.
      Interrupted: if the pipeline failed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError("--engine beam needs Apache Beam: pip install apache-beam") from error
    try:
        # A piece is minutes of work: each is given to a worker of its own.
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _ = pipeline | beam.Create(list(tasks)) | beam.Reshuffle() | beam.Map(run_task)
    except Exception as error:  # of the runner, in as many types as there are runners
        reason = str(error).strip().split("\n")[-1][:300]
        raise Interrupted(
            f"the Beam pipeline failed ({reason}); the same command goes on with what is left to do"
        ) from error


def run_task(task: Task) -> None:
    """Runs a task. Of what is wrong with the user's files the message takes the result's place: a
    runner would try again, and bury it."""
    try:
        task.run()
    except Interrupted:  # of a disk or a store: what a runner tries again for
        raise
    except UserError as error:
        write_json(task.result, str(error))

"""A model on many tasks: trains each, writes a report, and packs the submission."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from clue_jax.compilation import keep_compiled
from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_file, check_local, json_text, write_json, write_text
from clue_jax.runlog import show_warnings
from clue_jax.sharding import make_mesh
from finetune import evaluate, predict, run, submission
from finetune.data import read_split
from finetune.job import prepare
from finetune.settings import check_claim
from finetune.submission_faults import expected_files, file_faults
from finetune.tasks import TASKS

# The tasks of each version, in the order of its table. CMNLI counts in 1.1 as well, though its site
# takes OCNLI's answers in the place of CMNLI's.
_READING = ("cmrc2018", "chid", "c3")
CLUE = {
    "1.0": ("afqmc", "tnews", "iflytek", "cmnli", "cluewsc2020", "csl", *_READING),
    "1.1": ("afqmc", "tnews", "iflytek", "cmnli", "ocnli", "cluewsc2020", "csl", *_READING),
}
# The diagnostics have no training set; the model of this task answers them.
DIAGNOSED_BY = {"1.0": "cmnli", "1.1": "ocnli"}


@dataclass(frozen=True)
class Settings:
    """Fine-tunes a model on CLUE's tasks, each into OUTPUT/TASK.

    Ends with OUTPUT/report.md, report.json, curves.png and submission.zip. Started again with the
    same command, it goes on where it was cut. Options left out are those of each task's recipe.
    """

    model: str
    """Published name, model directory, TF-BERT checkpoint or zip."""
    output: str
    """Folder for everything."""
    tasks: str = "all"
    """all, or names with commas between them."""
    data_root: str | None = None
    """Folder with the official zips, or a folder for each task (default: the official zips,
    downloaded to the cache)."""
    version: Literal["1.0", "1.1"] = "1.1"
    """Of the benchmark."""
    recipe: Literal["default", "original"] = "default"
    """original: the original's scripts."""
    epochs: float | None = None
    """Passes over each training set."""
    batch_size: int | None = None
    """B."""
    learning_rate: float | None = None
    """The largest."""
    seq_len: int | None = None
    """T."""
    eval_every: int | None = None
    """Steps between evaluations; 0 evaluates after each epoch."""
    seed: int = 0
    """Of everything random."""
    limit: int | None = None
    """Use the first so many examples of each set only; the zip says so."""
    mesh: str | None = None
    """Devices by axis, such as data=8 (default: all on data)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the computation (default: float32 on CPU, bfloat16 elsewhere)."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the report."""
    show_warnings()
    settings = tyro.cli(Settings, args=argv)
    keep_compiled()
    started = time.monotonic()
    check_local(settings.output)
    output = Path(settings.output)
    names = _names(settings)
    diagnostics = _look_ahead(settings, names)
    results = {}
    for number, name in enumerate(names, 1):
        print(f"== {number}/{len(names)} {name}", flush=True)
        results[name] = run.run(_of_task(settings, name))
    report = _report(settings, results)
    files = [Path(r["prediction"]) for r in results.values() if r.get("prediction")]
    if diagnostics:
        files.append(_diagnose(settings, results, diagnostics))
    sound, report["faults"] = _checked(settings, files)
    zipped = output / "submission.zip"
    zipped.unlink(missing_ok=True)
    if sound:
        submission.pack(sound, str(zipped), settings.version, settings.limit)
        report["submission"] = zipped.name
    write_json(output / "report.json", report)
    write_text(output / "report.md", _markdown(report))
    _draw(results, output / "curves.png")
    seconds = round(time.monotonic() - started, 1)
    scores = {name: task["score"] for name, task in report["tasks"].items()}
    summary = {"average": report["average"], "scores": scores, "seconds": seconds}
    summary |= {"report": str(output / "report.md"), "submission": str(zipped) if sound else None}
    print(json_text(summary))
    if report["faults"]:  # said at the end: no reason to lose what was trained
        raise UserError(f"{zipped}: packed without {'; '.join(report['faults'])}")
    return report


def _names(settings: Settings) -> list[str]:
    if settings.tasks == "all":
        return list(CLUE[settings.version])
    names = [name.strip() for name in settings.tasks.split(",") if name.strip()]
    unknown = [name for name in names if name not in TASKS or not TASKS[name].train]
    if unknown or not names:
        known = ", ".join(name for name, task in TASKS.items() if task.train)
        raise UserError(f"--tasks {settings.tasks!r}: known are {known}")
    return names


def _of_task(settings: Settings, name: str) -> run.Settings:
    """The settings of a task's run."""
    shared = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(Settings)
        if field.name not in ("output", "tasks", "data_root")
    }
    output = str(Path(settings.output) / name)
    return run.Settings(task=name, data_dir=settings.data_root, output=output, **shared)


def _look_ahead(settings: Settings, names: list[str]) -> list[Any] | None:
    """Does what comes before the training of every task, so that no fault is found hours later.

    Returns:
      The examples of the diagnostics, if their file and a task that answers them are there.
    """
    mesh = make_mesh(settings.mesh)
    root, version = settings.data_root, settings.version
    for name in names:
        job = prepare(_of_task(settings, name), mesh)
        check_claim(Path(job.settings.output), job.fixed, job.digests)
    if DIAGNOSED_BY[version] not in names:
        return None
    examples = read_split(TASKS["diagnostics"], root, "test", version, settings.limit)
    if examples is None:
        logging.warning("diagnostics: no test file was found, so they are not answered")
    return examples


def _diagnose(settings: Settings, results: dict[str, dict[str, Any]], examples: list[Any]) -> Path:
    """Answers the diagnostics with the model of the task that is closest to them."""
    task, solver = TASKS["diagnostics"], results[DIAGNOSED_BY[settings.version]]
    path = Path(settings.output) / task.name / task.submission[settings.version]
    mesh = make_mesh(settings.mesh)
    predict.predict(
        solver["best"], task, examples, path, solver["settings"]["seq_len"],
        evaluate.eval_batch_size(1, mesh), mesh, settings.dtype,
    )  # fmt: skip
    return path


def _checked(settings: Settings, files: list[Path]) -> tuple[dict[str, Path], list[str]]:
    """The predictions that can be submitted, by name, and what is wrong with the others."""
    expected = expected_files(settings.version)
    sound, faults = {}, []
    for file in files:
        if file.name in expected:
            data = file.read_bytes()
            wrong = file_faults(file.name, data, settings.version, None, settings.limit)
            faults += wrong
            if not wrong:
                sound[file.name] = file
    return sound, faults


def _report(settings: Settings, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was reached. Without times of day, so that a run that was cut reports the same."""
    tasks = {}
    for name, result in results.items():
        chosen = result["dev"][[d["step"] for d in result["dev"]].index(result["best_step"])]
        tasks[name] = {
            "metric": result["metric"],
            "best_value": result["best_value"],
            "score": chosen[TASKS[name].board_metric or result["metric"]],
            "majority": chosen.get("majority", chosen.get("by_chance")),
            "best_step": result["best_step"],
            "steps": result["steps"],
            "train_examples": result["train_examples"],
            "seconds": result["seconds"],
            "dev": result["dev"],
        }
    values = [task["score"] for task in tasks.values()]
    return {
        "model": settings.model,
        "version": settings.version,
        "seed": settings.seed,
        "limit": settings.limit,
        "tasks": tasks,
        "average": sum(values) / len(values),
    }


def _markdown(report: dict[str, Any]) -> str:
    lines = [
        f"# CLUE {report['version']}: {report['model']}",
        "",
        f"Best checkpoint on dev, seed {report['seed']}."
        + (f" **The first {report['limit']} examples of each set only.**" * bool(report["limit"])),
        "",
        "| task | chosen by | dev | counts | the commonest | best step | examples | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, task in report["tasks"].items():
        floor = "" if task["majority"] is None else f"{100 * task['majority']:.2f}"
        lines.append(
            f"| {name} | {task['metric']} | {100 * task['best_value']:.2f} | "
            f"{100 * task['score']:.2f} | {floor} | "
            f"{task['best_step']} of {task['steps']} | {task['train_examples']:,} | "
            f"{task['seconds']} |"
        )
    lines += [f"| **average** | | | {100 * report['average']:.2f} | | | | |", ""]
    lines += ["![Score on dev by step](curves.png)", ""]
    if report["faults"]:
        lines += ["Not in the submission:", "", *(f"- {fault}" for fault in report["faults"]), ""]
    return "\n".join(lines)


def _draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, result in results.items():
        steps = [entry["step"] / result["steps"] for entry in result["dev"]]
        axis.plot(
            steps, [entry[result["metric"]] for entry in result["dev"]], marker="o", label=name
        )
    axis.set(xlabel="share of the training", ylabel="score on dev")
    axis.grid(alpha=0.3)
    axis.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)

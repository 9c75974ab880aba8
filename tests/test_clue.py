"""finetune.clue: several tasks, a report and a submission, whole or cut and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from clue_jax.errors import UserError
from finetune import clue, submission


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Small files of two tasks: one in a folder, one in its official zip."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)

    def lines(task: str, split: str, count: int) -> str:
        out = []
        for i in range(count):
            which = int(random.integers(2))
            text = "清灯"[which] + "来" * int(random.integers(1, 20))
            record = (
                {"sentence1": text, "sentence2": "亮"} if task == "afqmc" else {"sentence": text}
            )
            label = str(which) if task == "afqmc" else ("100", "116")[which]
            record |= {"id": i} if split == "test" else {"label": label}
            out.append(json.dumps(record, ensure_ascii=False) + "\n")
        return "".join(out)

    sizes = {"train": 48, "dev": 16, "test": 40}
    (root / "afqmc").mkdir()
    with zipfile.ZipFile(root / "tnews_public.zip", "w") as archive:
        for split, count in sizes.items():
            (root / "afqmc" / f"{split}.json").write_text(lines("afqmc", split, count), "utf-8")
            archive.writestr(f"tnews_public/{split}.json", lines("tnews", split, count))
    return root


def options(data: Path, model: Path, output: Path) -> list[str]:
    return [
        "--model", str(model), "--data-root", str(data), "--output", str(output),
        "--tasks", "afqmc,tnews", "--limit", "40", "--epochs", "2", "--batch-size", "8",
        "--learning-rate", "3e-3", "--seq-len", "32", "--eval-every", "2", "--mesh", "data=1",
    ]  # fmt: skip


def without_times(report: dict) -> dict:
    for task in report["tasks"].values():
        task.pop("seconds")
    report.pop("submission")
    return report


def test_a_cut_run_ends_with_the_same_report(data, micro_model, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    clue.main(options(data, micro_model, whole))
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    command = [sys.executable, "-m", "finetune.clue", *options(data, micro_model, cut)]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (cut / "tnews" / "checkpoints" / "2").is_dir():  # within the second task
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert (cut / "afqmc" / "result.json").exists() and not (cut / "report.json").exists()
    clue.main(options(data, micro_model, cut))
    reports = [json.loads((folder / "report.json").read_text()) for folder in (whole, cut)]
    assert without_times(reports[0]) == without_times(reports[1])
    assert (whole / "submission.zip").read_bytes() == (cut / "submission.zip").read_bytes()

    report = reports[0]
    values = [report["tasks"][name]["best_value"] for name in ("afqmc", "tnews")]
    assert report["average"] == sum(values) / 2 == summary["average"]
    assert (whole / "curves.png").read_bytes()[:4] == b"\x89PNG"
    text = (whole / "report.md").read_text(encoding="utf-8")
    assert f"| tnews | accuracy | {100 * values[1]:.2f} |" in text and "first 40 examples" in text
    with zipfile.ZipFile(whole / "submission.zip") as archive:
        assert archive.namelist() == ["afqmc_predict.json", "tnews11_predict.json"]
        row = json.loads(archive.read("tnews11_predict.json").splitlines()[0])
        assert row["label"] in ("100", "116") and row["label_desc"] == ""
    checked = ["check", str(whole / "submission.zip"), "--data-root", str(data)]
    assert submission.main(checked)["faults"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--tasks", "afqmc,nothing"], "--tasks 'afqmc,nothing': known are afqmc, "),
        (["--tasks", "diagnostics"], "known are"),
        (["--tasks", "afqmc,csl"], "holds no train.json of csl, nor csl_public.zip"),
    ],
)
def test_faults_are_found_before_anything_is_trained(data, micro_model, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        clue.main([*options(data, micro_model, tmp_path / "out"), *changes])
    assert not (tmp_path / "out").exists()


def test_a_report_is_written_though_the_zip_cannot_be(data, micro_model, tmp_path, capsys):
    """Without --limit the predictions of a cut test set are no submission; that is said at the end,
    and costs neither the report nor the exit status 1. Files that lie there are not packed."""
    output = tmp_path / "out"
    given = options(data, micro_model, output)
    at = given.index("--limit")
    given = [*given[:at], *given[at + 2 :], "--tasks", "afqmc", "--epochs", "1"]
    (output / "old").mkdir(parents=True)
    (output / "old" / "csl_predict.json").write_text("{}")
    with pytest.raises(UserError, match="afqmc_predict.json: 40 rows, the test set has 3861") as e:
        clue.main(given)
    assert "csl" not in str(e.value)
    assert "40 rows" in (output / "report.md").read_text(encoding="utf-8")
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    report = json.loads((output / "report.json").read_text())
    assert summary["submission"] is None and "40 rows" in report["faults"][0]
    assert summary["average"] == report["average"] and (output / "report.md").exists()
    assert not (output / "submission.zip").exists()


def test_faults_of_settings_and_folders_are_found_first(data, micro_model, tmp_path):
    """A later task whose folder is another run's, or whose texts need more room."""
    given = [*options(data, micro_model, tmp_path / "out"), "--epochs", "1"]
    (tmp_path / "out" / "tnews").mkdir(parents=True)
    (tmp_path / "out" / "tnews" / "settings.json").write_text('{"seq_len": 16}')
    with pytest.raises(UserError, match="tnews: holds a run with seq_len 16, now 32"):
        clue.main(given)
    assert not (tmp_path / "out" / "afqmc").exists()
    entry = {"question": "清" * 40, "id": "Q", "answers": [{"text": "来", "answer_start": 0}]}
    article = {"paragraphs": [{"context": "来", "qas": [entry]}]}
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "cmrc2018").mkdir()
    for split in ("train", "dev"):
        path = tmp_path / "data" / "cmrc2018" / f"{split}.json"
        path.write_text(json.dumps({"data": [article]}), encoding="utf-8")
    given = options(tmp_path / "data", micro_model, tmp_path / "new")
    with pytest.raises(UserError, match="leaves no room in 16"):
        clue.main([*given, "--tasks", "afqmc,cmrc2018", "--seq-len", "16"])
    assert not (tmp_path / "new").exists()


def test_faults_in_any_file_are_found_first(data, micro_model, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    for split, fault in (("train", "line 49: no field 'label'"), ("test", "line 41: no field")):
        path = root / "afqmc" / f"{split}.json"
        text = path.read_bytes()
        path.write_bytes(text + b"{}\n")
        given = [*options(root, micro_model, tmp_path / "out"), "--tasks", "tnews,afqmc"]
        with pytest.raises(UserError, match=f"{split}.json, {fault}"):
            clue.main(given)
        path.write_bytes(text)
    (root / "diagnostics").mkdir()
    (root / "diagnostics" / "diagnostics_test.json").write_text("{}\n")
    shutil.copytree(root / "afqmc", root / "ocnli")
    for split in ("train.50k", "dev", "test"):
        row = {"sentence1": "清", "sentence2": "来", "label": "neutral"}
        (root / "ocnli" / f"{split}.json").write_text(json.dumps(row) + "\n", encoding="utf-8")
    given = [*options(root, micro_model, tmp_path / "out"), "--tasks", "ocnli"]
    with pytest.raises(UserError, match="diagnostics_test.json, line 1: no field 'sentence1'"):
        clue.main(given)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_all_ten_tasks_on_real_files(shared, micro_model, tmp_path, capsys):
    """A few examples of each; the tests that the data lacks are the official forms' samples."""
    root = tmp_path / "data"
    root.mkdir()
    for path in (shared / "data/clue").glob("*.zip"):
        (root / path.name).symlink_to(path)
    for name in ("c3", "chid", "diagnostics"):
        (root / name).mkdir()
        for path in (shared / "data/formats" / name).iterdir():
            if name != "c3" or path.name.startswith("test"):
                (root / name / path.name).symlink_to(path)
    report = clue.main(
        ["--model", str(micro_model), "--data-root", str(root), "--output", str(tmp_path / "out")]
        + ["--limit", "16", "--epochs", "1", "--batch-size", "8", "--seq-len", "64"]
        + ["--mesh", "data=1"]
    )
    assert list(report["tasks"]) == list(clue.CLUE["1.1"])
    scores = [task["score"] for task in report["tasks"].values()]
    assert report["average"] == sum(scores) / 10
    zipped = str(tmp_path / "out" / "submission.zip")
    result = submission.main(["check", zipped, "--data-root", str(root)])
    assert result["faults"] == [] and len(result["files"]) == 10
    assert "diagnostics_predict.json" in result["files"]
    assert "cmnli_predict.json" not in result["files"]

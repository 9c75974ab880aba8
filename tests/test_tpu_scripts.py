"""The launch scripts for TPU VMs, against a gcloud that keeps what it was asked for."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT

from pretraining.settings import Settings as RunSettings

SCRIPTS = ROOT / "tools" / "tpu"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.sh") if path.stem != "common")
WHERE = ["--name", "my-tpu", "--zone", "europe-west4-a"]
MINIMAL = {
    "start": ["--", "python", "-m", "pretraining.run"],
    "resume": ["--bucket", "b", "--", "python", "-m", "pretraining.run", "--output", "bucket/run"],
    "finetune": ["--model", "RoBERTa-tiny-clue"],
    "fetch": ["--from", "work/clue"],
}

# Flags of each command of gcloud that is used, from its reference (release 500 and later).
FLAGS = {
    "tpu-vm create": {"accelerator-type", "version", "spot"},
    "tpu-vm describe": {"format"},
    "tpu-vm delete": {"quiet"},
    "tpu-vm ssh": {"worker", "command"},
    "tpu-vm scp": {"worker", "recurse"},
    "queued-resources create": {
        "node-id", "accelerator-type", "runtime-version", "spot", "valid-until-duration",
    },
    "queued-resources describe": {"format"},
    "queued-resources delete": {"force", "quiet"},
}  # fmt: skip

# Answers `describe` from states.json, the first of the list each time and the last for ever; runs
# what `ssh` brings in a folder that stands for the VM, if there is one; keeps all arguments.
GCLOUD = """#!{python}
import json, os, pathlib, subprocess, sys
home = pathlib.Path({home!r})
with open(home / "calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "describe" in sys.argv:
    states = json.loads((home / "states.json").read_text())
    if len(states) > 1:
        (home / "states.json").write_text(json.dumps(states[1:]))
    if states[0] is None:
        sys.exit("ERROR: NOT_FOUND: no such thing")
    if states[0] == "no answer":
        sys.exit("ERROR: UNAVAILABLE: 503")
    print(states[0])
commands = [a.removeprefix("--command=") for a in sys.argv if a.startswith("--command=")]
if commands and (home / "vm").is_dir():
    sys.exit(subprocess.run(["bash", "-c", commands[0]], cwd=home / "vm").returncode)
"""


@pytest.fixture
def cloud(tmp_path):
    """A folder with gcloud in bin/."""
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.write_text(GCLOUD.format(python=sys.executable, home=str(tmp_path)))
    gcloud.chmod(0o755)
    (tmp_path / "states.json").write_text('["READY"]')
    return tmp_path


def run(cloud, script: str, *options: str, **changes) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{cloud / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPTS / f"{script}.sh"), *options]
    given = {"capture_output": True, "text": True, "env": environment, "timeout": 120}
    return subprocess.run(command, **{**given, **changes})


def calls(cloud) -> list[list[str]]:
    path = cloud / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def verbs(cloud) -> list[str]:
    return [" ".join(call[2:4]) for call in calls(cloud)]


def check_flags(words: list[str]) -> None:
    assert words[:2] == ["compute", "tpus"]
    known = FLAGS[" ".join(words[2:4])] | {"zone", "project"}
    for word in words[4:]:
        if word.startswith("--"):
            assert word[2:].split("=")[0] in known, word


@pytest.mark.parametrize("script", NAMES)
def test_a_dry_run_prints_what_would_run(cloud, script):
    done = run(cloud, script, "--dry-run", *WHERE, *MINIMAL.get(script, []))
    assert done.returncode == 0, done.stderr
    assert calls(cloud) == []
    printed = shlex.split(done.stdout)
    starts = [i for i, word in enumerate(printed) if word == "gcloud"]
    assert starts
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        check_flags(printed[start + 1 : stop])


@pytest.mark.parametrize("script", sorted(set(NAMES) - {"resume", "setup"}))
def test_what_runs_is_what_a_dry_run_prints(cloud, script):
    given = [*WHERE, "--project", "p 1", *MINIMAL.get(script, [])]
    if script == "fetch":
        given += ["--to", str(cloud / "here")]
    printed = shlex.split(run(cloud, script, "--dry-run", *given).stdout)
    assert run(cloud, script, *given).returncode == 0
    ran = [word for call in calls(cloud) for word in ["gcloud", *call]]
    assert ran == printed


def test_spot_and_queue_are_asked_for(cloud):
    run(cloud, "create", *WHERE, "--type", "v6e-8", "--spot", "--queued", "--valid", "6h")
    [call] = calls(cloud)
    assert call[2:5] == ["queued-resources", "create", "my-tpu"]
    assert {"--spot", "--valid-until-duration=6h", "--runtime-version=v2-alpha-tpuv6e"} <= set(call)
    assert {"--node-id=my-tpu", "--accelerator-type=v6e-8", "--zone=europe-west4-a"} <= set(call)


def test_setup_brings_the_checkout_that_is_committed(cloud):
    assert run(cloud, "setup", *WHERE, "--bucket", "my-bucket").returncode == 0
    assert verbs(cloud) == ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
    copied, installed, mounted = calls(cloud)
    assert copied[4].endswith("clue_jax.tar.gz") and copied[5] == "my-tpu:clue_jax.tar.gz"
    assert all("--worker=all" in call for call in (copied, installed, mounted))
    for call in (installed, mounted):
        script = next(word for word in call if word.startswith("--command="))
        check = subprocess.run(["bash", "-n", "-c", script.removeprefix("--command=")])
        assert check.returncode == 0
    assert "'.[tpu]'" in " ".join(installed)
    assert "my-bucket clue_jax/bucket" in " ".join(mounted)


@pytest.fixture
def vm(cloud):
    """A machine on which what ssh brings really runs, set up already."""
    (cloud / "vm" / "clue_jax" / ".venv" / "bin").mkdir(parents=True)
    (cloud / "vm" / "clue_jax" / ".venv" / "bin" / "activate").touch()
    return cloud


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_starts_shows_its_log_and_is_stopped(vm):
    folder = vm / "vm" / "clue_jax"
    job = "trap 'echo saved; exit 143' TERM; echo \"it's $1\"; while :; do sleep 0.1; done"
    command = ["bash", "-c", job, "name", "a b"]
    assert run(vm, "start", *WHERE, "--", *command).returncode == 0
    wait_for(lambda: (folder / "job.log").exists() and (folder / "job.log").read_text())
    assert run(vm, "log", *WHERE).stdout == "it's a b\n"

    again = run(vm, "start", *WHERE, "--", *command)
    assert again.returncode != 0 and "a job runs already" in again.stderr

    assert run(vm, "stop", *WHERE).returncode == 0
    assert run(vm, "log", *WHERE).stdout == "it's a b\nsaved\n"
    assert (folder / "job.status").read_text() == "143\n"


@pytest.fixture
def fresh_vm(vm):
    """On which unpacking, installing and mounting are done already."""
    for path in ("bin/tar", "bin/python3", "bin/mountpoint", "vm/clue_jax/.venv/bin/python"):
        (vm / path).write_text("#!/bin/sh\n")
        (vm / path).chmod(0o755)
    return vm


def resume(cloud, states: list, job: str, *options: str) -> subprocess.CompletedProcess:
    (cloud / "states.json").write_text(json.dumps(states))
    given = ["--bucket", "b", "--every", "0.2", *options, "--", "bash", "-c", job, "bucket/run"]
    return run(cloud, "resume", *WHERE, *given)


def test_what_was_taken_away_is_made_again_and_goes_on(fresh_vm):
    states = ["PREEMPTED", None, None, "no answer", "CREATING", "READY"]
    done = resume(fresh_vm, states, "echo step >> steps; sleep 0.5", "--spot", "--type", "v3-8")
    assert done.returncode == 0, done.stderr
    assert "the command has ended" in done.stderr
    assert "my-tpu is still there and costs" in done.stderr
    assert (fresh_vm / "vm" / "clue_jax" / "steps").read_text() == "step\n"
    shown = [verb for verb in verbs(fresh_vm) if "ssh" not in verb and "describe" not in verb]
    assert shown == ["tpu-vm delete", "tpu-vm create", "tpu-vm scp"]


def test_a_run_that_was_only_told_to_save_goes_on(fresh_vm):
    """As when the machine is to be taken away: the first time it ends with 143."""
    job = "echo step >> steps; [ $(wc -l < steps) -gt 1 ] || exit 143"
    done = resume(fresh_vm, ["READY"], job)
    assert done.returncode == 0, done.stderr
    assert (fresh_vm / "vm" / "clue_jax" / "steps").read_text() == "step\nstep\n"


def test_a_command_that_fails_is_not_started_again(fresh_vm):
    done = resume(fresh_vm, ["READY"], "echo step >> steps; exit 3")
    assert done.returncode == 1
    assert "has failed (3 is its status)" in done.stderr
    assert (fresh_vm / "vm" / "clue_jax" / "steps").read_text() == "step\n"


def test_no_answer_is_no_state(cloud):
    (cloud / "states.json").write_text('["no answer"]')
    done = run(cloud, "status", *WHERE)
    assert done.returncode == 1 and "503" in done.stderr and not done.stdout
    (cloud / "states.json").write_text("[null, null]")
    assert run(cloud, "status", *WHERE).stdout == "MISSING\n"


def test_what_goes_on_for_ever_in_vain_is_given_up(fresh_vm):
    """Setting up fails each time."""
    (fresh_vm / "bin" / "tar").write_text("#!/bin/sh\nexit 1\n")
    done = resume(fresh_vm, ["READY"], "true", "--every", "0")
    assert done.returncode == 1 and "gave up after 20 failures" in done.stderr


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("create", ["--zone", "z"], "--name and --zone are needed"),
        ("create", [*WHERE, "--type", "v9-8"], "--type v9-8: not known"),
        ("create", [*WHERE, "--spt"], "unknown option --spt"),
        ("create", [*WHERE, "--valid", "6h"], "--valid needs --queued"),
        ("create", [*WHERE, "--type"], "--type needs a value"),
        ("create", ["--name", "My_TPU", "--zone", "z"], "small letters, digits and -"),
        ("start", WHERE, "a command is needed after --"),
        ("resume", [*WHERE, "--", "true"], "--bucket is needed, and an --output in bucket/"),
        ("finetune", WHERE, "--model is needed"),
        ("fetch", WHERE, "--from is needed"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(cloud, script, options, message):
    done = run(cloud, script, *options)
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert calls(cloud) == []


@pytest.mark.parametrize("script", NAMES)
def test_help_explains_every_option(script, tmp_path):
    done = subprocess.run(
        ["bash", str(SCRIPTS / f"{script}.sh"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for option in ("--name NAME", "--zone ZONE", "--dry-run ", "--help"):
        assert option in done.stdout


def test_without_gcloud_it_says_where_to_get_it(tmp_path):
    for name in ("bash", "cat"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        [str(tmp_path / "bash"), str(SCRIPTS / "delete.sh"), *WHERE],
        capture_output=True, text=True, env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1 and "gcloud is not there" in done.stderr


def test_shellcheck_has_nothing_to_say():
    if not (shellcheck := shutil.which("shellcheck", path=Path(sys.executable).parent)):
        pytest.skip("shellcheck is not installed")
    scripts = [*SCRIPTS.glob("*.sh"), *ROOT.glob("*.sh"), *(ROOT / "tools").glob("*.sh")]
    done = subprocess.run([shellcheck, *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_the_journey_of_the_readme_runs_dry(cloud, page):
    lines = (ROOT / page).read_text().splitlines()
    journey = [line for line in lines if line.startswith("bash tools/tpu/")]
    assert len(journey) == 7 and "create.sh" in journey[0] and "delete.sh" in journey[-1]
    for line in journey:
        script, *options = shlex.split(line.removeprefix("bash tools/tpu/"))
        done = run(cloud, script.removesuffix(".sh"), "--dry-run", *options)
        assert done.returncode == 0 and done.stdout.startswith("gcloud "), done.stderr
        module = next((w for w in options if w.startswith(("pretraining.", "finetune."))), None)
        if module:
            asked = [word for word in options[options.index(module) :] if word.startswith("--")]
            known = {f"--{field.name.replace('_', '-')}" for field in fields(RunSettings)}
            assert asked and set(asked) <= known
    assert calls(cloud) == []

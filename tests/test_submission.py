"""Submissions: the recorded valid files pass, the invalid ones are refused for their reason."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from clue_jax.errors import UserError
from finetune import submission
from finetune.tasks import TASKS


@pytest.fixture(scope="module")
def test_sets(shared, tmp_path_factory) -> dict[str, Path]:
    """The recorded three-row test files, each in its task's folder, by version."""
    inputs = shared / "fixtures/submissions/test_inputs"
    roots = {}
    for version, digits in (("1.0", "10"), ("1.1", "11")):
        roots[version] = tmp_path_factory.mktemp("data") / version
        for name, task in TASKS.items():
            stem = {"tnews": f"tnews{digits}", "cluewsc2020": f"cluewsc{digits}"}.get(name, name)
            source = inputs / f"{stem}.json"
            if source.exists() and version in task.test:
                target = roots[version] / name / task.test[version].split("|")[0]
                target.parent.mkdir(parents=True)
                shutil.copy(source, target)
    return roots


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_recorded_valid_files_pass(shared, test_sets, tmp_path, version):
    folder = shared / "fixtures/submissions/valid" / version
    options = ["--version", version, "--data-root", str(test_sets[version])]
    result = submission.main(["check", str(folder), *options, "--complete"])
    assert result["faults"] == [] and len(result["files"]) == 10
    archive = tmp_path / "submit.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.iterdir():
            file.write(path, path.name)
    assert submission.main(["check", str(archive), *options])["faults"] == []


REASONS = {
    "00": "2 rows, the test set has 3",
    "01": "label '0' is not one of 100, 101, 102, 103, 104, .. (the code of the class, not its num",
    "02": "no file of CLUE 1.0 has this name, and it would score 0; it must be tnews10_pred",
    "03": "label '休闲益智' is not one of 0, 1, 2",
    "04": "label '0' is not one of contradiction, entailment, neutral",
    "05": "line 1: label '-' is not one of contradiction",
    "06": "would score 0; it must be ocnli_50k_predict.json",
    "07": "line 1: label false is no string; expected one of true, false",
    "08": "would score 0; it must be cluewsc11_predict.json",
    "09": "line 1: id 2625, the test file has 2415 there; rows are scored by their order",
    "10": "is not one JSON object; expected one for the whole file",
    "11": "key 'idiom600168'; expected one like #idiom600168#",
    "12": "a list; expected one object a line",
    "13": "characters and cannot stand at",
}


@pytest.mark.parametrize("number", REASONS)
def test_recorded_invalid_files_are_refused_for_their_reason(
    shared, test_sets, number, capsys, tmp_path
):
    folder = shared / "fixtures/submissions"
    lines = (folder / "invalid.jsonl").read_text(encoding="utf-8").splitlines()
    (entry,) = [e for e in map(json.loads, lines) if e["path"].startswith(number)]
    path = folder / "invalid" / entry["path"]
    version = entry["version"] if entry["version"] in test_sets else "1.1"  # a separate board
    options = ["--version", version, "--data-root", str(test_sets[version])]
    archive = tmp_path / "submit.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(path, path.name)
    for place in (path, archive):
        with pytest.raises(UserError) as error:
            submission.main(["check", str(place), *options])
        assert REASONS[number] in str(error.value)
        assert path.name in str(error.value)
        assert json.loads(capsys.readouterr().out)["faults"]


def test_other_boards_are_checked_but_not_packed(shared, test_sets, tmp_path):
    valid = shared / "fixtures/submissions/valid/other/cluener_predict.json"
    options = ["--data-root", str(test_sets["1.1"])]
    assert submission.main(["check", str(valid), *options])["faults"] == []
    shutil.copy(valid, tmp_path / valid.name)
    with pytest.raises(UserError, match="holds no prediction file of CLUE 1.1"):
        submission.main(["build", str(tmp_path), "--output", str(tmp_path / "x.zip")])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cmrc2018_predict.json", {"a": 1}, "the answer to a is no string"),
        ("cmrc2018_predict.json", {"a": "x"}, "1 answers, the test set has 2000 questions"),
        ("chid11_predict.json", {"#idiom1#": 10}, "is 10; expected a number from 0 to 9"),
        ("chid11_predict.json", {"#idiom1#": "1"}, "is '1'; expected a number from 0 to 9"),
    ],
)
def test_faults_of_answers_by_id(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        submission.main(["check", str(path)])


def test_answers_are_compared_with_the_questions(shared, test_sets, tmp_path):
    path = tmp_path / "cmrc2018_predict.json"
    valid = json.loads((shared / "fixtures/submissions/valid/1.1" / path.name).read_text("utf-8"))
    key = next(iter(valid))
    path.write_text(json.dumps({k: v for k, v in valid.items() if k != key} | {"other": "x"}))
    with pytest.raises(UserError) as error:
        submission.main(["check", str(path), "--data-root", str(test_sets["1.1"])])
    assert f"no answer to {key}" in str(error.value)


def predictions(folder: Path, rows: int = 3861) -> Path:
    path = folder / "afqmc" / "afqmc_predict.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"id": i, "label": "0"}) + "\n" for i in range(rows)))
    return path


def test_a_built_zip_passes_and_is_flat(tmp_path):
    predictions(tmp_path / "out")
    for name in ("a.zip", "b.zip"):
        submission.main(["build", str(tmp_path / "out"), "--output", str(tmp_path / name)])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == ["afqmc_predict.json"]
    assert submission.main(["check", str(tmp_path / "a.zip")])["faults"] == []
    with pytest.raises(UserError, match="tnews11_predict.json: is missing"):
        submission.main(["check", str(tmp_path / "a.zip"), "--complete"])


def test_a_limited_zip_says_so(tmp_path):
    predictions(tmp_path / "out", 10)
    out = ["build", str(tmp_path / "out"), "--output", str(tmp_path / "a.zip")]
    with pytest.raises(UserError, match="10 rows, the test set has 3861"):
        submission.main(out)
    assert not (tmp_path / "a.zip").exists()
    submission.main([*out, "--limit", "10"])
    assert submission.main(["check", str(tmp_path / "a.zip")])["faults"] == []
    with pytest.raises(UserError, match=r"is missing \(and 8 more\)"):
        submission.main(["check", str(tmp_path / "a.zip"), "--complete"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: not JSON"),
        (b'{"id": 0}\n', "line 1: no label"),
        (b'{"id": 0, "label": "0"}\n\n{"id": 1, "label": "0"}', "line 2: not JSON"),
    ],
)
def test_other_faults(tmp_path, content, message):
    path = tmp_path / "afqmc_predict.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        submission.main(["check", str(path)])


ENTITY = '{"id": 0, "label": {"name": {"清晨": [[%s, %s]]}}}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cmrc2018_predict.json", '{"a": "x", "b": "y", "a": "z"}', "holds a twice"),
        ("cmrc2018_predict.json", '{"a":' * 99_999, "is not one JSON object"),
        ("cmrc2018_predict.json", '{"a": "x"}'.encode("utf-16"), "not UTF-8 text"),
        ("afqmc_predict.json", '{"a":' * 99_999, "line 1: not JSON"),
        ("afqmc_predict.json", '{"id": 0, "label": "0"}'.encode("utf-16"), "line 1: not UTF-8"),
        ("afqmc_predict.json", b'\xef\xbb\xbf{"id": 0, "label": "0"}', "line 1: not JSON"),
        ("tnews11_predict.json", '{"id": 0, "label": "²"}', "label '²' is not one of 100"),
        ("c311_predict.json", '{"id": 0, "label": "１"}', "label '１' is not one of 0, 1, 2, 3"),
        ("c311_predict.json", '{"id": 0, "label": true}', "label True is not one of 0, 1, 2, 3"),
        ("c311_predict.json", '{"id": 0, "label": 4}', "label 4 is not one of 0, 1, 2, 3"),
        ("cluener_predict.json", ENTITY % (2, 1), "'清晨' has 2 characters and cannot stand at 2"),
        ("cluener_predict.json", ENTITY % (0, 2), "cannot stand at 0..2; both ends"),
        ("cluener_predict.json", ENTITY % (-1, 0), "cannot stand at -1..0"),
        ("cluener_predict.json", ENTITY % ('"0"', 1), "expected whole numbers"),
    ],
)
def test_what_a_site_would_stumble_over(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        submission.main(["check", str(path)])
    assert message in str(error.value)


def test_a_zip_with_a_file_twice(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate name"):
        for _ in range(2):
            file.write(predictions(tmp_path / "out"), "afqmc_predict.json")
            shutil.rmtree(tmp_path / "out")
    with pytest.raises(UserError, match="afqmc_predict.json: is there twice"):
        submission.main(["check", str(path)])


def test_only_the_right_names_are_packed(tmp_path):
    """Names of the other version are passed over, those nearly right are not; nor are copies."""
    predictions(tmp_path / "out")
    out = ["build", str(tmp_path / "out"), "--output", str(tmp_path / "a.zip")]
    for name in ("tnews10_predict.json", "cmnli_predict.json", "xnli_predict.json"):
        (tmp_path / "out" / name).write_text("x")
    assert submission.main(out)["files"] == ["afqmc_predict.json"]
    checked = submission.main(["check", str(tmp_path / "out")])
    assert checked["files"] == ["afqmc_predict.json"] and checked["faults"] == []
    wrong = tmp_path / "out" / "ocnli_predict.json"
    wrong.write_text("x")
    for command in (out, ["check", str(tmp_path / "out")]):
        with pytest.raises(UserError, match="must be ocnli_50k_predict.json"):
            submission.main(command)
    wrong.unlink()
    shutil.copytree(tmp_path / "out" / "afqmc", tmp_path / "out" / "copy")
    for command in (out, ["check", str(tmp_path / "out")]):
        with pytest.raises(UserError, match="holds afqmc_predict.json twice"):
            submission.main(command)


def test_what_it_is_compared_with(tmp_path):
    """Test files in a folder or in the official zip; row numbers are as good as ids; what could not
    be compared is said."""
    path = tmp_path / "afqmc_predict.json"
    root = tmp_path / "data"
    root.mkdir()
    rows = [{"id": 70 + i, "sentence1": "清", "sentence2": "来"} for i in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with zipfile.ZipFile(root / "afqmc_public.zip", "w") as file:
        file.writestr("test.json", text)
    check = ["check", str(path), "--data-root", str(root)]
    for ids, fault in (
        ((0, 1, 2), None), ((70, 71, 72), None), (("70", "71", "72"), None),
        ((1, 2, 3), "id 1, the test file has 70 there"), ((70, 72, 71), "line 2: id 72"),
    ):  # fmt: skip
        path.write_text("".join(json.dumps({"id": i, "label": "0"}) + "\n" for i in ids))
        if fault is None:
            assert submission.main(check)["not_compared"] == []
        else:
            with pytest.raises(UserError, match=fault):
                submission.main(check)
    (root / "afqmc_public.zip").rename(root / "other.zip")
    path.write_text('{"id": 0, "label": "0"}\n' * 3861)
    assert submission.main(check)["not_compared"] == ["afqmc_predict.json"]
    with pytest.raises(UserError, match="afqmc_predict.json: no test file to compare it with"):
        submission.main([*check, "--complete"])
    with pytest.raises(UserError, match="/nowhere: no such file or folder"):
        submission.main(["check", str(path), "--data-root", "/nowhere"])


def test_a_complete_zip_passes_without_test_files(shared, tmp_path):
    """What has no official count is only listed."""
    folder = tmp_path / "sub"
    shutil.copytree(shared / "fixtures/submissions/valid/1.1", folder)
    for name, task in submission.expected_files("1.1").items():
        count = task.test_rows.get("1.1")
        path = folder / name
        if not count:
            continue
        if task.container == "mapping":
            path.write_text(json.dumps({f"Q{i}": "x" for i in range(count)}))
        else:
            line = path.read_text(encoding="utf-8").split("\n")[0]
            path.write_text((line + "\n") * count, encoding="utf-8")
    result = submission.main(["check", str(folder), "--complete"])
    assert result["faults"] == [] and "c311_predict.json" in result["not_compared"]
    uncounted = ["c311_predict.json", "chid11_predict.json", "diagnostics_predict.json"]
    assert result["not_counted"] == uncounted


def test_a_cut_run_is_not_packed_as_a_whole_one(tmp_path):
    """Not even of a task whose row count nobody published."""
    run = tmp_path / "runs" / "c3"
    run.mkdir(parents=True)
    (run / "c311_predict.json").write_text('{"id": 0, "label": 1}\n' * 32)
    (run / "settings.json").write_text('{"limit": 32}')
    build = ["build", str(tmp_path / "runs"), "--output", str(tmp_path / "a.zip")]
    with pytest.raises(UserError, match="c311_predict.json: of a run with --limit 32"):
        submission.main(build)
    submission.main([*build, "--limit", "32"])
    assert zipfile.ZipFile(tmp_path / "a.zip").comment.endswith(b"32")
    (run / "settings.json").write_text('{"limit": null}')
    submission.main(build)
    assert not zipfile.ZipFile(tmp_path / "a.zip").comment


@pytest.mark.parametrize(
    ("name", "version", "right"),
    [
        ("c3_predict.json", "1.1", "c311_predict.json"),
        ("c310_predict.json", "1.1", "c311_predict.json"),
        ("c3_predict.json", "1.0", "c310_predict.json"),
        ("TNEWS_predict.json", "1.1", "tnews11_predict.json"),
        ("wsc_predict.json", "1.0", "cluewsc10_predict.json"),
        ("cluewsc2020_predict.json", "1.1", "cluewsc11_predict.json"),
        ("cmrc_predict.json", "1.1", "cmrc2018_predict.json"),
        ("c_predict.json", "1.1", None),
        ("cmnli_predict.json", "1.1", None),
        ("xnli_predict.json", "1.1", None),
    ],
)
def test_the_right_name_is_told(name, version, right):
    assert submission.nearest_name(name, version) == right


def test_few_clue_s_questions_are_others(tmp_path):
    """They are no test set to compare the benchmark's answers with."""
    row = {"id": 3000, "candidates": ["画蛇添足", "一日千里"], "content": "他#idiom#了"}
    (tmp_path / "chid").mkdir()
    (tmp_path / "chid" / "test.json").write_text(json.dumps(row))
    path = tmp_path / "chid11_predict.json"
    path.write_text('{"#idiom000001#": 1}')
    checked = submission.main(["check", str(path), "--data-root", str(tmp_path)])
    assert checked["faults"] == [] and checked["not_compared"] == ["chid11_predict.json"]


def test_damaged_zips_are_one_line(tmp_path):
    """Any byte of a zip may be wrong: it is sound, has a fault, or is called damaged."""
    predictions(tmp_path / "out", 5)
    path = tmp_path / "a.zip"
    submission.main(["build", str(tmp_path / "out"), "--output", str(path), "--limit", "5"])
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            submission.main(["check", str(path)])
        except UserError as error:
            assert "\n" not in str(error)
    with pytest.raises(UserError, match="--limit must be at least 1"):
        submission.main(["build", str(tmp_path / "out"), "--output", str(path), "--limit", "0"])


def test_what_is_no_submission(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"x")
    with pytest.raises(UserError, match="not a zip file"):
        submission.main(["check", str(tmp_path / "a.zip")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no prediction file"):
        submission.main(["check", str(tmp_path / "empty")])
    with pytest.raises(UserError, match="holds no prediction file of CLUE 1.1"):
        submission.main(["build", str(tmp_path / "empty"), "--output", str(tmp_path / "b.zip")])
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as file:
        file.writestr("out/afqmc_predict.json", "{}")
    with pytest.raises(UserError, match="must lie flat"):
        submission.main(["check", str(tmp_path / "deep.zip")])

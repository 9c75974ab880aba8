"""The data of the tasks: downloads, places, and the builders for TFDS."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from test_fetch import Server, ranged, reply

from clue_jax.errors import UserError
from finetune.data import read_split
from finetune.tasks import TASKS
from tools import download


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("CLUE_JAX_HOME", str(tmp_path / "home"))


def zip_of(task: str, path: Path, labels: tuple[str, str]) -> Path:
    """An official zip of three small files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for split, count in (("train", 6), ("dev", 4), ("test", 3)):
            lines = [
                {"sentence1": f"{split}{i}", "sentence2": "好", "label": labels[i % 2], "id": i}
                for i in range(count)
            ]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            name = TASKS[task].train if split == "train" else f"{split}.json"
            archive.writestr(f"{task}_public/{name}", text)
    return path


@pytest.fixture
def mirror(tmp_path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    zip_of("afqmc", folder / "afqmc_public.zip", ("0", "1"))
    zip_of("ocnli", folder / "ocnli_public.zip", ("neutral", "entailment"))
    return folder


def test_a_task_is_downloaded_once(mirror, tmp_path, monkeypatch, capsys):
    """From a server that cuts the connection; afterwards no server is needed."""
    body = (mirror / "afqmc_public.zip").read_bytes()
    monkeypatch.setattr("clue_jax.fetch.time.sleep", lambda _: None)
    with Server(lambda h, n: ranged(h, body, cut=300 if n == 1 else None)) as server:
        result = download.main(["task", "afqmc", "--mirror", server.url])
        assert len(server.requests) == 2 and server.requests[1][1]["Range"] == "bytes=300-"
    assert json.loads(capsys.readouterr().out) == result
    assert not result["cached"] and Path(result["output"]).read_bytes() == body
    again = download.main(["task", "afqmc"])
    assert again == result | {"cached": True}
    # finetune.run without --data-dir finds it there.
    examples = read_split(TASKS["afqmc"], None, "dev")
    assert [example.text_a for example in examples] == ["dev0", "dev1", "dev2", "dev3"]
    # Of another mirror, the same bytes are demanded.
    zip_of("afqmc", mirror / "afqmc_public.zip", ("1", "0"))
    with pytest.raises(UserError, match="at the first download they were others"):
        download.main(["task", "afqmc", "--mirror", str(mirror), "--output", str(tmp_path / "b")])
    assert not list((tmp_path / "b").glob("*.zip"))


def test_all_tasks_are_tried(mirror, tmp_path):
    with pytest.raises(UserError, match=r"12 of 14 tasks failed: tnews: .*no such file"):
        download.main(["task", "all", "--mirror", str(mirror), "--output", str(tmp_path / "out")])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "afqmc_public.zip", "ocnli_public.zip",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "unknown task 'nothing'; known: all, afqmc, "),
        ("lcqmc", "CLUE publishes no zip of lcqmc"),
        ("tnews", "the server has no such file"),
    ],
)
def test_what_cannot_be_downloaded(name, message):
    with (
        Server(lambda h, n: reply(h, 404)) as server,
        pytest.raises(UserError, match=message),
    ):
        download.main(["task", name, "--mirror", server.url])


# ---- TensorFlow Datasets -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clue_tasks():
    pytest.importorskip("tensorflow")
    pytest.importorskip("tensorflow_datasets")
    from finetune.datasets import clue_tasks

    return clue_tasks


@pytest.mark.parametrize("way", ["source", "mirror"])
def test_tfds_has_the_same_examples(clue_tasks, mirror, tmp_path, way):
    import tensorflow_datasets as tfds

    builder = tfds.builder("clue_tasks/ocnli", data_dir=tmp_path / "tfds", **{way: str(mirror)})
    builder.download_and_prepare()
    labels = TASKS["ocnli"].labels
    for split, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
        expected = read_split(TASKS["ocnli"], mirror, split)
        found = list(tfds.as_numpy(builder.as_dataset(split=name)))
        assert len(found) == len(expected)
        rows = {
            (e.text_a, e.text_b, e.label and labels.index(e.label), str(e.id)) for e in expected
        }
        assert rows == {
            (
                f["text_a"].decode(), f["text_b"].decode(),
                None if f["label"] < 0 else int(f["label"]), f["id"].decode(),
            )
            for f in found
        }  # fmt: skip


def test_tfds_knows_the_tasks_of_both_versions(clue_tasks):
    names = {config.name: config.benchmark for config in clue_tasks.ClueTasks.BUILDER_CONFIGS}
    assert names["tnews"] == "1.1" and names["tnews_1.0"] == "1.0"
    assert {"afqmc", "iflytek", "cmnli", "ocnli", "csl", "cluewsc2020", "cluewsc2020_1.0"} <= set(
        names
    )
    assert "afqmc_1.0" not in names and "lcqmc" not in names


def test_tfds_of_other_forms(clue_tasks, shared, tmp_path):
    """The first example of each, by hand or against the reader."""
    import tensorflow_datasets as tfds

    formats = shared / "data/formats"
    found = {}
    for config in ("cmrc2018", "c3", "chid"):
        builder = clue_tasks.ClueTasks(config=config, data_dir=tmp_path / "tfds", source=formats)
        builder.download_and_prepare()
        found[config] = list(tfds.as_numpy(builder.as_dataset(split="train")))
    question = read_split(TASKS["cmrc2018"], formats, "train")[0]
    (first,) = [e for e in found["cmrc2018"] if e["id"].decode() == question.id]
    assert first["context"].decode() == question.context
    assert first["answers"]["text"][0].decode() == question.answers[0][0]
    assert first["answers"]["answer_start"].tolist() == [start for _, start in question.answers]
    labels = {e["question"].decode(): int(e["label"]) for e in found["chid"]}
    assert labels["#idiom000001#"] == 5 and len(labels) == 7
    assert all(len(e["choices"]) == 10 for e in found["chid"])
    assert [e["choices"][e["label"]].decode() for e in found["c3"]].count("喜剧片") == 1
    builder = clue_tasks.ClueTasks(
        config="cluener", data_dir=tmp_path / "tfds", source=shared / "data/clue"
    )
    builder.download_and_prepare()
    names = builder.info.features["tags"].feature.names
    example = read_split(TASKS["cluener"], shared / "data/clue", "dev")[3]
    rows = {e["id"].decode(): e for e in tfds.as_numpy(builder.as_dataset(split="validation"))}
    row = rows[str(example.id)]
    assert "".join(u.decode() for u in row["units"]) == "".join(example.units)
    assert [names[i] for i in row["tags"]] == list(example.tags)


def test_tfds_of_the_official_zips(clue_tasks, shared, tmp_path):
    """CLUEWSC whole, both test sets: as many examples as the data's README says."""
    for config, tests in (("cluewsc2020", 2574), ("cluewsc2020_1.0", 290)):
        builder = clue_tasks.ClueTasks(
            config=config, data_dir=tmp_path / "tfds", source=shared / "data/clue"
        )
        builder.download_and_prepare()
        counts = {name: split.num_examples for name, split in builder.info.splits.items()}
        assert counts == {"train": 1244, "validation": 152, "test": tests}
        first = next(iter(builder.as_dataset(split="train")))
        assert "_" in first["text_a"].numpy().decode()


def test_codes_get_their_names_from_the_official_files(shared, tmp_path):
    from finetune.data import label_names

    clue = shared / "data" / "clue"
    names = label_names(TASKS["tnews"], clue)
    assert len(names) == 15 and names["104"] == "news_finance"
    assert label_names(TASKS["iflytek"], clue)["0"] == "打车"
    assert label_names(TASKS["afqmc"], clue) == {} == label_names(TASKS["tnews"], tmp_path)

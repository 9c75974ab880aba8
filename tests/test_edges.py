"""What a careless user, a broken server or an odd file does to conversion: nothing is lost, nothing
is silently wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from checkpoints import all_heads, equal, written
from conftest import ROOT, micro_config, random_params
from test_convert_foreign import foreign, rewrite  # noqa: F401 (a fixture)

import clue_jax
from clue_jax.archives import unpack
from clue_jax.config import ModelConfig
from clue_jax.convert import source
from clue_jax.convert.tf_bundle import read_bundle, write_bundle
from clue_jax.convert.weights import read_weights
from clue_jax.errors import UserError
from clue_jax.files import atomic_directory
from clue_jax.text import WordPieceTokenizer
from tools import convert, download, extract_features

# ---- Nothing is lost -----------------------------------------------------------------------------


def test_a_download_leaves_hidden_files_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".env").write_text("secret")
    with pytest.raises(UserError, match="out: is not empty"):
        download.main(["model", "RoBERTa-tiny-clue", "--output", str(tmp_path / "out")])
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a", "b")
    with pytest.raises(UserError, match="is not empty; nothing was unpacked"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".env"]


def dead_process() -> int:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    return process.pid


def test_the_only_copy_is_put_back(tmp_path):
    """As a kill between the two renames leaves it; then the next write fails."""
    left = tmp_path / f".model.{dead_process()}.old"
    left.mkdir()
    (left / "only").write_text("copy")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "model"):
        raise RuntimeError
    assert (tmp_path / "model" / "only").read_text() == "copy"
    with atomic_directory(tmp_path / "model") as folder:
        (folder / "new").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", [".model.my backup.old", ".model.1.tmpx", ".model.old"])
def test_neighbours_with_like_names_stay(tmp_path, name):
    (tmp_path / name).mkdir()
    with atomic_directory(tmp_path / "model"):
        pass
    assert (tmp_path / name).is_dir()


def test_the_folder_of_a_living_writer_stays(tmp_path):
    (tmp_path / f".model.{os.getppid()}.tmp").mkdir()
    with atomic_directory(tmp_path / "model"):
        pass
    assert (tmp_path / f".model.{os.getppid()}.tmp").is_dir()


def test_overwrite_spares_folders_with_more_in_them(micro_model, tmp_path):
    target = tmp_path / "out"
    shutil.copytree(micro_model, target)
    (target / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds something else than a converted model"):
        convert.main([str(micro_model), str(target), "--to", "tf", "--overwrite"])
    assert (target / "thesis.txt").exists() and (target / "model.safetensors").exists()


def test_features_are_not_written_over_their_text(micro_model, tmp_path):
    text = tmp_path / "in.txt"
    text.write_text("天\n")
    base = ["--model", str(micro_model), "--input", str(text), "--layers", "-1"]
    base += ["--max-seq-length", "16"]
    with pytest.raises(UserError, match="is the input as well"):
        extract_features.main([*base, "--output", str(text)])
    for size in ("0", "-1"):
        with pytest.raises(UserError, match=f"--batch-size {size} must be at least 1"):
            extract_features.main([*base, "--output", str(tmp_path / "o"), "--batch-size", size])
    assert text.read_text() == "天\n" and not (tmp_path / "o").exists()


# ---- Nothing is silently wrong -------------------------------------------------------------------


def test_the_activation_has_its_own_name_in_each_dialect(tmp_path, tokenizer):
    """By hand: TF-BERT's "gelu" is the tanh form, Hugging Face's the erf form."""
    names = {"gelu_tanh": ("gelu", "gelu_new"), "gelu_erf": ("gelu_erf", "gelu")}
    for act, expected in names.items():
        config = micro_config(tokenizer.vocab_size, hidden_act=act)
        for form, file, name in zip(
            ("tf", "model"), ("bert_config.json", "config.json"), expected, strict=True
        ):
            folder = written(tmp_path / f"{act}{form}", config, random_params(config), form=form)
            assert json.loads((folder / file).read_text())["hidden_act"] == name
            assert source.load(folder).config.hidden_act == act


def test_a_renamed_tf_config_keeps_its_dialect(tmp_path, tokenizer):
    config = micro_config(tokenizer.vocab_size)
    folder = written(tmp_path / "tf", config, random_params(config), form="tf")
    (folder / "bert_config.json").rename(folder / "config.json")
    assert source.load(folder).config.hidden_act == "gelu_tanh"


def test_a_padded_fresh_head_stays_fresh(tmp_path, tokenizer):
    config = micro_config(tokenizer.vocab_size)
    folder = written(tmp_path / "tf", config, random_params(config), tokenizer, form="tf")
    tensors = dict(read_bundle(folder / "bert_model.ckpt"))
    for name in tensors:
        if name.startswith("cls/predictions") and tensors[name].ndim == 1:
            tensors[name] = np.full_like(tensors[name], name.endswith("gamma"))
    write_bundle(folder / "bert_model.ckpt", tensors)
    (folder / "clue_jax.json").unlink()
    assert source.load(folder).info["heads"]["masked_lm"] == "fresh"
    assert source.load(folder, pad=tokenizer.vocab_size + 9).info["heads"]["masked_lm"] == "fresh"


def test_classes_of_transformers_survive_both_ways(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    config = micro_config(tokenizer.vocab_size)
    params = all_heads(config)
    without_pooler = {"bert": {k: v for k, v in params["bert"].items() if k != "pooler"}}
    cases = {
        "BertForTokenClassification": {**without_pooler, "classifier": params["classifier"]},
        "BertForQuestionAnswering": {**without_pooler, "span": params["span"]},
        "BertForMaskedLM": {**without_pooler, "masked_lm": params["masked_lm"]},
        "BertModel": {"bert": params["bert"]},
    }
    for name, kept in cases.items():
        written(tmp_path / name / "a", config, kept, tokenizer)
        convert.main([str(tmp_path / name / "a"), str(tmp_path / name / "b"), "--to", "tf"])
        convert.main([str(tmp_path / name / "b"), str(tmp_path / name / "c"), "--to", "model"])
        values = json.loads((tmp_path / name / "c" / "config.json").read_text())
        assert values["architectures"] == [name]
        model, report = getattr(transformers, name).from_pretrained(
            tmp_path / name / "c", output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"], name
        if name == "BertForQuestionAnswering":
            weight = model.qa_outputs.weight.detach().numpy()
            np.testing.assert_array_equal(weight, params["span"]["kernel"].T)
        if name == "BertForTokenClassification":
            weight = model.classifier.weight.detach().numpy()
            np.testing.assert_array_equal(weight, params["classifier"]["kernel"].T)


def test_a_multiple_choice_model_keeps_its_class(foreign, tmp_path):  # noqa: F811
    folder, _ = foreign
    rewrite(
        folder,
        lambda t: (
            t | {"classifier.weight": np.ones((1, 32), "f"), "classifier.bias": np.ones(1, "f")}
        ),
    )
    values = json.loads((folder / "config.json").read_text())
    values["architectures"] = ["BertForMultipleChoice"]
    (folder / "config.json").write_text(json.dumps(values))
    convert.main([str(folder), str(tmp_path / "tf"), "--to", "tf"])
    convert.main([str(folder), str(tmp_path / "a"), "--to", "model"])
    assert json.loads((tmp_path / "a" / "config.json").read_text())["architectures"] == [
        "BertForMultipleChoice"
    ]


def test_a_cased_model_stays_cased(tmp_path, vocab_file):
    tokenizer = WordPieceTokenizer(vocab_file, lower_case=False)
    config = micro_config(tokenizer.vocab_size)
    for form in ("tf", "model"):
        folder = written(tmp_path / form, config, random_params(config), tokenizer, form=form)
        assert source.load(folder).tokenizer.lower_case is False


def test_two_masked_lm_biases_are_refused(foreign):  # noqa: F811
    folder, _ = foreign
    rewrite(folder, lambda t: t | {"cls.predictions.decoder.bias": np.ones(787, np.float32)})
    with pytest.raises(UserError, match="unknown cls.predictions.decoder.bias"):
        source.load(folder)


def test_an_unfinished_run_keeps_what_is_known(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    loaded = source.load(tmp_path / "run", form="checkpoint")
    assert loaded.info["normalization"] == "none" and loaded.info["max_seq_length"] == 32
    digits = tmp_path / "2024"
    (tmp_path / "run").rename(digits)
    assert equal(source.load(digits, form="checkpoint").params, loaded.params)


def test_features_are_of_the_normalised_text(tmp_path, tokenizer):
    config = micro_config(tokenizer.vocab_size)
    info = {"normalization": "t2s"}
    from clue_jax.convert.loaded import LoadedModel
    from clue_jax.convert.target import write

    write(LoadedModel(config, random_params(config), tokenizer, info, "x"), tmp_path / "m", "model")
    (tmp_path / "in.txt").write_text("體\n", encoding="utf-8")
    extract_features.main(
        ["--model", str(tmp_path / "m"), "--input", str(tmp_path / "in.txt")]
        + ["--output", str(tmp_path / "o"), "--layers", "-1", "--max-seq-length", "16"]
    )
    (record,) = [json.loads(line) for line in (tmp_path / "o").read_text().splitlines()]
    expected = tokenizer.tokenize("体")
    assert [f["token"] for f in record["features"]] == ["[CLS]", *expected, "[SEP]"]


def test_replaced_parameters_are_judged_anew(tmp_path, tokenizer):
    config = micro_config(tokenizer.vocab_size)
    params = all_heads(config)
    from clue_jax.convert import model_dir

    model_dir.save(tmp_path / "m", params, config, tokenizer, source="x",
                   heads={"masked_lm": "fresh"}, labels=["a", "b", "c"])  # fmt: skip
    model = clue_jax.load(tmp_path / "m")
    model.save(tmp_path / "same")
    assert clue_jax.load(tmp_path / "same").info["heads"]["masked_lm"] == "fresh"
    model.params["masked_lm"]["bias"] = model.params["masked_lm"]["bias"] + 1
    model.save(tmp_path / "other")
    assert clue_jax.load(tmp_path / "other").info["heads"]["masked_lm"] == "trained"
    model.params["classifier"] = {"kernel": np.ones((32, 5), "f"), "bias": np.ones(5, "f")}
    with pytest.raises(UserError, match="5 classes, but there are 3 labels"):
        model.save(tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_other_weights_in_a_directory_have_their_own_heads(micro_model, tmp_path):
    shutil.copytree(micro_model, tmp_path / "m")
    shutil.copy(tmp_path / "m" / "model.safetensors", tmp_path / "m" / "tuned.safetensors")
    loaded = source.load(tmp_path / "m" / "tuned.safetensors")
    assert loaded.info["heads"]["next_sentence"] == "trained"  # what the values say
    assert any("clue_jax.json is not about tuned.safetensors" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"id2label": {"0": "a", "5": "b"}}, "does not count from 0"),
        ({"id2label": {"0": "a", "1": "a"}}, "names a label twice"),
        ({"tie_word_embeddings": False}, "holds none: tied"),
    ],
)
def test_what_cannot_be_kept_is_said(foreign, change, note):  # noqa: F811
    folder, _ = foreign
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(values))
    assert any(note in line for line in source.load(folder).notes)


# ---- One clear line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clue_jax.json", "[]", "expected a JSON object"),
        ("clue_jax.json", '{"format": 99}', "not of format 1"),
        ("clue_jax.json", '{"format": 1, "heads": null}', "heads is None, expected a dict"),
        ("clue_jax.json", '{"format": 1, "labels": "abc"}', "labels is 'abc', expected a list"),
        ("clue_jax.json", '{"format": 1, "labels": [3]}', "labels must be strings"),
        ("config.json", "[" * 200_000, "not valid JSON"),
        ("config.json", '{"a": ' + "1" * 5000 + "}", "not valid JSON"),
        ("config.json", {"hidden_act": ["gelu"]}, "unknown hidden_act"),
        ("config.json", {"architectures": {"a": 1}}, "expected a list of names"),
        ("config.json", {"layer_norm_eps": float("nan")}, "must be finite"),
        ("config.json", {"num_hidden_layers": 10**9}, "1000000000 layers, the file holds 46"),
        ("tokenizer_config.json", "[]", "expected a JSON object"),
    ],
)
def test_odd_json(foreign, name, content, message):  # noqa: F811
    folder, _ = foreign
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / name).read_text()) | content)
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        source.load(folder)


def test_folders_in_circles_end(tmp_path):
    (tmp_path / "loop").mkdir()
    for name in "ab":
        (tmp_path / "loop" / name).symlink_to(".")
    with pytest.raises(UserError, match="holds no model or checkpoint"):
        source.load(tmp_path / "loop")
    with pytest.raises(UserError, match="the path is empty"):
        convert.main(["", str(tmp_path / "out"), "--to", "model"])


def test_what_the_system_refuses_is_one_line(micro_model, tmp_path):
    name = "x" * 300
    done = subprocess.run(
        [sys.executable, "-m", "tools.convert", str(micro_model), str(tmp_path / name)]
        + ["--to", "model"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_odd_calls_of_the_model(micro_model):
    model = clue_jax.load(micro_model, origin="tf")
    predictor = clue_jax.Predictor(model)
    for call, message in (
        (lambda: predictor.embed("你好吗"), "must be a list of texts"),
        (lambda: predictor.fill_mask("[MASK]", 1.5), "top_k 1.5"),
        (lambda: model.encode([[1.9]]), "expected whole numbers"),
        (lambda: model.encode(np.zeros((1, 0), int)), "must be"),
        (lambda: model.masked_lm([[1]], positions=[0]), "positions must be"),
        (lambda: model.masked_lm([[1]], positions=[[1]]), "positions must lie in 0..0"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert predictor.embed(["一"], layers=-1).shape == (1, 32)


def test_weights_of_other_types_are_read_as_they_are(tmp_path, tokenizer):
    config = micro_config(tokenizer.vocab_size)
    import jax

    params = jax.tree.map(lambda x: x.astype(np.float64), random_params(config))
    written(tmp_path / "m", config, params, tokenizer)
    assert (
        read_weights(tmp_path / "m" / "model.safetensors")["bert.pooler.dense.bias"].dtype == "f8"
    )
    assert any("float64" in note for note in clue_jax.load(tmp_path / "m").notes)
    assert ModelConfig.from_hugging_face(tmp_path / "m" / "config.json").extra["dtype"] == "float64"

"""What all tests share: 8 virtual devices, a small model, small shards, the reference data."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["JAX_PLATFORMS"] = "cpu"
# Many tests compile the same small programs; child processes share the cache as well.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have that of the process that started them
    _cache = tempfile.TemporaryDirectory(prefix="clue_jax_test_cache_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

# CLUE_JAX_WITHOUT=tensorflow makes the named packages impossible to import, here and in child
# processes (tests/without/sitecustomize.py), to test machines that lack them.
if os.environ.get("CLUE_JAX_WITHOUT"):
    sys.path.insert(0, str(Path(__file__).parent / "without"))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])
    sys.modules.pop("sitecustomize", None)
    import sitecustomize  # noqa: F401

import jax
import numpy as np
import pytest

from clue_jax.config import ModelConfig
from clue_jax.convert import model_dir
from clue_jax.files import write_json
from clue_jax.text import WordPieceTokenizer
from pretraining import build_shards, build_vocab, run
from tools.result import about

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "pretraining" / "sample_zh.txt"
SHARED = Path(os.environ.get("CLUE_JAX_SHARED", ROOT.parent / "shared"))


def pytest_addoption(parser):
    parser.addoption("--differences", metavar="FILE", help="keep how far ours is from recordings")


@pytest.fixture
def agree(record_property, request):
    """Compares with a recording of the original, or another library, and notes how far ours is
    from it."""

    def compare(
        what: str, ours, recorded, within: float = 0.0, relative: bool = False, part: str = ""
    ) -> None:
        ours, recorded = np.asarray(ours), np.asarray(recorded)
        rtol, atol = (within, 0) if relative else (0, within)
        np.testing.assert_allclose(
            ours, recorded, rtol, atol, equal_nan=False, err_msg=part or what
        )
        far = np.abs(ours.astype(np.float64) - recorded)
        far = far / np.abs(recorded) if relative else far
        test = Path(request.node.path).relative_to(ROOT).as_posix()
        numbers = {"difference": float(far.max()), "compared": far.size, "demanded": within}
        record_property("agreement", {"what": what, "test": test, **numbers})

    return compare


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """With --differences, and if all tests passed: the largest difference of each thing that was
    compared, as a result for tools.bench_report."""
    if exitstatus or not config.getoption("differences"):
        return
    rows: dict[str, dict] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, noted in report.user_properties:
            if name == "agreement":
                row = rows.setdefault(noted["what"], {**noted, "difference": 0.0, "compared": 0})
                row["difference"] = max(row["difference"], noted["difference"])
                row["compared"] += noted["compared"]
    command = ["python", "-m", "pytest", *config.invocation_params.args]
    result = {"rows": sorted(rows.values(), key=lambda row: row["test"]), **about(command)}
    write_json(config.getoption("differences"), result | {"jax": jax.__version__})


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference recordings and real data, which the project does not ship."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference data is not at {SHARED} (set CLUE_JAX_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory) -> Path:
    """A vocabulary made from the sample text."""
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    build_vocab.main(["--input", str(SAMPLE), "--output", str(path), "--size", "1200"])
    return path


@pytest.fixture(scope="session")
def tokenizer(vocab_file) -> WordPieceTokenizer:
    return WordPieceTokenizer(vocab_file)


@pytest.fixture(scope="session")
def shards(tmp_path_factory, vocab_file) -> Path:
    """Shards of the sample text, T=32, masks drawn while training, some documents held out."""
    folder = tmp_path_factory.mktemp("shards")
    build(vocab_file, folder, "--held-out", "0.2")
    return folder


def build(vocab_file: Path, folder: Path, *options: str) -> dict:
    """Shards of the sample text."""
    return build_shards.main(
        ["--input", str(SAMPLE), "--vocab", str(vocab_file), "--output", str(folder)]
        + ["--seq-len", "32", "--max-predictions", "5", "--workers", "1", *options]
    )


def micro_config(vocab_size: int, **changes) -> ModelConfig:
    """A model small enough for tests."""
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    return ModelConfig(**{**sizes, **changes})


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Parameters that are random everywhere, LayerNorm and biases included."""
    from clue_jax.convert.merge import nest
    from clue_jax.convert.names import shapes

    random = np.random.default_rng(seed)
    flat = {}
    for path, shape in shapes(config).items():
        values = random.normal(0, 0.05, shape).astype(np.float32)
        flat[path] = values + np.float32(path.endswith("scale"))
    return nest(flat)


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory, tokenizer) -> Path:
    """A model directory with random weights."""
    folder = tmp_path_factory.mktemp("micro") / "model"
    config = micro_config(tokenizer.vocab_size)
    model_dir.save(
        folder,
        random_params(config),
        config,
        tokenizer,
        heads={"masked_lm": "trained", "next_sentence": "fresh"},
        source="random numbers",
        max_seq_length=32,
    )
    return folder


# kind of prediction -> the head that it needs, its classes, and what the directory says of it
_HEADS = {
    "classification": ("classifier", 3, {"labels": ("军事", "体育", "财经"), "task": "generic"}),
    "multi-label": ("classifier", 3, {"labels": ("a", "b", "c")}),
    "score": ("classifier", 1, {"labels": ("score",)}),
    "choice": ("classifier", 1, {"architecture": "BertForMultipleChoice", "task": "c3"}),
    "entities": (
        "classifier",
        5,
        {
            "labels": ("B-地名", "I-地名", "B-人名", "I-人名", "O"),
            "architecture": "BertForTokenClassification",
        },
    ),
    "spans": ("span", 2, {"task": "cmrc2018"}),
}
_PROBLEMS = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "score": "regression",
}


def save_kind(
    folder: Path, kind: str, tokenizer: WordPieceTokenizer, max_seq_length: int = 64, **changes
) -> Path:
    """A model directory of a kind, with random weights that are large enough to tell texts
    apart."""
    extra = {"problem_type": _PROBLEMS[kind]} if kind in _PROBLEMS else {}
    config = micro_config(tokenizer.vocab_size, extra=extra, **changes)
    params = random_params(config)
    head, classes, about = _HEADS[kind]
    params = {"bert": params["bert"]}
    if kind in ("entities", "spans"):
        params["bert"].pop("pooler")
    random = np.random.default_rng(1)
    params[head] = {
        "kernel": random.normal(0, 1, (config.hidden_size, classes)).astype(np.float32),
        "bias": random.normal(0, 0.1, classes).astype(np.float32),
    }
    heads = {head: "trained"}
    model_dir.save(
        folder, params, config, tokenizer, heads=heads, source="random numbers",
        max_seq_length=max_seq_length, **about,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def kinds(tmp_path_factory, tokenizer, micro_model) -> dict[str, Path]:
    """A model directory for every kind of prediction."""
    folder = tmp_path_factory.mktemp("kinds")
    found = {kind: save_kind(folder / kind, kind, tokenizer) for kind in _HEADS}
    return {**found, "fill-mask": micro_model}


@pytest.fixture(scope="session", autouse=True)
def _eight_devices():
    assert jax.device_count() == 8


def arguments(data, output, model, **changes) -> list[str]:
    options = {
        "data": data, "output": output, "init": model, "steps": 6, "batch_size": 8,
        "learning_rate": 1e-3, "warmup_steps": 2, "save_every": 2, "log_every": 2,
        "max_predictions": 5, "dtype": "float32",
    }  # fmt: skip
    out = []
    for name, value in {**options, **changes}.items():
        if value is not None:
            out += [f"--{name.replace('_', '-')}", str(value)]
    return out


def metrics(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "masked_lm_loss" in line]


@pytest.fixture(scope="session")
def finished(shards, micro_model, tmp_path_factory) -> Path:
    """A run of six steps on all 8 devices."""
    output = tmp_path_factory.mktemp("run") / "out"
    run.main(arguments(shards, output, micro_model, eval_every=3))
    return output


# Files that take longest come first, so that no process is left with one at the end.
LONGEST = (
    "test_run", "test_finetune", "test_serve", "test_sweep", "test_distributed", "test_clue",
    "test_guard", "test_serve_process", "test_export",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))

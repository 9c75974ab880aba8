"""The floors of the house: imports point down only, and the heavy packages stay in their rooms."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

FLOORS = {
    "clue_jax.errors": 0,
    "clue_jax.files": 0,
    "clue_jax.config": 0,
    "clue_jax.text": 0,
    "clue_jax.model": 1,
    "clue_jax.features": 1,
    "clue_jax.losses": 1,
    "clue_jax.metrics": 1,
    "clue_jax.optim": 1,
    "clue_jax.sharding": 1,
    "clue_jax.data": 2,
    "clue_jax.convert": 2,
    "clue_jax.checkpoint": 2,
    "clue_jax.train_state": 2,
    "clue_jax.compilation": 2,
    "clue_jax.distributed": 2,
    "clue_jax.guard": 2,
    "clue_jax.runlog": 2,
    "clue_jax.archives": 2,
    "clue_jax.fetch": 2,
    "clue_jax.zoo": 2,
    "clue_jax.pretrained": 3,
    "clue_jax.prediction": 3,
    "clue_jax.export": 3,
    "clue_jax.serving": 3,
    "clue_jax.predictor": 3,
    "pretraining": 4,
    "finetune": 4,
    "tools": 5,
}
# package -> the only places that may import it; the lazy ones import it within a function.
ROOMS = {
    "flax": ("clue_jax/model/",),
    "orbax": ("clue_jax/checkpoint.py",),
    "tensorflow": ("clue_jax/data/tf.py", "clue_jax/export/saved_model.py", "tools/bench_"),
    "onnx": ("clue_jax/export/onnx_graph.py",),
    "fastapi": ("clue_jax/serving/",),
    "uvicorn": ("clue_jax/serving/",),
    "prometheus_client": ("clue_jax/serving/",),
    "tensorflow_datasets": ("finetune/datasets/",),
    "torch": ("tools/bench_",),
    "transformers": ("tools/bench_",),
}
LAZY = {
    "tensorflow",
    "torch",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "opencc",
    "huggingface_hub",
    "rjieba",
    "tensorboardX",
    "matplotlib",
    "nltk",
}

SOURCES = sorted(
    path
    for room in ("clue_jax", "pretraining", "finetune", "tools")
    for path in ROOT.glob(f"{room}/**/*.py")
)


def imports(path: Path) -> list[tuple[str, bool]]:
    """Imported module names, and whether each is imported at the top of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [(name, node in tree.body) for name in names]
    return found


def room_of(module: str) -> str | None:
    return next(
        (
            name
            for name in sorted(FLOORS, key=len, reverse=True)
            if module == name or module.startswith(name + ".")
        ),
        None,
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if module == "clue_jax":
        return
    here = room_of(module)
    assert here, f"{module} is on no floor; add it to the table"
    for name, at_top in imports(path):
        package = name.split(".")[0]
        there = room_of(name)
        if there and there != here:
            assert FLOORS[there] <= FLOORS[here], f"{module} imports {name} from a floor above"
            assert FLOORS[here] != 4 or FLOORS[there] != 4, f"{module} imports its neighbour {name}"
        if package in ROOMS:
            place = path.relative_to(ROOT).as_posix()
            assert place.startswith(ROOMS[package] or "nowhere"), f"{place} imports {package}"
        assert not (package in LAZY and at_top), f"{module} imports {package} before it is needed"


def test_every_source_was_seen():
    assert len(SOURCES) > 30


def test_import_starts_nothing():
    """No device is touched and no heavy package loaded by importing the command lines."""
    code = (
        "import sys, pretraining.run, pretraining.evaluate, pretraining.build_shards;"
        "import pretraining.build_vocab, tools.predict, tools.plot_metrics, tools.convert;"
        "import tools.download, tools.inspect_checkpoint, tools.extract_features;"
        "import jax._src.xla_bridge as b; assert not b._backends;"
        "assert not {'tensorflow', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_migration_guide_names_options_that_exist(monkeypatch, capsys):
    """Every `module --option` in docs/MIGRATION.md, against the command's --help."""
    text = (ROOT / "docs" / "MIGRATION.md").read_text(encoding="utf-8")
    named = re.findall(r"((?:pretraining|finetune|tools)\.\w+) (--[\w-]+)", text)
    named += re.findall(r"(pretraining\.build_shards) --packing \w+ (--\w+)", text)
    assert len(named) > 35
    monkeypatch.setenv("COLUMNS", "200")
    for module in sorted({module for module, _ in named}):
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(module).main(["--help"])
        shown = capsys.readouterr().out
        options = set(re.findall(r"--[\w-]+", shown))
        missing = {option for m, option in named if m == module} - options
        assert not missing, f"{module} has no {missing}"


def test_both_readmes_have_the_same_commands():
    blocks = [
        re.findall(r"^python -m [^#\n]*", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        for name in ("README.md", "README_zh.md")
    ]
    assert [line.strip() for line in blocks[0]] == [line.strip() for line in blocks[1]]
    assert len(blocks[0]) > 8

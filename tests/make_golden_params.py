"""Writes data/golden_params.json: paths and shapes of every preset's parameters.

Run it only when the public contract is meant to change:  python tests/make_golden_params.py
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from clue_jax.config import PRESETS
from clue_jax.model import PretrainingModel
from clue_jax.optim import map_paths

GOLDEN = Path(__file__).parent / "data" / "golden_params.json"


def shapes_of(name: str) -> dict[str, list[int]]:
    """Path -> shape of a preset's parameters, as its model makes them."""
    ids = jnp.zeros((1, 8), jnp.int32)
    model = PretrainingModel(PRESETS[name])
    params = jax.eval_shape(model.init, jax.random.key(0), ids, ids, ids, ids[:, :2])["params"]
    shapes = {}
    map_paths(lambda path, leaf: shapes.update({path: list(leaf.shape)}), params)
    return dict(sorted(shapes.items()))


if __name__ == "__main__":
    lines = [
        f'"{name}": {{\n'
        + ",\n".join(f'  "{path}": {shape}' for path, shape in shapes_of(name).items())
        + "\n}"
        for name in PRESETS
    ]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    json.loads(GOLDEN.read_text())

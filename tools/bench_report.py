"""Makes the tables and the picture of docs/RESULTS.md out of the results kept in docs/results/.

A table stands in the page between two comments, the first of which says what is in it:

    <!-- results: KIND FILES -->
    <!-- end of results -->

FILES is a pattern such as step_*.json. Under each table stand the commands that gave its numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from clue_jax.config import PRESETS
from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_file, read_object, read_text, write_text
from tools.result_tables import TABLES

_BLOCK = re.compile(r"(<!-- results: (\S+) (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

# Milliseconds a step on a TPU v3-8 in the original's table. Its batch is not said; 1024 fits best.
ORIGINAL_MS = {"tiny": 50, "base": 350}


@dataclass(frozen=True)
class Settings:
    """Puts the kept results into the page as tables; ends with one line of JSON."""

    page: str = "docs/RESULTS.md"
    """Page whose tables are made anew."""
    results: str = "docs/results"
    """Folder of the results, a file each, as the benchmarks print them."""
    picture: str | None = None
    """Draw the steps on a TPU v3-8 beside the original's to this file."""
    check: bool = False
    """Change nothing; fail if a table is not what the results give."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    settings = tyro.cli(Settings, args=argv)
    folder = Path(settings.results)
    old = read_text(settings.page)
    new = _BLOCK.sub(lambda block: block[1] + _table(folder, block[2], block[3]) + block[4], old)
    if settings.check and new != old:
        raise UserError(
            f"{settings.page}: its tables are not those of {folder}; run tools.bench_report"
        )
    if not settings.check:
        write_text(settings.page, new)
        if settings.picture:
            _draw([read_object(path) for path in _files(folder, "tpu_*.json")], settings.picture)
    summary = {"page": settings.page, "tables": len(_BLOCK.findall(old)), "changed": new != old}
    print(json.dumps(summary))
    return summary


def _files(folder: Path, pattern: str) -> list[Path]:
    files = sorted(folder.glob(pattern))
    if not files:
        raise UserError(f"{folder}: holds no {pattern}")
    return files


def _table(folder: Path, kind: str, pattern: str) -> str:
    if kind not in TABLES:
        raise UserError(f"no table of kind {kind!r}; known: {', '.join(TABLES)}")
    rows_of = "curve" if kind == "curve" else "rows"
    results = [row for path in _files(folder, pattern) for row in _results(path, rows_of)]
    results.sort(key=_order)
    columns = TABLES[kind]
    rows = [[of(result) for _, of in columns] for result in results]
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = [[columns[i][0] for i in used], ["---"] * len(used)]
    lines += [[row[i] for i in used] for row in rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    made = sorted(
        {
            f"{r['date']}, {r['machine']}" + (f", jax {r['jax']}" if "jax" in r else "")
            for r in results
        }
    )
    commands = "\n".join(dict.fromkeys(result["command"] for result in results))
    return f"\n{table}\n\n{'; '.join(made)}.\n\n```\n{commands}\n```\n\n"


def _results(path: Path, rows_of: str) -> list[dict[str, Any]]:
    """A result, or the several of a command that tells of several things under `rows_of`."""
    result = read_object(path)
    rows = result.get(rows_of)
    return [result | row for row in rows] if isinstance(rows, list) else [result]


def _order(result: dict[str, Any]) -> tuple[str, int]:
    preset = result.get("preset")
    return result.get("topology", ""), list(PRESETS).index(preset) if preset in PRESETS else 0


def _draw(results: Sequence[dict[str, Any]], path: str) -> None:
    """Bars: the estimated step of each model on a v3-8, and what the original published."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [r for r in results if r["topology"] == "v3:2x2" and r["job"] == "train"]
    chosen.sort(key=_order)
    names = [f"{r['preset']}\nB={r['batch_size']}" for r in chosen]
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axis.bar(names, [r["estimated_ms_per_step"] for r in chosen], 0.6, label="here, estimated")
    places = [i for i, r in enumerate(chosen) if r["preset"] in ORIGINAL_MS]
    published = [ORIGINAL_MS[chosen[i]["preset"]] for i in places]
    axis.scatter(
        places,
        published,
        marker="_",
        s=900,
        color="C3",
        label="original, batch not said",
    )
    axis.set(ylabel="ms a step", title="A training step on a TPU v3-8, T=128")
    axis.grid(axis="y", alpha=0.3)
    axis.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:] or "png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)

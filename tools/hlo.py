"""What a compiled program says of itself: cycles by operation, and what devices send each other.

Read from the text of XLA's optimised program. For a TPU the compiler writes beside each operation
how many cycles it expects of it, but for rows that are picked from a table or added to one. What
stands in the body of a loop counts once per trip.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip

_BITS = {"pred": 8, "token": 0}  # the name of any other type ends in its number of bits
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(")
_SHAPE = re.compile(r"([a-z]+\d*)\w*\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_LOOP = re.compile(r"condition=%?[\w.\-]+, body=%?([\w.\-]+)")
_CALL = re.compile(r"(?:to_apply|calls)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Of the name that jax gives: the program, its loop over updates, and which layer it is.
_NOISE = re.compile(r"^jit\(\w+\)/|while/body/(closed_call/)?")
_LAYER = re.compile(r"layer_\d+")


@dataclass
class Operations:
    """Sums over a program.

    Attributes:
      cycles: expected ones, by the name that the source gave the operation, layers taken together.
      without_estimate: how often, by name, rows are picked or added.
      collectives: kind -> bytes of the arrays that a device gets of it.
      counts: kind -> how often.
    """

    cycles: Counter = field(default_factory=Counter)
    without_estimate: Counter = field(default_factory=Counter)
    collectives: Counter = field(default_factory=Counter)
    counts: Counter = field(default_factory=Counter)

    def add(self, other: Operations, times: int) -> None:
        """Adds what runs so often."""
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            for key, number in theirs.items():
                mine[key] += times * number

    @property
    def total_cycles(self) -> int:
        """Of all operations one after the other."""
        return sum(self.cycles.values())


def read(text: str) -> Operations:
    """Reads a program, `compiled.as_text()`.

    Raises:
      ValueError: if it has no entry, or a loop whose trips the compiler does not know.
    """
    lines: dict[str, list[str]] = defaultdict(list)
    entry = name = None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2]
            entry = name if header[1] else entry
        elif name:
            lines[name].append(line)
    if entry is None:
        raise ValueError("no program: it has no entry")
    return _sums(entry, lines)


def _sums(name: str, lines: dict[str, list[str]]) -> Operations:
    sums = Operations()
    for line in lines[name]:
        if not (operation := _OPERATION.match(line)):
            continue
        own, shapes, kind = operation.groups()
        source = _SOURCE.search(line)
        label = _NOISE.sub("", _LAYER.sub("layer", source[1])) if source else ""
        label = label or own.split(".")[0]
        within = Operations()
        if kind == "fusion" and (called := _CALL.search(line)):
            # Its cycles stand beside it; an exchange may hide in it.
            within = _sums(called[1], lines)
            within.cycles.clear()
            within.without_estimate.clear()
            sums.add(within, 1)
        if cycles := _CYCLES.search(line):
            sums.cycles[label] += int(cycles[1])
        elif not within.counts and (kind in ("gather", "scatter") or "kind=kCustom" in line):
            sums.without_estimate[label] += 1
        collective = kind.removesuffix("-done")  # what is started is an array less than it gives
        if collective in COLLECTIVES:
            sums.counts[collective] += 1
            sums.collectives[collective] += bytes_of(shapes)
        if loop := _LOOP.search(line):
            trips = _TRIPS.search(line)
            if not trips:
                raise ValueError(f"the trips of loop {own} are not known")
            sums.add(_sums(loop[1], lines), int(trips[1]))
        elif kind in ("call", "async-start") and (called := _CALL.search(line)):
            sums.add(_sums(called[1], lines), 1)
    return sums


def bytes_of(shapes: str) -> int:
    """Bytes of an array or a tuple of arrays, as the program writes their types."""
    total = 0
    for kind, dims in _SHAPE.findall(shapes):
        bits = _BITS[kind] if kind in _BITS else int(re.search(r"\d+", kind)[0])
        total += bits * math.prod(int(dim) for dim in dims.split(",") if dim) // 8
    return total

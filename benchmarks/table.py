"""The table on standard output: a section for each kind of work, then geometric means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rows import Row

_TITLES = {
    "step": "step latency: one time step of one row, NumPy arrays in and out",
    "inference": "inference: a whole sequence",
    "training": "training step: forward, loss gradient in, all gradients out",
    "ragged": "ragged training step: lengths from 1 to T, half of T in the mean",
    "short": "calls of a few steps of one sequence",
    "short both": "the same in two directions",
    "batch step": "one step of a few rows, NumPy arrays in and out",
}
_EVEN = 0.03  # ratios this close to one are called neither


def header(machine: dict[str, Any], missing: dict[str, str]) -> str:
    """Machine, versions and absentees."""
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}",
        f"threads {machine['threads']}, {machine['dtype']}, fastrnn's instruction set: {machine['instruction_set']}",
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        *(f"skipped: {name}: {reason}" for name, reason in missing.items()),
    ]
    return "\n".join(lines)


class Table:
    """Prints rows as they come, under a head for each kind of work."""

    def __init__(self) -> None:
        self._columns: list[str] = []
        self._kind = ""

    def _head(self, kind: str, columns: Sequence[str]) -> None:
        self._kind, self._columns = kind, list(columns)
        names = "".join(f"{name:>{_width(name)}}" for name in columns)
        print(f"\n{_TITLES[kind]}; medians in µs\n")
        print(f"{'':14}{'':{len(names)}} | fastrnn:{'of the':>18}{'against':>11}  against the")
        print(f"{'cell':5}{'shape':9}{names} | {'GFLOP/s':>8}{'ceiling':>9}{'reference':>11}  best peer")

    def add(self, row: Row) -> None:
        if row.problem.kind != self._kind or any(name not in self._columns for name in row.timings):
            self._head(row.problem.kind, list(row.timings))
        seconds = row.seconds
        times = "".join(
            f"{_number(seconds[name] * 1e6) if name in seconds else '-':>{_width(name)}}" for name in self._columns
        )
        print(
            f"{row.problem.cell:5}{row.problem.shape.name:9}{times} | {_number(row.gflops):>8}"
            f"{_percent(row.of_ceiling):>9}{_times(row.ratio('reference')):>11}  {verdict(row)}",
            flush=True,
        )


def verdict(row: Row) -> str:
    """The ratio to the best peer in words that make a loss as plain as a win."""
    ratio = row.ratio(row.best_peer)
    if ratio is None:
        return f"(no fastrnn; best peer {row.best_peer})" if row.best_peer else ""
    word = "even with" if abs(ratio - 1) <= _EVEN else "FASTER than" if ratio > 1 else "SLOWER than"
    variant = row.variants.get(row.best_peer or "", "")
    return f"{ratio:5.2f}x  {word} {row.best_peer}{f' ({variant})' if variant else ''}"


def summary(rows: Sequence[Row]) -> str:
    """Geometric means over the rows of each kind, wins and losses, and what was skipped."""
    lines: list[str | None] = [""]
    for kind in dict.fromkeys(row.problem.kind for row in rows):
        of_kind = [row for row in rows if row.problem.kind == kind]
        lines += _means(kind, of_kind)
        for cell in dict.fromkeys(row.problem.cell for row in of_kind):
            lines += _means(f"  {cell}", [row for row in of_kind if row.problem.cell == cell])
    lines += [_ceiling(rows, "sgemm", "BLAS", "GFLOP/s"), _ceiling(rows, "stream", "weights of B = 1", "GB/s")]
    reasons = dict.fromkeys((name, reason) for row in rows for name, reason in row.skipped.items())
    lines += [f"skipped: {name}: {reason}" for name, reason in reasons]
    return "\n".join(line for line in lines if line is not None)


def _ceiling(rows: Sequence[Row], name: str, title: str, unit: str) -> str | None:
    """The measured ceiling and how far it swung from row to row, which tells how steady the machine was."""
    rates = sorted(row.ceiling[name] / 1e9 for row in rows if name in row.ceiling)
    if not rates:
        return None
    return (
        f"ceiling: {title} {statistics.median(rates):.1f} {unit}, from {rates[0]:.1f} to {rates[-1]:.1f} over the rows"
    )


def _means(title: str, rows: Sequence[Row]) -> list[str]:
    ratios = {row.problem.name: row.ratio(row.best_peer) for row in rows}
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    if not known:
        return []
    worst = min(known, key=known.__getitem__)
    wins = sum(ratio > 1 + _EVEN for ratio in known.values())
    losses = sum(ratio < 1 - _EVEN for ratio in known.values())
    reference = geometric_mean(row.ratio("reference") for row in rows)
    packed = geometric_mean(row.ratio("torch packed") for row in rows)
    full = geometric_mean(row.ratio("fastrnn full batch") for row in rows)
    one = geometric_mean(row.ratio("fastrnn one thread") for row in rows)
    ceiling = geometric_mean(row.of_ceiling for row in rows)
    frozen = [row.ratio(row.best_peer, "fastrnn frozen") for row in rows]
    least = min((ratio for ratio in frozen if ratio is not None), default=0)
    return [
        f"{title:12}geometric mean {geometric_mean(known.values()):.2f}x the best peer"
        + (f", {reference:.2f}x the reference" if reference else "")
        + (f", {packed:.2f}x torch packed" if packed else "")
        + (f", frozen {geometric_mean(frozen):.2f}x (worst {least:.2f}x)" if least else "")
        + (f", {one:.2f}x itself with one thread" if one else "")
        + (f", {ceiling:.0%} of the ceiling" if ceiling else "")
        + (f"; takes {1 / full:.2f} of the full batch's time" if full else "")
        + f"; wins {wins}, losses {losses} of {len(known)}; worst {known[worst]:.2f}x ({worst})"
    ]


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [ratio for ratio in ratios if ratio is not None]
    return math.exp(sum(map(math.log, known)) / len(known)) if known else None


def _width(name: str) -> int:
    return max(10, len(name) + 2)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"

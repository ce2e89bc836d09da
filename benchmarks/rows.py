"""One row of the table: prepare every contender, check that all agree, time them interleaved, compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ceiling import ceiling_rates, ceiling_runs, least_seconds
from contenders import Contender, Entry, Unsupported
from shapes import Problem
from timing import Effort, Timing, estimate, measure

TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
OURS = ("fastrnn", "reference")  # whatever a name begins with otherwise is a peer


@dataclass
class Row:
    """Results of one problem; times in seconds by contender."""

    problem: Problem
    timings: dict[str, Timing] = field(default_factory=dict)
    variants: dict[str, str] = field(default_factory=dict)  # the fastest way for a column that has several
    skipped: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    ceiling: dict[str, float] = field(default_factory=dict)  # rates measured in this row

    @property
    def seconds(self) -> dict[str, float]:
        return {name: timing.median for name, timing in self.timings.items()}

    @property
    def best_peer(self) -> str | None:
        peers = [name for name in self.timings if not name.startswith(OURS)]
        return min(peers, key=self.seconds.__getitem__, default=None)

    def ratio(self, other: str | None, ours: str = "fastrnn") -> float | None:
        """How many times as fast as `other` fastrnn is; below one it loses."""
        if other not in self.timings or ours not in self.timings:
            return None
        return self.seconds[other] / self.seconds[ours]

    @property
    def gflops(self) -> float | None:
        return self.problem.flops / self.seconds["fastrnn"] / 1e9 if "fastrnn" in self.timings else None

    @property
    def least_seconds(self) -> float | None:
        """The time that the row would take at the ceiling."""
        return least_seconds(self.problem, self.ceiling) if self.ceiling else None

    @property
    def of_ceiling(self) -> float | None:
        """The fraction of the ceiling that fastrnn reaches."""
        least = self.least_seconds
        return least / self.seconds["fastrnn"] if least and "fastrnn" in self.timings else None

    def as_json(self) -> dict[str, Any]:
        """The medians and what follows from them; samples are not kept."""
        _, T, B, I, H, _ = self.problem.shape
        figures = {
            "kind": self.problem.kind,
            "cell": self.problem.cell,
            "shape": self.problem.shape.name,
            **{"T": T, "B": B, "I": I, "H": H},
            "flops": self.problem.flops,
            "microseconds": {name: seconds * 1e6 for name, seconds in self.seconds.items()},
            "cores_used": {name: timing.cores_used for name, timing in self.timings.items()},
            "variants": self.variants,
            "skipped": self.skipped,
            "wrong": self.wrong,
            "gflops": self.gflops,
            "best_peer": self.best_peer,
            "ratio_to_best_peer": self.ratio(self.best_peer),
            "frozen_ratio_to_best_peer": self.ratio(self.best_peer, "fastrnn frozen"),
            "ratio_to_reference": self.ratio("reference"),
            "ceiling_rates": self.ceiling,
            "ceiling_microseconds": self.least_seconds and self.least_seconds * 1e6,
            "of_ceiling": self.of_ceiling,
        }
        return {name: _in_seven_digits(value) for name, value in figures.items()}


def _in_seven_digits(value: Any) -> Any:
    """Floats, also those of a dict; anything else as it is."""
    if isinstance(value, dict):
        return {name: _in_seven_digits(each) for name, each in value.items()}
    return float(f"{value:.7g}") if isinstance(value, float) else value


def run_row(problem: Problem, contenders: Mapping[str, Contender], threads: int, effort: Effort) -> Row:
    """Check and time one problem. A contender that fails or disagrees is reported, not timed."""
    row = Row(problem)
    entries, results = _prepare(row, contenders)
    row.wrong += disagreements(problem, results)
    if row.wrong:
        return row
    runs = {name: entry.run for name, entry in _choose(row, entries, effort).items()}
    timings = measure(runs | ceiling_runs(problem, threads), effort)
    row.timings = {name: timings[name] for name in runs}
    row.ceiling = ceiling_rates(problem, timings)
    return row


def _prepare(row: Row, contenders: Mapping[str, Contender]) -> tuple[dict[str, list[Entry]], dict[str, Any]]:
    """Every contender's entries that run, and what each gave."""
    entries: dict[str, list[Entry]] = {}
    results: dict[str, dict[str, np.ndarray]] = {}
    for name, contender in contenders.items():
        try:
            found = contender.entries(row.problem)
            given = {" ".join((name, entry.column, entry.way)): entry.outputs(entry.run()) for entry in found}
        except (Unsupported, NotImplementedError) as error:
            row.skipped[name] = str(error)
        except Exception as error:  # one broken contender must not hide the others; the run fails in the end
            row.wrong.append(f"{row.problem.name}: {name} failed: {type(error).__name__}: {error}")
        else:
            entries[name] = found
            results |= given
    return entries, results


def _choose(row: Row, entries: Mapping[str, list[Entry]], effort: Effort) -> dict[str, Entry]:
    """The fastest entry for each column of the table."""
    columns: dict[str, list[Entry]] = {}
    for name, found in entries.items():
        for entry in found:
            columns.setdefault(f"{name} {entry.column}".strip(), []).append(entry)
    chosen = {column: _fastest(ways, effort) for column, ways in columns.items()}
    row.variants |= {column: chosen[column].way for column, ways in columns.items() if len(ways) > 1}
    return chosen


def _fastest(entries: list[Entry], effort: Effort) -> Entry:
    if len(entries) == 1:
        return entries[0]
    return min(entries, key=lambda entry: estimate(entry.run, 5 * effort.sample_seconds))


def disagreements(problem: Problem, results: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    """One line for each output in which a contender differs from the one that most of the others agree with."""
    found = []
    for output in dict.fromkeys(output for result in results.values() for output in result):
        given = {name: np.asarray(result[output]) for name, result in results.items() if output in result}
        distances = {
            name: {other: _distance(array, given[other]) for other in given if other != name}
            for name, array in given.items()
        }
        tolerance = TOLERANCE[problem.dtype.name]
        centre = min(given, key=lambda name: sum(d > tolerance for d in distances[name].values()))
        for name, distance in distances[centre].items():
            if not distance <= tolerance:
                found.append(f"{problem.name}: {output} of {name} differs from {centre}'s by {distance:.1e}")
    return found


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, absolute up to values of one and relative to the largest value beyond; inf if it is nan."""
    if a.shape != b.shape:
        return np.inf
    difference = float(np.max(np.abs(a - b), initial=0))
    return difference / max(1.0, float(np.max(np.abs(b), initial=0))) if np.isfinite(difference) else np.inf

"""Interleaved timing: A B C A B C ..., so that a slow second of a shared machine falls on all contenders alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Run = Callable[[], object]


@dataclass
class Timing:
    """The samples of one contender: seconds a call, one sample a round."""

    repetitions: int
    warm: bool  # whether a call goes before each sample, to refill the caches; for long calls it would make no odds
    samples: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def cores_used(self) -> float:
        """CPU seconds of the whole process over wall seconds: tells who runs more threads than it was given."""
        return self.cpu_seconds / self.wall_seconds


@dataclass(frozen=True)
class Effort:
    """How long to look: rounds a row (at least 3), seconds a row, and the shortest sample that a clock is good for."""

    rounds: int
    row_seconds: float
    sample_seconds: float
    pause_seconds: float  # before each sample; lets the spinning threads of the contender before go to sleep


def estimate(run: Run, seconds: float) -> float:
    """Seconds a call, from calls over about `seconds`: warms up as well, and lets compilation happen here."""
    run()
    best, end = math.inf, time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best


def measure(runs: Mapping[str, Run], effort: Effort) -> dict[str, Timing]:
    """Time every run once a round, in turn, until the rounds or the seconds of the row are used up."""
    timings = {}
    for name, run in runs.items():
        seconds = estimate(run, effort.sample_seconds)
        timings[name] = Timing(max(1, math.ceil(effort.sample_seconds / seconds)), warm=seconds < 0.1)
    end = time.perf_counter() + effort.row_seconds
    for round_ in range(effort.rounds):
        for name, run in runs.items():
            _sample(run, timings[name], effort.pause_seconds)
        if round_ >= 2 and time.perf_counter() > end:
            break
    return timings


def _sample(run: Run, timing: Timing, pause: float) -> None:
    """One sample: the mean of `timing.repetitions` calls."""
    if pause:
        time.sleep(pause)
    if timing.warm:
        run()
    collecting = gc.isenabled()
    gc.disable()
    try:
        cpu, start = time.process_time(), time.perf_counter()
        for _ in range(timing.repetitions):
            run()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    finally:
        if collecting:
            gc.enable()
    timing.samples.append(wall / timing.repetitions)
    timing.wall_seconds += wall
    timing.cpu_seconds += cpu

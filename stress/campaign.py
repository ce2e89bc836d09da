"""The command line that all campaigns share, and the cases that it numbers.

A campaign is a function of a `Cases`. It asks that for one case after the other, each with a random generator that
depends on the seed and the number of the case alone, so that a case that failed runs again by itself:

    python -m stress.calls --seed 7 --only 1234
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np


class Cases:
    """Numbers and generators of cases, until the time or the count is over; and what the cases counted.

    seed: of all generators.   seconds, count: the first of them to be reached ends the campaign; None: no such limit.
    only: run this case alone.
    """

    def __init__(
        self, seed: int, *, seconds: float | None = None, count: int | None = None, only: int | None = None
    ) -> None:
        self.seed, self.seconds, self.count, self.only = seed, seconds, count, only
        self.seen: Counter[str] = Counter()  # what a campaign wants told at the end, by name
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[tuple[int, np.random.Generator]]:
        began = time.monotonic()
        numbers = [self.only] if self.only is not None else range(sys.maxsize if self.count is None else self.count)
        for number in numbers:
            if self.seconds is not None and time.monotonic() - began > self.seconds:
                return
            self.seen["cases"] += 1
            yield number, np.random.default_rng([self.seed, number])

    def fail(self, number: int, what: str) -> None:
        """Note a failure, and go on."""
        self.failures.append(f"case {number}: {what}")
        print(f"FAILED {self.failures[-1]}", flush=True)

    @property
    def summary(self) -> str:
        counts = ", ".join(f"{count:,} {name}" for name, count in self.seen.items())
        return f"{counts}; {len(self.failures)} failed"


def main(name: str, run: Callable[[Cases], None], arguments: Sequence[str] | None = None) -> int:
    """Run a campaign as a command: its seed first, then failures as they come, in the end what was seen."""
    parser = argparse.ArgumentParser(prog=f"python -m stress.{name}", description=run.__doc__)
    parser.add_argument("--seconds", type=float, default=None, help="time limit; 60 where there is no --count")
    parser.add_argument("--count", type=int, default=None, metavar="N", help="cases, at most")
    parser.add_argument("--seed", type=int, default=None, help="of all cases; by default another one each time")
    parser.add_argument("--only", type=int, default=None, metavar="N", help="run case N alone")
    options = parser.parse_args(arguments)
    seed = int(np.random.SeedSequence().entropy) % 2**32 if options.seed is None else options.seed
    seconds = 60.0 if options.seconds is None and options.count is None and options.only is None else options.seconds
    print(f"{name}: seed {seed}", flush=True)
    cases, began = Cases(seed, seconds=seconds, count=options.count, only=options.only), time.monotonic()
    run(cases)
    print(f"{name}: seed {seed}: {cases.summary}; {time.monotonic() - began:.0f} s", flush=True)
    return 1 if cases.failures else 0

"""Cases in processes of their own: what crashes, hangs or eats memory there becomes a failure that names its case.

    for number of cases  ->  child: work(number, rng of that number, log)  ->  counts and failures

A child does one case after the other. It writes down what it is about to do in memory that it shares with its parent
(`Log.begin`), so that the parent can say what a child did when it died.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .campaign import Cases

_LONGEST = 2000  # bytes of what a child is about to do
_PR_SET_PDEATHSIG = 1  # of Linux
_CONTEXT = multiprocessing.get_context("spawn")  # no threads and no locks of the parent


class Log:
    """What a case counted and found, and what it is at."""

    def __init__(self, at: Any) -> None:
        self.seen: Counter[str] = Counter()
        self.failures: list[str] = []
        self._at = at

    def begin(self, what: str) -> None:
        """Say what comes next: told if it kills the process."""
        self._at.value = what.encode(errors="replace")[: _LONGEST - 1]

    def fail(self, what: str) -> None:
        self.failures.append(what)

    @property
    def at(self) -> str:
        return self._at.value.decode(errors="replace")


Work = Callable[[int, np.random.Generator, Log], None]  # number of the case, its generator, its log


class Died(Exception):
    """A child crashed or hung; what it was at."""


class Child:
    """A process that does `work`, with at most so many gigabytes of address space and so many seconds a case.

    preload: a library that is loaded into it before all others.
    """

    def __init__(
        self, work: Work, seed: int, *, gigabytes: float = 4.0, patience: float = 60.0, preload: str | None = None
    ) -> None:
        self._at = _CONTEXT.RawArray(ctypes.c_char, _LONGEST)
        self._here, there = _CONTEXT.Pipe()
        self._patience = patience
        self._process = _CONTEXT.Process(target=_serve, args=(there, self._at, work, seed, gigabytes), daemon=True)
        environment = dict(os.environ)
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(environment)
        there.close()

    def run(self, number: int) -> tuple[Counter[str], list[str]]:
        """What case `number` counted and found. Raises Died."""
        try:
            self._here.send(number)
            if self._here.poll(self._patience):
                return self._here.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise Died(f"{_death(self._process.exitcode)} in {Log(self._at).at}") from None
        self._process.kill()
        self.stop()
        raise Died(f"nothing for {self._patience:g} s in {Log(self._at).at}")

    def stop(self) -> None:
        """By its own will, if it is not at a case."""
        self._here.close()
        self._process.join(2)
        self._process.kill()
        self._process.join()


class Children:
    """Children that do cases one after the other, each until it dies. options: of `Child`."""

    def __init__(self, cases: Cases, work: Work, **options: Any) -> None:
        self._cases, self._make = cases, partial(Child, work, cases.seed, **options)
        self._child: Child | None = None

    def run(self, number: int) -> None:
        """Do a case; add what it counted and found, or how it died, to that of all."""
        self._child = self._child or self._make()
        try:
            seen, failures = self._child.run(number)
        except Died as death:
            self._cases.fail(number, str(death))
            self._child = None
            return
        self._cases.seen.update(seen)
        for what in failures:
            self._cases.fail(number, what)

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()


def run_in_children(cases: Cases, work: Work) -> None:
    """Do each case in a child."""
    children = Children(cases, work)
    for number, _ in cases:
        children.run(number)
    children.stop()


def _death(code: int | None) -> str:
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"


def _serve(parent: Any, at: Any, work: Work, seed: int, gigabytes: float) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # when the parent dies
    most = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            number = parent.recv()
        except EOFError:
            return
        log = Log(at)
        try:
            work(number, np.random.default_rng([seed, number]), log)
        except Exception:
            log.fail(f"in {log.at}: {traceback.format_exc(limit=-4)}")
        parent.send((log.seen, log.failures))

"""How many threads work, and the one way to give them work.

Work is cut into tasks by its size alone, never by the number of threads, and each task writes where no other does: the
results are the same bits for any number of threads. Tasks release the GIL in `_core`, so Python threads serve.

    run    several tasks side by side: walks through parts of a batch, directions, layers
    crew   several threads on one walk, each with some of the units of every step (kernels/crew.hpp)
    walk   the one or the other
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from . import _core
from .checks import positive_int

# Handing a task to another thread costs some 10 µs, or 50 if that sleeps, and each walk packs the weights anew: work of
# fewer multiply-adds than this is not cut
WORTH_CUTTING = 1 << 23


def _initial_count() -> int:
    given = os.environ.get("FASTRNN_NUM_THREADS")
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdecimal() or int(given) < 1:
        raise ImportError(f"expected FASTRNN_NUM_THREADS to be a positive integer, got {given!r}")
    return int(given)


_count = _initial_count()
_pool: _Pool | None = None
_lock = threading.Lock()


def get_num_threads() -> int:
    """The number of threads that a call may use, the caller's among them.

    >>> import fastrnn
    >>> fastrnn.get_num_threads() >= 1
    True
    """
    return _count


def set_num_threads(n: int) -> None:
    """Let a call use up to n threads, the caller's among them; the results are the same bits for any n.

    >>> import fastrnn
    >>> fastrnn.set_num_threads(1)

    At first it is the environment's FASTRNN_NUM_THREADS or, without that, the number of CPUs that this process may use.
    Raises TypeError or ValueError unless n is a positive integer.
    """
    _change(positive_int("n", n))


def _change(n: int) -> _Pool | None:
    """Use n threads from now on: the pool there was, whose threads end when they have done what they were given."""
    global _count, _pool
    with _lock:
        _count, old, _pool = n, _pool, None
    if old is not None:
        old.close()
    return old


def run(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of all tasks, the first of them run by the caller; an error is raised when all have ended."""
    if len(tasks) == 1 or _count == 1:
        return [task() for task in tasks]
    job = _Job(tasks)
    _submit(job.help, min(_count, len(tasks)) - 1)
    return job.lead()


class _Job:
    """Tasks that the caller and its helpers take, each the next. Whoever fails takes no more."""

    def __init__(self, tasks: Sequence[Callable[[], Any]]) -> None:
        self.tasks, self.pending = tasks, list(reversed(range(len(tasks))))
        self.results: list[Any] = [None] * len(tasks)
        self.error: BaseException | None = None
        self.helpers = _core.HowMany()  # that have come and not left
        self.changed = threading.Condition(threading.Lock())

    def work(self) -> None:
        while True:
            with self.changed:
                if not self.pending:
                    return
                index = self.pending.pop()
            self.results[index] = self.tasks[index]()

    def help(self) -> None:
        with self.changed:
            if not self.pending:
                return
            self.helpers.add(1)
        try:
            self.work()
        except BaseException as error:
            self.error = error
        with self.changed:
            self.helpers.add(-1)
            self.changed.notify()

    def lead(self) -> list[Any]:
        try:
            self.work()
        finally:
            with self.changed:
                self.pending.clear()  # nobody comes from here on
            if not self.helpers.soon_none():
                with self.changed:
                    while self.helpers.n:
                        self.changed.wait()
            self.tasks = ()  # a helper that was not needed is kept until a thread has time
        error, self.error = self.error, None
        if error is not None:
            raise error
        return self.results


def blocks(n: int, work: int) -> list[slice]:
    """n rows or columns in four blocks if the work is worth it: cut by the problem, never by the threads."""
    size = max(1, -(-n // (4 if work >= WORTH_CUTTING else 1)))
    return [slice(start, start + size) for start in range(0, n, size)]


def walk(tasks: Sequence[Callable[..., Any]], first: Any) -> None:
    """Run tasks that each walk, the first of them through this scan or column: several side by side, one by units."""
    most = first.threads if len(tasks) == 1 else 1
    if most == 1:
        run(tasks)
        return
    with crew(most, first.work) as helpers:
        tasks[0](crew=helpers)


@contextmanager
def crew(most: int, work: int) -> Iterator[_core.Crew | None]:
    """Up to `most` threads, the caller's among them, for one walk of so many multiply-adds; None if it walks alone."""
    n = min(_count, most)
    if n == 1 or work < WORTH_CUTTING or _core.Crew.rest():
        yield None
        return
    together = _core.Crew(n - 1)
    _submit(together.help, n - 1)
    try:
        yield together
    finally:
        together.dismiss()  # who comes later leaves at once


class _Pool:
    """Threads that do what they are given. One that is done looks out for more, for a short while without the GIL, and
    then sleeps.

    OpenBLAS has a warm buffer for each of them and the caller. It gives a product the first one that is free: only
    products at the same time warm different ones.
    """

    def __init__(self, size: int) -> None:
        self._given: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._waiting = _core.HowMany()  # given, and not yet taken
        together = threading.Barrier(size + 1)
        self._threads = [
            threading.Thread(target=self._serve, args=(together,), name=f"fastrnn_{i}", daemon=True)  # see _end
            for i in range(size)
        ]
        for thread in self._threads:
            thread.start()
        _warm(together)

    def give(self, work: Callable[[], None] | None, count: int) -> None:
        for _ in range(count):
            self._given.put(work)
        self._waiting.add(count)

    def close(self) -> None:
        self.give(None, len(self._threads))

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _serve(self, together: threading.Barrier) -> None:
        _warm(together)
        while True:
            self._waiting.soon_some()
            work = self._given.get()
            self._waiting.add(-1)
            if work is None:
                return
            work()
            del work  # and what it holds


def _warm(together: threading.Barrier) -> None:
    together.wait()
    try:
        _core.warm_blas()
    finally:
        together.wait()


def _submit(work: Callable[[], None], count: int) -> None:
    """Have so many threads do work, when they have time."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = _Pool(_count - 1)
        _pool.give(work, count)


def _end() -> None:
    """Before the interpreter ends, its threads do; calls from here on are their callers' alone."""
    pool = _change(1)
    if pool is not None:
        pool.join()


def _after_fork() -> None:
    """A child has none of its parent's threads: it starts with a pool, and locks, of its own."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

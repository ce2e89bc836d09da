"""How many threads work, and the one way to give them work.

Work is cut into tasks by its size alone, never by the number of threads, and each task writes where no other does: the
results are the same bits for any number of threads. Tasks release the GIL in `_core`, so Python threads serve.

    run    several tasks side by side: walks through parts of a batch, directions, layers
    crew   several threads on one walk, each with some of the units of every step (kernels/crew.hpp)
    walk   the one or the other
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import _core
from .checks import positive_int

if TYPE_CHECKING:  # not imported before threads are needed: it takes longer than all else here
    from concurrent.futures import ThreadPoolExecutor

# Handing a task to another thread costs some 50 µs: work of fewer multiply-adds than this is not cut
WORTH_CUTTING = 1 << 23


def _initial_count() -> int:
    given = os.environ.get("FASTRNN_NUM_THREADS")
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdecimal() or int(given) < 1:
        raise ImportError(f"expected FASTRNN_NUM_THREADS to be a positive integer, got {given!r}")
    return int(given)


_count = _initial_count()
_pool: ThreadPoolExecutor | None = None
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
    global _count, _pool
    n = positive_int("n", n)
    with _lock:
        _count, old, _pool = n, _pool, None
    if old is not None:
        old.shutdown(wait=False)  # calls under way still finish on it


def run(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of all tasks, the first of them run by the caller; an error is raised when all have ended."""
    if len(tasks) == 1 or _count == 1:
        return [task() for task in tasks]
    pending, lock = list(reversed(range(len(tasks)))), threading.Lock()
    results: list[Any] = [None] * len(tasks)

    def work() -> None:
        while True:
            with lock:
                if not pending:
                    return
                index = pending.pop()
            results[index] = tasks[index]()

    helpers = _submit(work, min(_count, len(tasks)) - 1)
    try:
        work()
    finally:
        errors = [error for helper in helpers if not helper.cancel() and (error := helper.exception())]
        tasks = ()  # the pool keeps a helper that was cancelled until one of its threads has time
    if errors:
        raise errors[0]
    return results


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
    helpers = _submit(together.help, n - 1)
    try:
        yield together
    finally:
        together.dismiss()
        for helper in helpers:
            helper.cancel()  # if it has not come; else it leaves by itself


def _submit(work: Callable[[], None], count: int) -> list[Any]:
    global _pool
    with _lock:
        if _pool is None:
            _pool = _new_pool(_count - 1)
        return [_pool.submit(work) for _ in range(count)]


def _new_pool(size: int) -> ThreadPoolExecutor:
    """A pool whose threads have all started, and an OpenBLAS that has a warm buffer for each of them and the caller.

    OpenBLAS gives a product the first buffer that is free: only products at the same time warm different ones.
    """
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(size, "fastrnn")
    together = threading.Barrier(size + 1)

    def warm() -> None:
        together.wait()
        _core.warm_blas()

    started = [pool.submit(warm) for _ in range(size)]
    warm()
    for future in started:
        future.result()
    return pool


def _after_fork() -> None:
    """A child has none of its parent's threads: it starts with a pool, and locks, of its own."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

"""Threads: how many there are, and tasks for them.

Work is cut into tasks by its size alone, never by the number of threads, and each task writes where no other does: the
results are the same bits for any number of threads. Tasks release the GIL in `_core`, so they run on Python threads;
how these take tasks, and what an interrupt does meanwhile, is in core/tasks.pxi.

    run           run several tasks in parallel: shards of a batch, directions, layers
    run_passes    the same; a single layer pass is instead shared by a team of threads, each with some hidden units
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from typing import Any

from .. import _core
from ..util.checks import positive_int
from . import tuning

MOST_THREADS = 1 << 16


def _initial_count() -> int:
    given = os.environ.get("FASTRNN_NUM_THREADS")
    if given is None:
        return _shared_count() or _cpus()
    if not given.isdecimal() or not 1 <= int(given) <= MOST_THREADS:
        raise ImportError(f"expected FASTRNN_NUM_THREADS to be a positive integer, got {given!r}")
    return int(given)


def _shared_count() -> int | None:
    """What OMP_NUM_THREADS says, which loky, joblib and dask set so that each of their workers gets its share of the
    cores, but no more than there are CPUs; None if it says nothing. Of a list, one a level of nesting, the first.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(int(first), _cpus()) if first.isdecimal() and int(first) > 0 else None


def _cpus() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def get_num_threads() -> int:
    """The number of threads that a call may use, the caller's among them.

    >>> import fastrnn
    >>> fastrnn.get_num_threads() >= 1
    True
    """
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Let a call use up to n threads, the caller's among them; the results are the same bits for any n.

    >>> import fastrnn
    >>> fastrnn.set_num_threads(1)

    At first it is the environment's FASTRNN_NUM_THREADS or, without that, OMP_NUM_THREADS or, without that as well, the
    number of CPUs that this process may use. A call may use fewer: how many threads work of its kind is worth is learnt
    from the calls before it.
    Raises TypeError or ValueError unless n is a positive integer, of at most 65,536.
    """
    if positive_int("n", n) > MOST_THREADS:
        raise ValueError(f"expected n <= {MOST_THREADS}, got {n}")
    _core.set_num_threads(n)


def run(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run the tasks in parallel and return their results; an error of a task is raised when all have ended."""
    return _core.run(list(tasks))


def blocks(n: int, work: int) -> list[slice]:
    """Divide n rows or columns into four blocks if the work is large enough, else one; threads do not matter."""
    size = max(1, -(-n // (4 if work >= tuning.WORTH_CUTTING else 1)))
    return [slice(start, start + size) for start in range(0, n, size)]


def run_passes(tasks: Sequence[Callable[..., Any]], first: Any, kind: str) -> None:
    """Run tasks in parallel; a single task is instead split across hidden units.

    first: the layer pass or stack that the first task belongs to.  kind: "forward" or "backward".
    """
    if len(tasks) == 1 and first.threads > 1:
        _core.share(tasks[0], first.threads, first.work, (kind, first.threads))
    else:
        _core.run(list(tasks), kind, max(1, first.work * len(tasks)))


def _end() -> None:
    """End the threads of the pool before the interpreter ends; later calls run on their caller's thread alone."""
    pool = _core.set_num_threads(1)
    if pool is not None:
        pool.join()


_core.set_num_threads(_initial_count())
atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_core.after_fork)

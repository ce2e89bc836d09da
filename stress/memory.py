"""Memory that is not given back, and memory that there is not.

Even cases: many calls of one kind (`uses`) in a child, after a warm-up of a tenth as many.  The resident memory of the
process may then grow by at most 1 MiB; where it grows by more, the same calls are made twice again, since a pool that
fills once is no leak, and it is a failure if it grows by more each time.  `--count` is the number of calls of each kind
(a tenth of it of those that take milliseconds); by default 300.

Odd cases: the same kinds where the n-th allocation fails, for n from 0 on until a call succeeds: that one alone, or it
and all after it.  The allocations are those of the extension and of the data of NumPy's arrays, refused by
failing_malloc.c, which is compiled into a temporary folder and loaded by LD_PRELOAD (Linux with glibc and a C compiler;
elsewhere such cases are left out).  What else NumPy takes, for iterators and indices, is left alone: NumPy 2.4 itself
crashes, or raises SystemError, where some of that fails.  Each call that fails raises MemoryError, what must not change
has not, and the next one that is left alone gives the bits that it gave before.

Without --seconds, each kind has its turn once.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
from fastrnn import _core

from .campaign import Cases, main
from .child import Children, Log
from .uses import SLOW, USES

BOUND = 1 << 20  # bytes of growth that are no leak
CALLS = 300
SET_HANDLER = 304  # PyDataMem_SetHandler in NumPy's table of functions
MOST_ALLOCATIONS = 5000  # of one call


def run(cases: Cases) -> None:
    """Resident memory over many calls of each kind; an allocator that fails at the n-th allocation for every n."""
    calls, cases.count = cases.count or CALLS, None
    with tempfile.TemporaryDirectory() as folder:
        library = built_library(folder)
        leaking = Children(cases, partial(many_calls, calls), patience=60 + 0.05 * calls)
        failing = Children(cases, failing_calls, preload=library)
        for number, _ in cases:
            if cases.only is None and cases.seconds is None and number == 2 * len(USES):
                cases.seen["cases"] -= 1
                break
            if number % 2 == 0:
                leaking.run(number)
            elif library is not None:
                failing.run(number)
        leaking.stop()
        failing.stop()


def use_of(number: int) -> Any:
    return USES[number // 2 % len(USES)]


# ------------------------------------------------------------ memory that is not given back


def many_calls(calls: int, number: int, rng: np.random.Generator, log: Log) -> None:
    """An even case."""
    make = use_of(number)
    calls = max(10, calls // 10 if make in SLOW else calls)
    warnings.simplefilter("ignore")
    fastrnn.set_num_threads(1)
    log.begin(f"{calls} calls of {make.__name__}")
    use = make(rng)
    grown = growths(use.call, calls)
    log.seen["calls of which memory was watched"] += calls * len(grown)
    if len(grown) == 3:
        log.fail(f"memory grew by {grown} bytes in {log.at}")


def growths(call: Callable[[], Any], calls: int) -> list[int]:
    """Of resident memory, in bytes, over so many calls: once, or three times if it is each time above the bound."""
    for _ in range(max(10, calls // 10)):
        call()
    grown: list[int] = []
    while len(grown) < 3:
        gc.collect()
        before = resident()
        for _ in range(calls):
            call()
        gc.collect()
        grown.append(resident() - before)
        if grown[-1] <= BOUND:
            return grown[-1:]
    return grown


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# ------------------------------------------------------------ memory that there is not


def built_library(folder: str) -> str | None:
    """failing_malloc.c, compiled into the folder; None where that cannot be done."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = os.path.join(folder, "failing_malloc.so")
    source = Path(__file__).with_name("failing_malloc.c")
    built = subprocess.run([compiler, "-O1", "-shared", "-fPIC", str(source), "-o", library], capture_output=True)
    return library if built.returncode == 0 else None


class Allocator:
    """failing_malloc.so, which is loaded into this process already; it learns what to refuse memory."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None)
        self.library.disarm.restype = ctypes.c_long
        self.library.watch_range.argtypes = [ctypes.c_size_t] * 2
        self.library.arm.argtypes = [ctypes.c_long, ctypes.c_int]
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if "x" in fields[1] and fields[-1] == _core.__file__:
                start, end = (int(address, 16) for address in fields[0].split("-"))
                if self.library.watch_range(start, end):
                    raise RuntimeError("expected fewer ranges of code to refuse memory to")
        self._handle_arrays()

    def _handle_arrays(self) -> None:
        """Let NumPy take the data of arrays of this thread from the library."""
        api = ctypes.pythonapi
        api.PyCapsule_GetPointer.restype = ctypes.c_void_p
        api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        api.PyCapsule_New.restype = ctypes.py_object
        api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        core = np._core if hasattr(np, "_core") else np.core
        functions = api.PyCapsule_GetPointer(core.multiarray._ARRAY_API, None)
        set_handler = ctypes.cast(functions, ctypes.POINTER(ctypes.c_void_p))[SET_HANDLER]
        memory = ctypes.addressof(ctypes.c_char.in_dll(self.library, "array_memory"))
        ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(set_handler)(
            api.PyCapsule_New(memory, b"mem_handler", None)
        )

    def attempt(self, call: Callable[[], Any], n: int, for_good: bool) -> tuple[int, Any, BaseException | None]:
        """How many allocations failed, what the call returned and what it raised, where the n-th fails."""
        found, error = None, None
        self.library.arm(n, for_good)
        try:
            found = call()
        except Exception as raised:
            error = raised
        return self.library.disarm(), found, error


_allocator: Allocator | None = None  # of this process


def failing_calls(number: int, rng: np.random.Generator, log: Log) -> None:
    """An odd case."""
    global _allocator
    _allocator = _allocator or Allocator()
    warnings.simplefilter("ignore")
    fastrnn.set_num_threads(1)
    make = use_of(number)
    log.begin(f"the making of {make.__name__}")
    use = make(rng)
    expected = use.call()
    for for_good in (False, True):
        for n in range(MOST_ALLOCATIONS):
            log.begin(f"{make.__name__} where allocation {n}{' and all after it' if for_good else ''} fails")
            if not fails_well(_allocator, use, expected, n, for_good, log):
                break


def fails_well(allocator: Allocator, use: Any, expected: Any, n: int, for_good: bool, log: Log) -> bool:
    """Whether an allocation failed; notes what was wrong with that."""
    before = use.watch()
    failed, found, error = allocator.attempt(use.call, n, for_good)
    log.seen["calls where memory failed"] += failed > 0
    if error is not None and not isinstance(error, MemoryError):
        log.fail(f"{type(error).__name__}: {error}, in {log.at}")
    if error is None and found != expected:
        log.fail(f"another result in {log.at}")
    if use.watch() != before:
        log.fail(f"something has changed in {log.at}")
    log.begin(f"the call after {log.at}")
    if use.call() != expected:
        log.fail(f"another result in {log.at}")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main("memory", run))

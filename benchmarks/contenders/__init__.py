"""Who is timed.  One module each, with a class `Contender`:

    Contender(threads)              imports and sets up the library; ImportError where it is not installed
    .version                        what was measured
    .entries(problem) -> [Entry]    ways to do this problem, each at its best; `Unsupported` if there is none

Of several entries for one column of the table the fastest counts: the layer or the Cell, one thread or more.
Converting weights and inputs and compiling happen in `entries` or in the first call, outside the timing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from shapes import Problem

MODULES = {
    "fastrnn": "fastrnn_",
    "reference": "numpy_reference",
    "torch": "torch_",
    "onnxruntime": "onnxruntime_",
    "openvino": "openvino_",
    "jax": "jax_",
}


class Unsupported(Exception):
    """This contender cannot do this problem; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One way of a contender to do a problem.

    run: does the whole work and returns results that are ready.
    outputs: turns what `run` returned into NumPy arrays by name (y, h, c, dx and the parameters' names) to be compared.
    column: which of the contender's columns of the table this is for; mostly there is one, without a name.
    way: what sets it apart from the other entries for that column.
    keep: memory that the library only points to, which has to live as long as the entry.
    """

    run: Callable[[], Any]
    outputs: Callable[[Any], dict[str, np.ndarray]]
    column: str = ""
    way: str = ""
    keep: Any = None


def thread_counts(threads: int) -> dict[str, int]:
    """Numbers of threads to try with a library, by name: small problems can be faster with one than with all."""
    return {"one thread": 1} | ({f"{threads} threads": threads} if threads > 1 else {})


class Contender(Protocol):
    version: str

    def entries(self, problem: Problem) -> list[Entry]: ...


def load(names: Iterable[str], threads: int) -> tuple[dict[str, Contender], dict[str, str]]:
    """The installed contenders among `names`, and for the others the reason why they are missing."""
    found: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.import_module(f"contenders.{MODULES[name]}").Contender(threads)
        except ImportError as error:
            missing[name] = f"not installed ({error})"
    return found, missing

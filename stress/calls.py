"""Random layers over all options, in valid and in hostile calls: right by the reference, or a clear error.

A case is a layer and some hundred calls, in a child process: see `valid` and `around` for what must be right and within
which bounds, `hostile` and `arguments` for what must be refused. A hostile call raises TypeError or ValueError, or is
right where the argument is in fact acceptable; MemoryError where it asks for more than there can be. Afterwards
parameters, gradients, the random state, the arguments and the states of streams are the same to the bit, and the layer
works as before (`judge`).
"""

from __future__ import annotations

import sys
import warnings

import fastrnn
import numpy as np

from . import arguments, around, hostile, valid
from .campaign import Cases, main
from .child import Log, run_in_children
from .judge import Judge
from .layers import Subject, chance, pick


def run(cases: Cases) -> None:
    """Random layers over all options, in valid and in hostile calls."""
    run_in_children(cases, one_layer)


def one_layer(number: int, rng: np.random.Generator, log: Log) -> None:
    """A case."""
    warnings.simplefilter("ignore")  # of NumPy, about values that overflow
    fastrnn.set_num_threads(1)
    log.begin("the making of a layer")
    subject = Subject.random(rng)
    for _ in range(8):
        pick(rng, valid.SCENARIOS + around.SCENARIOS)(rng, subject, log)
    if chance(rng, 0.1):
        valid.threaded(rng, subject, log)
    judge = Judge(rng, subject, log)
    for _ in range(3):
        pick(rng, hostile.SCENARIOS + arguments.SCENARIOS)(judge)


if __name__ == "__main__":
    sys.exit(main("calls", run))

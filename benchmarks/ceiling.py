"""What the core could do at best, measured beside the contenders in every row.

Batches are held against a large product of NumPy's BLAS.  One row alone (B = 1) multiplies a vector by the recurrent
weights at every step, which is bound by how fast the weights are read: it is held against a plain pass over an array
of their size, plus the products that are not tied to a step (input product, weight gradients) at the speed of BLAS.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shapes import GATES, Problem
from timing import Run, Timing

SIZE = 1024  # of the square matrices
STREAMED = 1 << 22  # elements read by one call of the streaming pass, at least


def ceiling_runs(problem: Problem) -> dict[str, Run]:
    """The runs to time beside the contenders of a row."""
    return {"sgemm": _sgemm(problem.dtype)} | ({"stream": _stream(problem)} if problem.shape.B == 1 else {})


def least_seconds(problem: Problem, timings: Mapping[str, Timing]) -> float:
    """The time of the row's products at the ceiling."""
    gemm_flops = 2 * SIZE**3 / timings["sgemm"].median
    if problem.shape.B > 1:
        return problem.flops / gemm_flops
    size = _streamed_weights(problem)
    bytes_a_second = _passes(size) * size * problem.dtype.itemsize / timings["stream"].median
    passes = problem.shape.T * (2 if problem.training else 1)
    streamed_flops = 2 * size * passes
    return (problem.flops - streamed_flops) / gemm_flops + passes * size * problem.dtype.itemsize / bytes_a_second


def _streamed_weights(problem: Problem) -> int:
    """Elements read at every step: W_hh, and W_ih as well where the sequence is one step long."""
    T, I, H = problem.shape.T, problem.shape.I, problem.shape.H
    return GATES[problem.cell] * H * (H + (I if T == 1 else 0))


def _passes(size: int) -> int:
    return -(-STREAMED // size)


def _sgemm(dtype: np.dtype) -> Run:
    a, b = np.random.default_rng(6).standard_normal((2, SIZE, SIZE)).astype(dtype)
    out = np.empty((SIZE, SIZE), dtype)
    return lambda: np.matmul(a, b, out=out)


def _stream(problem: Problem) -> Run:
    """Read an array of the weights' size again and again: dot products of its two halves, many in one call."""
    size = _streamed_weights(problem)
    halves = np.ones((2, size // 2), problem.dtype)
    passes = _passes(size)
    first, second = (np.broadcast_to(half, (passes, size // 2)) for half in halves)
    out = np.empty(passes, problem.dtype)
    return lambda: np.vecdot(first, second, out=out)

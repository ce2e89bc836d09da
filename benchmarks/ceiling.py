"""What the core could do at best, measured beside the contenders in every row.

Batches are held against a large product of NumPy's BLAS.  One row alone (B = 1) multiplies a vector by the recurrent
weights at every step, which is bound by how fast the weights are read: it is held against a plain pass over an array
of their size, plus the products that are not tied to a step (input product, weight gradients) at the speed of BLAS.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shapes import GATES, Problem
from timing import Run, Timing

SIZE = 1024  # of the square matrices
STREAMED = 1 << 22  # elements read by one call of the streaming pass, at least
BLOCK = 4096  # elements of a dot product at most: BLAS does not hand so few to its own threads


def ceiling_runs(problem: Problem, threads: int) -> dict[str, Run]:
    """The runs to time beside the contenders of a row."""
    runs = {"sgemm": _sgemm(problem.dtype)}
    return runs | {"stream": _stream(problem, threads)} if problem.shape.B == 1 else runs


def ceiling_rates(problem: Problem, timings: Mapping[str, Timing]) -> dict[str, float]:
    """What was measured: floating-point operations a second of BLAS, and for B = 1 bytes a second of weights."""
    rates = {"sgemm": 2 * SIZE**3 / timings["sgemm"].median}
    if "stream" in timings:
        size = _streamed_weights(problem)
        rates["stream"] = _passes(size) * size * problem.dtype.itemsize / timings["stream"].median
    return rates


def least_seconds(problem: Problem, rates: Mapping[str, float]) -> float:
    """The time of the row's products at these rates."""
    if "stream" not in rates:
        return problem.flops / rates["sgemm"]
    weights = _streamed_weights(problem) * problem.shape.T * (2 if problem.training else 1)  # elements read in all
    return (problem.flops - 2 * weights) / rates["sgemm"] + weights * problem.dtype.itemsize / rates["stream"]


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


def _stream(problem: Problem, threads: int) -> Run:
    """Read an array of the weights' size again and again, each thread its own part of it."""
    size = _streamed_weights(problem)
    parts = [_stream_part(size // threads, _passes(size), problem.dtype) for _ in range(threads)]
    if threads == 1:
        return parts[0]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda part: part(), parts))


def _stream_part(size: int, passes: int, dtype: np.dtype) -> Run:
    """Dot products of blocks from the two halves of an array: all of a pass, all passes in one call."""
    blocks = -(-size // (2 * BLOCK))
    first, second = (
        np.broadcast_to(half.reshape(blocks, -1), (passes, blocks, size // (2 * blocks)))
        for half in np.ones((2, size // (2 * blocks) * blocks), dtype)
    )
    out = np.empty((passes, blocks), dtype)
    return lambda: np.vecdot(first, second, out=out, order="C")  # pass by pass, not block by block

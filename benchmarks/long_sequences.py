"""Time and memory of back-propagation through long sequences: the whole tape against segments that run forward again.

    python benchmarks/long_sequences.py [--steps T] [--batch B] [--hidden H] [--repeat N]

For each cell, a forward and a backward pass with the tape of every step and with checkpoint="auto", in turns; the
fastest of N.  Memory is what NumPy allocates at most, as tracemalloc counts it in a pass of its own, without x, y, dy
and dx.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from typing import Any

import fastrnn
import numpy as np

CELLS = {
    "RNN, tanh": (fastrnn.RNN, {}),
    "RNN, softsign": (fastrnn.RNN, {"nonlinearity": "softsign"}),
    "GRU": (fastrnn.GRU, {}),
    "GRU, reset before": (fastrnn.GRU, {"reset_after": False}),
    "LSTM": (fastrnn.LSTM, {}),
}
WAYS: dict[str, dict[str, Any]] = {"tape": {}, "auto": {"checkpoint": "auto"}}


def seconds(layer: Any, x: np.ndarray, dy: np.ndarray, how: dict[str, Any]) -> float:
    started = time.perf_counter()
    _, _, tape = layer.forward(x, **how)
    layer.backward(tape, dy)
    return time.perf_counter() - started


def megabytes(layer: Any, x: np.ndarray, dy: np.ndarray, how: dict[str, Any]) -> float:
    tracemalloc.start()
    y, _, tape = layer.forward(x, **how)
    dx, _ = layer.backward(tape, dy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - y.nbytes - dx.nbytes) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 100_000), ("batch", 1), ("hidden", 64), ("repeat", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    fastrnn.set_num_threads(1)
    T, B, H = given.steps, given.batch, given.hidden
    x = np.random.default_rng(0).standard_normal((T, B, H), dtype=np.float32)
    dy = np.ones((T, B, H), np.float32)
    print(f"T={T:,}, B={B}, I=H={H}, float32, one thread")
    print("| | tape | auto | of the memory | tape | auto | times the time |\n|---|---|---|---|---|---|---|")
    for name, (kind, options) in CELLS.items():
        layer = kind(H, H, rng=0, **options)
        turns = [[seconds(layer, x, dy, how) for how in WAYS.values()] for _ in range(given.repeat)]
        plain, segmented = (min(column) for column in zip(*turns, strict=True))
        kept, little = (megabytes(layer, x, dy, how) for how in WAYS.values())
        print(
            f"| {name} | {kept:,.1f} MB | {little:,.1f} MB | {little / kept:.1%} "
            f"| {plain:.2f} s | {segmented:.2f} s | {segmented / plain:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

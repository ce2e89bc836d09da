"""Time and memory of back-propagation through long sequences: the whole tape against segments that run forward again.

    python benchmarks/long_sequences.py [--steps T] [--batch B] [--hidden H] [--layers L] [--repeat N] [--threads N]

For each cell, a forward and a backward pass with the tape of every step and with checkpoint="auto", in turns; the
fastest of N.  Memory is by how much the resident memory of a process of its own rises at most over what it was before
the two passes, less y and dx; x and dy are there before, and a shorter sequence went the same way. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
from fastrnn import _core

CELLS = {
    "RNN, tanh": (fastrnn.RNN, {}),
    "RNN, softsign": (fastrnn.RNN, {"nonlinearity": "softsign"}),
    "GRU": (fastrnn.GRU, {}),
    "GRU, reset before": (fastrnn.GRU, {"reset_after": False}),
    "LSTM": (fastrnn.LSTM, {}),
}
WAYS: dict[str, dict[str, Any]] = {"tape": {}, "auto": {"checkpoint": "auto"}}


def prepared(name: str, given: argparse.Namespace, steps: int, *ways: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """The layer, x and dy, after training on so many steps each way."""
    fastrnn.set_num_threads(given.threads)
    T, B, H = given.steps, given.batch, given.hidden
    kind, options = CELLS[name]
    layer = kind(H, H, given.layers, rng=0, **options)
    x = np.random.default_rng(0).standard_normal((T, B, H), dtype=np.float32)
    dy = np.ones((T, B, H), np.float32)
    for way in ways:
        seconds(layer, x[:steps], dy[:steps], WAYS[way])
    return layer, x, dy


def seconds(layer: Any, x: np.ndarray, dy: np.ndarray, how: dict[str, Any]) -> float:
    started = time.perf_counter()
    _, _, tape = layer.forward(x, **how)
    layer.backward(tape, dy)
    return time.perf_counter() - started


def times(name: str, given: argparse.Namespace) -> list[float]:
    """Of each way."""
    layer, x, dy = prepared(name, given, given.steps // 20, *WAYS)
    turns = [[seconds(layer, x, dy, how) for how in WAYS.values()] for _ in range(given.repeat)]
    return [min(column) for column in zip(*turns, strict=True)]


def resident(what: str) -> float:
    """VmRSS, or the peak VmHWM, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(what))


def megabytes(name: str, way: str, given: argparse.Namespace) -> float:
    layer, x, dy = prepared(name, given, 100, way)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS") - _core.memory_kept()[0] / 1e6  # those blocks are used again, and count again
    y, _, tape = layer.forward(x, **WAYS[way])
    dx, _ = layer.backward(tape, dy)
    return resident("VmHWM") - before - (y.nbytes + dx.nbytes) / 1e6


def alone(task: Any, *arguments: Any) -> Any:
    """The result of a task, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"steps": 100_000, "batch": 1, "hidden": 64, "layers": 1, "repeat": 5, "threads": 1}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    print(", ".join(f"{name} {value:,}" for name, value in vars(given).items()))
    print("| | tape | auto | of the memory | tape | auto | times the time |\n|---|---|---|---|---|---|---|")
    for name in CELLS:
        plain, segmented = alone(times, name, given)
        kept, little = (alone(megabytes, name, way, given) for way in WAYS)
        print(
            f"| {name} | {kept:,.1f} MB | {little:,.1f} MB | {little / kept:.1%} "
            f"| {plain:.2f} s | {segmented:.2f} s | {segmented / plain:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

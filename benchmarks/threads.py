"""What more threads gain: python benchmarks/threads.py --help.

fastrnn alone, on n threads against one, in turns: inference, a block on a stream, and a training step. Of a batch of 32
each thread has a part; of one row, or few, each has some of the units of every step; small work is done by one thread
where that is found to be faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import machine

# (T, B, I, H)
SMALL = ((50, 8, 64, 128), (50, 16, 32, 64), (200, 4, 64, 128), (20, 16, 64, 128))
BATCHES = ((100, 32, 64, 128), (100, 32, 128, 256))
ROWS = ((200, 1, 256, 256), (200, 1, 512, 512), (200, 1, 1024, 1024), (200, 4, 256, 256), (200, 16, 256, 256))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0], allow_abbrev=False)
    parser.add_argument("--cells", nargs="+", choices=("rnn", "gru", "lstm"), default=("rnn", "gru", "lstm"))
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    machine.limit_threads(options.threads)  # before anything imports NumPy
    import fastrnn

    print(
        f"{options.threads} threads against one: ms on one, and how many times as fast (medians of {options.rounds})\n"
    )
    print(f"{'cell':5}{'(T, B, I, H)':22}{'inference':>18}{'stream.run':>18}{'training':>18}")
    for shape in SMALL + BATCHES + ROWS:
        for cell in options.cells:
            found = ""
            for call in calls(getattr(fastrnn, cell.upper()), *shape):
                one, more = (1e3 * each for each in medians(call, (1, options.threads), options.rounds))
                found += f"{one:10.2f} {one / more:6.2f}x"
            print(f"{cell:5}{shape!s:22}{found}", flush=True)
    return 0


def calls(kind: Any, T: int, B: int, I: int, H: int) -> list[Callable[[], object]]:
    """What is timed."""
    import numpy as np

    layer = kind(I, H, rng=0)
    x = np.random.default_rng(0).standard_normal((T, B, I), dtype=np.float32)
    dy, out, stream = np.ones((T, B, H), np.float32), np.empty((T, B, H), np.float32), layer.stream(B)

    def train() -> None:
        _, _, tape = layer.forward(x)
        layer.zero_grad()
        layer.backward(tape, dy)

    return [lambda: layer(x), lambda: stream.run(x, out), train]


def medians(call: Callable[[], object], counts: tuple[int, ...], rounds: int) -> list[float]:
    """Seconds of a call on each number of threads; the first three after each change, which starts new threads, are not
    counted."""
    import fastrnn

    times: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            fastrnn.set_num_threads(count)
            for _ in range(3):
                call()
            for _ in range(3):
                start = time.perf_counter()
                call()
                times[count].append(time.perf_counter() - start)
    return [statistics.median(times[count]) for count in counts]


if __name__ == "__main__":
    sys.exit(main())

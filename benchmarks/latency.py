"""How long a step takes, from array to array, in the middle and in the tail: python benchmarks/latency.py --help.

Each call is timed by itself, one row, one thread; the contenders take turns, some thousand calls each, round after
round. Streams are timed with compressed weights as well. `run` is a stream over a block of steps, its time divided by
their number; the ceiling is the time of reading the weights in float32 as plain memory, in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine

CALLS, STEPS = 2000, 1000  # of a round; of a block
COMPRESSED = ("bfloat16", "int8")
PERCENTILES = (50, 99, 99.9)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0], allow_abbrev=False)
    parser.add_argument("--cells", nargs="+", choices=("rnn", "gru", "lstm"), default=("rnn", "gru", "lstm"))
    parser.add_argument("--sizes", nargs="+", type=int, default=(64, 128, 256, 512), metavar="H", help="I = H")
    parser.add_argument("--contenders", nargs="+", choices=("fastrnn", "onnxruntime", "torch"))
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    parser.add_argument("--json", type=Path, metavar="PATH")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    machine.limit_threads(1)  # before anything imports NumPy
    import numpy as np

    import contenders
    from shapes import Problem, Shape

    found, missing = contenders.load(options.contenders or ("fastrnn", "onnxruntime", "torch"), 1)
    about = machine.describe({name: each.version for name, each in found.items()}, 1, "float32")
    print(f"{about['cpu']}, {about['instruction_set']}, {about['versions']}")
    for name, reason in missing.items():
        print(f"skipped: {name}: {reason}")
    print("\na step of one row, microseconds, the clock's own time within; run and ceiling: a step in the mean\n")
    heads = "".join(f"{f'{p:g} %':>9}" for p in PERCENTILES)
    print(f"{'cell':5}{'H':>4}  {'contender':23}{heads}{'run':>9}{'ceiling':>9}")
    results = []
    for cell in options.cells:
        for size in options.sizes:
            problem = Problem("step", cell, Shape(f"step{size}", 1, 1, size, size, ("step",)), np.dtype("float32"))
            rows = measure_all(problem, found, options.rounds)
            for name, row in rows.items():
                times = "".join(f"{row[f'p{p:g}']:9.2f}" for p in PERCENTILES)
                more = "".join(f"{row[key]:9.2f}" for key in ("run", "ceiling") if key in row)
                print(f"{cell:5}{size:4}  {name:23}{times}{more}", flush=True)
                results.append({"cell": cell, "H": size, "contender": name, **row})
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "microseconds": results}, indent=1) + "\n")
    return 0


def measure_all(problem: Any, found: dict[str, Any], rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds by contender: percentiles of single steps; for streams also a step of a block, and the ceiling."""
    import numpy as np

    from ceiling import ceiling_rates, ceiling_runs
    from timing import Effort, measure

    runs = {
        f"{name} {entry.column or entry.way}".strip(): entry.run
        for name, contender in found.items()
        for entry in contender.entries(problem)
    }
    if "fastrnn" in found:
        runs |= {f"fastrnn {weights}": step_run(problem, weights) for weights in COMPRESSED}
    samples: dict[str, list[Any]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(time_calls(run, CALLS))
    rows = {
        name: {f"p{p:g}": float(np.percentile(np.concatenate(times), p)) / 1e3 for p in PERCENTILES}
        for name, times in samples.items()
    }
    if "fastrnn" in found:
        streams = {"fastrnn stream": "float32"} | {f"fastrnn {weights}": weights for weights in COMPRESSED}
        side = {name: block_run(problem, weights) for name, weights in streams.items()}
        timings = measure(side | ceiling_runs(problem, 1), Effort(9, 10.0, 0.01, 0.0))
        size = sum(problem.params[name].nbytes for name in ("weight_ih_l0", "weight_hh_l0"))
        for name in streams:
            rows[name]["run"] = timings[name].median / STEPS * 1e6
        rows["fastrnn stream"]["ceiling"] = size / ceiling_rates(problem, timings)["stream"] * 1e6
    return rows


def make_stream(problem: Any, weights: str) -> Any:
    from contenders.fastrnn_ import make_layer

    layer = make_layer(problem)
    layer.compress(weights)
    return layer.stream()


def step_run(problem: Any, weights: str) -> Callable[[], Any]:
    """`Stream.step`, each from the state of the one before."""
    import numpy as np

    step, x, y = make_stream(problem, weights).step, problem.x[0], np.empty((1, problem.shape.H), problem.dtype)
    return lambda: step(x, y)


def time_calls(run: Callable[[], Any], calls: int) -> Any:
    """Nanoseconds of each call, after some that refill the caches."""
    import numpy as np

    times, clock = np.empty(calls, np.int64), time.perf_counter_ns
    for _ in range(50):
        run()
    for i in range(calls):
        start = clock()
        run()
        times[i] = clock() - start
    return times


def block_run(problem: Any, weights: str) -> Callable[[], Any]:
    """`Stream.run` over a block of steps."""
    import numpy as np

    x = np.random.default_rng(2).standard_normal((STEPS, 1, problem.shape.I)).astype(problem.dtype)
    y, stream = np.empty((STEPS, 1, problem.shape.H), problem.dtype), make_stream(problem, weights)
    return lambda: stream.run(x, y)


if __name__ == "__main__":
    sys.exit(main())

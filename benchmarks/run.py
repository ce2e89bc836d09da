"""Compare fastrnn with its NumPy reference and with other libraries: python benchmarks/run.py --help.

run.py ── shapes.py       the grid; weights, inputs and gradients of a row
       ├─ contenders/     one module each: how a library does that row, at its best
       ├─ rows.py         all agree?  then time them, compare
       │    ├─ timing.py  A B C A B C ..., medians
       │    └─ ceiling.py what the core can do, in the same rounds
       ├─ table.py        standard output
       └─ plot.py         the picture, from the JSON
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).parent
CONTENDERS = ("fastrnn", "reference", "torch", "onnxruntime", "openvino", "jax")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0], allow_abbrev=False)
    usual, cells = ("step", "inference", "training", "ragged"), ("rnn", "gru", "lstm")
    kinds = (*usual, "short", "short both", "batch step")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=usual)
    parser.add_argument("--ragged", action="store_const", dest="kinds", const=("ragged",), help="only ragged training")
    parser.add_argument("--cells", nargs="+", choices=cells, default=cells)
    parser.add_argument(
        "--short", action="store_true", help="calls of a few steps or rows, of sizes of published models"
    )
    parser.add_argument("--large", action="store_true", help="layers of 768 to 2048 units")
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help="default: the grid; with --quick the smaller ones")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each contender (default 1)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--quick", action="store_true", help="under three minutes: smaller shapes, fewer rounds")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "latest.json", metavar="PATH")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="also draw the results (needs matplotlib)")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"expected --threads of at least 1, got {options.threads}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    machine.limit_threads(options.threads)  # before anything imports NumPy
    return run(options)


def run(options: argparse.Namespace) -> int:
    import contenders
    import table
    from rows import Row, run_row
    from shapes import LARGE, QUICK, SHORT, USUAL, problems
    from timing import Effort

    started = time.perf_counter()
    found, missing = contenders.load(options.contenders, options.threads)
    about = machine.describe({name: c.version for name, c in found.items()}, options.threads, options.dtype)
    print(table.header(about, missing))
    warn_if_busy(about, options.threads)

    pause = 0.005 if options.threads > 1 else 0.0
    effort = Effort(5, 0.5, 0.003, pause) if options.quick else Effort(15, 10.0, 0.01, pause)
    shapes = options.shapes or (
        SHORT if options.short else LARGE if options.large else QUICK if options.quick else USUAL
    )
    if options.short:
        options.kinds, effort = ("short", "short both", "batch step"), Effort(7, 0.5, 0.002, pause)
    printed = table.Table()
    rows: list[Row] = []
    for problem in problems(options.kinds, options.cells, shapes, options.dtype):
        rows.append(run_row(problem, found, options.threads, effort))
        printed.add(rows[-1])
        for line in rows[-1].wrong:
            print(f"WRONG: {line}", flush=True)

    print(table.summary(rows))
    warn_of_extra_threads(rows, options.threads)
    print(f"\n{len(rows)} rows in {time.perf_counter() - started:.0f} s")
    results = {"machine": about, "missing": missing, "rows": [row.as_json() for row in rows]}
    write_json(options.json, results)
    if options.plot:
        import plot

        plot.draw(results, options.plot)
        print(f"picture: {options.plot}")
    wrong = sum(bool(row.wrong) for row in rows)
    if wrong:
        print(f"{wrong} of {len(rows)} rows are wrong: their figures are not shown", file=sys.stderr)
    return 1 if wrong or not rows else 0


def warn_if_busy(about: dict[str, Any], threads: int) -> None:
    load = about["load_average"]
    if load is not None and load > machine.BUSY:
        print(f"WARNING: the machine is busy (load average {load:.1f}): compare within this run only, or run it again")
    if threads > (os.cpu_count() or 1):
        print(f"WARNING: {threads} threads on {os.cpu_count()} cores")


def warn_of_extra_threads(rows: list[Any], threads: int) -> None:
    """CPU time beyond the threads that were granted means an unfair comparison: say who took it."""
    greedy: dict[str, float] = {}
    for row in rows:
        for name, timing in row.timings.items():
            if timing.cores_used > threads + 0.1:
                greedy[name] = max(greedy.get(name, 0.0), timing.cores_used)
    for name, cores in greedy.items():
        print(f"WARNING: while {name} ran, up to {cores:.1f} cores were busy; {threads} granted")


def write_json(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_text(results))
    print(f"figures: {path}")


def as_text(results: dict[str, Any]) -> str:
    """JSON with one line for each row of the table, so that the files of two runs can be compared line by line."""
    rows = ",\n".join(f"  {json.dumps(row)}" for row in results["rows"])
    head = json.dumps({name: value for name, value in results.items() if name != "rows"}, indent=1)
    return f'{head.removesuffix("}").rstrip()},\n "rows": [\n{rows}\n ]\n}}\n'


if __name__ == "__main__":
    sys.exit(main())

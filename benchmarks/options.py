"""What an option of a layer costs: python benchmarks/options.py --help.

fastrnn alone, on one thread: how many times as long inference and a training step take with an option as without, the
char and small shapes, in turns. What only drops something in training has no inference to compare.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import machine
import threads
import timing

DROPS: dict[str, dict[str, Any]] = {
    "weight_dropout": {"weight_dropout": 0.5},
    "input_dropout": {"input_dropout": 0.3},
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "zoneout": {"zoneout": 0.1},
}
OF_LSTM: dict[str, dict[str, Any]] = {"both zoneouts": {"zoneout": 0.1, "zoneout_cell": 0.1}}
NORM: dict[str, dict[str, Any]] = {"layer_norm": {"layer_norm": True}}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0], allow_abbrev=False)
    parser.add_argument("--cells", nargs="+", choices=("rnn", "gru", "lstm"), default=("rnn", "gru", "lstm"))
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    options = parser.parse_args(arguments)
    machine.limit_threads(1)  # before anything imports NumPy
    import fastrnn

    effort = timing.Effort(options.rounds, row_seconds=60, sample_seconds=0.005, pause_seconds=0)
    print(f"{'cell':5}{'(T, B, I, H)':22}{'option':20}{'inference':>10}{'training':>10}")
    for shape in threads.BATCHES:
        for cell in options.cells:
            kind = getattr(fastrnn, cell.upper())
            options_of = {"": {}, **DROPS, **(OF_LSTM if cell == "lstm" else {}), **NORM}
            calls = {name: threads.calls(partial(kind, **given), *shape) for name, given in options_of.items()}
            inference = timing.measure({name: run[0] for name, run in calls.items() if name in ("", *NORM)}, effort)
            training = timing.measure({name: run[2] for name, run in calls.items()}, effort)
            for name in list(calls)[1:]:
                before = f"{inference[name].median / inference[''].median:9.2f}x" if name in inference else " " * 10
                after = f"{training[name].median / training[''].median:9.2f}x"
                print(f"{cell:5}{shape!s:22}{name:20}{before}{after}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

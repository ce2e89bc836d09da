"""Text on a stream: how fast it is written, and what compressed weights cost: python benchmarks/writing.py --help.

Models with the settings of `fastrnn train` learn the text that comes with Python. Then each writes some, the same text:
by a call of layer and head for each character, drawn with NumPy; by `generate`; and, other text, by `generate` with
compressed weights. The bits a character are those of the held-out tenth of what was learned, read by a stream.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import machine

STORED = ("float32", "bfloat16", "int8")
PROMPT, TEMPERATURE = "The ", 0.8


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(": python")[0], allow_abbrev=False)
    parser.add_argument("--cells", nargs="+", choices=("rnn", "gru", "lstm"), default=("rnn", "gru", "lstm"))
    parser.add_argument("--sizes", nargs="+", type=int, default=(64, 128, 256), metavar="H")
    parser.add_argument("--steps", type=int, default=600, metavar="N", help="of the training (default 600)")
    parser.add_argument("--length", type=int, default=2000, metavar="N", help="characters to write (default 2000)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--json", type=Path, metavar="PATH")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    machine.limit_threads(1)  # before anything imports NumPy
    import fastrnn
    from fastrnn.text.corpus import builtin_text

    text = builtin_text()
    held_out = text[-(len(text) // 10) :]
    about = machine.describe({"fastrnn": fastrnn.__version__}, 1, "float32")
    print(f"{about['cpu']}, {about['instruction_set']}, {about['versions']}, {len(text)} characters")
    print(f"\n{'':9}{'microseconds a character':>44}{'bits a character':>33}")
    print(f"{'cell':5}{'H':>4}" + "".join(f"{name:>11}" for name in ("calls", *STORED, *STORED)))
    results = []
    for cell in options.cells:
        for size in options.sizes:
            model = fastrnn.LanguageModel(cell, size, rng=0)
            model.fit(text, steps=options.steps, progress=False)
            microseconds, bits = writing_times(model, options), held_out_bits(model, held_out)
            columns = [f"{value:11.2f}" for value in microseconds.values()]
            columns += [f"{value:11.5f}" for value in bits.values()]
            print(f"{cell:5}{size:4}{''.join(columns)}", flush=True)
            results.append({"cell": cell, "H": size, "microseconds": microseconds, "bits": bits})
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
    return 0


def writing_times(model: Any, options: argparse.Namespace) -> dict[str, float]:
    """Microseconds a character, the medians of rounds in which all take turns."""

    def generate(weights: str) -> str:
        model.layer.compress(weights)
        return model.generate(PROMPT, options.length, temperature=TEMPERATURE, rng=0)

    runs: dict[str, Callable[[], str]] = {"calls": lambda: write_by_calls(model, options.length)}
    runs |= {weights: partial(generate, weights) for weights in STORED}
    if runs["calls"]() != runs["float32"]():
        raise AssertionError("expected the same text from calls and from generate")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(samples) / options.length * 1e6 for name, samples in seconds.items()}


def write_by_calls(model: Any, length: int) -> str:
    """What `generate` writes, by a call of layer and head for each character."""
    import numpy as np

    generator, state, written = np.random.default_rng(0), None, []
    x = np.array([model.vocabulary.index(character) for character in PROMPT])[:, None]
    for _ in range(length):
        y, state = model.layer(x, state)
        logits = model.head(y[-1, 0]).astype(np.float64)
        sums = np.cumsum(np.exp((logits - logits.max()) / TEMPERATURE))
        written.append(int(np.searchsorted(sums, generator.random() * sums[-1], side="right")))
        x = np.array([[written[-1]]])
    return "".join(model.vocabulary[index] for index in written)


def held_out_bits(model: Any, text: str) -> dict[str, float]:
    import numpy as np

    targets = np.array([model.vocabulary.index(character) for character in text[1:]])
    bits = {}
    for weights in STORED:
        model.layer.compress(weights)
        p = model.stream().run(text[:-1])
        bits[weights] = float(-np.log2(p[np.arange(len(targets)), targets].astype(np.float64)).mean())
    return bits


if __name__ == "__main__":
    sys.exit(main())

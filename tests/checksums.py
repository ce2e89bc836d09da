"""Checksums of what layers compute, over cells, options, sizes and threads: for changes that must not change a bit.

    python tests/checksums.py      write tests/checksums.json anew for this compiler: after a change of the arithmetic

The bits depend on the compiler and its flags, by which it may fuse a multiplication with an addition, and on the
instruction set, but not on the processor or the number of threads. tests/test_checksums.py compares.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from fastrnn import _core

from layer_cases import CLASSES
from problems import CASES
from states import as_state, as_tuple

STORED = Path(__file__).with_suffix(".json")
# T, B, I, H: one vector or less of units; many with a rest; whole vectors, of few rows and of many
SIZES = ((5, 4, 2, 3), (9, 7, 19, 37), (21, 1, 32, 64), (13, 11, 600, 48))

# What is divided among threads, or worked on in several chunks of steps or segments: sizes, options, how, of `forward`
LARGE: dict[str, tuple[str, tuple[int, ...], dict[str, Any], tuple[str, ...], dict[str, Any]]] = {
    "rnn shared": ("rnn", (60, 3, 96, 200), {}, (), {}),
    "gru divided": ("gru", (40, 48, 40, 72), {}, (), {}),
    "gru ragged, divided": ("gru", (40, 48, 40, 72), {}, ("lengths",), {}),
    "lstm pipelined layers": ("lstm", (120, 4, 48, 80), {"num_layers": 3}, (), {}),
    "lstm both directions": ("lstm", (50, 20, 30, 50), {"bidirectional": True, "num_layers": 2}, ("lengths",), {}),
    "lstm segments": ("lstm", (300, 6, 24, 40), {"num_layers": 2, "dropout": 0.2}, ("lengths",), {"checkpoint": 4}),
    "gru segments": ("gru", (300, 2, 24, 40), {"num_layers": 2, "zoneout": 0.2}, (), {"checkpoint": "auto"}),
    "gru segments, both directions": ("gru", (200, 5, 24, 40), {"bidirectional": True}, (), {"checkpoint": 5}),
    "lstm many words": ("lstm", (30, 40, 9000, 24), {}, ("one_hot", "lengths"), {}),
}


def build() -> str:
    """What decides about the bits beside the instruction set."""
    return _core.compiler()


def checksums() -> dict[str, str]:
    """Of each case, with the instruction set that is in use."""
    found = {}
    for name, (cell, options, *how) in CASES.items():
        for dtype in ("float32", "float64"):
            crc = 0
            for sizes in SIZES:
                crc = _case(crc, cell, sizes, {**options, "dtype": dtype}, *how)
            found[f"{name}, {dtype}"] = f"{crc:08x}"
    for name, (cell, sizes, options, how, call) in LARGE.items():
        found[name] = f"{_case(0, cell, sizes, options, how, call):08x}"
    return found


def _case(
    crc: int, cell: str, sizes: tuple[int, ...], options: dict[str, Any], how: tuple[str, ...] = (), saving: Any = None
) -> int:
    """The checksum, after crc, of inference, training and streaming by one layer."""
    T, B, I, H = sizes
    rng = np.random.default_rng(T + H)
    options = {**options, "dropout": options.get("dropout", 0.5 if "dropout" in how else 0.0)}
    layer = CLASSES[cell](I, H, rng=0, **options)
    batch = () if "unbatched" in how else (B,)
    axes = (B, T) if layer.batch_first and batch else (T, *batch)
    x = rng.integers(0, I, axes) if "one_hot" in how else rng.standard_normal((*axes, I)).astype(layer.dtype)
    keywords = {}
    if "lengths" in how:
        keywords["lengths"] = rng.permutation(np.linspace(0, T, B).astype(int))
    if "reset" in how:
        keywords["reset"] = rng.random(axes) < 0.1
    y, state = layer(x, **keywords)
    state = tuple(array[...] for array in as_tuple(state))
    again, final, tape = layer.forward(x, as_state(state), **keywords, **(saving or {}))
    dstate = as_state(tuple(rng.standard_normal(array.shape).astype(layer.dtype) for array in state))
    dx, dinitial = layer.backward(tape, rng.standard_normal(y.shape).astype(layer.dtype), dstate)
    arrays = [y, *state, again, *as_tuple(final), *as_tuple(dinitial), *layer.grads.values()]
    arrays += [] if dx is None else [dx]
    if not (layer.bidirectional or layer.reverse) and batch:
        arrays += _streamed(layer, x, B)
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    return crc


def _streamed(layer: Any, x: np.ndarray, B: int) -> list[np.ndarray]:
    """What streams make of x, with weights of each kind."""
    made = []
    for weights in ("float32", "bfloat16", "int8") if layer.dtype == np.float32 else ("float32",):
        if layer.dtype == np.float32:
            layer.compress(weights)
        stream = layer.stream(B)
        made += [stream.run(x), *as_tuple(stream.state)]
    return made


def by_instruction_set() -> dict[str, dict[str, str]]:
    used, found = _core.instruction_set(), {}
    for name in _core.instruction_sets():
        _core.use_instruction_set(name)
        found[name] = checksums()
    _core.use_instruction_set(used)
    return found


def main() -> None:
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    stored.setdefault(build(), {}).update(by_instruction_set())
    STORED.write_text(json.dumps(stored, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

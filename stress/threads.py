"""Many callers, streams and forks at once, with workers that come each time: the bits of one thread.

A case is one layer and what it gives on one thread. Then several Python threads make the same calls at the same time,
each on up to four threads of the pool, whose workers all come before a job or a team begins. Meanwhile the
number of threads changes, and children are forked that make the calls too. Every result is compared to the bit.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import fastrnn
import numpy as np
from fastrnn import _core
from fastrnn.interchange.common import options_of

from .campaign import Cases, main
from .layers import as_tuple

CELLS = (fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM)


def run(cases: Cases) -> None:
    """Compare what many threads give with what one gives."""
    before = fastrnn.get_num_threads()
    try:
        for number, rng in cases:
            try:
                _run_case(rng, cases)
            except AssertionError as error:
                cases.fail(number, str(error))
    finally:
        _core.gather_workers(False)
        fastrnn.set_num_threads(before)


def _run_case(rng: np.random.Generator, cases: Cases) -> None:
    _core.gather_workers(False)
    fastrnn.set_num_threads(1)
    if rng.random() < 0.3:
        layer, calls = _normed_streams(rng)
        repeats = 40  # these have given wrong numbers once in a while
    else:
        layer = _random_layer(rng)
        repeats = 3
        calls = _calls_of(layer, rng)
    expected = {name: call() for name, call in calls.items()}
    _core.gather_workers(True)
    fastrnn.set_num_threads(int(rng.integers(2, 5)))
    what = f"{type(layer).__name__}({options_of(layer)})"

    for name, call in calls.items():  # by one caller
        cases.seen[name] += 1
        _require_same(call(), expected[name], f"{name} on {fastrnn.get_num_threads()} threads of {what}")

    wrong: list[str] = []

    def repeat(seed: int) -> None:
        own = np.random.default_rng(seed)
        for _ in range(repeats):
            name = own.choice(list(calls))
            try:
                _require_same(calls[name](), expected[name], f"{name} beside others of {what}")
            except BaseException as error:
                wrong.append(repr(error))
            cases.seen[name] += 1

    callers = [threading.Thread(target=repeat, args=(int(rng.integers(1 << 30)),)) for _ in range(rng.integers(2, 4))]
    for caller in callers:
        caller.start()
    if rng.random() < 0.3:
        name = rng.choice(list(calls))
        cases.seen["forks"] += 1
        if not _same_in_a_child(calls[name], expected[name]):
            wrong.append(f"{name} in a forked child of {what}")
    if rng.random() < 0.3:
        for count in rng.integers(1, 5, 3):
            fastrnn.set_num_threads(int(count))
            time.sleep(0.001)
    for caller in callers:
        caller.join()
    assert not wrong, "; ".join(wrong)


def _random_layer(rng: np.random.Generator) -> Any:
    cell = CELLS[rng.integers(3)]
    options: dict[str, Any] = {"num_layers": int(rng.integers(1, 4))}
    if rng.random() < 0.3:
        options["bidirectional"] = True
    elif rng.random() < 0.2:
        options["reverse"] = True
    extra = rng.choice(["", "layer_norm", "zoneout", "clip", "dropout", "recurrent_dropout", "weight_dropout"])
    if extra:
        options[extra] = True if extra == "layer_norm" else 0.7 if extra == "clip" else 0.2
    if cell is fastrnn.LSTM and extra != "layer_norm" and rng.random() < 0.3:
        options |= {"proj_size": 17, "peephole": True}
    if cell is fastrnn.GRU and extra != "layer_norm" and rng.random() < 0.3:
        options["reset_after"] = False
    dtype = "float64" if rng.random() < 0.2 else "float32"
    return cell(
        int(rng.integers(1, 60)), int(rng.integers(20, 280)), dtype=dtype, rng=int(rng.integers(1 << 30)), **options
    )


def _calls_of(layer: Any, rng: np.random.Generator) -> dict[str, Callable[[], list[np.ndarray]]]:
    """Calls that give the same each time, whoever makes them."""
    B = int(rng.choice([1, 1, 2, 7, 33, 70]))
    T = int(rng.integers(2, max(3, 1500 // B)))
    x = rng.standard_normal((T, B, layer.input_size)).astype(layer.dtype)
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options["lengths"] = rng.integers(0, T + 1, B)
    if rng.random() < 0.2:
        options["reset"] = rng.random((T, B)) < 0.1
    keep = rng.choice([None, "auto", 3])

    def infer() -> list[np.ndarray]:
        y, state = layer(x, **options)
        return [y, *as_tuple(state)]

    def train() -> list[np.ndarray]:
        own = copy.deepcopy(layer)
        own.zero_grad()
        y, state, tape = own.forward(x, checkpoint=keep, **options)
        dx, dstate = own.backward(tape, np.sin(y))
        adam = fastrnn.optim.Adam([own])
        norm = adam.step(max_norm=1.0)
        return [y, *as_tuple(state), dx, *as_tuple(dstate), *own.grads.values(), *own.params.values(), np.array(norm)]

    calls = {"calls": infer, "training steps": train}
    if not layer.bidirectional and not layer.reverse:
        calls["runs of streams"] = _stream_run(layer, x, int(rng.integers(0, T)))
    return calls


def _normed_streams(rng: np.random.Generator) -> tuple[Any, dict[str, Callable[[], list[np.ndarray]]]]:
    layer = CELLS[rng.integers(3)](256, 256, layer_norm=True, rng=int(rng.integers(1 << 30)))
    x = rng.standard_normal((400, 1, 256)).astype(np.float32)
    return layer, {"runs of normalised streams": _stream_run(layer, x, 0)}


def _stream_run(layer: Any, x: np.ndarray, first: int) -> Callable[[], list[np.ndarray]]:
    """In two pieces"""

    def run_stream() -> list[np.ndarray]:
        stream = layer.stream(x.shape[1])
        y = [stream.run(x[:first]), stream.run(x[first:])]
        return [np.concatenate(y), *as_tuple(stream.state)]

    return run_stream


def _same_in_a_child(call: Callable[[], list[np.ndarray]], expected: list[np.ndarray]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            _require_same(call(), expected, "")
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _require_same(got: list[np.ndarray], expected: list[np.ndarray], what: str) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert np.array_equal(a, b, equal_nan=True), f"other bits, by up to {np.abs(a - b).max()}: {what}"


if __name__ == "__main__":
    sys.exit(main("threads", run))

"""fastrnn itself: the layers of the installed package."""

from __future__ import annotations

from typing import Any

import fastrnn
import numpy as np

from contenders import Entry
from shapes import Problem


def make_layer(problem: Problem) -> Any:
    """A fastrnn layer with the problem's weights."""
    kind, options = getattr(fastrnn, problem.cell.upper()), {"bidirectional": problem.directions == 2}
    layer = kind(problem.shape.I, problem.shape.H, dtype=problem.dtype, **options)
    layer.load_state_dict(problem.params)
    return layer


def make_state(problem: Problem) -> Any:
    """The initial state in fastrnn's form: None, h, or (h, c)."""
    if problem.state is None:
        return None
    return tuple(problem.state.values()) if problem.cell == "lstm" else problem.state["h"]


def named(y: np.ndarray, state: Any) -> dict[str, np.ndarray]:
    """Outputs by name, from y and the final state h or (h, c)."""
    final = state if isinstance(state, tuple) else (state,)
    return {"y": y, **dict(zip(("h", "c"), final, strict=False))}


class Contender:
    version = fastrnn.__version__

    def __init__(self, threads: int) -> None:
        self._threads = threads
        fastrnn.set_num_threads(threads)

    def entries(self, problem: Problem) -> list[Entry]:
        layer = make_layer(problem)
        entries = [_training(layer, problem, problem.lengths) if problem.training else _inference(layer, problem)]
        if self._threads > 1:
            entries.append(self._one_thread(entries[0]))
        if problem.kind == "step":
            entries.append(_stream(layer, problem))
        if not problem.training and problem.kind != "step":
            entries.append(_frozen(layer, problem))
        if problem.kind == "ragged":
            full = _training(layer, problem, None)
            entries.append(Entry(full.run, lambda result: {}, column="full batch"))  # another problem
        return entries

    def _one_thread(self, entry: Entry) -> Entry:
        def run() -> Any:
            fastrnn.set_num_threads(1)
            try:
                return entry.run()
            finally:
                fastrnn.set_num_threads(self._threads)

        return Entry(run, entry.outputs, column="one thread")


def _inference(layer: Any, problem: Problem) -> Entry:
    x, state = problem.x, make_state(problem)
    return Entry(lambda: layer(x, state), lambda result: named(*result))


def _frozen(layer: Any, problem: Problem) -> Entry:
    """The layer with weights that stay packed, as the peers keep theirs."""
    frozen, x, state = layer.frozen(), problem.x, make_state(problem)
    return Entry(lambda: frozen(x, state), lambda result: named(*result), column="frozen")


def _stream(layer: Any, problem: Problem) -> Entry:
    """Each call goes on from the state of the one before; the first starts from the problem's."""
    stream, x = layer.stream(problem.shape.B), problem.x[0]
    stream.state = make_state(problem)
    out = np.empty((problem.shape.B, problem.shape.H), problem.dtype)
    step = stream.step
    return Entry(lambda: step(x, out), lambda y: named(y[None].copy(), stream.state), column="stream")


def _training(layer: Any, problem: Problem, lengths: np.ndarray | None) -> Entry:
    x, dy = problem.x, problem.dy
    options = {} if lengths is None else {"lengths": lengths}

    def run() -> Any:
        y, state, tape = layer.forward(x, **options)
        layer.zero_grad()
        dx, _ = layer.backward(tape, dy)
        return y, state, dx

    def outputs(result: Any) -> dict[str, np.ndarray]:
        y, state, dx = result
        return named(y, state) | {"dx": dx} | {name: grad.copy() for name, grad in layer.grads.items()}

    return Entry(run, outputs)

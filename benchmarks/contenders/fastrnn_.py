"""fastrnn itself: the layers of the installed package."""

from __future__ import annotations

from typing import Any

import fastrnn
import numpy as np

from contenders import Entry, Unsupported
from shapes import Problem


def make_layer(problem: Problem) -> Any:
    """A fastrnn layer with the problem's weights."""
    layer_class = getattr(fastrnn, problem.cell.upper(), None)
    if layer_class is None:
        raise Unsupported(f"fastrnn has no {problem.cell.upper()} yet")
    layer = layer_class(problem.shape.I, problem.shape.H, dtype=problem.dtype)
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
    def __init__(self, threads: int) -> None:
        fastrnn.set_num_threads(threads)
        self.version = fastrnn.__version__

    def entries(self, problem: Problem) -> list[Entry]:
        layer, state = make_layer(problem), make_state(problem)
        if not problem.training:
            x = problem.x
            return [Entry("", lambda: layer(x, state), lambda result: named(*result))]
        if problem.kind == "training":
            return [_training(layer, problem, "", None)]
        return [_training(layer, problem, "", problem.lengths), _training(layer, problem, "full batch", None)]


def _training(layer: Any, problem: Problem, label: str, lengths: np.ndarray | None) -> Entry:
    x, dy = problem.x, problem.dy
    options = {} if lengths is None else {"lengths": lengths}

    def run() -> Any:
        y, state, tape = layer.forward(x, **options)
        layer.zero_grad()
        dx, _ = layer.backward(tape, dy)
        return y, state, dx

    def outputs(result: Any) -> dict[str, np.ndarray]:
        if label:
            return {}  # the full batch is another problem: a yardstick, not a contender
        y, state, dx = result
        return named(y, state) | {"dx": dx} | {name: grad.copy() for name, grad in layer.grads.items()}

    return Entry(label, run, outputs)

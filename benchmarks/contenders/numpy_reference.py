"""fastrnn.reference: the same equations in plain NumPy, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastrnn import reference

from contenders import Entry
from contenders.fastrnn_ import make_layer, make_state, named
from shapes import Problem


class Contender:
    def __init__(self, threads: int) -> None:
        self.version = f"NumPy {np.__version__}"

    def entries(self, problem: Problem) -> list[Entry]:
        layer, state, x, dy = make_layer(problem), make_state(problem), problem.x, problem.dy

        def inference() -> Any:
            return reference.forward(layer, x, state, lengths=problem.lengths)

        def training() -> Any:
            y, final, tape = inference()
            dx, _, grads = reference.backward(layer, tape, dy)
            return y, final, dx, grads

        if problem.training:
            return [Entry(training, lambda r: named(r[0], r[1]) | {"dx": r[2]} | dict(r[3]))]
        return [Entry(inference, lambda r: named(r[0], r[1]))]

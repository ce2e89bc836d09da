"""Adam and gradient-norm clipping, each one pass over the flat arrays of modules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from . import _core
from .checks import finite_float
from .module import Module


def _checked_modules(modules: Sequence[Module]) -> list[Module]:
    if not isinstance(modules, (list, tuple)) or not all(isinstance(module, Module) for module in modules):
        raise TypeError(f"expected a list of modules, such as [layer, head], got {modules!r}")
    if not modules or len({id(module) for module in modules}) != len(modules):
        raise ValueError(f"expected a list of modules, each once and at least one, got {modules!r}")
    return list(modules)


class Adam:
    """Adam, by torch's formula and with torch's defaults; the parameters change in place.

    >>> import numpy as np
    >>> from fastrnn import Linear
    >>> from fastrnn.optim import Adam
    >>> head = Linear(3, 2, rng=0)
    >>> adam = Adam([head], lr=1e-2)
    >>> o, tape = head.forward(np.ones((5, 3), np.float32))
    >>> head.zero_grad()
    >>> dh = head.backward(tape, o)  # the loss is sum(o**2) / 2
    >>> adam.step()

    With g the gradient at step t = 1, 2, ...:

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        parameter -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    modules: a list of modules, whose gradients `step` reads.  lr: learning rate.  betas: (b1, b2), each in [0, 1).
    eps: added to the root.  Raises TypeError or ValueError for anything else.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015, arXiv:1412.6980.
    """

    def __init__(
        self,
        modules: Sequence[Module],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.modules = _checked_modules(modules)
        self.lr = finite_float("lr", lr)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"expected two betas in [0, 1), got {betas}")
        self.betas, self.eps, self.steps = tuple(betas), finite_float("eps", eps), 0
        self._m = [np.zeros_like(module._flat_params) for module in self.modules]
        self._v = [np.zeros_like(module._flat_params) for module in self.modules]

    def step(self, lr: float | None = None) -> None:
        """Update the parameters by the gradients; `lr`, where given, stands in for ``self.lr`` in this step."""
        lr = finite_float("lr", self.lr if lr is None else lr)
        self.steps += 1
        b1, b2 = self.betas
        rate, root = lr / (1 - b1**self.steps), math.sqrt(1 - b2**self.steps)
        for module, m, v in zip(self.modules, self._m, self._v, strict=True):
            _core.adam(module._flat_params, module._flat_grads, m, v, b1, b2, rate, root, self.eps)


def clip_grad_norm(modules: Sequence[Module], max_norm: float) -> float:
    """Scale the gradients so that their joint 2-norm is at most `max_norm`; returns the norm before that.

    >>> from fastrnn import Linear
    >>> from fastrnn.optim import clip_grad_norm
    >>> head = Linear(3, 2, bias=False)
    >>> head.grads["weight"][...] = 2
    >>> round(clip_grad_norm([head], 1.0), 3)
    4.899
    >>> round(clip_grad_norm([head], 1.0), 3)
    1.0

    The factor is torch's, max_norm / (norm + 1e-6) where that is below 1.  A norm that is not finite is returned as it
    is and leaves the gradients unchanged, for the caller to see and to stop.

    Raises TypeError or ValueError unless modules is a list of modules and max_norm is positive.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013,
    arXiv:1211.5063.
    """
    modules = _checked_modules(modules)
    if not max_norm > 0:
        raise ValueError(f"expected max_norm > 0, got {max_norm}")
    flats = [module._flat_grads for module in modules]
    norm = math.sqrt(sum(_core.sum_of_squares(flat) for flat in flats))
    factor = max_norm / (norm + 1e-6)
    if factor < 1 and math.isfinite(norm):
        for flat in flats:
            flat *= factor
    return norm

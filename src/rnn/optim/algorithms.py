"""The optimisers SGD, Adam, AdamW and RMSprop, by torch's formulas and with torch's names and defaults.

    adam = Adam([layer, head], lr=WarmUp(Cosine(1e-2, steps=900), steps=100))
    norm = adam.step(max_norm=1.0)      updates all parameters, by the clipped gradient

What they share is in `base`; the arithmetic for one element is in kernels/math/elementwise.hpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from .. import _core
from ..nn.module import Module
from ..util.checks import boolean, finite_float
from .base import Groups, Optimizer, Options
from .schedules import Schedule, checked_lr

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]


def _fraction(name: str, value: Any) -> float:
    if not finite_float(name, value) < 1:
        raise ValueError(f"expected {name} in [0, 1), got {value}")
    return float(value)


def _two_betas(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple | list | np.ndarray):
        raise TypeError(f"expected {name} as a pair of numbers, got {value!r}")
    if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
        raise ValueError(f"expected two betas in [0, 1), got {value}")
    return tuple(value)


def _positive_eps(name: str, value: Any) -> float:
    if not np.float32(finite_float(name, value)) > 0:  # with 0, a gradient that was always zero would give 0 / 0
        raise ValueError(f"expected {name} > 0 in float32, got {value}")
    return float(value)


class SGD(Optimizer):
    """Stochastic gradient descent, with optional momentum.

    >>> from fastrnn import Linear
    >>> from fastrnn.optim import SGD
    >>> sgd = SGD([Linear(3, 2, rng=0)], lr=0.1, momentum=0.9, nesterov=True)
    >>> sgd.step()

    With g the gradient plus weight_decay times the parameter:

        b = momentum b + (1 - dampening) g, at the first step g
        parameter -= lr b        with nesterov:  lr (g + momentum b)        without momentum:  lr g

    modules, lr, groups: as in `Optimizer`.  Raises ValueError for nesterov without momentum or with dampening.

    Source: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning",
    2013; the formula, with lr outside of b, is torch's.
    """

    _checks: ClassVar = {
        "lr": checked_lr,
        "momentum": finite_float,
        "dampening": finite_float,
        "weight_decay": finite_float,
        "nesterov": boolean,
    }

    def __init__(
        self,
        modules: Sequence[Module],
        lr: float | Schedule = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(
            modules,
            groups,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )

    def _check_together(self, options: Options) -> None:
        momentum, dampening = options["momentum"], options["dampening"]
        if options["nesterov"] and (not momentum or dampening):
            raise ValueError(
                f"expected momentum > 0 and dampening = 0 with nesterov, got momentum={momentum}, dampening={dampening}"
            )

    def _state_names(self) -> list[str]:
        return ["momentum_buffer"] * self._any("momentum")

    def _update(
        self, options: Options, scale: float, step: int, param: np.ndarray, grad: np.ndarray, state: Any
    ) -> Callable[[], Any]:
        momentum = options["momentum"]
        buffer = state["momentum_buffer"] if momentum else None
        damping = 1.0 if step == 1 else 1 - options["dampening"]
        return partial(
            _core.sgd, param, grad, buffer,
            scale, options["weight_decay"], options["lr"], momentum, damping, options["nesterov"],
        )  # fmt: skip


class Adam(Optimizer):
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

    With g the gradient, plus weight_decay times the parameter, at step t = 1, 2, ...:

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        parameter -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    modules, lr, groups: as in `Optimizer`.  betas: (b1, b2), each in [0, 1).  eps: added to the root, above zero.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015, arXiv:1412.6980.
    """

    _checks: ClassVar = {"lr": checked_lr, "betas": _two_betas, "eps": _positive_eps, "weight_decay": finite_float}
    _decoupled: ClassVar = False  # whether weight decay is applied to the weights directly, not through the gradient

    def __init__(
        self,
        modules: Sequence[Module],
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(modules, groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _state_names(self) -> list[str]:
        return ["exp_avg", "exp_avg_sq"]

    def _update(
        self, options: Options, scale: float, step: int, param: np.ndarray, grad: np.ndarray, state: Any
    ) -> Callable[[], Any]:
        lr, (b1, b2), decay = options["lr"], options["betas"], options["weight_decay"]
        l2, keep = (0.0, 1 - lr * decay) if self._decoupled else (decay, 1.0)
        rate, root = lr / (1 - b1**step), math.sqrt(1 - b2**step)
        m, v = state["exp_avg"], state["exp_avg_sq"]
        return partial(_core.adam, param, grad, m, v, scale, l2, keep, b1, b2, rate, root, options["eps"])


class AdamW(Adam):
    """Adam with decoupled weight decay: ``parameter *= 1 - lr * weight_decay`` before its update.

    >>> from fastrnn import Linear
    >>> from fastrnn.optim import AdamW
    >>> adam = AdamW([Linear(3, 2, rng=0)], lr=1e-2, groups={"bias": {"weight_decay": 0}})
    >>> adam.step()

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, arXiv:1711.05101.
    """

    _decoupled = True

    def __init__(
        self,
        modules: Sequence[Module],
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(modules, lr, betas, eps, weight_decay, groups=groups)


class RMSprop(Optimizer):
    """RMSprop: steps divided by the root of a running mean of the squared gradients.

    >>> from fastrnn import Linear
    >>> from fastrnn.optim import RMSprop
    >>> rmsprop = RMSprop([Linear(3, 2, rng=0)], lr=1e-2)
    >>> rmsprop.step()

    With g the gradient plus weight_decay times the parameter:

        v = alpha v + (1 - alpha) g^2        m = alpha m + (1 - alpha) g  if centered, else 0
        b = momentum b + g / (sqrt(v - m^2) + eps)        parameter -= lr b

    modules, lr, groups: as in `Optimizer`.  alpha: in [0, 1).  eps: above zero.

    Source: Hinton, "Neural networks for machine learning", lecture 6, 2012; centered, Graves, "Generating sequences
    with recurrent neural networks", 2013, arXiv:1308.0850.
    """

    _checks: ClassVar = {
        "lr": checked_lr,
        "alpha": _fraction,
        "eps": _positive_eps,
        "weight_decay": finite_float,
        "momentum": finite_float,
        "centered": boolean,
    }

    def __init__(
        self,
        modules: Sequence[Module],
        lr: float | Schedule = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(
            modules,
            groups,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
        )

    def _state_names(self) -> list[str]:
        return ["square_avg", *["grad_avg"] * self._any("centered"), *["momentum_buffer"] * self._any("momentum")]

    def _update(
        self, options: Options, scale: float, step: int, param: np.ndarray, grad: np.ndarray, state: Any
    ) -> Callable[[], Any]:
        m = state["grad_avg"] if options["centered"] else None
        buffer = state["momentum_buffer"] if options["momentum"] else None
        return partial(
            _core.rmsprop, param, grad, state["square_avg"], m, buffer,
            scale, options["weight_decay"], options["lr"], options["alpha"], options["eps"], options["momentum"],
        )  # fmt: skip

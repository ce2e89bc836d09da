"""Schedules of the learning rate: functions of the number of updates made, which have no state to keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..util.checks import finite_float, positive_int

__all__ = ["Cosine", "Schedule", "StepDecay", "WarmUp"]

Schedule = Callable[[int], float]  # number of updates made -> learning rate of the next one


@dataclass(frozen=True)
class Cosine:
    """From lr down to `end` along half a cosine, over `steps` steps; after that, `end`.

    >>> from fastrnn.optim import Cosine
    >>> [round(Cosine(0.1, steps=4)(step), 4) for step in range(6)]
    [0.1, 0.0854, 0.05, 0.0146, 0.0, 0.0]

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, arXiv:1608.03983.
    """

    lr: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        finite_float("lr", self.lr), positive_int("steps", self.steps), finite_float("end", self.end)

    def __call__(self, step: int) -> float:
        angle = math.pi * min(step, self.steps) / self.steps
        return self.end + (self.lr - self.end) * 0.5 * (1 + math.cos(angle))


@dataclass(frozen=True)
class StepDecay:
    """lr, multiplied by `factor` after every `every` steps.

    >>> from fastrnn.optim import StepDecay
    >>> [StepDecay(1.0, every=2, factor=0.5)(step) for step in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        finite_float("lr", self.lr), positive_int("every", self.every), finite_float("factor", self.factor)

    def __call__(self, step: int) -> float:
        return self.lr * self.factor ** (step // self.every)


@dataclass(frozen=True)
class WarmUp:
    """A straight line up to lr over `steps` steps, then lr: a number, or a schedule that begins there.

    >>> from fastrnn.optim import Cosine, WarmUp
    >>> [round(WarmUp(0.4, steps=3)(step), 4) for step in range(5)]
    [0.1, 0.2, 0.3, 0.4, 0.4]
    >>> [round(WarmUp(Cosine(0.4, steps=2), steps=3)(step), 4) for step in range(6)]
    [0.1, 0.2, 0.3, 0.4, 0.2, 0.0]
    """

    lr: float | Schedule
    steps: int

    def __post_init__(self) -> None:
        positive_int("steps", self.steps), checked_lr("lr", self.lr)

    def __call__(self, step: int) -> float:
        then = lr_at(self.lr, max(0, step - self.steps))
        return then * min(1.0, (step + 1) / (self.steps + 1))


def checked_lr(name: str, lr: float | Schedule) -> float | Schedule:
    """`lr`, if it is a schedule or a finite number >= 0; raises TypeError or ValueError otherwise."""
    return lr if callable(lr) else finite_float(name, lr)


def lr_at(lr: float | Schedule, step: int) -> float:
    """The learning rate after `step` steps; raises TypeError or ValueError if a schedule returns no valid number."""
    return finite_float("lr", lr(step) if callable(lr) else lr)

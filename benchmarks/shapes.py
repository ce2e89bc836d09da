"""The grid, and the problem of each row: weights, inputs and loss gradients that every contender gets alike.

Letters: T time steps, B batch, I input size, H hidden size, G gates (RNN 1, GRU 3, LSTM 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
KINDS = ("step", "inference", "training", "ragged", "short", "short both", "batch step")


class Shape(NamedTuple):
    """A shape of the grid and the kinds of work that are timed with it."""

    name: str
    T: int
    B: int
    I: int
    H: int
    kinds: tuple[str, ...]


GRID = {
    shape.name: shape
    for shape in (
        Shape("step64", 1, 1, 64, 64, ("step",)),
        Shape("step256", 1, 1, 256, 256, ("step",)),
        Shape("tiny", 50, 16, 32, 64, ("inference", "training", "ragged")),
        Shape("char", 100, 32, 64, 128, ("inference", "training", "ragged")),
        Shape("small", 100, 32, 128, 256, ("inference", "training", "ragged")),
        Shape("mid", 128, 64, 256, 512, ("training",)),
        Shape("long", 1000, 1, 64, 128, ("inference", "training")),
    )
}
QUICK = ("step64", "step256", "tiny", "char", "long")
USUAL = tuple(GRID)

# Sizes of published models, many of which are no multiple of a vector: calls of a few steps, in one direction and in
# both, and one step of a few rows
SIZES = (25, 50, 57, 100, 112, 128, 150, 200, 256)
for H in SIZES:
    for T in (2, 5, 9, 16, 24):
        GRID[f"{T}x1x{H}"] = Shape(f"{T}x1x{H}", T, 1, H, H, ("short", "short both"))
    for B in (2, 4, 8, 16, 32, 64):
        GRID[f"1x{B}x{H}"] = Shape(f"1x{B}x{H}", 1, B, H, H, ("batch step",))
SHORT = tuple(name for name in GRID if name not in USUAL)

# Layers whose weights no second-level cache holds
LARGE = ("large768", "large1024", "large2048")
for name, T in zip(LARGE, (20, 20, 5), strict=True):
    H = int(name.removeprefix("large"))
    GRID[name] = Shape(name, T, 64, H, H, ("inference", "training"))


@dataclass(frozen=True)
class Problem:
    """One row of the grid. Arrays are made on first use, from a fixed seed, and never written to by a contender."""

    kind: str
    cell: str
    shape: Shape
    dtype: np.dtype

    @property
    def name(self) -> str:
        return f"{self.kind} {self.cell} {self.shape.name}"

    @property
    def states(self) -> tuple[str, ...]:
        return ("h", "c") if self.cell == "lstm" else ("h",)

    @property
    def directions(self) -> int:
        return 2 if self.kind == "short both" else 1

    @property
    def training(self) -> bool:
        return self.kind in ("training", "ragged")

    @cached_property
    def params(self) -> dict[str, np.ndarray]:
        """Weights under torch's names, uniform in +-1/sqrt(H)."""
        _, _, _, I, H, _ = self.shape
        rows = GATES[self.cell] * H
        shapes = {"weight_ih": (rows, I), "weight_hh": (rows, H), "bias_ih": (rows,), "bias_hh": (rows,)}
        rng = np.random.default_rng(1)
        return {
            name + suffix: rng.uniform(-1, 1, shape).astype(self.dtype) / self._root_h
            for suffix in ("_l0", "_l0_reverse")[: self.directions]
            for name, shape in shapes.items()
        }

    @property
    def _root_h(self) -> np.floating:
        return np.sqrt(self.shape.H).astype(self.dtype)

    @cached_property
    def x(self) -> np.ndarray:
        """(T, B, I), standard normal."""
        _, T, B, I, _, _ = self.shape
        return np.random.default_rng(2).standard_normal((T, B, I)).astype(self.dtype)

    @cached_property
    def state(self) -> dict[str, np.ndarray] | None:
        """The state that a step starts from, (1, B, H) each; None, that is zeros, for whole sequences."""
        if self.kind not in ("step", "batch step"):
            return None
        rng = np.random.default_rng(3)
        return {name: rng.uniform(-1, 1, (1, self.shape.B, self.shape.H)).astype(self.dtype) for name in self.states}

    @cached_property
    def lengths(self) -> np.ndarray | None:
        """(B,): uniform in [1, T] with mean T / 2, unsorted, the longest T; None where all are T."""
        if self.kind != "ragged":
            return None
        _, T, B, _, _, _ = self.shape
        spread = np.linspace(1, T, B).round().astype(np.int64)
        return np.random.default_rng(4).permutation(spread)

    @cached_property
    def mask(self) -> np.ndarray:
        """(T, B): true within each sequence."""
        _, T, B, _, _, _ = self.shape
        lengths = np.full(B, T) if self.lengths is None else self.lengths
        return np.arange(T)[:, None] < lengths

    @cached_property
    def dy(self) -> np.ndarray:
        """(T, B, H): the loss gradient, zero beyond each length; scaled so that weight gradients are of order one."""
        _, T, B, _, H, _ = self.shape
        dy = np.random.default_rng(5).standard_normal((T, B, H)) / np.sqrt(T * B)
        return (dy * self.mask[:, :, None]).astype(self.dtype)

    @property
    def flops(self) -> int:
        """Of the matrix products: 2 T B G H (I + H) a direction, three times that in training; padding not counted."""
        _, _, _, I, H, _ = self.shape
        product = 2 * int(self.mask.sum()) * GATES[self.cell] * H * (I + H) * self.directions
        return product * (3 if self.training else 1)


def problems(kinds: Iterable[str], cells: Iterable[str], shapes: Iterable[str], dtype: str) -> Iterator[Problem]:
    """Every row of the grid with these kinds, cells and shapes."""
    names = list(shapes)
    for kind in kinds:
        for cell in cells:
            for shape in GRID.values():
                if shape.name in names and kind in shape.kinds:
                    yield Problem(kind, cell, shape, np.dtype(dtype))

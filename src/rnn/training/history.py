"""The record of a training run, step by step: as lists, as a CSV file and as a picture."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass, field
from typing import Any

from ..util.storage import write_atomically

__all__ = ["History"]


@dataclass
class History:
    """The record of `LanguageModel.fit`.  Losses are in bits per character; lists but `held_out` have one entry a step.

    >>> from pathlib import Path
    >>> from fastrnn import LanguageModel
    >>> history = LanguageModel("rnn", 16, rng=0).fit("to be or not to be, that is the question. " * 100, steps=20)
    >>> history.to_csv("history.csv")
    >>> Path("history.csv").read_text().splitlines()[0]
    'step,train_bits,lr,grad_norm,held_out_bits'
    """

    steps: int = 0  # steps done
    train_bits: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)  # before clipping
    held_out: list[tuple[int, float]] = field(default_factory=list)  # (steps done, bits per character)
    held_out_bits: float = math.nan  # bits per character of the weights that were kept; nan if no text was held out
    best_step: int = 0  # after how many steps the kept weights were taken
    seconds: float = 0.0
    interrupted: bool = False  # by Ctrl-C

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each step, numbered from 1; `held_out_bits` is empty where nothing was evaluated.

        An existing file is replaced as a whole or not at all.  Raises OSError if the file cannot be written.
        """
        held_out = dict(self.held_out)
        lines = ["step,train_bits,lr,grad_norm,held_out_bits"]
        for step, values in enumerate(zip(self.train_bits, self.lr, self.grad_norm, strict=True), 1):
            lines.append(",".join(map(str, (step, *values, held_out.get(step, "")))))
        write_atomically(path, "\n".join([*lines, ""]).encode())

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw bits per character, learning rate and norm of the gradient over the steps; needs matplotlib.

        path: a file to write, atomically, in the format that its suffix names (.png, .svg, .pdf, ...).  Without it, the
        figure is one of `matplotlib.pyplot`: a notebook shows it by itself, a script with ``pyplot.show()``.

        Returns the figure.  Raises ImportError without matplotlib, ValueError for a format that it cannot write,
        OSError if the file cannot be written.
        """
        require_matplotlib()
        from matplotlib import pyplot
        from matplotlib.figure import Figure

        new_figure = pyplot.figure if path is None else Figure  # pyplot keeps its figures until they are closed
        figure = new_figure(figsize=(8, 6), layout="constrained")
        bits, lr, norm = figure.subplots(3, sharex=True, height_ratios=(3, 1, 1))
        steps = range(1, len(self.train_bits) + 1)
        bits.plot(steps, self.train_bits, color="0.7", label="training text")
        if self.held_out:
            bits.plot(*zip(*self.held_out, strict=True), "o-", color="C0", label="held-out text")
            bits.axvline(self.best_step, color="C0", linestyle=":", label="weights that were kept")
        bits.set_ylabel("bits per character")
        bits.legend()
        lr.plot(steps, self.lr, color="C1")
        lr.set_ylabel("learning rate")
        norm.plot(steps, self.grad_norm, color="C2")
        norm.set(ylabel="gradient norm", xlabel="step", yscale="log" if any(self.grad_norm) else "linear")
        if path is not None:
            picture = io.BytesIO()
            figure.savefig(picture, format=os.path.splitext(path)[1][1:] or "png")
            write_atomically(path, picture.getvalue())
        return figure


def require_matplotlib() -> None:
    """Raise ImportError, which says what to install, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("a plot needs matplotlib: pip install matplotlib") from None

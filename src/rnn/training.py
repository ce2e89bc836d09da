"""Training of a recurrent layer and its head on one long text: truncated back-propagation through time.

The text is cut into B streams of equal length that are read side by side, T characters a step.  The state at the end of
one step is the start of the next; gradients stop there.  `tbptt` is the loop for networks of one's own.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .linear import Linear
from .nonfinite import NonFinite as NonFinite
from .nonfinite import first_nonfinite as first_nonfinite
from .optim import Adam, clip_grad_norm
from .truncated import tbptt as tbptt

MAX_NORM = 1.0  # of the gradient
EVALUATIONS = 10  # of the held-out text, spread over the training
EVALUATED_CHARACTERS = 2**16  # of the held-out text, at most, in each of them
EVALUATED_STREAMS = 32  # at most, of at least STREAM_LENGTH characters: each starts from a state of zero,
STREAM_LENGTH = 1024  # which costs it some bits at its start
POSITIONS = 2048  # characters predicted at once in an evaluation: bounds its memory


@dataclass
class History:
    """What `LanguageModel.fit` did.  Losses are in bits per character, an entry a step except for `held_out`."""

    steps: int = 0  # steps done
    train_bits: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)  # before clipping
    held_out: list[tuple[int, float]] = field(default_factory=list)  # (steps done, bits per character)
    held_out_bits: float = math.nan  # of the weights that were kept, over all held-out text; nan without any
    best_step: int = 0  # the steps that the kept weights have seen
    seconds: float = 0.0
    interrupted: bool = False  # by Ctrl-C


class DivergedError(FloatingPointError):
    """A loss or a gradient was not finite.

    `step` says when, `what` what, `origin` where in the recurrent layer the first value of that kind arose, if it was
    there, `history` what happened before.
    """

    def __init__(self, what: str, history: History, lr: float, origin: NonFinite | None = None) -> None:
        self.what, self.step, self.history, self.origin = what, history.steps, history, origin
        began = "" if origin is None else f"; it began with {origin}"
        super().__init__(
            f"{what} is not finite at step {history.steps}; the weights of step {history.best_step} are kept. "
            f"Try a learning rate below {lr:g}{began}"
        )


def cut_streams(ids: np.ndarray, streams: int) -> np.ndarray:
    """The ids as `streams` columns of contiguous text (S + 1, B), each with the character that follows it.

    Rows [t, t + T) are inputs to rows [t + 1, t + T + 1).  Up to B - 1 characters at the end are left out.
    """
    length = (len(ids) - 1) // streams
    grid = np.empty((length + 1, streams), ids.dtype)
    grid[:-1] = ids[: streams * length].reshape(streams, length).T
    grid[-1] = ids[length : streams * length + 1 : length]
    return grid


def batches(grid: np.ndarray, seq_len: int) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Endless (x (T, B), targets (T, B), whether the text begins anew) from a grid of streams.

    Where T does not divide the streams, every second pass is shifted so that it ends at their end.
    """
    spare = (len(grid) - 1) % seq_len
    for start in itertools.cycle((0, spare)):
        for t in range(start, len(grid) - seq_len, seq_len):
            yield grid[t : t + seq_len], grid[t + 1 : t + seq_len + 1], t == start


def bits_per_character(layer: Any, head: Linear, grid: np.ndarray, state: Any = None) -> float:
    """Mean over all predictions in a grid of streams (S + 1, B), the state carried from chunk to chunk."""
    length, streams = len(grid) - 1, grid.shape[1]
    chunk = max(1, POSITIONS // streams)
    nats = 0.0
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        y, state = layer(grid[start:stop], state)
        loss, _ = head.cross_entropy(y, grid[start + 1 : stop + 1], gradients=False)
        nats += loss * (stop - start)
    return nats / length / math.log(2)


def held_out_bits(layer: Any, head: Linear, ids: np.ndarray) -> float:
    """Bits per character of a text read as several streams at once: fast, and less than 0.01 above one stream's."""
    grid = cut_streams(ids, max(1, min(EVALUATED_STREAMS, len(ids) // STREAM_LENGTH)))
    return bits_per_character(layer, head, grid)


class Trainer:
    """One run of training: Adam under a cosine schedule, the gradient norm clipped, the best weights kept.

    train, held_out: integer arrays of characters; held_out may be empty, then the last weights are the best.
    """

    def __init__(
        self,
        layer: Any,
        head: Linear,
        train: np.ndarray,
        held_out: np.ndarray,
        *,
        steps: int,
        batch_size: int,
        seq_len: int,
        lr: float,
    ) -> None:
        self.layer, self.head, self.modules = layer, head, [layer, head]
        self.held_out, self.steps, self.lr = held_out, steps, lr
        self.batches = batches(cut_streams(train, batch_size), seq_len)
        self.state: Any = None
        self.adam = Adam(self.modules, lr)
        self.history = History()
        self.best_bits = math.inf
        self.best = [module._flat_params.copy() for module in self.modules]

    def run(self, *, progress: bool) -> History:
        """Train; at the end, and after any failure on the way, the modules hold the best weights met."""
        started = time.perf_counter()
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # found by the checks for finite values instead
                self._run_steps(progress)
        finally:
            for module, best in zip(self.modules, self.best, strict=True):
                module._flat_params[...] = best
            self.history.seconds = time.perf_counter() - started
        self.history.held_out_bits = self.best_bits
        if len(self.held_out) > EVALUATED_CHARACTERS:
            self.history.held_out_bits = held_out_bits(self.layer, self.head, self.held_out)
        return self.history

    def _run_steps(self, progress: bool) -> None:
        history = self.history
        interval = max(1, self.steps // EVALUATIONS)
        with _progress_bar(self.steps, progress) as bar:
            try:
                while history.steps < self.steps:
                    self._step()
                    if history.steps % interval == 0 or history.steps == self.steps:
                        self._evaluate()
                    bar.set_postfix_str(self._postfix(), refresh=False)
                    bar.update()
            except KeyboardInterrupt:
                history.interrupted = True
                self._evaluate()

    def _step(self) -> None:
        history = self.history
        x, targets, anew = next(self.batches)
        y, self.state, tape = self.layer.forward(x, None if anew else self.state)
        for module in self.modules:
            module.zero_grad()
        loss, dy = self.head.cross_entropy(y, targets)
        self._require_finite("the loss", loss, tape)
        self.layer.backward(tape, dy)
        norm = clip_grad_norm(self.modules, MAX_NORM)
        self._require_finite("the norm of the gradient", norm, tape, dy)
        lr = self.lr * 0.5 * (1 + math.cos(math.pi * history.steps / self.steps))
        self.adam.step(lr)
        history.train_bits.append(loss / math.log(2))
        history.grad_norm.append(norm)
        history.lr.append(lr)
        history.steps += 1

    def _evaluate(self) -> None:
        """Keep the weights if they are the best so far."""
        history = self.history
        bits = math.nan
        if len(self.held_out):
            bits = held_out_bits(self.layer, self.head, self.held_out[:EVALUATED_CHARACTERS])
            self._require_finite("the held-out loss", bits)
            history.held_out.append((history.steps, bits))
        if not bits >= self.best_bits:
            self.best_bits, history.best_step = bits, history.steps
            for module, best in zip(self.modules, self.best, strict=True):
                best[...] = module._flat_params

    def _require_finite(self, what: str, value: float, tape: Any = None, dy: Any = None) -> None:
        if not math.isfinite(value):
            raise DivergedError(what, self.history, self.lr, None if tape is None else first_nonfinite(tape, dy))

    def _postfix(self) -> str:
        held_out = f", held out {self.history.held_out[-1][1]:.3f}" if self.history.held_out else ""
        return f"{self.history.train_bits[-1]:.3f} bits/char{held_out}"


def _progress_bar(steps: int, progress: bool) -> Any:
    from tqdm import tqdm

    shown = progress and sys.stderr is not None and sys.stderr.isatty()
    return tqdm(total=steps, unit="step", disable=not shown)

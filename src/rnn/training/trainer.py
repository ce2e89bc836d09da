"""Training of a recurrent layer and its head on one long text: truncated back-propagation through time.

The text is cut into B streams of equal length that are read in parallel, T characters a training step.  The state at
the end of one training step is where the next one starts; gradients stop there.  For networks of your own,
`truncated.tbptt` is such a loop.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import _core
from ..engine.nonfinite import NonFinite, first_nonfinite
from ..nn.linear import Linear
from ..nn.recurrent import Recurrent
from ..optim.algorithms import Adam
from ..optim.schedules import Cosine, Schedule, lr_at
from ..util.checks import checked_arrays, finite_float, non_negative_int
from .checkpoint import Checkpoint, read_checkpoint, save_checkpoint, unfit
from .history import History

__all__ = ["DivergedError", "Trainer"]

MAX_NORM = 1.0  # to which the norm of the gradient is clipped
EVALUATIONS = 10  # number of evaluations on the held-out text, spread over the run
EVALUATED_CHARACTERS = 2**16  # at most so many held-out characters in each evaluation
EVALUATED_STREAMS = 32  # at most so many streams, of at least STREAM_LENGTH characters each: a stream starts from a
STREAM_LENGTH = 1024  # state of zero, with which its first characters cost more bits
POSITIONS = 2048  # characters predicted at a time in an evaluation: bounds its memory
CHECKPOINT_SECONDS = 60  # between two checkpoints, unless an evaluation comes before
_BY_STEP = ("train_bits", "lr", "grad_norm")  # the lists of a history that have one entry a step


class DivergedError(FloatingPointError):
    """A loss or a gradient was not finite.

    Attributes: `what`, the value that was not finite; `step`, how many steps were done before; `origin`, where in the
    recurrent layer the first such value arose, or None; `history`, the record of the run so far.
    """

    def __init__(self, what: str, history: History, lr: float, origin: NonFinite | None = None) -> None:
        self.what, self.step, self.history, self.origin = what, history.steps, history, origin
        began = "" if origin is None else f"; it began with {origin}"
        super().__init__(
            f"{what} is not finite at step {history.steps}; the weights of step {history.best_step} are kept. "
            f"Try a learning rate below {lr:g}{began}"
        )


def cut_streams(ids: np.ndarray, streams: int) -> np.ndarray:
    """Cut the ids into `streams` columns of contiguous text (S + 1, B), each with the character that follows it.

    Rows [t, t + T) are the inputs for targets [t + 1, t + T + 1).  Up to B - 1 characters at the end are left out.
    """
    length = (len(ids) - 1) // streams
    grid = np.empty((length + 1, streams), ids.dtype)
    grid[:-1] = ids[: streams * length].reshape(streams, length).T
    grid[-1] = ids[length : streams * length + 1 : length]
    return grid


def batches(grid: np.ndarray, seq_len: int) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield (x (T, B), targets (T, B), whether the text begins anew) from a grid of streams, without end.

    If T does not divide the length of the streams, every second epoch is shifted so that it ends at their end.
    """
    spare = (len(grid) - 1) % seq_len
    for start in itertools.cycle((0, spare)):
        for t in range(start, len(grid) - seq_len, seq_len):
            yield grid[t : t + seq_len], grid[t + 1 : t + seq_len + 1], t == start


def bits_per_character(layer: Recurrent, head: Linear, grid: np.ndarray, state: Any = None) -> float:
    """Mean bits per character over all predictions in a grid of streams (S + 1, B), POSITIONS predictions at a time."""
    length, streams = len(grid) - 1, grid.shape[1]
    chunk = max(1, POSITIONS // streams)
    nats = 0.0
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        y, state = layer(grid[start:stop], state)
        loss, _ = head.cross_entropy(y, grid[start + 1 : stop + 1], gradients=False)
        nats += loss * (stop - start)
    return nats / length / math.log(2)


def held_out_bits(layer: Recurrent, head: Linear, ids: np.ndarray) -> float:
    """Bits per character of a text that is read as several streams: fast, and less than 0.01 above those of one."""
    grid = cut_streams(ids, max(1, min(EVALUATED_STREAMS, len(ids) // STREAM_LENGTH)))
    return bits_per_character(layer, head, grid)


class Trainer:
    """One training run: Adam under a schedule, the gradient norm clipped, the best weights kept.

    train, held_out: integer arrays of characters; if held_out is empty, the last weights count as the best.
    lr: a schedule, or the learning rate from which a cosine falls.
    accumulate: how many batches, of batch_size streams each, add up their gradients for one update.
    checkpoint: the file that `run` writes at every evaluation, every minute and on Ctrl-C; None: no file.
    """

    def __init__(
        self,
        layer: Recurrent,
        head: Linear,
        train: np.ndarray,
        held_out: np.ndarray,
        *,
        steps: int,
        batch_size: int,
        seq_len: int,
        lr: float | Schedule,
        accumulate: int = 1,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        self.layer, self.head, self.modules = layer, head, [layer, head]
        self.train, self.held_out, self.steps, self.checkpoint = train, held_out, steps, checkpoint
        self.batch_size, self.seq_len, self.accumulate = batch_size, seq_len, accumulate
        self.lr: Schedule = lr if callable(lr) else Cosine(lr, steps)
        self.batches = batches(cut_streams(train, batch_size * accumulate), seq_len)
        self.states: list[Any] = [None] * accumulate  # recurrent states, carried from step to step
        self.adam = Adam(self.modules, self.lr)
        self.history = History()
        self.best_bits = math.inf
        self.best = [module.flat_params.copy() for module in self.modules]

    def run(self, *, progress: bool) -> History:
        """Train; at the end, and after any failure, the modules hold the best weights so far."""
        self.written = time.perf_counter()
        self.started = self.written - self.history.seconds  # counts the time of a resumed run from its first start
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # `_require_finite` finds these values instead
                self._run_steps(progress)
        finally:
            _core.copy_all([(module.flat_params, best) for module, best in zip(self.modules, self.best, strict=True)])
            self.history.seconds = time.perf_counter() - self.started
        self.history.held_out_bits = self.best_bits
        if len(self.held_out) > EVALUATED_CHARACTERS:
            self.history.held_out_bits = held_out_bits(self.layer, self.head, self.held_out)
        return self.history

    def _run_steps(self, progress: bool) -> None:
        history = self.history
        interval = max(1, self.steps // EVALUATIONS)
        with _progress_bar(self.steps, history.steps, progress) as bar, _late_interrupt() as interrupt:
            try:
                while history.steps < self.steps:
                    self._step()
                    if history.steps % interval == 0 or history.steps == self.steps:
                        self._evaluate()
                        self._write_checkpoint()
                    elif interrupt.is_set() or time.perf_counter() - self.written > CHECKPOINT_SECONDS:
                        self._write_checkpoint()
                    bar.set_postfix_str(self._postfix(), refresh=False)
                    bar.update()
                    if interrupt.is_set() and history.steps < self.steps:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                history.interrupted = True
                if [step for step, _ in history.held_out[-1:]] != [history.steps]:
                    self._evaluate()

    def _step(self) -> None:
        history, lr = self.history, lr_at(self.lr, self.history.steps)
        x, targets, anew = next(self.batches)
        for module in self.modules:
            module.zero_grad()
        loss = 0.0
        for index, start in enumerate(range(0, x.shape[1], self.batch_size)):
            streams = slice(start, start + self.batch_size)
            part, tape, dy = self._add_gradients(index, x[:, streams], targets[:, streams], anew)
            loss += part / self.accumulate
        norm = self.adam.step(max_norm=MAX_NORM, scale=1 / self.accumulate)
        self._require_finite("the norm of the gradient", norm, tape, dy)
        history.train_bits.append(loss / math.log(2))
        history.grad_norm.append(norm)
        history.lr.append(lr)
        history.steps += 1

    def _add_gradients(self, index: int, x: np.ndarray, targets: np.ndarray, anew: bool) -> tuple[float, Any, Any]:
        """Add the gradients of one batch to the modules'; return (loss, tape, dy)."""
        y, self.states[index], tape = self.layer.forward(x, None if anew else self.states[index])
        loss, dy = self.head.cross_entropy(y, targets)
        self._require_finite("the loss", loss, tape)
        self.layer.backward(tape, dy)
        return loss, tape, dy

    def _evaluate(self) -> None:
        """Evaluate on held-out text, and keep the weights if they are the best so far."""
        history = self.history
        bits = math.nan
        if len(self.held_out):
            bits = held_out_bits(self.layer, self.head, self.held_out[:EVALUATED_CHARACTERS])
            self._require_finite("the held-out loss", bits)
            history.held_out.append((history.steps, bits))
        if not bits >= self.best_bits:
            _core.copy_all([(best, module.flat_params) for module, best in zip(self.modules, self.best, strict=True)])
            self.best_bits, history.best_step = bits, history.steps

    def _require_finite(self, what: str, value: float, tape: Any = None, dy: Any = None) -> None:
        if not math.isfinite(value):
            lr = max([*self.history.lr, self.lr(self.history.steps)])
            raise DivergedError(what, self.history, lr, None if tape is None else first_nonfinite(tape, dy))

    def _postfix(self) -> str:
        held_out = f", held out {self.history.held_out[-1][1]:.3f}" if self.history.held_out else ""
        return f"{self.history.train_bits[-1]:.3f} bits/char{held_out}"

    # ------------------------------------------------------------ checkpoints

    def resume(self) -> None:
        """Continue from the checkpoint, which a run with the same layer, text and settings must have written.

        Raises OSError if there is none, ValueError if it is from another run; nothing is changed then.
        """
        assert self.checkpoint is not None
        checkpoint = read_checkpoint(self.checkpoint, self.adam, settings=self._settings())
        try:
            arrays = self._checked_arrays(checkpoint)
            best_bits, history = _checked_history(checkpoint, arrays)
        except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise unfit(self.checkpoint, error) from None
        checkpoint.apply()
        self.best_bits, self.history = best_bits, history
        for name, array in self._named_best().items():
            array[...] = arrays[name]
        for index in range(self.accumulate):
            state = tuple(arrays[f"state.{index}.{k}"] for k in range(len(self.layer.spec.states)))
            self.states[index] = state if len(state) == 2 else state[0]
        for _ in range(self.history.steps):
            next(self.batches)

    def _checked_arrays(self, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
        """The arrays of a checkpoint, if they fit this run after so many steps; raises an error otherwise."""
        steps, layer = checkpoint.steps, self.layer
        if steps > self.steps:
            raise ValueError(f"expected at most {self.steps} steps, got {steps}")
        own = {name: np.empty(steps) for name in _BY_STEP} | self._named_best()
        own["held_out"] = np.empty((len(checkpoint.arrays["held_out"]), 2))
        for index in range(self.accumulate):
            for k, shape in enumerate(layer.spec.state_shapes(self.batch_size)):
                own[f"state.{index}.{k}"] = np.empty(shape, layer.dtype)
        return checked_arrays(checkpoint.arrays, own)

    def _named_best(self) -> dict[str, np.ndarray]:
        """Views of the best weights, by the names that they have in a checkpoint."""
        return {
            f"best.{index}.{name}": array
            for index, (module, best) in enumerate(zip(self.modules, self.best, strict=True))
            for name, array in module.named(best).items()
        }

    def _write_checkpoint(self) -> None:
        if self.checkpoint is None:
            return
        history = self.history
        arrays = {name: np.array(getattr(history, name), float) for name in _BY_STEP} | self._named_best()
        arrays["held_out"] = np.array(history.held_out, float).reshape(-1, 2)
        for index, state in enumerate(self.states):
            parts = state if isinstance(state, tuple) else (state,)
            arrays |= {f"state.{index}.{k}": array for k, array in enumerate(parts)}
        self.written = time.perf_counter()
        seconds = self.written - self.started
        info = {"best_bits": self.best_bits, "best_step": history.best_step, "seconds": seconds}
        save_checkpoint(self.checkpoint, self.adam, settings=self._settings(), arrays=arrays, info=info)

    def _settings(self) -> dict[str, Any]:
        """The settings that have to be the same when a run is resumed."""
        from hashlib import sha256

        layer, every = self.layer, max(1, self.steps // 1000)
        rates = np.array([self.lr(step) for step in range(0, self.steps, every)], float)
        return {
            "layer": f"{type(layer).__name__}({layer.input_size}, {layer.hidden_size}, {layer.num_layers})",
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "accumulate": self.accumulate,
            "lr": rates[0].item(),
            "schedule": sha256(rates.tobytes()).hexdigest()[:16],
            "text": sha256(self.train.tobytes() + b"|" + self.held_out.tobytes()).hexdigest()[:16],
        }


def _checked_history(checkpoint: Checkpoint, arrays: dict[str, np.ndarray]) -> tuple[float, History]:
    """Bits per character of the best weights (inf or nan if they were not evaluated), and the history so far."""
    steps, info, held_out = checkpoint.steps, checkpoint.info, arrays["held_out"]
    if not all(np.isfinite(arrays[name]).all() for name in (*_BY_STEP, "held_out")):
        raise ValueError("expected a history of finite numbers, got others")
    if not np.isin(held_out[:, 0], np.arange(1, steps + 1)).all():
        raise ValueError(f"expected evaluations after 1 to {steps} steps, got others")
    best_bits, best_step = info["best_bits"], non_negative_int("best_step", info["best_step"])
    if not isinstance(best_bits, float) or best_step > steps:
        raise ValueError(f"expected best_bits in a float and best_step <= {steps}, got {best_bits!r} and {best_step}")
    return best_bits, History(
        steps=steps,
        **{name: arrays[name].tolist() for name in _BY_STEP},
        held_out=[(int(step), bits) for step, bits in held_out.tolist()],
        best_step=best_step,
        seconds=finite_float("seconds", info["seconds"]),
    )


@contextmanager
def _late_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that the present step is completed first; a second Ctrl-C interrupts at once.

    Nothing changes in threads other than the main thread, where Python delivers no signals, and if SIGINT already has
    another handler.
    """
    event, default = threading.Event(), signal.default_int_handler
    is_ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is default

    def handle(*_: Any) -> None:
        signal.signal(signal.SIGINT, default)
        event.set()

    if is_ours:
        signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, default)


def _progress_bar(steps: int, done: int, progress: bool) -> Any:
    if not progress or sys.stderr is None or not sys.stderr.isatty():
        return _NoBar()
    from tqdm import tqdm

    return tqdm(total=steps, initial=done, unit="step")


class _NoBar:
    """Used instead of a bar that is not shown. A bar of tqdm would still take a lock that it shares with forked
    processes, and would wait for it forever if such a process was killed while holding it."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        pass

    def update(self) -> None:
        pass

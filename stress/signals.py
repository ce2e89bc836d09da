"""Ctrl-C at random moments: nothing hangs, what comes after is right, and long calls are left within 0.1 s.

A case is some calls of one kind, or one run of the command line, that SIGINT interrupts or just misses. Afterwards

    parameters and optimiser   are what a whole number of steps makes of them
    arrays that were given     are unchanged, and so is the state of a stream, or it is that after the whole call
    the same call once more    gives the bits that it gave before

Calls are made in a child process, where a hang ends with a traceback of all threads.
"""

from __future__ import annotations

import _thread
import faulthandler
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np

from .campaign import Cases, main
from .layers import as_tuple

HANG = 30  # seconds
IN_A_CHILD = 10  # interrupts
LATE = 0.1  # seconds from the signal until a call is left
TEXT = "to be or not to be, that is the question; " * 200


def run(cases: Cases) -> None:
    """Interrupt calls, and the command line, at random moments."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background inherits as ignored
    worst = 0.0
    for number, rng in cases:
        if number % 10 == 9:
            cases.seen["interrupts of the command line"] += 1
            failure = _interrupt_command(rng)
            if failure:
                cases.fail(number, failure)
            continue
        child = subprocess.run(
            [sys.executable, "-m", __spec__.name, "child", str(cases.seed), str(number)],
            cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True,
        )  # fmt: skip
        for line in child.stdout.splitlines():
            kind, _, text = line.partition(" ")
            if kind == "failed":
                cases.fail(number, text)
            elif kind == "late":
                cases.seen["calls left later than 0.1 s"] += 1
                worst = max(worst, float(text.split()[0]))
                print(f"case {number}: {text}")
            else:
                cases.seen["interrupts of calls" if kind == "interrupts" else "calls left in their midst"] += int(text)
        if child.returncode:
            cases.fail(number, f"the child ended with {child.returncode}: {child.stderr[-3000:]}")
    if cases.seen["interrupts of calls"] > 100 and not cases.seen["calls left in their midst"]:
        cases.fail(0, "no interrupt came")
    if worst:
        print(f"the latest was left {worst:.3f} s after the signal")


# ---------------------------------------------------------------- a child


def child(seed: int, number: int) -> None:
    """Some interrupts of one kind of call."""
    rng = np.random.default_rng([seed, number])
    kind = rng.choice(list(KINDS))
    fastrnn.set_num_threads(int(rng.integers(1, 4)))
    subject = KINDS[kind](rng)
    faulthandler.dump_traceback_later(4 * HANG, exit=True)
    began = time.perf_counter()
    expected = subject.call()
    duration = time.perf_counter() - began
    subject.restore()
    interrupts = reached = 0
    for _ in range(IN_A_CHILD):
        if rng.random() < 0.2:  # the next call starts threads
            count = fastrnn.get_num_threads()
            fastrnn.set_num_threads(1)
            fastrnn.set_num_threads(count)
        faulthandler.dump_traceback_later(HANG, exit=True)
        latency = interrupted(subject.call, rng.uniform(0, min(1.1 * duration, 0.3)))
        interrupts += 1
        if latency is not None:
            reached += 1
            if latency > LATE:
                print("late", f"{latency:.4f} {kind}", flush=True)
        wrong = subject.wrong_after_interrupt()
        subject.restore()
        if not wrong and not same(subject.call(), expected):
            wrong = "the call after the interrupt gives other bits"
        subject.restore()
        faulthandler.cancel_dump_traceback_later()
        if wrong:
            print("failed", f"{kind}, {fastrnn.get_num_threads()} threads: {wrong}")
    print("interrupts", interrupts)
    print("left", reached)


def interrupted(call: Callable[[], Any], delay: float) -> float | None:
    """Seconds from the signal, which comes after the delay, until the call is left; None if it was over before."""
    sent: list[float] = []
    over = _thread.allocate_lock()
    over.acquire()

    def send() -> None:
        time.sleep(delay)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
        over.release()

    is_done = False
    try:
        _thread.start_new_thread(send, ())
        call()
        is_done = True
        over.acquire()
        time.sleep(0.001)  # the signal has come
    except KeyboardInterrupt:
        if not is_done and sent:
            return time.perf_counter() - sent[0]
    return None


def same(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


class Training:
    """Steps of training a layer and its head, from one state of the parameters and of the optimiser on."""

    def __init__(self, layer: Any, T: int, B: int, rng: np.random.Generator, steps: int = 3, **options: Any) -> None:
        self.layer, self.options, self.steps = layer, options, steps
        width = (2 if layer.bidirectional else 1) * layer.hidden_size
        self.head = fastrnn.Linear(width, 11, rng=rng)
        self.adam = fastrnn.optim.Adam([self.layer, self.head], lr=1e-3)
        self.x = rng.standard_normal((T, B, layer.input_size), dtype=np.float32)
        self.targets = rng.integers(0, 11, (T, B))
        self.given = digest(self.x, self.targets)
        self.first, self.first_state = self._parameters(), self.adam.state_dict()
        self.after = {0: self._digest()}
        for step in range(1, steps + 1):
            self._step()
            self.after[step] = self._digest()
        self.restore()

    def _parameters(self) -> list[dict[str, np.ndarray]]:
        return [module.state_dict() for module in (self.layer, self.head)]

    def _digest(self) -> str:
        return digest(*self.layer.params.values(), *self.head.params.values(), *self.adam.state_dict().values())

    def _step(self) -> list[np.ndarray]:
        self.layer.zero_grad()
        self.head.zero_grad()
        y, _, tape = self.layer.forward(self.x, **self.options)
        loss, dy = self.head.cross_entropy(y, self.targets)
        dx, _ = self.layer.backward(tape, dy)
        norm = self.adam.step(max_norm=1.0)
        return [y, np.array([loss, norm]), dx, *(grad.copy() for grad in self.layer.grads.values())]

    def call(self) -> list[np.ndarray]:
        return [array for _ in range(self.steps) for array in self._step()]

    def wrong_after_interrupt(self) -> str:
        if digest(self.x, self.targets) != self.given:
            return "x or targets have changed"
        if self._digest() != self.after[self.adam.steps]:
            return f"parameters or optimiser are not what {self.adam.steps} steps make of them"
        return ""

    def restore(self) -> None:
        for module, params in zip((self.layer, self.head), self.first, strict=True):
            module.load_state_dict(params)
        self.adam.load_state_dict(self.first_state)


class Inference:
    """One call of a layer."""

    def __init__(self, layer: Any, T: int, B: int, rng: np.random.Generator) -> None:
        self.layer = layer
        self.x = rng.standard_normal((T, B, layer.input_size), dtype=np.float32)
        self.before = digest(self.x, *layer.params.values())

    def call(self) -> list[np.ndarray]:
        y, state = self.layer(self.x)
        return [y, *as_tuple(state)]

    def wrong_after_interrupt(self) -> str:
        return "" if digest(self.x, *self.layer.params.values()) == self.before else "x or parameters have changed"

    def restore(self) -> None:
        pass


class Streaming:
    """A run of a stream."""

    def __init__(self, layer: Any, T: int, rng: np.random.Generator, stored: str = "float32") -> None:
        layer.compress(stored)
        self.stream = layer.stream()
        self.block = rng.standard_normal((T, layer.input_size), dtype=np.float32)
        self.stream.run(self.block[:5])
        self.before = self._state()
        self.stream.run(self.block)
        self.after = self._state()
        self.restore()

    def _state(self) -> tuple[np.ndarray, ...]:
        return as_tuple(self.stream.state)

    def call(self) -> list[np.ndarray]:
        return [self.stream.run(self.block)]

    def wrong_after_interrupt(self) -> str:
        if same(self._state(), self.before) or same(self._state(), self.after):
            return ""
        return "the state is neither what it was nor what it becomes"

    def restore(self) -> None:
        self.stream.state = self.before if len(self.before) == 2 else self.before[0]


class Writing:
    """A language model that writes; and its stream, on the way."""

    def __init__(self, rng: np.random.Generator, length: int) -> None:
        self.model = fastrnn.LanguageModel("gru", 64, 2, rng=0)
        self.model.fit(TEXT, steps=2, batch_size=4, seq_len=16, progress=False)
        self.length = length
        self.stream = self.model.stream()
        self.stream.feed("to be")
        self.before = self.stream.state

    def call(self) -> list[np.ndarray]:
        written = self.model.generate("to be", self.length, rng=1) + self.stream.write(self.length, rng=2)
        return [np.frombuffer(written.encode(), np.uint8), self.stream.run(TEXT[: self.length])]

    def wrong_after_interrupt(self) -> str:
        self.stream.step("t")  # another call is accepted
        return ""

    def restore(self) -> None:
        self.stream.state = self.before


class Fitting:
    """A fit, which takes the interrupt as its end; weights are those of a whole number of steps."""

    STEPS = 12

    def __init__(self, rng: np.random.Generator) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.checkpoint = Path(self.folder.name, "fit.checkpoint")
        self.whole = self._fitted(resume=False)
        self.checkpoint.unlink()

    def _fitted(self, resume: bool) -> list[np.ndarray]:
        model = fastrnn.LanguageModel("lstm", 96, 1, rng=0)
        history = model.fit(
            TEXT, steps=self.STEPS, batch_size=32, seq_len=48, checkpoint=self.checkpoint, resume=resume, progress=False
        )
        self.was_whole = history.steps == self.STEPS
        return [*model.layer.params.values(), *model.head.params.values()]

    def call(self) -> list[np.ndarray]:
        return self._fitted(resume=False)

    def wrong_after_interrupt(self) -> str:
        """To go on from the checkpoint that was left gives the weights of the whole training."""
        if not self.checkpoint.exists():
            return ""
        return "" if same(self._fitted(resume=True), self.whole) else "the resumed training gives other weights"

    def restore(self) -> None:
        self.checkpoint.unlink(missing_ok=True)


KINDS: dict[str, Callable[[np.random.Generator], Any]] = {
    "two directions": lambda rng: Training(
        fastrnn.LSTM(12, 40, num_layers=2, bidirectional=True, rng=rng), 60, 24, rng
    ),
    "parts of a batch": lambda rng: Training(fastrnn.GRU(24, 96, rng=rng), 40, 96, rng),
    "pipelined layers": lambda rng: Training(fastrnn.GRU(64, 128, num_layers=3, rng=rng), 400, 1, rng),
    "units of each step": lambda rng: Training(fastrnn.LSTM(64, 256, rng=rng), 300, 1, rng),
    "segments": lambda rng: Training(fastrnn.LSTM(32, 64, num_layers=2, rng=rng), 2000, 1, rng, checkpoint="auto"),
    "segments of ragged rows": lambda rng: Training(
        fastrnn.RNN(16, 64, bidirectional=True, zoneout=0.0, rng=rng), 600, 5, rng,
        checkpoint=4, lengths=np.array([600, 1, 0, 333, 599]),
    ),
    "a long pass": lambda rng: Training(fastrnn.GRU(64, 128, rng=rng), 8000, 4, rng, steps=1),
    "a long call": lambda rng: Inference(fastrnn.LSTM(64, 256, num_layers=2, rng=rng), 6000, 8, rng),
    "a call of general cells": lambda rng: Inference(
        fastrnn.GRU(20, 70, activations=("hard_sigmoid", "softplus"), rng=rng), 3000, 4, rng
    ),
    "a long row": lambda rng: Inference(fastrnn.RNN(1, 3, rng=rng), 400_000, 1, rng),
    "a short call of a wide layer": lambda rng: Inference(fastrnn.RNN(2000, 3000, rng=rng), 12, 1, rng),
    "a stream": lambda rng: Streaming(fastrnn.LSTM(128, 256, rng=rng), 4000, rng),
    "a stream in int8": lambda rng: Streaming(fastrnn.GRU(64, 128, num_layers=2, rng=rng), 6000, rng, "int8"),
    "a stream of normalised layers": lambda rng: Streaming(
        fastrnn.GRU(256, 256, layer_norm=True, rng=rng), 2000, rng
    ),
    "writing": lambda rng: Writing(rng, 4000),
    "fit": Fitting,
}  # fmt: skip


# ---------------------------------------------------------------- the command line


def _interrupt_command(rng: np.random.Generator) -> str:
    """`fastrnn train`, interrupted: what is wrong with how it ends, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fastrnn", "train", "--hidden", "64", "--steps", "300"]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()  # it is set up
        time.sleep(rng.uniform(0, 1.5))
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=HANG)
        except subprocess.TimeoutExpired:
            process.kill()
            return "fastrnn train hangs after Ctrl-C"
        if process.returncode not in (0, 130):
            return f"fastrnn train ends with {process.returncode}: {out} {err}"
        saved = Path(folder, "fastrnn-model.safetensors")
        if "saved to" in out and not saved.exists():
            return "fastrnn train says that it has saved a model, which is not there"
        if saved.exists():
            fastrnn.LanguageModel.load(saved).generate("T", 5)
    return ""


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(int(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main("signals", run))

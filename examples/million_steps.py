"""A sequence of a million steps, never held whole: python examples/million_steps.py

One stream of random bits; what is to be said at every step is the bit that came ten steps ago.  A network that forgets
its state between pieces of the stream, or whose gradients do not go back ten steps, cannot learn it.

    blocks()    the stream as it comes, 5,000 bits at a time
    tbptt       pieces of k1 steps: an update after each; gradients go back k2 steps
        GRU, state carried on
    say(y, t)   Linear, softmax, cross-entropy: the loss and its gradient by y
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import fastrnn
import numpy as np
from fastrnn.optim import Adam, clip_grad_norm
from fastrnn.training import tbptt

DELAY, HIDDEN, BLOCK = 10, 32, 5_000
K1, K2 = 50, 100  # steps between updates, steps that gradients go back
LEARNING_RATE, MAX_NORM = 3e-3, 1.0


def blocks(steps: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(bits (n, 1), the bits DELAY steps before (n, 1)), n steps at a time; before the first there were zeros."""
    rng = np.random.default_rng(seed)
    before = np.zeros((DELAY, 1), np.int64)
    for start in range(0, steps, BLOCK):
        bits = rng.integers(0, 2, (min(BLOCK, steps - start), 1))
        both = np.concatenate([before, bits])
        yield bits, both[: len(bits)]
        before = both[len(bits) :]


class Echo:
    """The network: bits as one-hot inputs, a GRU, two logits."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.layer, self.head = fastrnn.GRU(2, HIDDEN, rng=rng), fastrnn.Linear(HIDDEN, 2, rng=rng)
        self.modules = [self.layer, self.head]
        self.right = 0  # how many answers were

    def say(self, y: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss of some steps, and its gradient by y (n, 1, HIDDEN)."""
        logits, tape = self.head.forward(y)
        self.right += int((logits.argmax(axis=-1) == targets).sum())
        loss, dlogits = fastrnn.softmax_cross_entropy(logits, targets)
        return loss, self.head.backward(tape, dlogits)


def train(model: Echo, steps: int, report_every: int = 100_000) -> float:
    """Share of right answers in the last of the reported stretches; prints one line for each."""
    adam, accuracy, reported, started = Adam(model.modules, LEARNING_RATE), 0.0, 0, time.perf_counter()
    for update in tbptt(model.layer, blocks(steps), model.say, k1=K1, k2=K2):
        clip_grad_norm(model.modules, MAX_NORM)
        adam.step()
        for module in model.modules:
            module.zero_grad()
        if update.steps - reported >= report_every or update.steps == steps:
            accuracy = model.right / (update.steps - reported)
            seconds = time.perf_counter() - started
            print(f"{update.steps:9,} steps, {seconds:5.1f} s: {accuracy:.4f} of the answers right", flush=True)
            model.right, reported = 0, update.steps
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Learn from one sequence that is never held whole.")
    parser.add_argument("--steps", type=int, default=1_000_000)
    train(Echo(), parser.parse_args().steps)

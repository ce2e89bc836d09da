"""Who speaks?  A GRU of 64 units tells nine men apart by one vowel: python examples/japanese_vowels.py

JapaneseVowels (Kudo, Toyama and Shimbo 1999) holds 270 utterances to learn from and 370 to be tested on, each 7 to 29
frames of 12 cepstral coefficients.  It ships in the package aeon, used for nothing else here: pip install aeon==1.6.0

    x (T, B, 12), lengths (B,)      a padded batch; padding costs no arithmetic
        GRU, both directions        the second starts at the true end of each utterance
    h (2, B, 64)                    final states, one a direction
        side by side
    (B, 128)  Linear                logits (B, 9), softmax, cross-entropy

With --torch, the same model is also trained in torch on packed sequences: same weights at the start, same batches, same
optimiser, taking turns seed by seed.  The settings below were chosen by cross-validation on the training utterances.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import fastrnn
import numpy as np
from fastrnn.optim import Adam

HIDDEN, SPEAKERS = 64, 9
EPOCHS, BATCH, LEARNING_RATE = 30, 30, 5e-3
NOISE = 0.3  # standard deviation of what is added to the inputs in training
MAX_NORM = 1.0  # of the gradient


class Utterances(NamedTuple):
    x: np.ndarray  # (T, B, 12) float32, zero beyond the lengths
    lengths: np.ndarray  # (B,)
    speaker: np.ndarray  # (B,) in [0, 9)


class Batch(NamedTuple):
    data: Utterances
    learning_rate: float


def load() -> tuple[Utterances, Utterances]:
    """The utterances to learn from and those to be tested on, each channel standardised by the former."""
    try:
        from aeon.datasets import load_japanese_vowels
    except ModuleNotFoundError:
        raise SystemExit("the utterances ship in the package aeon: pip install aeon==1.6.0") from None

    (train, train_speakers), (test, test_speakers) = (load_japanese_vowels(split=split) for split in ("train", "test"))
    all_frames = np.concatenate(train, axis=1).T  # each utterance is (12, T)
    mean, deviation = all_frames.mean(axis=0), all_frames.std(axis=0)

    def utterances(channels: list[np.ndarray], speakers: np.ndarray) -> Utterances:
        frames = [((each.T - mean) / deviation).astype(np.float32) for each in channels]
        return Utterances(*fastrnn.pad_sequence(frames), speakers.astype(np.int64) - 1)  # named "1" to "9"

    return utterances(train, train_speakers), utterances(test, test_speakers)


def batches(data: Utterances, rng: np.random.Generator, epochs: int) -> Iterator[Batch]:
    """Every utterance once an epoch, in random order and with noise; the rate falls along half a cosine."""
    count = len(data.speaker)
    starts = range(0, count, BATCH)
    for epoch in range(epochs):
        order = rng.permutation(count)
        for step, start in enumerate(starts, epoch * len(starts)):
            chosen = order[start : start + BATCH]
            lengths = data.lengths[chosen]
            x = data.x[: lengths.max(), chosen]
            x = x + np.float32(NOISE) * rng.standard_normal(x.shape, dtype=np.float32)
            rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / (epochs * len(starts))))
            yield Batch(Utterances(x, lengths, data.speaker[chosen]), rate)


class Recogniser:
    """The model in fastrnn."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.gru = fastrnn.GRU(12, HIDDEN, bidirectional=True, rng=rng)
        self.head = fastrnn.Linear(2 * HIDDEN, SPEAKERS, rng=rng)
        self.adam = Adam([self.gru, self.head])

    def train_step(self, data: Utterances, learning_rate: float) -> float:
        y, h, tape = self.gru.forward(data.x, lengths=data.lengths)
        logits, head_tape = self.head.forward(np.concatenate(h, axis=1))  # (2, B, 64) -> (B, 128)
        loss, dlogits = fastrnn.softmax_cross_entropy(logits, data.speaker)
        self.gru.zero_grad()
        self.head.zero_grad()
        dh = np.stack(np.split(self.head.backward(head_tape, dlogits), 2, axis=1))  # (B, 128) -> (2, B, 64)
        self.gru.backward(tape, np.zeros_like(y), dh)
        self.adam.lr = learning_rate
        self.adam.step(max_norm=MAX_NORM)
        return loss

    def predict(self, data: Utterances) -> np.ndarray:
        _, h = self.gru(data.x, lengths=data.lengths)
        return self.head(np.concatenate(h, axis=1)).argmax(axis=1)


class TorchRecogniser:
    """The same model in torch, starting from the weights of another."""

    def __init__(self, twin: Recogniser) -> None:
        import torch

        self.torch = torch
        self.gru = torch.nn.GRU(12, HIDDEN, bidirectional=True)
        self.head = torch.nn.Linear(2 * HIDDEN, SPEAKERS)
        for module, weights in ((self.gru, twin.gru), (self.head, twin.head)):
            module.load_state_dict({name: torch.from_numpy(w) for name, w in weights.state_dict().items()})
        self.parameters = [*self.gru.parameters(), *self.head.parameters()]
        self.adam = torch.optim.Adam(self.parameters)

    def logits(self, data: Utterances) -> Any:
        torch = self.torch
        x, lengths = torch.from_numpy(data.x), torch.from_numpy(data.lengths)
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        _, h = self.gru(packed)
        return self.head(torch.cat(tuple(h), dim=1))

    def train_step(self, data: Utterances, learning_rate: float) -> float:
        torch = self.torch
        loss = torch.nn.functional.cross_entropy(self.logits(data), torch.from_numpy(data.speaker))
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.adam.param_groups[0]["lr"] = learning_rate
        self.adam.step()
        return loss.item()

    def predict(self, data: Utterances) -> np.ndarray:
        with self.torch.inference_mode():
            return self.logits(data).argmax(dim=1).numpy()


def train(model: Recogniser | TorchRecogniser, data: Utterances, seed: int, epochs: int = EPOCHS) -> float:
    """Train, and return the seconds that it took."""
    started = time.perf_counter()
    for batch in batches(data, np.random.default_rng(seed), epochs):
        model.train_step(batch.data, batch.learning_rate)
    return time.perf_counter() - started


def accuracy(model: Recogniser | TorchRecogniser, data: Utterances) -> float:
    return float((model.predict(data) == data.speaker).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", action="store_true", help="train the same model in torch as well")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="train from N seeds (default 5)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads, for both (default 1)")
    options = parser.parse_args()
    fastrnn.set_num_threads(options.threads)
    if options.torch:
        import torch

        torch.set_num_threads(options.threads)
    data, test = load()

    for model in models(0, options.torch).values():  # what a library loads at its first step is not timed
        train(model, data, 0, epochs=1)
    rows: dict[str, list[tuple[float, float]]] = {}
    for seed in range(options.seeds):
        for name, model in models(seed, options.torch).items():
            seconds = train(model, data, seed)
            rows.setdefault(name, []).append((accuracy(model, test), seconds))
            report(f"seed {seed}", name, *rows[name][-1])
    for name in rows:
        report("median", name, *(statistics.median(column) for column in zip(*rows[name], strict=True)))
    if options.torch:
        ratio = statistics.median(b / a for (_, a), (_, b) in zip(rows["fastrnn"], rows["torch"], strict=True))
        print(f"torch takes {ratio:.1f} times as long as fastrnn")


def models(seed: int, with_torch: bool) -> dict[str, Recogniser | TorchRecogniser]:
    ours = Recogniser(np.random.default_rng(seed))
    return {"fastrnn": ours, "torch": TorchRecogniser(ours)} if with_torch else {"fastrnn": ours}


def report(which: str, name: str, correct: float, seconds: float) -> None:
    print(f"{which}  {name:8} test accuracy {correct:.4f}  trained in {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()

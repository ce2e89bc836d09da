"""A live predictor over a stream of measurements: python examples/live_prediction.py [--steps N]

A sensor reports a wave whose frequency drifts, in noise. An LSTM of 64 units learns from a recording to say the next
value; then the values come in one by one, each is answered at once, and now and then the sensor fails: while it is
silent, a copy of the stream goes on alone, fed with its own predictions, and the stream itself is left as it was.
"""

from __future__ import annotations

import argparse
import time

import fastrnn
import numpy as np

NOISE = 0.05


def measurements(steps: int, rng: np.random.Generator) -> np.ndarray:
    """(steps,) float32: the sine of a phase that runs at a speed of its own, slowly wandering."""
    speed = 0.3 + 0.1 * np.sin(np.cumsum(0.02 * rng.standard_normal(steps)))
    return (np.sin(np.cumsum(speed)) + NOISE * rng.standard_normal(steps)).astype(np.float32)


class Predictor:
    """The next value from those so far: an LSTM, and a linear head on its h."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.layer = fastrnn.LSTM(1, 64, rng=rng)
        self.head = fastrnn.Linear(64, 1, rng=rng)
        self.adam = fastrnn.optim.Adam([self.layer, self.head], lr=3e-3)

    def train_step(self, values: np.ndarray) -> float:
        """One update on values (T, B); the mean squared error before it."""
        x, target = values[:-1, :, None], values[1:, :, None]
        y, _, tape = self.layer.forward(x)
        predicted, head_tape = self.head.forward(y)
        error = predicted - target
        self.layer.zero_grad()
        self.head.zero_grad()
        self.layer.backward(tape, self.head.backward(head_tape, 2 / error.size * error))
        self.adam.step(max_norm=1.0)
        return float(np.mean(error**2))

    def fit(self, recording: np.ndarray, rng: np.random.Generator, steps: int = 300) -> float:
        """Learn from windows of a recording (N,); the last error."""
        for _ in range(steps):
            starts = rng.integers(0, len(recording) - 65, 16)
            error = self.train_step(recording[starts + np.arange(65)[:, None]])
        return error


class Live:
    """A predictor at work: `see` takes a value in, `ahead` looks further without taking anything in."""

    def __init__(self, predictor: Predictor) -> None:
        self.stream = predictor.layer.stream()
        self.weight, self.bias = predictor.head.params["weight"][0].copy(), float(predictor.head.params["bias"][0])
        self.x, self.h = np.zeros(1, np.float32), np.zeros(64, np.float32)

    def see(self, value: float) -> float:
        """The prediction of the value after this one."""
        self.x[0] = value
        self.stream.step(self.x, out=self.h)
        return float(self.h @ self.weight) + self.bias

    def ahead(self, value: float, steps: int) -> list[float]:
        """The next values as the predictor would go on from `value`, itself predicted and not seen yet."""
        stream, x, values = self.stream.copy(), np.array([value], np.float32), [value]
        for _ in range(steps - 1):
            x[0] = stream.step(x) @ self.weight + self.bias
            values.append(float(x[0]))
        return values


def follow(live: Live, values: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Mean squared errors of the predictor and of "as it was", and the nanoseconds that each answer took."""
    errors, naive, times = [], [], np.empty(len(values) - 1)
    for t, value in enumerate(values[:-1]):
        start = time.perf_counter_ns()
        predicted = live.see(value)
        times[t] = time.perf_counter_ns() - start
        errors.append((predicted - values[t + 1]) ** 2)
        naive.append((value - values[t + 1]) ** 2)
    return float(np.mean(errors)), float(np.mean(naive)), times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--steps", type=int, default=20_000, help="values that come in live")
    steps = parser.parse_args().steps
    rng = np.random.default_rng(0)
    predictor = Predictor(rng)
    print(f"trained: mean squared error {predictor.fit(measurements(20_000, rng), rng):.4f}")

    live, values = Live(predictor), measurements(steps + 20, rng)
    error, naive, times = follow(live, values[: steps + 1])
    print(f"live: mean squared error {error:.4f}; of saying the last value again {naive:.4f}; noise {NOISE**2:.4f}")
    middle, late = np.percentile(times, [50, 99]) / 1e3
    print(f"an answer took {middle:.1f} µs in the median, {late:.1f} µs at the 99th percentile")

    guesses = live.ahead(live.see(values[steps]), 10)
    print("silence; guessed ", *(f"{value:+.2f}" for value in guesses))
    print("         was     ", *(f"{value:+.2f}" for value in values[steps + 1 : steps + 11]))


if __name__ == "__main__":
    main()

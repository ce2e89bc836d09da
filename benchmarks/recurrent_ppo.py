"""What accelerate_recurrent_ppo gains: python benchmarks/recurrent_ppo.py --help.

sb3-contrib's RecurrentPPO with its default hyperparameters, 8 environments of 128 steps, on one thread, as it is and
accelerated, in turns: milliseconds of an update (`model.train()`) and of the rollout before it. The environments take
no time to speak of, and their episodes have random lengths. Before anything is timed, both have to come to the same
parameters.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import machine

ENVIRONMENTS, STEPS = 8, 128
TOLERANCE = 1e-5  # between parameters after an update


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0], allow_abbrev=False)
    parser.add_argument("--hidden", nargs="+", type=int, default=(64, 256), metavar="H", help="lstm_hidden_size")
    parser.add_argument("--episodes", nargs="+", type=int, default=(25, 200), metavar="T", help="mean length, steps")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--profile", action="store_true", help="where the time of an accelerated update goes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    machine.limit_threads(1)  # before anything imports NumPy
    import fastrnn
    import sb3_contrib
    import torch

    torch.set_num_threads(1)
    fastrnn.set_num_threads(1)
    versions = {"torch": torch.__version__, "sb3-contrib": sb3_contrib.__version__}
    about = machine.describe(versions, 1, "float32")
    print(f"{about['cpu']}, {about['instruction_set']}, load {about['load_average']:.2f}, {about['versions']}")
    print(f"\nms, medians of {options.rounds}; batch: its sequences and their padded length, in the mean\n")
    print(f"{'H':>4}{'episodes':>10}{'batch':>12}{'update':>18}{'':8}{'rollout':>18}")
    failed = False
    for hidden in options.hidden:
        for length in options.episodes:
            failed |= not _row(hidden, length, options)
    return int(failed)


def _row(hidden: int, length: int, options: argparse.Namespace) -> bool:
    """Measure and print; whether both came to the same parameters."""
    from fastrnn.torch import accelerate_recurrent_ppo

    models = [_model(hidden, length), accelerate_recurrent_ppo(_model(hidden, length))]
    sizes = _batch_sizes(models[1])
    times = [_timed(model) for model in models]
    for each in times:
        each(0)
    one, other = (model.policy.parameters() for model in models)
    difference = max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))
    if difference > TOLERANCE:
        print(f"{hidden:4}{length:10}  WRONG: parameters differ by {difference:.1e} after an update")
        return False
    samples = [[each(1 + k) for each in times] for k in range(options.rounds)]  # rounds x models x (update, rollout)
    text = ""
    for kind in (0, 1):
        before, after = (1e3 * statistics.median(sample[k][kind] for sample in samples) for k in (0, 1))
        text += f"{before:9.0f}{after:9.0f} {before / after:5.1f}x "
    batch = "x".join(f"{statistics.mean(numbers):.0f}" for numbers in zip(*sizes, strict=True))
    print(f"{hidden:4}{length:10}{batch:>12}{text}", flush=True)
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(models[1].train)
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)
    return True


def _model(hidden: int, length: int) -> Any:
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    envs = make_vec_env(_environment(), ENVIRONMENTS, seed=0, env_kwargs={"length": length})
    return RecurrentPPO(
        "MlpLstmPolicy", envs, n_steps=STEPS, seed=0, device="cpu", policy_kwargs={"lstm_hidden_size": hidden}
    )


def _environment() -> type:
    """A class of environments: random observations of 4 numbers, two actions, 1 to 2 * length - 1 steps."""
    import gymnasium
    import numpy as np

    class Environment(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,))
        action_space = gymnasium.spaces.Discrete(2)

        def __init__(self, length: int) -> None:
            self.length = length

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.left = int(self.np_random.integers(1, 2 * self.length))
            return self._observed(), {}

        def step(self, action: Any) -> Any:
            self.left -= 1
            return self._observed(), float(action), self.left == 0, False, {}

        def _observed(self) -> Any:
            return self.np_random.standard_normal(4, dtype=np.float32)

    return Environment


def _batch_sizes(model: Any) -> list[tuple[int, int]]:
    """A list that gets (sequences, padded length) of each batch of an update."""
    sizes: list[tuple[int, int]] = []

    def note(lstm: Any, given: Any, found: Any) -> None:
        T, B, _ = given[0].shape
        if T > 1:
            sizes.append((B, T))

    model.policy.lstm_actor.register_forward_hook(note)
    return sizes


def _timed(model: Any) -> Callable[[int], tuple[float, float]]:
    """Seconds of (an update, the rollout before it), all random numbers being those of a seed."""
    train, updates = model.train, []

    def timed_train() -> None:
        start = time.perf_counter()
        train()
        updates.append(time.perf_counter() - start)

    model.train = timed_train

    def learn(seed: int) -> tuple[float, float]:
        model.set_random_seed(seed)
        start = time.perf_counter()
        model.learn(ENVIRONMENTS * STEPS)
        return updates[-1], time.perf_counter() - start - updates[-1]

    return learn


if __name__ == "__main__":
    sys.exit(main())

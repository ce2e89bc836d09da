"""Train the same character model in fastrnn and in torch: python benchmarks/language_model.py --help.

Both read the text that comes with Python, its last tenth held out, as 32 streams of 64 characters a step; Adam with a
cosine schedule from 2e-3, the gradient norm clipped at 1, the state carried from step to step, the held-out text
looked at ten times on the way and the best weights kept.  The runs take turns; each draws its own initial weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import machine


class Settings(NamedTuple):
    cell: str
    hidden_size: int
    steps: int
    batch_size: int
    seq_len: int
    lr: float


class Result(NamedTuple):
    seconds: float
    held_out_bits: float  # per character, of the best weights


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0], allow_abbrev=False)
    parser.add_argument("--cell", choices=("rnn", "gru", "lstm"), default="rnn")
    parser.add_argument("--hidden", type=int, default=256, metavar="H")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="of each run (default 2000)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="runs of each, in turn (default 1)")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--contenders", nargs="+", choices=("fastrnn", "torch"), default=("fastrnn", "torch"))
    parser.add_argument("--json", type=Path, metavar="PATH")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    machine.limit_threads(options.threads)  # before anything imports NumPy
    settings = Settings(options.cell, options.hidden, options.steps, batch_size=32, seq_len=64, lr=2e-3)

    from fastrnn.text.corpus import builtin_text

    text = builtin_text()
    trainers, versions = _load(options.contenders, options.threads)
    about = machine.describe(versions, options.threads, "float32")
    print(f"{about['cpu']}, threads {options.threads}, {about['instruction_set']}, {about['versions']}")
    print(f"{settings}, {len(text)} characters")
    results: dict[str, list[Result]] = {name: [] for name in trainers}
    for round_ in range(options.rounds):
        for name, train in trainers.items():
            result = train(text, settings, round_)
            results[name].append(result)
            print(f"{name:8} {result.seconds:7.1f} s   {result.held_out_bits:.3f} bits per character", flush=True)
    seconds = {name: statistics.median(result.seconds for result in runs) for name, runs in results.items()}
    if len(seconds) == 2:
        print(f"fastrnn is {seconds['torch'] / seconds['fastrnn']:.2f} times as fast as torch (medians)")
    if options.json:
        found = {name: [result._asdict() for result in runs] for name, runs in results.items()}
        options.json.write_text(json.dumps({"machine": about, **settings._asdict(), "results": found}, indent=1) + "\n")
    return 0


def _load(names: list[str], threads: int) -> tuple[dict[str, Callable[..., Result]], dict[str, str]]:
    import fastrnn

    trainers: dict[str, Callable[..., Result]] = {"fastrnn": train_fastrnn, "torch": train_torch}
    versions = {"fastrnn": fastrnn.__version__}
    if "torch" in names:
        try:
            import torch
        except ImportError as error:
            print(f"skipped: torch: not installed ({error})")
            names = [name for name in names if name != "torch"]
        else:
            torch.set_num_threads(threads)
            versions["torch"] = torch.__version__
    return {name: trainers[name] for name in names}, versions


def train_fastrnn(text: str, settings: Settings, seed: int) -> Result:
    import fastrnn

    model = fastrnn.LanguageModel(settings.cell, settings.hidden_size, rng=seed)
    started = time.perf_counter()
    history = model.fit(
        text,
        steps=settings.steps,
        batch_size=settings.batch_size,
        seq_len=settings.seq_len,
        lr=settings.lr,
        validation=0.1,
        progress=False,
    )
    return Result(time.perf_counter() - started, history.held_out_bits)


def train_torch(text: str, settings: Settings, seed: int) -> Result:
    """The same loop as fastrnn's, as one writes it in torch, with its fused Adam."""
    import torch
    from fastrnn.training import trainer

    torch.manual_seed(seed)
    started = time.perf_counter()
    vocabulary = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([vocabulary[character] for character in text])
    model = _torch_model(settings, len(vocabulary))
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    held_out = ids[len(ids) - int(len(ids) * 0.1) :]
    grid = trainer.cut_streams(ids[: len(ids) - len(held_out)].numpy(), settings.batch_size)
    batches = trainer.batches(torch.from_numpy(grid), settings.seq_len)
    interval = max(1, settings.steps // trainer.EVALUATIONS)
    best_bits, best, state = math.inf, model.state_dict(), None
    for step in range(1, settings.steps + 1):
        x, targets, anew = next(batches)
        logits, state = model(x, None if anew else state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.MAX_NORM)
        optimizer.step()
        schedule.step()
        if step % interval == 0 or step == settings.steps:
            bits = _torch_bits(model, held_out[: trainer.EVALUATED_CHARACTERS])
            if bits < best_bits:
                best_bits, best = bits, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    bits = _torch_bits(model, held_out)
    return Result(time.perf_counter() - started, bits)


def _torch_model(settings: Settings, classes: int) -> Any:
    import torch

    layer_class = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[settings.cell]

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer_class(classes, settings.hidden_size)
            self.head = torch.nn.Linear(settings.hidden_size, classes)
            self.register_buffer("one_hot", torch.eye(classes))

        def forward(self, x: Any, state: Any) -> Any:
            y, state = self.layer(self.one_hot[x], state)  # a look-up: faster than functional.one_hot and a cast
            return self.head(y), state

    return Model()


def _torch_bits(model: Any, ids: Any) -> float:
    """Held-out bits per character, read in the streams and chunks that fastrnn reads."""
    import torch
    from fastrnn.training import trainer

    streams = max(1, min(trainer.EVALUATED_STREAMS, len(ids) // trainer.STREAM_LENGTH))
    grid = torch.from_numpy(trainer.cut_streams(ids.numpy(), streams))
    length, chunk = len(grid) - 1, max(1, trainer.POSITIONS // streams)
    nats, state = 0.0, None
    with torch.inference_mode():
        for start in range(0, length, chunk):
            stop = min(start + chunk, length)
            logits, state = model(grid[start:stop], state)
            targets = grid[start + 1 : stop + 1].flatten()
            nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)) * (stop - start)
    return nats / length / math.log(2)


if __name__ == "__main__":
    sys.exit(main())

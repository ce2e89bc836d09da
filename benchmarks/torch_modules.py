"""What accelerate(model) gains on torch's modules: python benchmarks/torch_modules.py --help.

The same module as torch has it and accelerated, in turns, tensors in and tensors out. "layer" is the time of the
accelerated module over that of the fastrnn layer with the same work, arrays in and out: what torch's autograd and its
tensors cost. Outputs and gradients have to agree before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import machine
import timing

TOLERANCE = 1e-4
CELL_STEPS = 20
SHAPES = {
    "one step": (1, 1, 64, 64),
    "few": (10, 4, 16, 32),
    "tiny": (50, 16, 32, 64),
    "(60, 64, 40, 30)": (60, 64, 40, 30),
    "char": (100, 32, 64, 128),
    "small": (100, 32, 128, 256),
    "mid": (128, 64, 256, 512),
    "long": (1000, 1, 64, 128),
}
ROWS = {  # kind of work: its shapes
    "step": ("one step",),
    "cell step": ("one step",),
    "inference": ("few", "tiny", "char", "small", "long"),
    "inference, packed": ("tiny", "(60, 64, 40, 30)", "char", "small"),
    "training": ("few", "tiny", "char", "small", "mid", "long"),
    "training, packed": ("tiny", "(60, 64, 40, 30)", "char", "small"),
    "training, 2 layers, 2 directions": ("few", "tiny", "char"),
    "training, cell": ("few", "tiny", "char", "small", "mid"),  # a loop over CELL_STEPS steps
}


class Row(NamedTuple):
    """One line of the table."""

    kind: str
    cell: str
    shape: str


def rows(options: argparse.Namespace) -> Iterator[Row]:
    for kind, shapes in ROWS.items():
        for cell in options.cells:
            for shape in shapes:
                if kind in (options.kinds or ROWS) and shape in (options.shapes or SHAPES):
                    yield Row(kind, cell, shape)


class Work:
    """The calls of one row: `run` for each of torch, fastrnn.torch and, where there is one, the layer."""

    def __init__(self, row: Row) -> None:
        import fastrnn
        import torch
        from torch.nn.utils.rnn import pack_padded_sequence

        torch.manual_seed(0)
        T, B, I, H = SHAPES[row.shape]
        self.cells = row.kind == "training, cell"
        T = min(T, CELL_STEPS) if self.cells else T
        self.torch, self.row = torch, row
        self.training, packed = row.kind.startswith("training"), row.kind.endswith("packed")
        self.layers = {"num_layers": 2, "bidirectional": True} if row.kind.endswith("directions") else {}
        name = row.cell + ("Cell" if "cell" in row.kind else "")
        self.theirs = getattr(torch.nn, name)(I, H, **self.layers)
        self.ours = fastrnn.torch.accelerate(copy.deepcopy(self.theirs))
        x = torch.randn(T, B, I)
        self.x: Any = x[0] if row.kind == "cell step" else x
        self.hx: Any = None
        if "step" in row.kind:
            states = tuple(torch.randn(*([1] if row.kind == "step" else []), B, H) for _ in range(2))
            self.hx = states if row.cell == "LSTM" else states[0]
        self.layer: Any = None
        if row.kind in ("step", "inference", "training"):
            self.layer = getattr(fastrnn, row.cell)(I, H)
            self.layer.load_state_dict({k: v.numpy() for k, v in self.theirs.state_dict().items()})
        if packed:
            lengths = torch.linspace(1, T, B).round().long()[torch.randperm(B)]
            self.x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        if self.training:
            y = self.output(self.theirs)
            self.dy = torch.randn(y.shape) / (T * B) ** 0.5
            if not packed:
                self.x.requires_grad_()

    def output(self, module: Any) -> Any:
        """y of a call of the module, or of a loop of calls of a cell."""
        if not self.cells:
            y = module(self.x)[0]
            return y if isinstance(y, self.torch.Tensor) else y.data
        state, ys = None, []
        for step in self.x:
            state = module(step, state)
            ys.append(state[0] if isinstance(state, tuple) else state)
        return self.torch.stack(ys)

    def run(self, module: Any) -> Callable[[], list[Any]]:
        """One call of a module, in training with the gradients of x and of every parameter."""
        torch, x, hx, dy = self.torch, self.x, self.hx, getattr(self, "dy", None)
        if not self.training:
            return lambda: _flat(module(x, hx))
        leaves = [*module.parameters()]
        if isinstance(x, torch.Tensor):
            leaves.insert(0, x)

        def train() -> list[Any]:
            y = self.output(module)
            return [y, *torch.autograd.grad(y, leaves, dy)]

        return train

    def run_layer(self) -> Callable[[], Any]:
        """The same by the layer."""
        layer, x = self.layer, self.x.detach().numpy()
        if not self.training:
            hx = self.hx
            state = None if hx is None else tuple(h.numpy() for h in hx) if isinstance(hx, tuple) else hx.numpy()
            return lambda: layer(x, state)
        dy = self.dy.numpy()

        def train() -> Any:
            layer.zero_grad()
            _, _, tape = layer.forward(x)
            return layer.backward(tape, dy)

        return train


def _flat(result: Any) -> list[Any]:
    """The tensors of outputs that are nested."""
    if hasattr(result, "batch_sizes"):
        return [result.data]
    return [tensor for each in result for tensor in _flat(each)] if isinstance(result, tuple) else [result]


def measured(row: Row, effort: timing.Effort) -> tuple[float, float, float | None] | None:
    """Medians in seconds of torch, fastrnn.torch and the layer; None if results differ."""
    work = Work(row)
    runs = {"torch": work.run(work.theirs), "here": work.run(work.ours)}
    with work.torch.inference_mode(not work.training):
        for expected, found in zip(runs["torch"](), runs["here"](), strict=True):
            if (expected - found).abs().max() > TOLERANCE * max(1, expected.abs().max()):
                return None
        if work.layer is not None:
            runs["layer"] = work.run_layer()
        found = timing.measure(runs, effort)
    return found["torch"].median, found["here"].median, found["layer"].median if "layer" in found else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0], allow_abbrev=False)
    parser.add_argument("--cells", nargs="+", choices=("RNN", "GRU", "LSTM"), default=("RNN", "GRU", "LSTM"))
    parser.add_argument("--kinds", nargs="+", choices=tuple(ROWS))
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES))
    parser.add_argument("--rounds", type=int, default=25, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of both")
    options = parser.parse_args(arguments)
    machine.limit_threads(options.threads)  # before anything imports NumPy
    import fastrnn
    import fastrnn.torch
    import torch

    torch.set_num_threads(options.threads)
    fastrnn.set_num_threads(options.threads)
    about = machine.describe({"torch": torch.__version__}, options.threads, "float32")
    print(f"{about['cpu']}, {about['instruction_set']}, load {about['load_average']:.2f}, {about['versions']}\n")
    print(f"| {options.threads} thread{'s' * (options.threads > 1)}, µs | torch | fastrnn.torch | ratio | layer |")
    print("|---|--:|--:|--:|--:|")
    effort = timing.Effort(options.rounds, row_seconds=20, sample_seconds=0.01, pause_seconds=0)
    wrong = 0
    for row in rows(options):
        found = measured(row, effort)
        name = f"{row.kind}, {row.cell}" + ("" if "step" in row.kind else f", {row.shape}")
        if found is None:
            wrong += 1
            print(f"| {name} | WRONG | | | |", flush=True)
            continue
        theirs, ours, layer = found
        over = "" if layer is None else f"{ours / layer:.2f}"
        print(f"| {name} | {1e6 * theirs:,.1f} | {1e6 * ours:,.1f} | {theirs / ours:.2f} | {over} |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

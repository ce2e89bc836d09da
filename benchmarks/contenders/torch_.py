"""torch: nn.RNN, nn.GRU and nn.LSTM, the Cells for single steps, packed sequences for ragged batches.

LSTM is offered with and without oneDNN, and ragged training also on the padded batch: none of them wins everywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from contenders import Entry, thread_counts
from shapes import Problem

_LAYERS = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
_CELLS = {"rnn": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}


class Contender:
    version = torch.__version__

    def __init__(self, threads: int) -> None:
        self._threads = threads
        torch.set_num_threads(threads)

    def entries(self, problem: Problem) -> list[Entry]:
        ways = {"step": _steps, "batch step": _steps, "training": _training, "ragged": _ragged}
        make = ways.get(problem.kind, _inference)
        entries = make(problem)
        if self._threads == 1:
            return entries
        return [_with(way, n, entry) for way, n in thread_counts(self._threads).items() for entry in entries]


def _with(way: str, threads: int, entry: Entry) -> Entry:
    def run() -> Any:
        torch.set_num_threads(threads)
        return entry.run()

    return replace(entry, run=run, way=f"{entry.way} {way}".strip())


def _layer(problem: Problem) -> torch.nn.RNNBase:
    weights = {name: torch.from_numpy(array) for name, array in problem.params.items()}
    options = {"dtype": weights["bias_ih_l0"].dtype, "bidirectional": problem.directions == 2}
    layer = _LAYERS[problem.cell](problem.shape.I, problem.shape.H, **options)
    layer.load_state_dict(weights)
    return layer


def _cell(problem: Problem) -> torch.nn.RNNCellBase:
    weights = {name.removesuffix("_l0"): torch.from_numpy(array) for name, array in problem.params.items()}
    cell = _CELLS[problem.cell](problem.shape.I, problem.shape.H, dtype=weights["bias_ih"].dtype)
    cell.load_state_dict(weights)
    return cell


def _named(y: torch.Tensor, state: Any) -> dict[str, np.ndarray]:
    final = state if isinstance(state, tuple) else (state,)
    named = {"y": y, **dict(zip(("h", "c"), final, strict=False))}
    return {name: tensor.detach().numpy() for name, tensor in named.items()}


def _steps(problem: Problem) -> list[Entry]:
    """One step, NumPy arrays in and out: through the layer and through the Cell."""
    layer, cell = _layer(problem), _cell(problem)
    x, state = problem.x, tuple(problem.state.values())

    @torch.inference_mode()
    def run_layer() -> Any:
        tensors = tuple(map(torch.from_numpy, state))
        y, final = layer(torch.from_numpy(x), tensors if len(tensors) == 2 else tensors[0])
        return y.numpy(), *(s.numpy() for s in (final if isinstance(final, tuple) else (final,)))

    @torch.inference_mode()
    def run_cell() -> Any:
        tensors = tuple(torch.from_numpy(s[0]) for s in state)
        final = cell(torch.from_numpy(x[0]), tensors if len(tensors) == 2 else tensors[0])
        return tuple(s.numpy() for s in (final if isinstance(final, tuple) else (final,)))

    def cell_outputs(result: Any) -> dict[str, np.ndarray]:
        return {"y": result[0][None], **{n: s[None] for n, s in zip(problem.states, result, strict=True)}}

    def layer_outputs(result: Any) -> dict[str, np.ndarray]:
        return dict(zip(("y", *problem.states), result, strict=True))

    return [Entry(run_layer, layer_outputs, way="layer"), Entry(run_cell, cell_outputs, way="cell")]


def _inference(problem: Problem) -> list[Entry]:
    layer, x = _layer(problem), torch.from_numpy(problem.x)

    @torch.inference_mode()
    def run() -> Any:
        return layer(x)

    return _with_and_without_onednn(problem, run, lambda result: _named(*result))


def _training(problem: Problem) -> list[Entry]:
    layer = _layer(problem)
    names, params = zip(*layer.named_parameters(), strict=True)
    x, dy = torch.from_numpy(problem.x).requires_grad_(), torch.from_numpy(problem.dy)

    def run() -> Any:
        y, state = layer(x)
        return y, state, torch.autograd.grad(y, (x, *params), dy)

    return _with_and_without_onednn(problem, run, lambda result: _with_gradients(names, result))


def _ragged(problem: Problem) -> list[Entry]:
    """Packed, as torch means it; and padded: in one direction the same gradients, as dy is zero on the padding."""
    layer = _layer(problem)
    names, params = zip(*layer.named_parameters(), strict=True)
    x, dy = torch.from_numpy(problem.x).requires_grad_(), torch.from_numpy(problem.dy)
    lengths, mask = torch.from_numpy(problem.lengths), torch.from_numpy(problem.mask[:, :, None])

    def packed() -> Any:
        output, state = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        y, _ = pad_packed_sequence(output, total_length=problem.shape.T)
        return y, state, torch.autograd.grad(y, (x, *params), dy)

    def padded() -> Any:
        y, _ = layer(x)
        h = y.detach()[lengths - 1, torch.arange(problem.shape.B)][None]
        return y.detach() * mask, h, torch.autograd.grad(y, (x, *params), dy)

    def outputs(result: Any) -> dict[str, np.ndarray]:
        return _with_gradients(names, result)

    return [Entry(packed, outputs, column="packed"), *_with_and_without_onednn(problem, padded, outputs, "padded")]


def _with_gradients(names: tuple[str, ...], result: Any) -> dict[str, np.ndarray]:
    y, state, gradients = result
    return _named(y, state) | {n: g.numpy() for n, g in zip(("dx", *names), gradients, strict=True)}


def _with_and_without_onednn(
    problem: Problem, run: Callable[[], Any], outputs: Callable[[Any], dict[str, np.ndarray]], column: str = ""
) -> list[Entry]:
    """The run as it is, and for the LSTM, which torch hands to oneDNN, also with torch's own loop."""
    if problem.cell != "lstm" or problem.dtype != np.float32:
        return [Entry(run, outputs, column=column)]

    def without() -> Any:
        with torch.backends.mkldnn.flags(enabled=False):
            return run()

    warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)  # flags() sets it, to no effect on a CPU
    ways = {"with oneDNN": run, "without oneDNN": without}
    return [Entry(run, outputs, column=column, way=way) for way, run in ways.items()]

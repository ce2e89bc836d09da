"""A whole layer object: stacked layers, two directions, ragged batches, dropout; made of the cells' functions.

`forward` and `backward` take any fastrnn.RNN, GRU or LSTM and do in NumPy what the layer's own methods do.

    layer 0          layer 1                     each box is one call of rnn_forward, gru_forward or lstm_forward
    x -> [->] \\      [->] \\                      the second direction sees each sequence reversed in time
           merge -> * -> merge -> y              merge: concatenate, sum, multiply or average the two directions
    x -> [<-] /      [<-] /                      *: dropout mask, between layers only
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..util.checks import checked_array
from .dropout import DropoutMasks, masked
from .gru import gru_backward, gru_forward
from .lstm import lstm_backward, lstm_forward
from .rnn import rnn_backward, rnn_forward
from .steps import is_one_hot, reverse_time

__all__ = ["Direction", "Layer", "StackTape", "backward", "forward", "merged", "unmerged"]


class Layer(Protocol):
    """What the reference reads of a layer, beside the options of its cell, which are attributes too."""

    cell: str  # "rnn", "gru" or "lstm"
    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool
    bidirectional: bool
    reverse: bool
    merge: str
    grad_clip: float | None
    zoneout: float

    @property
    def dtype(self) -> Any: ...
    @property
    def params(self) -> Mapping[str, np.ndarray]: ...


State = np.ndarray | tuple[np.ndarray, np.ndarray]  # h (L*D, B, H or P); for the LSTM (h, c)

# Forward, backward, and the attributes of the layer that are keywords of the forward function.
_CELLS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[str, ...]]] = {
    "rnn": (rnn_forward, rnn_backward, ("nonlinearity", "clip")),
    "gru": (gru_forward, gru_backward, ("reset_after", "activations", "clip")),
    "lstm": (lstm_forward, lstm_backward, ("coupled", "activations", "clip")),
}
_NORMS = ("gain_ih", "gain_hh", "gain_c", "bias_c")
_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole", *_NORMS)


class StackTape(NamedTuple):
    """What the backward pass needs of the forward pass."""

    cells: list[list[Any]]  # [layer][direction]: the tape of the cell
    outputs: list[list[np.ndarray]]  # [layer][direction]: y of the cell in time order (T, B, H or P)
    lengths: np.ndarray | None
    dropout_masks: list[np.ndarray]
    input_masks: list[np.ndarray | None]
    unbatched: bool
    y_shape: tuple[int, ...]


def forward(
    layer: Layer,
    x: np.ndarray,
    state: State | None = None,
    *,
    lengths: np.ndarray | None = None,
    reset: np.ndarray | None = None,
    dropout_masks: list[np.ndarray] | None = None,
    noise: list[list[DropoutMasks]] | None = None,
) -> tuple[np.ndarray, State, StackTape]:
    """What `layer.forward` computes, in plain NumPy.

        layer = fastrnn.GRU(3, 8, num_layers=2, bidirectional=True)
        y, state, tape = fastrnn.reference.forward(layer, np.ones((5, 2, 3), "float32"))

    x: (T, B, I) of the layer's dtype, or integers (T, B) in [0, I), the indices of one-hot vectors; (B, T, ...) with
    batch_first, without B unbatched.
    state: None for zeros, else h (L*D, B, H), or (L*D, B, P) with projection, or (L*D, H) unbatched; for the LSTM the
    pair (h, c).
    lengths: (B,) integers in [0, T].
    reset: bool, with the axes of an integer x: where True, the state is zeroed before that step, in the order in which
    a direction takes the steps.
    dropout_masks: L-1 arrays (T, B, width of y), each multiplied onto the output of a layer; None for no dropout.
    noise: the masks of dropout within the layers, [layer][direction], such as `tape.masks` of a layer's tape (there a
    StepMask has to be made an array first, with `at_all_steps`).  None: no dropout, as in inference; zoneout then takes
    the mean of the old and the new value.

    Returns y (T, B, width) with the axes of x, where width is H or P, twice that for two concatenated directions; the
    final state, shaped as the initial one; and the tape for `backward`.
    Raises TypeError for a wrong dtype and ValueError for a wrong shape or value.
    """
    x, unbatched = _time_major(layer, x)
    lengths = _checked_lengths(lengths, x)
    _check_indices(layer, x, lengths)
    reset = _checked_reset(layer, reset, x.shape[:2], unbatched)
    initial = _checked_state(layer, state, x.shape[1], unbatched)
    final = tuple(np.empty_like(s) for s in initial)
    run, _, options = _CELLS[layer.cell]
    keywords = {name: getattr(layer, name) for name in options}
    masks = [] if dropout_masks is None else list(dropout_masks)

    if noise is None:
        noise = [[_expectation(layer, *x.shape[:2])] * (2 if layer.bidirectional else 1)] * layer.num_layers
    tapes: list[list[Any]] = []
    outputs: list[list[np.ndarray]] = []
    for k in range(layer.num_layers):
        tapes.append([])
        outputs.append([])
        x = masked(x, noise[k][0].x)
        for (row, names, turned), drawn in zip(_directions(layer, k, lengths), noise[k], strict=True):
            weights = {name: layer.params[full] for name, full in names.items()}
            resets = None if reset is None else turned(reset)
            before = (s[row] for s in initial)
            y, *last, tape = run(
                turned(x), *before, **weights, **keywords, lengths=lengths, reset=resets, noise=_turned(drawn, turned)
            )
            for s, value in zip(final, last, strict=True):
                s[row] = value
            tapes[k].append(tape)
            outputs[k].append(turned(y))
        x = merged(outputs[k], layer.merge)
        if masks and k < layer.num_layers - 1:
            x = x * masks[k]
    y = _user_layout(layer, x, unbatched)
    input_masks = [drawn[0].x for drawn in noise]
    tape = StackTape(tapes, outputs, lengths, masks, input_masks, unbatched, y.shape)
    return y, _user_state(final, unbatched), tape


def backward(
    layer: Layer, tape: StackTape, dy: np.ndarray | None, dstate: State | None = None
) -> tuple[np.ndarray | None, State, dict[str, np.ndarray]]:
    """What `layer.backward` computes, in plain NumPy; `layer.grads` is not changed.

        dx, dstate, grads = fastrnn.reference.backward(layer, tape, np.ones_like(y))

    dy has the shape of y, dstate that of the final state; None for zeros.  Returns dx of x's shape (None where x holds
    indices), dstate for the initial state, and the gradients by parameter name.
    Raises TypeError for a wrong dtype and ValueError for a wrong shape.
    """
    if dy is None:
        dy = np.zeros(tape.y_shape, layer.dtype)
    dy = checked_array("dy", dy, tape.y_shape, np.dtype(layer.dtype))
    dx: Any = _time_major(layer, dy, width=dy.shape[-1])[0]  # gradient of the input of the layer above; first, of y
    final = _checked_state(layer, dstate, dx.shape[1], tape.unbatched, "dstate")
    initial = tuple(np.empty_like(s) for s in final)
    _, run_back, _ = _CELLS[layer.cell]

    grads: dict[str, np.ndarray] = {}
    for k in reversed(range(layer.num_layers)):
        if tape.dropout_masks and k < layer.num_layers - 1:
            dx = dx * tape.dropout_masks[k]
        d_outputs = unmerged(dx, tape.outputs[k], layer.merge)
        d_inputs = []
        directions = _directions(layer, k, tape.lengths)
        for (row, names, turned), cell, d_output in zip(directions, tape.cells[k], d_outputs, strict=True):
            last = (s[row] for s in final)
            d_input, *first, d_weights = run_back(cell, turned(d_output), *last, grad_clip=layer.grad_clip)
            for s, value in zip(initial, first, strict=True):
                s[row] = value
            d_inputs.append(None if d_input is None else turned(d_input))
            grads |= {full: d_weights[name] for name, full in names.items()}
        dx = d_inputs[0] if len(d_inputs) == 1 or d_inputs[0] is None else d_inputs[0] + d_inputs[1]
        dx = masked(dx, tape.input_masks[k])
    grads = {name: grads[name] for name in layer.params}
    return None if dx is None else _user_layout(layer, dx, tape.unbatched), _user_state(initial, tape.unbatched), grads


def _expectation(layer: Layer, T: int, B: int) -> DropoutMasks:
    """The masks that make zoneout in inference the mean of the old and the new value."""
    probabilities = (layer.zoneout, getattr(layer, "zoneout_cell", 0))
    h, c = (np.full((T, B, 1), p, layer.dtype) if p else None for p in probabilities)
    return DropoutMasks(zoneout_h=h, zoneout_c=c)


def _turned(noise: DropoutMasks, turned: Callable[[np.ndarray], np.ndarray]) -> DropoutMasks:
    """The masks in the order in which a direction takes the steps."""
    h, c = (None if keeps is None else turned(keeps) for keeps in (noise.zoneout_h, noise.zoneout_c))
    return noise._replace(zoneout_h=h, zoneout_c=c)


def merged(outputs: list[np.ndarray], merge: str) -> np.ndarray:
    """The outputs (T, B, H) of one or two directions as one: (T, B, 2H) for "concat", else (T, B, H)."""
    if len(outputs) == 1:
        return outputs[0]
    y, z = outputs
    if merge == "concat":
        return np.concatenate([y, z], axis=-1)
    one: dict[str, np.ndarray] = {"sum": y + z, "mul": y * z, "ave": (y + z) / 2}
    return one[merge]


def unmerged(d: np.ndarray, outputs: list[np.ndarray], merge: str) -> list[np.ndarray]:
    """The gradients of the directions' outputs, from the gradient of the result of `merged`."""
    if len(outputs) == 1:
        return [d]
    y, z = outputs
    if merge == "concat":
        return np.split(d, 2, axis=-1)
    return {"sum": [d, d], "mul": [d * z, d * y], "ave": [d / 2, d / 2]}[merge]


class Direction(NamedTuple):
    """One direction of one layer."""

    row: int  # its index in the state
    names: dict[str, str]  # the cell's names of its parameters -> their full names: weight_ih -> weight_ih_l0_reverse
    turned: Callable[[np.ndarray], np.ndarray]  # puts an array in the order in which it takes the steps, and back


def _directions(layer: Layer, k: int, lengths: np.ndarray | None) -> list[Direction]:
    kinds = [("", False), ("_reverse", True)] if layer.bidirectional else [("", layer.reverse)]
    directions = []
    for d, (suffix, backwards) in enumerate(kinds):
        names = {name: f"{name}_l{k}{suffix}" for name in _PARAMETERS}
        names = {name: full for name, full in names.items() if full in layer.params}
        turned = partial(reverse_time, lengths=lengths) if backwards else np.asarray
        directions.append(Direction(k * len(kinds) + d, names, turned))
    return directions


def _time_major(layer: Layer, x: np.ndarray, width: int | None = None) -> tuple[np.ndarray, bool]:
    """x as (T, B, I), or indices (T, B), and whether the batch axis had to be added."""
    x = np.asarray(x)
    width = layer.input_size if width is None else width
    if is_one_hot(x):
        n_axes = 2
    else:
        n_axes = 3
        if x.dtype != layer.dtype:
            raise TypeError(f"expected x of dtype {np.dtype(layer.dtype)}, or of an integer dtype, got {x.dtype}")
    axes = ("B, T" if layer.batch_first else "T, B") + (f", {width}" if n_axes == 3 else "")
    if x.ndim not in (n_axes - 1, n_axes) or (n_axes == 3 and x.shape[-1] != width):
        raise ValueError(f"expected x of shape ({axes}), or without B, got {x.shape}")
    if x.ndim == n_axes - 1:
        return x[:, None], True
    return x.swapaxes(0, 1) if layer.batch_first else x, False


def _user_layout(layer: Layer, y: np.ndarray, unbatched: bool) -> np.ndarray:
    if unbatched:
        return y[:, 0]
    return y.swapaxes(0, 1) if layer.batch_first else y


def _user_state(states: tuple[np.ndarray, ...], unbatched: bool) -> State:
    states = tuple(s[:, 0] if unbatched else s for s in states)
    return states if len(states) == 2 else states[0]


def _checked_state(
    layer: Layer, state: State | None, n_rows: int, unbatched: bool, name: str = "state"
) -> tuple[np.ndarray, ...]:
    """A state, or its gradient, as a tuple (h,) or (h, c) with a batch axis; zeros for None."""
    n_states = layer.num_layers * (2 if layer.bidirectional else 1)
    widths = [layer.hidden_size]
    if layer.cell == "lstm":
        widths = [getattr(layer, "proj_size", 0) or layer.hidden_size, layer.hidden_size]
    if state is None:
        return tuple(np.zeros((n_states, n_rows, width), layer.dtype) for width in widths)
    if len(widths) == 2 and not (isinstance(state, tuple | list) and len(state) == 2):
        raise TypeError(f"expected {name} of an LSTM as a pair (h, c), got {type(state).__name__}")
    states = state if len(widths) == 2 else (state,)
    checked = []
    for letter, array, width in zip("hc", states, widths, strict=False):
        shape = (n_states, width) if unbatched else (n_states, n_rows, width)
        checked.append(
            checked_array(f"{name} {letter}" if len(widths) == 2 else name, array, shape, np.dtype(layer.dtype))
        )
    return tuple(s[:, None] if unbatched else s for s in checked)


def _checked_lengths(lengths: np.ndarray | None, x: np.ndarray) -> np.ndarray | None:
    if lengths is None:
        return None
    lengths = np.asarray(lengths)
    if not is_one_hot(lengths):
        raise TypeError(f"expected lengths of an integer dtype, got {lengths.dtype}")
    if lengths.shape != (x.shape[1],):
        raise ValueError(f"expected lengths of shape ({x.shape[1]},), got {lengths.shape}")
    if (lengths < 0).any() or (lengths > len(x)).any():
        raise ValueError(f"expected lengths from 0 to T = {len(x)}, got {lengths.min()} to {lengths.max()}")
    return lengths.astype(np.int64)


def _check_indices(layer: Layer, x: np.ndarray, lengths: np.ndarray | None) -> None:
    if is_one_hot(x):
        counted = x if lengths is None else x[np.arange(len(x))[:, None] < lengths]
        if (counted < 0).any() or (counted >= layer.input_size).any():
            raise ValueError(
                f"expected integer x from 0 to {layer.input_size - 1}, got {counted.min()} to {counted.max()}"
            )


def _checked_reset(
    layer: Layer, reset: np.ndarray | None, shape: tuple[int, int], unbatched: bool
) -> np.ndarray | None:
    if reset is None:
        return None
    expected = shape[:1] if unbatched else shape[::-1] if layer.batch_first else shape
    reset = checked_array("reset", reset, expected, np.dtype(bool))
    if unbatched:
        return reset[:, None]
    return reset.swapaxes(0, 1) if layer.batch_first else reset

"""The same calls under torch.compile: two operators, which its graphs hold as they are, and torch's shapes of them.

In eager mode autograd.Function costs a fourth of what an operator does, so these are used nowhere else.  An operator
returns tensors only: as in `autograd`, the tape hangs on one of them, and where that is lost the pass is made again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .call import Call, arranged
from .plain import NotHere, plain_arrays
from .weights import Weights, torch_shapes, torch_spec

__all__ = ["can_be_compiled", "described", "never_traced", "recurrence"]


_OPERATOR = "none"  # of torch._VF, for second derivatives, which a compiled graph does not take
_GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}


def described(mode: str, bidirectional: bool, bias: bool, projected: bool, form: str) -> str:
    """What a call is beside tensors: words for `_Sizes`; numbers are read off the weights."""
    words = mode + (", bidirectional" if bidirectional else "") + (", bias" if bias else "")
    return words + (", projected" if projected else "") + ", " + form


class _Sizes:
    """What `described` and the weights say; the numbers may be torch's symbols."""

    def __init__(self, what: str, weights: Any) -> None:
        self.mode, *words, self.form = what.split(", ")
        self.bias, self.projected = "bias" in words, "projected" in words
        self.directions = 1 + ("bidirectional" in words)
        self.layers = len(weights) // (self.directions * (2 + 2 * self.bias + self.projected))
        self.input_size = weights[0].shape[1]
        self.hidden_size = weights[0].shape[0] // _GATES[self.mode]
        self.output_size = weights[1].shape[1]

    def call(self, states: Any, dtype: torch.dtype, dropout: float) -> Call:
        """The call of so many states."""
        proj_size = self.output_size if self.projected else 0
        spec, layout = torch_spec(
            self.mode, self.input_size, self.hidden_size, self.layers, self.directions, proj_size, self.bias, dtype,
            dropout,
        )  # fmt: skip
        return Call(spec, layout, self.form, _OPERATOR, self.bias, len(states))


class _Kept(NamedTuple):
    """The tape, and where what it refers to lies: a compiler may use memory again, and make x and weights once more."""

    tape: Any
    addresses: list[int]

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of the keeper has no tape


def _addresses(x: Tensor, y: Tensor, weights: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in (x, y, *weights)]


@torch.library.custom_op("fastrnn::recurrence", mutates_args=())
def recurrence(
    x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], reset: Tensor | None, seed: Tensor | None,
    dropout: float, what: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y, h, c and what the tape hangs on; c is empty where there is none, and y of a cell."""
    call, tape, found = _passed(x, states, weights, reset, seed, dropout, what)
    keeper = torch.zeros(1, dtype=torch.uint8)
    y, h, *c = map(torch.from_numpy, found) if call.form != "cell" else (x.new_empty(0), *map(torch.from_numpy, found))
    keeper.kept = _Kept(tape, _addresses(x, y, weights))
    return y, h, c[0] if c else x.new_empty(0), keeper


@recurrence.register_fake
def _(x: Any, states: Any, weights: Any, reset: Any, seed: Any, dropout: float, what: str) -> Any:
    sizes = _Sizes(what, weights)
    rows: tuple[int, ...] = (sizes.layers * sizes.directions,)
    batch, width = x.shape[1:-1], sizes.output_size * sizes.directions
    if sizes.form == "cell":
        y, rows, batch = x.new_empty(0), (), x.shape[:-1]
    elif sizes.form == "batch first":
        y, batch = x.new_empty(x.shape[1], x.shape[0], width).transpose(0, 1), x.shape[:1]
    else:
        y = x.new_empty(*x.shape[:-1], width)
    h = x.new_empty(*rows, *batch, sizes.output_size)
    c = x.new_empty((*rows, *batch, sizes.hidden_size) if sizes.mode == "LSTM" else 0)
    return y, h, c, x.new_empty(1, dtype=torch.uint8)


@torch.library.custom_op("fastrnn::recurrence_backward", mutates_args=())
def _backward(
    keeper: Tensor, y: Tensor, dy: Tensor | None, dh: Tensor | None, dc: Tensor | None, x: Tensor,
    states: Sequence[Tensor], weights: Sequence[Tensor], reset: Tensor | None, seed: Tensor | None, dropout: float,
    what: str,
) -> list[Tensor]:  # fmt: skip
    """The gradients of x, of the states and of the weights."""
    kept: _Kept | None = getattr(keeper, "kept", None)
    if kept is not None and kept.addresses == _addresses(x, y, weights):
        call, tape = _Sizes(what, weights).call(states, x.dtype, dropout), kept.tape
    else:
        call, tape, _ = _passed(x, states, weights, reset, seed, dropout, what)
    own = [torch.zeros(weight.shape, dtype=weight.dtype) for weight in weights]
    outputs = ([dy] if call.form != "cell" else []) + [dh, dc][: len(call.spec.states)]
    grads = [None if grad is None else plain_arrays((grad,))[0] for grad in outputs]
    dx, dstates = call.backward(tape, grads, arranged(call.layout, plain_arrays(own)), True)
    return [*[torch.from_numpy(np.ascontiguousarray(array)) for array in (dx, *dstates)], *own]


@_backward.register_fake
def _(keeper: Any, y: Any, dy: Any, dh: Any, dc: Any, x: Any, states: Any, weights: Any, *others: Any) -> Any:
    return [tensor.new_empty(tensor.shape) for tensor in (x, *states, *weights)]


def _passed(
    x: Any, states: Any, weights: Any, reset: Any, seed: Any, dropout: float, what: str
) -> tuple[Call, Any, Any]:
    """(call, tape, outputs) of a forward pass."""
    call = _Sizes(what, weights).call(states, x.dtype, dropout)
    call = call._replace(
        reset=None if reset is None else reset.numpy().copy(), seed=None if seed is None else int(seed)
    )
    if reset is not None and call.form == "batch first":
        call = call._replace(reset=call.reset.swapaxes(0, 1))  # type: ignore[union-attr]
    try:
        known = Weights(call.spec, call.layout, list(weights), torch_shapes(call.spec, call.has_bias))
        array, *given = plain_arrays([tensor.detach() for tensor in (x, *states)])
    except NotHere as why:
        raise RuntimeError(str(why)) from None
    found, tape = call.forward(known.arrays, array, given)
    return call, tape, found


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    x, states, weights, reset, seed, *ctx.others = inputs
    ctx.states = len(states)
    ctx.save_for_backward(output[3], output[0], reset, seed, x, *states, *weights)


def _gradients(ctx: Any, dy: Any, dh: Any, dc: Any, _: Any) -> Any:
    keeper, y, reset, seed, x, *others = ctx.saved_tensors
    n = ctx.states
    states, weights = others[:n], others[n:]
    dx, *found = _backward(keeper, y, dy, dh, dc, x, states, weights, reset, seed, *ctx.others)
    return dx, found[:n], found[n:], None, None, None, None


recurrence.register_autograd(_gradients, setup_context=_save)


def can_be_compiled(input: Any, states: Sequence[Tensor], weight: Tensor, two: bool) -> bool:
    """Whether a call becomes `recurrence`: not in an export, whose graph others read, nor for what runs elsewhere."""
    if torch.compiler.is_exporting() or not isinstance(input, Tensor) or torch.is_autocast_enabled("cpu"):
        return False
    if type(input) not in (Tensor, torch.nn.Parameter) or torch._C._functorch.maybe_current_level() is not None:
        return False
    if len(states) not in (0, 1 + two):
        return False
    return input.device.type == "cpu" and input.dtype == weight.dtype and input.dtype in (torch.float32, torch.float64)


def never_traced(function: Any) -> Any:
    """Let Dynamo run a function, and all that it calls, as they are where a graph has broken around them."""
    function._torchdynamo_disable = True
    frames = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    return function


class _AllowRNN(MetaPathFinder):
    """Lets Dynamo trace the modules here, which it refuses as those of torch.nn.RNNBase, once it is imported."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _BUILDER:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _allow(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_BUILDER = "torch._dynamo.variables.builder"


def _allow(builder: Any) -> None:
    wrap = builder.VariableBuilder.wrap_module

    def wrap_module(self: Any, value: Any) -> Any:
        if not hasattr(type(value), "_is_fastrnn"):
            return wrap(self, value)
        with builder.config.patch(allow_rnn=True):
            return wrap(self, value)

    builder.VariableBuilder.wrap_module = wrap_module


if _BUILDER in sys.modules:
    _allow(sys.modules[_BUILDER])
else:
    sys.meta_path.insert(0, _AllowRNN())

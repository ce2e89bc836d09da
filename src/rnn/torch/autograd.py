"""`Recurrence`: a recurrent layer of the engine as a function of torch's autograd.

What a forward pass leaves for backward hangs on a small tensor that is saved beside the others, and so lives as long as
they do: torch frees it when it frees saved tensors, keeps it for retain_graph, and drops it between the two passes of
checkpointing.  Where it is lost or no longer whole, as after y was changed in place, the pass is made once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _core
from ..engine import Tape
from .call import Call, SmallTape, arranged
from .double_backward import differentiable_gradients
from .plain import NotHere, check_plain, lie_still, plain_arrays
from .weights import Weights

__all__ = ["Recurrence", "evaluated", "one_or_pair"]

with torch.inference_mode(False):  # which may be on where this is imported
    _NOTHING = torch.empty(0)


class Saved(NamedTuple):
    """What a forward pass keeps for backward."""

    tape: Tape | SmallTape
    arrays: list[np.ndarray]  # x and the weights, which the tape refers to
    y: Tensor | None  # so does it to y, the caller's: an alias, and its version when it was made
    version: int

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of the tensor that it hangs on has none

    @property
    def is_whole(self) -> bool:
        """Whether all of it is as it was: memory may have been given back, and y written into."""
        return (self.y is None or self.y._version == self.version) and lie_still(self.arrays)


class Recurrence(torch.autograd.Function):
    """Outputs = Recurrence.apply(call, weights, arrays of x and the states, x, *states, *weights).

    The numbers are read from the arrays; the tensors, with the same memory, are given for autograd.  Gradients of
    gradients go through torch's own operators.
    """

    @staticmethod
    def forward(
        ctx: Any, call: Call, weights: Weights, arrays: Sequence[np.ndarray], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        x, *states = arrays
        found, tape = call.forward(weights.arrays, x, states, weights.small_training())
        outputs = tuple(map(torch.from_numpy, found))
        y = None if call.form == "cell" else outputs[0].detach()
        keeper = _NOTHING.detach()
        read = weights.found if x.dtype.kind == "i" else [x, *weights.found]
        keeper.saved = Saved(tape, read, y, 0 if y is None else y._version)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(keeper, *inputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        call: Call = ctx.call
        keeper, *inputs = ctx.saved_tensors
        # A hook on saved tensors may have kept the numbers only
        saved: Saved | None = getattr(keeper, "saved", None)
        tape = saved.tape if saved is not None and saved.is_whole else _tape_again(call, inputs)
        given = None if torch.is_grad_enabled() else _read(grads)
        if given is None:
            return None, None, None, *differentiable_gradients(call, tape.between, inputs, grads)
        wanted, n = ctx.needs_input_grad[3:], 1 + call.states
        own = [
            _core.new_array(tuple(tensor.shape), call.spec.dtype, True) if wants or call.operator is None else None
            for tensor, wants in zip(inputs[n:], wanted[n:], strict=True)
        ]  # fmt: skip
        dx, dinitial = call.backward(tape, given, arranged(call.layout, own), wanted[0])
        found = zip((dx, *dinitial, *own), wanted, strict=True)
        return None, None, None, *[torch.from_numpy(array) if wants else None for array, wants in found]


def _read(grads: Sequence[Tensor | None]) -> list[np.ndarray | None] | None:
    """The gradients as arrays; None if they cannot be read, as under vmap."""
    try:
        return [None if grad is None else plain_arrays((grad,))[0] for grad in grads]
    except NotHere:
        return None


def _tape_again(call: Call, inputs: Sequence[Tensor]) -> Tape | SmallTape:
    """The tape of the same pass once more."""
    try:
        x, *others = _arrays(call, [tensor.detach() for tensor in inputs])
    except NotHere as why:
        raise RuntimeError(f"expected what the forward pass was given, but {why}") from None
    weights = [np.ascontiguousarray(array) for array in others[call.states :]]
    return call.forward(arranged(call.layout, weights), x, others[: call.states])[1]


def _arrays(call: Call, tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Tensors as arrays; the first, x, may hold indices, but not for torch's modules.  Raises NotHere."""
    if call.operator is None and not tensors[0].is_floating_point():
        return [tensors[0].numpy(), *plain_arrays(tensors[1:])]
    return plain_arrays(tensors)


def evaluated(call: Call, known: Weights, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """The outputs of a call.   inputs: x and the states.   known: the weights as arrays.

    Raises NotHere; ValueError or TypeError for wrong arguments, as the engine does.
    """
    if torch.is_grad_enabled():
        check_plain(inputs)
        if any(tensor.requires_grad for tensor in (*inputs, *weights)):
            if call.is_sooner_in_torch(inputs[0]):
                raise NotHere("its few steps of large weights are trained sooner by torch's operators")
            arrays = _arrays(call, [tensor.detach() for tensor in inputs])
            outputs: Sequence[Tensor] = Recurrence.apply(call, known, arrays, *inputs, *weights)
            return outputs
    x, *states = _arrays(call, inputs)
    if call.seed is None:
        found = call.infer(known.arrays, x, states, known.small_inference())
    else:
        found, _ = call.forward(known.arrays, x, states)
    return list(map(torch.from_numpy, found))


def one_or_pair(finals: Sequence[Tensor]) -> Any:
    """Final states as torch returns them."""
    return tuple(finals) if len(finals) > 1 else finals[0]

"""`Recurrence`: a recurrent layer of the engine as a function of torch's autograd.

What a forward pass leaves for backward is a tape.  It hangs on a small tensor that is saved beside the others, and so
lives as long as they do: torch frees it when it frees saved tensors, keeps it for retain_graph, and drops it between
the two passes of checkpointing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine import Tape
from .call import Call, SmallTape, arranged
from .double_backward import differentiable_gradients
from .plain import plain_array
from .weights import Weights

__all__ = ["Recurrence"]

_NOTHING = torch.empty(0)


class Recurrence(torch.autograd.Function):
    """Outputs = Recurrence.apply(call, weights, arrays of x and the states, x, *states, *weights).

    The numbers are read from the arrays; the tensors, with the same memory, are given for autograd.  Gradients of
    gradients go through torch's own operators.
    """

    @staticmethod
    def forward(
        ctx: Any, call: Call, weights: Weights, arrays: list[np.ndarray], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        x, *states = arrays
        found, tape = call.forward(weights.arrays, x, states, weights.small_training(call.spec))
        outputs = tuple(map(torch.from_numpy, found))
        keeper = _NOTHING.detach()
        keeper.tape = tape
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(keeper, *outputs, *inputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        call: Call = ctx.call
        keeper, *saved = ctx.saved_tensors
        inputs, n = saved[len(grads) :], 1 + call.states
        # A hook on saved tensors may have kept the numbers only: then the pass is made once more.
        tape = getattr(keeper, "tape", None) or _tape_again(call, inputs)
        if torch.is_grad_enabled():
            return None, None, None, *differentiable_gradients(call, tape.between, inputs, grads)
        own = [np.zeros(tensor.shape, call.spec.dtype) for tensor in inputs[n:]]
        wanted = ctx.needs_input_grad[3:]
        given = [None if grad is None else plain_array(grad) for grad in grads]
        dx, dinitial = call.backward(tape, given, arranged(call.layout, own), wanted[0])
        return (
            None,
            None,
            None,
            *[
                torch.from_numpy(array) if wants else None
                for array, wants in zip((dx, *dinitial, *own), wanted, strict=True)
            ],
        )


def _tape_again(call: Call, inputs: Sequence[Tensor]) -> Tape | SmallTape:
    x, *others = [plain_array(tensor) for tensor in inputs]
    return call.forward(arranged(call.layout, others[call.states :]), x, others[: call.states])[1]

"""Gradients of gradients: `differentiable_gradients`, by torch's own operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import _VF, Tensor

from .call import Call, one_or_all

__all__ = ["differentiable_gradients"]


def differentiable_gradients(
    call: Call, masks: Sequence[np.ndarray | None], saved: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> list[Any]:
    """The gradients of the inputs of `Recurrence`, as torch's own operators make them, differentiable themselves.

    masks: of dropout behind each layer.   saved: x, the states, the weights.   grads: of the outputs, None for zeros.
    """
    if call.operator is None:
        raise RuntimeError(
            "a gradient of a gradient, or a batch of gradients, was asked for through a layer for which torch has no "
            "operator"
        )
    if call.reset is not None:
        raise RuntimeError(
            "a gradient of a gradient, or a batch of gradients, was asked for through a call with reset=, for which "
            "torch has no operator"
        )
    with torch.enable_grad():
        inputs = [tensor.view_as(tensor) for tensor in saved]  # so that no path from one of them to another counts
        outputs = _cell_outputs(call, inputs) if call.form == "cell" else _layer_outputs(call, masks, inputs)
        counted = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = torch.autograd.grad(
            [output for output, _ in counted], wanted, [grad for _, grad in counted], create_graph=True,
            allow_unused=True,
        )  # fmt: skip
    given = dict(zip(map(id, wanted), found, strict=True))
    return [given.get(id(tensor)) for tensor in inputs]


def _cell_outputs(call: Call, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The final states of torch's operator for one step."""
    x, *others = inputs
    states, weights = others[: call.states], others[call.states :]
    states = states or [x.new_zeros(*x.shape[:-1], width) for _, width in call.spec.states]
    rows = [array.reshape(-1, array.shape[-1]) for array in (x, *states)]
    finals = getattr(_VF, f"{call.operator}_cell")(rows[0], one_or_all(rows[1:]), *weights)
    return [final.view(states[0].shape) for final in (finals if len(states) > 1 else [finals])]


def _layer_outputs(call: Call, masks: Sequence[np.ndarray | None], inputs: Sequence[Tensor]) -> list[Tensor]:
    """y and the final states of torch's operator, which goes through all layers at once if none has a mask."""
    spec, packed, n = call.spec, call.batch_sizes is not None, len(call.spec.states)
    y, *others = inputs
    states, weights = others[: call.states], others[call.states :]
    unbatched = y.dim() == 2 and not packed
    if unbatched:
        y, states = y.unsqueeze(1), [state.unsqueeze(1) for state in states]
    elif call.form == "batch first":
        y = y.transpose(0, 1)
    B = int(call.batch_sizes[0]) if call.batch_sizes is not None else y.shape[1]
    states = states or [y.new_zeros(shape) for shape in spec.state_shapes(B)]
    L, D = spec.num_layers, spec.num_directions
    groups = 1 if all(mask is None for mask in masks) else L
    rows, each, finals = L * D // groups, len(weights) // groups, []
    for k in range(groups):
        state = one_or_all([state[k * rows : (k + 1) * rows] for state in states])
        options = (weights[k * each : (k + 1) * each], call.has_bias, L // groups, 0.0, False, D == 2)
        operator = getattr(_VF, call.operator or "")
        y, *after = operator(y, call.batch_sizes, state, *options) if packed else operator(y, state, *options, False)
        mask = masks[k] if k < L - 1 and groups > 1 else None
        y = y if mask is None else y * torch.from_numpy(mask)
        finals.append(after)
    outputs = [y, *[torch.cat([after[i] for after in finals]) for i in range(n)]]
    if unbatched:
        return [output.squeeze(1) for output in outputs]
    return [y.transpose(0, 1), *outputs[1:]] if call.form == "batch first" else outputs

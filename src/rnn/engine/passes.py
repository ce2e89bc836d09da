"""The passes of a recurrent layer over arrays that the caller gives: `infer`, `forward`, `backward`.

None of them knows a layer object: a `LayerSpec` says what the layer is; its parameters and the arrays for their
gradients are arguments, see `spec`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from .backward_pass import Backward
from .checkpointing import CheckpointPolicy
from .forward_pass import Forward
from .inputs import checked_batch
from .spec import Arrays, LayerSpec, State
from .tape import Tape


def infer(
    spec: LayerSpec,
    weights: Arrays,
    x: Any,
    state: State = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    batch_sizes: Any = None,
    packed: _core.StackWeights | None = None,
) -> tuple[Any, State]:
    """Inference: return (y, state), keep nothing for a backward pass, apply no dropout. As `forward` otherwise.

    packed: the weights, packed before; then `weights` are not read.
    """
    return Forward(spec, weights, checked_batch(spec, x, lengths, reset, batch_sizes), state, packed=packed).run()


def forward(
    spec: LayerSpec,
    weights: Arrays,
    x: Any,
    state: State = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    batch_sizes: Any = None,
    rng: np.random.Generator | None = None,
    checkpoint: int | str | None = None,
    memory_limit: int | None = None,
) -> tuple[Any, State, Tape]:
    """Training: return (y, state, tape); the tape is for `backward`.

    Arguments and errors are those of `nn.Recurrent.forward`. Weights and x must stay unchanged until `backward`.
    batch_sizes: int64 (T,): x is packed, (N, I), as torch.nn.utils.rnn packs sequences: so many rows belong to each
    step; y, and the gradients of both, are packed alike. Not together with lengths, reset, input_dropout or segments.
    rng: what dropout is drawn from. If the pass raises an error or is interrupted, the state of rng is as before.
    """
    batch = checked_batch(spec, x, lengths, reset, batch_sizes)
    if batch_sizes is not None and (spec.input_dropout or checkpoint is not None or memory_limit is not None):
        raise ValueError("expected packed x without input_dropout, checkpoint and memory_limit, got one of them")
    if batch.one_hot and spec.input_dropout:
        raise ValueError(f"expected x in vectors for input_dropout = {spec.input_dropout}, got integer x")
    tape = Tape(spec, weights, batch, CheckpointPolicy.checked(checkpoint, memory_limit))
    drops = rng is not None and (spec.has_dropout or spec.dropout)
    drawn = rng.bit_generator.state if rng is not None and drops else None
    try:
        y, final = Forward(spec, weights, batch, state, tape, rng if drops else None).run()
    except BaseException:
        if rng is not None and drawn is not None:
            rng.bit_generator.state = drawn
        raise
    y.flags.writeable = False
    tape.y_shape = y.shape
    return y, final, tape


def backward(
    tape: Tape, dy: Any, dstate: State, gradients: Arrays, wants_dx: bool = True
) -> tuple[np.ndarray | None, State]:
    """BPTT: return (dx, dstate) for the gradients of y and of the final state, and add into `gradients`.

    dy, dstate: None means zeros. The gradient of a weight of `ARRAYS` up to weight_hr is not computed where `gradients`
    has None. dx is None if x held indices or it is not wanted. A tape may be used again as long as
    x and the weights are unchanged. Raises TypeError or ValueError for a wrong dtype or a wrong shape.
    """
    return Backward(tape, dy, dstate, gradients, wants_dx=wants_dx).run()

"""Weights as the kernels take them: a layer's own where they lie, or packed once for many calls."""

from __future__ import annotations

from .. import _core
from . import tuning
from .spec import Arrays, LayerSpec


def stack_weights(spec: LayerSpec, weights: Arrays, stored: str | None = None) -> _core.StackWeights:
    """stored: None, where they lie; "bfloat16" or "int8", packed in fewer bytes; their dtype, packed as they are."""
    return _core.StackWeights(spec.cell.number, spec.is_double, stored, list(weights), spec.kernel_options)


def small_inference(spec: LayerSpec, weights: _core.StackWeights) -> _core.SmallInference | None:
    """What makes small calls without the objects of a pass; None if nothing does."""
    return _core.SmallInference(weights, spec, tuning.shard_count) if _core.SmallInference.takes(spec) else None

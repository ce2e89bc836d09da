"""`Stream`: a layer that keeps its state between the steps of a sequence that is still coming in."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import numpy as np

from .. import _core
from ..engine import LayerSpec, State, stack_weights
from ..engine.inputs import checked_state, user_state
from ..engine.spec import Arrays
from ..util.checks import as_array, positive_int
from .module import ParameterDict

__all__ = ["Stream", "Streamable"]

_ADDRESSES = 1 << 47  # bytes that a process can address


class Streamable(Protocol):
    """What a stream needs of a layer."""

    @property
    def spec(self) -> LayerSpec: ...
    @property
    def weights(self) -> Arrays: ...
    @property
    def params(self) -> ParameterDict: ...
    @property
    def flat_params(self) -> np.ndarray: ...
    @property
    def stream_weights(self) -> str: ...


class Stream(_core.Stream):
    """The state of a layer between the steps of a sequence that is still coming in; `layer.stream()` makes it.

    >>> import numpy as np, fastrnn
    >>> stream = fastrnn.LSTM(8, 16, rng=0).stream()
    >>> y = np.empty(16, np.float32)
    >>> for x in np.ones((5, 8), np.float32):
    ...     _ = stream.step(x, out=y)
    >>> h, c = stream.state
    >>> h.shape, bool((h[0, 0] == y).all())
    ((1, 1, 16), True)

    `step` and `run` advance the state, which is zero at first, and return what the layer calls y, the h of the last
    layer. In whatever pieces a sequence comes, the results are to the bit those of one `run` over the whole. They
    allocate nothing but y, and not even that when `out` is given. Letters: T steps, B rows (`batch`), I inputs, P width
    of h, L layers.

    The weights are copied when the stream is made: what changes in the layer later is not seen until `refresh`. Streams
    that `layer.frozen()` makes share one copy.
    A stream serves one thread at a time; streams of one layer may run in different threads. Ctrl-C in the midst of a
    `run` leaves the state as it was before.
    """

    __slots__ = ("_layer",)
    _layer: Streamable

    def __init__(self, layer: Streamable, batch: int = 1, packed: _core.StackWeights | None = None) -> None:
        spec = checked_spec(layer, "to make a stream of")
        if spec.num_directions > 1 or spec.reverse:
            option = "reverse" if spec.reverse else "bidirectional"
            raise ValueError(f"expected a layer that runs forwards, got {option}=True: a stream has no end to start at")
        most = _most_rows(spec, layer.flat_params.size)
        if positive_int("batch", batch) > most:
            raise ValueError(f"expected batch <= {most}, whose state can be addressed, got {batch}")
        super().__init__(spec, packed_weights(layer) if packed is None else packed, int(batch))
        self._layer = layer

    @property
    def layer(self) -> Streamable:
        """The layer whose weights it has."""
        return self._layer

    @property
    def state(self) -> State:
        """A copy of h (L, B, P), for an LSTM of the pair (h, c), c (L, B, H).

        It may be set to arrays of these shapes or, with B = 1, to the state of an unbatched call, without the axis of
        B; None, also in the place of one of a pair, means zeros.

        Raises TypeError or ValueError when set to another dtype or shape; the state is unchanged then.
        """
        return user_state(self._get_state(), False)

    @state.setter
    def state(self, state: State) -> None:
        several = len(self.spec.states) > 1 and isinstance(state, tuple | list)
        given = [part for part in (state if several else [state]) if part is not None]
        unbatched = self.batch == 1 and bool(given) and as_array("state", given[0]).ndim == 2
        self._set_state(checked_state(self.spec, state, self.batch, unbatched))

    def refresh(self) -> None:
        """Copy the layer's weights anew; the state stays."""
        self._repack(partial(packed_weights, self.layer))

    def copy(self) -> Stream:
        """Another stream with the same weights, which both read in one place, and from here on a state of its own."""
        other: Any = super().copy()
        other._layer = self._layer
        return other


def _most_rows(spec: LayerSpec, weights: int) -> int:
    """For which state, scratch and the multiply-adds of a step are numbers of 63 bits at most."""
    of_scratch = 3 * (spec.output_size + np.dtype(np.int64).itemsize // spec.dtype.itemsize)
    row = spec.dtype.itemsize * (spec.num_layers * sum(width for _, width in spec.states) + of_scratch)
    return min(_ADDRESSES // row, (1 << 62) // weights)


def checked_spec(layer: Any, purpose: str) -> LayerSpec:
    """What a layer is; raises TypeError if it is none."""
    spec = getattr(layer, "spec", None)
    if not isinstance(spec, LayerSpec):
        raise TypeError(f"expected an RNN, GRU or LSTM {purpose}, got {type(layer).__name__}")
    return spec


def packed_weights(layer: Streamable) -> _core.StackWeights:
    """The layer's weights as they are now, packed as `layer.compress` says. Raises ValueError if they cannot be."""
    stored = layer.stream_weights
    if stored in ("bfloat16", "int8"):
        for name, array in layer.params.items():
            if name.startswith(("weight_ih", "weight_hh")) and not np.isfinite(array).all():
                raise ValueError(f"expected finite weights for {stored}, got NaN or infinity in {name}")
    return stack_weights(layer.spec, layer.weights, stored)

"""`Frozen`: a layer's inference on weights that are packed once, for any number of calls, streams and threads."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import _core, engine
from ..engine import LayerSpec, State
from .streaming import Stream, Streamable, checked_spec, packed_weights

__all__ = ["Frozen"]


class _Packed(NamedTuple):
    """A layer as it was: what it is, its weights, and what makes small calls with these."""

    spec: LayerSpec
    weights: _core.StackWeights
    small: _core.SmallInference | None

    def infer(self, x: Any, state: State, lengths: Any, reset: Any = None) -> tuple[Any, State]:
        unused: list[tuple[()]] = [()] * self.weights.count
        return engine.infer(self.spec, unused, x, state, lengths=lengths, reset=reset, packed=self.weights)


class Frozen:
    """Inference of a layer on weights that are packed once; `layer.frozen()` makes it.

    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.GRU(8, 16, bidirectional=True, rng=0)
    >>> frozen = layer.frozen()
    >>> y, h = frozen(np.ones((5, 3, 8), np.float32), lengths=[5, 2, 3])
    >>> y.shape, h.shape
    ((5, 3, 32), (2, 3, 16))

    A call of a layer brings the weights into the layout that the kernels read, or reads them in a slower one if it is
    short.  Here that is done once, for calls with any T and B, and for the streams that `stream` makes, which read the
    same panels.  Several threads may call it at the same time.

    The weights, and the options that matter in inference, are those that the layer had: what changes in it later is not
    seen until `refresh`.  Weights of a layer with `compress` are packed in fewer bytes.  A copy shares the panels; a
    pickle holds the layer, and what is unpickled packs its weights anew.
    """

    __slots__ = ("_layer", "_packed")

    def __init__(self, layer: Streamable) -> None:
        self._layer, self._packed = layer, _pack(layer)

    @property
    def layer(self) -> Streamable:
        """The layer whose weights it has."""
        return self._layer

    def __call__(self, x: Any, state: State = None, *, lengths: Any = None, reset: Any = None) -> tuple[Any, State]:
        """(y, state), the arguments and results of the layer's own call."""
        packed = self._packed
        if reset is None and packed.small is not None:
            done = packed.small.run(x, state, lengths, packed.infer)
            if done is not None:
                return done
        return packed.infer(x, state, lengths, reset)

    def stream(self, batch: int = 1) -> Stream:
        """A stream of the layer on the panels that are here, see `layer.stream`."""
        return Stream(self._layer, batch, self._packed.weights)

    def refresh(self) -> None:
        """Pack the layer's weights as they are now: for calls that begin after it, and for streams made after it."""
        self._packed = _pack(self._layer)

    def __reduce__(self) -> tuple[type, tuple[Streamable]]:
        return type(self), (self._layer,)

    def __copy__(self) -> Frozen:
        other = object.__new__(type(self))
        other._layer, other._packed = self._layer, self._packed
        return other

    def __repr__(self) -> str:
        return f"{self._layer!r}.frozen()"


def _pack(layer: Streamable) -> _Packed:
    spec, weights = checked_spec(layer, "to freeze"), packed_weights(layer)
    return _Packed(spec, weights, engine.small_inference(spec, weights))

"""What RNN, GRU and LSTM share: options, parameters, and the calls that run a stack of layers and directions.

    layer(x)                 inference: nothing is saved
    layer.forward(x)         training: returns a tape of all layers and directions
    layer.backward(tape, dy) back-propagation through time, last layer first

A layer is described here, by its parameters and an `engine.LayerSpec`; how it runs is in `engine`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from .. import _core, engine
from ..engine import LayerSpec, State, Tape
from .frozen import Frozen
from .module import Module
from .options import SHARED, SIZES, Option
from .streaming import Stream

__all__ = ["Recurrent"]

_MOST_INT8 = 1 << 17  # terms of a product whose sums fit 32 bits


class Recurrent(Module):
    """What RNN, GRU and LSTM share: stacking, directions, ragged batches, dropout and the passes.

    Each of them says its options, its gate count, the widths of its states and its row of the kernel table.
    """

    cell: ClassVar[str]
    _gates: ClassVar[int]
    _own_options: ClassVar[tuple[Option, ...]]  # beside those of all layers
    _fixed = Module._fixed | {option.name for option in chain(SIZES, SHARED) if not option.changeable} - {"rng"}
    _changeable: ClassVar[dict[str, Callable[[str, Any], Any]]]  # what checks a value

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    weight_dropout: float
    input_dropout: float
    recurrent_dropout: float
    zoneout: float
    bidirectional: bool
    reverse: bool
    merge: str
    clip: float | None
    grad_clip: float | None
    layer_norm: bool

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        options = list(chain(SHARED, cls._own_options))
        fixed = {option.name for option in cls._own_options if not option.changeable}
        cls._fixed = Recurrent._fixed | cls._fixed | fixed
        cls._changeable = {option.name: option.check for option in options if option.changeable}

    def __init__(self, **given: Any) -> None:  # all arguments of a cell's own constructor
        checked = {o.name: o.check(o.name, given[o.name]) for o in chain(SIZES, self._own_options, SHARED)}
        dtype, rng = checked.pop("dtype"), checked.pop("rng")
        for name, value in checked.items():
            setattr(self, name, value)
        if self.bidirectional and self.reverse:
            raise ValueError("expected reverse=False of a bidirectional layer, which runs both ways, got True")
        self._stream_weights = str(dtype)
        self._rng = np.random.default_rng(rng)
        self._kernel_row = self._kernel()
        super().__init__(self._parameter_shapes(), dtype)
        bound = 1 / math.sqrt(self.hidden_size)  # torch's initial values
        for name, array in self.params.items():
            if name.startswith("gain"):
                array[...] = 1
            elif not name.startswith("bias_c"):  # which stays zero, as that of torch.nn.LayerNorm
                array[...] = self._rng.uniform(-bound, bound, array.shape)

    def __setattr__(self, name: str, value: Any) -> None:
        check = self._changeable.get(name)
        if check is not None:
            value = check(name, value)
        if check is None or "spec" not in self.__dict__:
            super().__setattr__(name, value)
        else:
            self.__dict__.update({name: value, **self._specified(**{name: value})})

    @property
    def generators(self) -> list[np.random.Generator]:
        """The one of initial values and dropout."""
        return [self._rng]

    @property
    def stream_weights(self) -> str:
        """How streams that are made now hold W_ih and W_hh, see `compress`."""
        return self._stream_weights

    # ------------------------------------------------------------ what the layer is

    spec: LayerSpec  # for the engine
    weights: list[engine.DirectionArrays]  # parameters, as the engine takes them
    gradients: list[engine.DirectionArrays]
    _small: _core.SmallInference | None  # what makes small calls
    _views = (*Module._views, "spec", "weights", "gradients", "_small")

    def _allocate(self) -> None:
        super()._allocate()
        spec = self._new_spec()
        self.__dict__.update(weights=spec.arrays(self._params), gradients=spec.arrays(self._grads))
        self.__dict__.update(self._specified())

    def _specified(self, **changed: Any) -> dict[str, Any]:
        """What the layer is with these options changed: the specification, and what is made anew with it."""
        spec = self._new_spec(**changed)
        return {"spec": spec, "_small": engine.small_inference(spec, engine.stack_weights(spec, self.weights))}

    def _new_spec(self, **changed: Any) -> LayerSpec:
        options = {**self.__dict__, **changed}
        return LayerSpec(
            kernel=self._kernel_row,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            states=self._states,
            num_layers=self.num_layers,
            num_directions=self._num_directions,
            reverse=self.reverse,
            batch_first=self.batch_first,
            merge=self.merge,
            dtype=self.dtype,
            activations=self._activation_codes(),
            clip=self.clip,
            grad_clip=options["grad_clip"],
            coupled=options.get("coupled", False),
            dropout=options["dropout"],
            weight_dropout=options["weight_dropout"],
            input_dropout=options["input_dropout"],
            recurrent_dropout=options["recurrent_dropout"],
            zoneout=(options["zoneout"], options.get("zoneout_cell", 0.0)),
        )

    @property
    def _num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _states(self) -> tuple[tuple[str, int], ...]:
        """Name and width of each; the first is h."""
        return (("h", self.hidden_size),)

    def _kernel(self) -> str:
        """The row of the kernel table."""
        raise NotImplementedError

    def _activation_codes(self) -> tuple[tuple[int, float, float], ...]:
        return ()

    # ------------------------------------------------------------ parameters

    def _parameter_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        rows, (_, P) = self._gates * self.hidden_size, self._states[0]
        merged = P * (self._num_directions if self.merge == "concat" else 1)
        for k in range(self.num_layers):
            for suffix in [f"_l{k}", f"_l{k}_reverse"][: self._num_directions]:
                yield f"weight_ih{suffix}", (rows, merged if k else self.input_size)
                yield f"weight_hh{suffix}", (rows, P)
                if self.bias:
                    yield f"bias_ih{suffix}", (rows,)
                    yield f"bias_hh{suffix}", (rows,)
                yield from self._further_shapes(suffix).items()

    def _further_shapes(self, suffix: str) -> dict[str, tuple[int, ...]]:
        gains = ("gain_ih", "gain_hh") if self.layer_norm else ()
        return {f"{name}{suffix}": (self._gates * self.hidden_size,) for name in gains}

    # ------------------------------------------------------------ the passes

    def __call__(self, x: Any, state: State = None, *, lengths: Any = None, reset: Any = None) -> tuple[Any, State]:
        """Inference: (y, state). Saves nothing for a backward pass; dropout is off. Arguments as in `forward`."""
        if reset is None and self._small is not None:
            done = self._small.run(x, state, lengths, self._infer)
            if done is not None:
                return done
        return self._infer(x, state, lengths, reset)

    def _infer(self, x: Any, state: State, lengths: Any, reset: Any = None) -> tuple[Any, State]:
        return engine.infer(self.spec, self.weights, x, state, lengths=lengths, reset=reset)

    def forward(
        self,
        x: Any,
        state: State = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        checkpoint: int | str | None = None,
        memory_limit: int | None = None,
    ) -> tuple[Any, State, Tape]:
        """Training: (y, state, tape), the tape for `backward`.

        x: (T, B, I) of the layer's dtype, (B, T, I) with batch_first, (T, I) unbatched; or integers of the same shape
        without I, each the index of a one-hot input, which costs a look-up in place of a product.
        state: h (L*D, B, H), for an LSTM (h, c); None: zeros.
        lengths: (B,) integers from 0 to T, the true lengths of the sequences: beyond them y is zero, and the reverse
        direction starts at them.
        reset: bool, x's shape without I: where True, the state is set to zero before that step, in the order in which a
        direction runs: of two directions, the second then still hands x(t) on to step t-1.
        checkpoint: None saves the activations of every step; a number of segments, or "auto", saves only the states at
        their borders, and `backward` recomputes one segment at a time: the same gradients to the bit, in a part of the
        memory.
        memory_limit: bytes for the tape and all that is between layers, in place of a number of segments: there are as
        few segments as stay below the limit, and none if everything fits. Neither counts x, y and dx; nor, with two
        directions, what is then held whole: y between layers, its gradient, the masks of each step, x with
        input_dropout.

        Returns y (T, B, D*H), laid out as x is and read-only, since the tape refers to it (so does the tape to x:
        leave it unchanged until `backward`), and the final state at the true end of each sequence.
        Raises TypeError for a wrong dtype and ValueError for a wrong shape or value.
        """
        return engine.forward(
            self.spec, self.weights, x, state, lengths=lengths, reset=reset, rng=self._rng, checkpoint=checkpoint,
            memory_limit=memory_limit,
        )  # fmt: skip

    def backward(self, tape: Tape, dy: Any = None, dstate: State = None) -> tuple[np.ndarray | None, State]:
        """BPTT: (dx, dstate) for the gradients of y and of the final state; adds into `grads`.

        dy: the shape of y; None: zeros. dstate: that of the final state; None, or None in the place of one of a pair:
        zeros. dx is None where x held indices. A tape may be used again, as long as x and the parameters are unchanged.
        Raises TypeError or ValueError for a tape of another layer, a wrong dtype or a wrong shape.
        """
        if not isinstance(tape, Tape) or tape.weights is not self.weights:
            came = "another layer's" if isinstance(tape, Tape) else type(tape).__name__
            raise ValueError(f"expected the tape that this layer's forward returned, got {came}")
        return engine.backward(tape, dy, dstate, self.gradients)

    # ------------------------------------------------------------ packed weights, streams

    def frozen(self) -> Frozen:
        """A callable as this layer, on weights that are packed once: the fastest way to many short calls.

        >>> import numpy as np, fastrnn
        >>> frozen = fastrnn.LSTM(8, 16, rng=0).frozen()
        >>> y, (h, c) = frozen(np.ones((10, 8), np.float32))
        >>> y.shape
        (10, 16)

        See `Frozen`, which also has `stream` and `refresh`. What changes in the weights later is not seen until
        `refresh`. Raises ValueError if `compress` was called and the weights are not finite.
        """
        return Frozen(self)

    def stream(self, batch: int = 1) -> Stream:
        """A stream of this layer: the state of `batch` (B) sequences that are still coming in, zero at first.

        >>> import numpy as np, fastrnn
        >>> stream = fastrnn.GRU(8, 16, rng=0).stream()
        >>> stream.step(np.ones(8, np.float32)).shape, stream.run(np.ones((20, 8), np.float32)).shape
        ((16,), (20, 16))

        It is short for `layer.frozen().stream(batch)`. A step takes a fraction of the time of a call, see `Stream`,
        which has `step`, `run`, `state`, `reset`, `copy` and `refresh`. Dropout is off. The weights are packed here:
        what changes in them later is not seen until `refresh`.
        Raises TypeError or ValueError unless batch is a positive integer, ValueError for more rows than any memory
        holds and for a layer that reads from the end of a sequence, which a stream has not got.
        """
        return Stream(self, batch)

    def compress(self, weights: str) -> None:
        """Let streams made, or refreshed, from now on hold W_ih and W_hh in fewer bytes; nothing else changes.

        >>> import fastrnn
        >>> layer = fastrnn.LSTM(256, 256, rng=0)
        >>> layer.compress("int8")
        >>> stream = layer.stream()  # reads 0.5 MB a step in place of 2

        weights: "bfloat16", 16 bits a weight, of which it keeps its first 8 (relative error at most 2^-8); "int8", 8
        bits a weight and a scale for each row of W, w ~ q max|w| / 127 with q from -127 to 127 (error at most
        max|w| / 254); "float32" takes it back. Arithmetic, state, biases and all other weights stay float32.
        With "int8", where the processor has AVX512_VNNI, W is multiplied in whole numbers: x and h are rounded to
        multiples of max|x| / 2^23 and max|h| / 2^23 of a row, as fine as the sums of float32, and a row that holds NaN
        or infinity gives NaN.
        Calls, training and `params` are not affected; it is not saved with the layer.

        Raises ValueError for other weights, and for "int8" of more than 131072 inputs or outputs; TypeError for a
        float64 layer, whose precision they would not keep. `stream` and `refresh` raise ValueError if the weights are
        not finite.
        """
        if weights not in ("float32", "bfloat16", "int8"):
            raise ValueError(f"expected weights 'float32', 'bfloat16' or 'int8', got {weights!r}")
        if self.spec.is_double:
            raise TypeError(f"expected a float32 layer, got float64: {weights} would not keep its precision")
        widest = max(self.input_size, self.spec.output_size)
        if weights == "int8" and widest > _MOST_INT8:
            raise ValueError(f"expected at most {_MOST_INT8} inputs and outputs for int8, got {widest}")
        self._stream_weights = weights

    def __repr__(self) -> str:
        """As torch says it: the sizes, and what is not as by default."""
        shown = [str(self.input_size), str(self.hidden_size)]
        for option in chain(SIZES[2:], self._own_options, SHARED):
            if option.name != "rng":
                value = getattr(self, option.name)
                if value != option.default:
                    shown.append(f"{option.name}={str(value) if option.name == 'dtype' else repr(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

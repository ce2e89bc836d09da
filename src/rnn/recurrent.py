"""What RNN, GRU and LSTM share: options, parameters, and the calls that run a stack of layers and directions.

    layer(x)                 inference: no history is kept
    layer.forward(x)         training: a tape of every layer and direction
    layer.backward(tape, dy) back-propagation through time, last layer first

A layer is described here; how it runs is elsewhere:

    inputs      checks what comes in, and lays it out
    forward     a pass through all layers: scans, and what is between layers; by segments.Column where little is kept
    tape        what it leaves
    backward    the pass back
    _core       Scan, one walk through one layer in one direction; Stream and ShortCalls, which need none of these
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from . import _core, threads
from .backward import Backward
from .checks import boolean, float_dtype, positive_float, positive_int, probability
from .forward import Forward
from .inputs import Batch, State, checked_batch
from .merging import MERGES
from .module import Module
from .segments import Kept
from .tape import Tape

_MOST_LAYERS = 1 << 16
_MOST_INT8 = 1 << 17  # terms of a product whose sums fit 32 bits
_ADDRESSES = 1 << 47  # bytes that a process can address


class Recurrent(Module):
    """What RNN, GRU and LSTM share: stacking, directions, ragged batches, dropout and the passes.

    A cell gives its gate count, the widths of its states and its row in the table of kernels.
    """

    cell: ClassVar[str]
    _gates: ClassVar[int]
    _fixed = Module._fixed | {
        "input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "reverse", "merge", "clip",
        "layer_norm",
    }  # fmt: skip
    _changeable: ClassVar[dict[str, Callable[[str, Any], Any]]] = {  # and what checks a value
        **dict.fromkeys(("dropout", "weight_dropout", "input_dropout", "recurrent_dropout"), probability),
        **dict.fromkeys(("zoneout", "zoneout_cell"), probability),
        "grad_clip": lambda name, value: None if value is None else positive_float(name, value),
    }

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        bias: bool,
        batch_first: bool,
        dropout: float,
        weight_dropout: float,
        input_dropout: float,
        recurrent_dropout: float,
        zoneout: float,
        bidirectional: bool,
        reverse: bool,
        merge: str,
        clip: float | None,
        grad_clip: float | None,
        layer_norm: bool,
        dtype: Any,
        rng: Any,
    ) -> None:
        self.input_size = positive_int("input_size", input_size)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.num_layers = positive_int("num_layers", num_layers)
        if self.num_layers > _MOST_LAYERS:
            raise ValueError(f"expected num_layers <= {_MOST_LAYERS}, got {num_layers}")
        self.bias = boolean("bias", bias)
        self.batch_first = boolean("batch_first", batch_first)
        self.dropout = dropout
        self.weight_dropout = weight_dropout
        self.input_dropout = input_dropout
        self.recurrent_dropout = recurrent_dropout
        self.zoneout = zoneout
        self.bidirectional = boolean("bidirectional", bidirectional)
        self.reverse = boolean("reverse", reverse)
        self.merge = merge
        self.clip = None if clip is None else positive_float("clip", clip)
        self.grad_clip = grad_clip
        self.layer_norm = boolean("layer_norm", layer_norm)
        if merge not in MERGES:
            raise ValueError(f"expected merge among {', '.join(MERGES)}, got {merge!r}")
        if self.bidirectional and self.reverse:
            raise ValueError("expected reverse=False of a bidirectional layer, which runs both ways, got True")
        self._directions = 2 if self.bidirectional else 1
        self._stream_weights = str(float_dtype(dtype))
        self._rng = np.random.default_rng(rng)
        self._kernel_index = self._kernel()
        self._is_double = float_dtype(dtype) == np.float64
        super().__init__(self._parameter_shapes(), dtype)
        bound = 1 / math.sqrt(self.hidden_size)  # torch's initial values
        for name, array in self.params.items():
            if name.startswith("gain"):
                array[...] = 1
            elif not name.startswith("bias_c"):  # which stays zero, as that of torch.nn.LayerNorm
                array[...] = self._rng.uniform(-bound, bound, array.shape)

    def __setattr__(self, name: str, value: Any) -> None:
        check = self._changeable.get(name)
        super().__setattr__(name, value if check is None else check(name, value))
        if check is not None and "_weights" in self.__dict__:
            self._make_options()

    @property
    def stream_weights(self) -> str:
        """How streams that are made now hold W_ih and W_hh, see `compress`."""
        return self._stream_weights

    # ------------------------------------------------------------ shapes

    @property
    def _output_size(self) -> int:
        """Width P of h."""
        return self.hidden_size

    @property
    def _state_widths(self) -> tuple[int, ...]:
        return (self.hidden_size,)

    @property
    def _zoneout(self) -> tuple[float, float]:
        """Probabilities that a unit of h, and of c, keeps its value."""
        return self.zoneout, 0.0

    @property
    def _drops(self) -> bool:
        """Whether training drops anything within a layer."""
        return bool(self.weight_dropout or self.input_dropout or self.recurrent_dropout or any(self._zoneout))

    @property
    def _merged_size(self) -> int:
        return self._output_size * (self._directions if self.merge == "concat" else 1)

    @property
    def _most_rows(self) -> int:
        """Of a stream: state, scratch and the multiply-adds of a step are then numbers of 63 bits at most."""
        of_scratch = 3 * (self._output_size + np.dtype(np.int64).itemsize // self.dtype.itemsize)
        row = self.dtype.itemsize * (self.num_layers * sum(self._state_widths) + of_scratch)
        return min(_ADDRESSES // row, (1 << 62) // self._flat_params.size)

    def _input_size(self, k: int) -> int:
        return self.input_size if k == 0 else self._merged_size

    def _backwards(self, d: int) -> bool:
        """Whether direction d begins at the end."""
        return d == 1 or self.reverse

    def _suffixes(self, k: int) -> list[str]:
        return [f"_l{k}", f"_l{k}_reverse"][: self._directions]

    def _parameter_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        rows = self._gates * self.hidden_size
        for k in range(self.num_layers):
            for suffix in self._suffixes(k):
                yield f"weight_ih{suffix}", (rows, self._input_size(k))
                yield f"weight_hh{suffix}", (rows, self._output_size)
                if self.bias:
                    yield f"bias_ih{suffix}", (rows,)
                    yield f"bias_hh{suffix}", (rows,)
                yield from self._further_shapes(suffix).items()

    def _further_shapes(self, suffix: str) -> dict[str, tuple[int, ...]]:
        gains = ("gain_ih", "gain_hh") if self.layer_norm else ()
        return {f"{name}{suffix}": (self._gates * self.hidden_size,) for name in gains}

    # ------------------------------------------------------------ what the cell gives to the kernels

    _views = (*Module._views, "_weights", "_gradients", "_options", "_short_calls")

    def _allocate(self) -> None:
        super()._allocate()
        suffixes = [suffix for k in range(self.num_layers) for suffix in self._suffixes(k)]
        self._weights = [self._arrays(self._params, suffix) for suffix in suffixes]  # [layer * D + direction]
        self._gradients = [self._arrays(self._grads, suffix) for suffix in suffixes]
        self._make_options()

    def _make_options(self) -> None:
        """Those of every scan, for the kernels; and what has to be made anew with them."""
        self._options = {
            "activations": self._activation_codes(),
            "clip": math.inf if self.clip is None else self.clip,
            "grad_clip": math.inf if self.grad_clip is None else self.grad_clip,
            "coupled": getattr(self, "coupled", False),
            "zoneout": self._zoneout,
        }
        self._short_calls = None
        if self._directions == 1 and not self.reverse and _core.ShortCalls.takes(self.num_layers):
            self._short_calls = _core.ShortCalls(
                self._kernel_index, self._is_double, self.batch_first, self._weights, self._options
            )

    def _kernel(self) -> int:
        raise NotImplementedError

    def _activation_codes(self) -> tuple[tuple[int, float, float], ...]:
        return ()

    def _arrays(self, of: dict[str, np.ndarray], suffix: str) -> tuple[Any, ...]:
        """The arrays of one layer and direction, in the order of `Weights` and `Norms` in kernels/sequence.hpp."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole")
        norms = ("gain_ih", "gain_hh", "gain_c", "bias_c")
        return tuple(of.get(name + suffix) for name in names + norms)

    # ------------------------------------------------------------ the passes

    def __call__(self, x: Any, state: State = None, *, lengths: Any = None, reset: Any = None) -> tuple[Any, State]:
        """Inference: (y, state). Keeps nothing for a backward pass; dropout is off. Arguments as in `forward`."""
        if lengths is None and reset is None and self._short_calls is not None:
            done = self._short_calls.run(x, state)
            if done is not None:
                return done
        batch = checked_batch(self, x, lengths, reset)
        return Forward(self, batch, state).run()

    def stream(self, batch: int = 1) -> _core.Stream:
        """A stream of this layer: the state of `batch` (B) sequences that are still coming in, zero at first.

        >>> import numpy as np, fastrnn
        >>> stream = fastrnn.GRU(8, 16, rng=0).stream()
        >>> stream.step(np.ones(8, np.float32)).shape, stream.run(np.ones((20, 8), np.float32)).shape
        ((16,), (20, 16))

        A step takes a fraction of the time of a call, see `Stream`, which has `step`, `run`, `state`, `reset`, `copy`
        and `refresh`. Dropout is off. The weights are packed here: what changes in them later is not seen until
        `refresh`.
        Raises TypeError or ValueError unless batch is a positive integer, ValueError for more rows than any memory
        holds and for a layer that reads from the end of a sequence, which a stream has not got.
        """
        if self.bidirectional or self.reverse:
            option = "bidirectional" if self.bidirectional else "reverse"
            raise ValueError(f"expected a layer that runs forwards, got {option}=True: a stream has no end to start at")
        if positive_int("batch", batch) > self._most_rows:
            raise ValueError(f"expected batch <= {self._most_rows}, whose state can be addressed, got {batch}")
        return _core.Stream(self, int(batch))

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
        if self._is_double:
            raise TypeError(f"expected a float32 layer, got float64: {weights} would not keep its precision")
        widest = max(self.input_size, self._output_size)
        if weights == "int8" and widest > _MOST_INT8:
            raise ValueError(f"expected at most {_MOST_INT8} inputs and outputs for int8, got {widest}")
        self._stream_weights = weights

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
        reset: bool, x's shape without I: where True, the state is zeroed before that step, in the order in which a
        direction walks: of two directions, the second then still hands x(t) on to step t-1.
        checkpoint: None keeps the tape of every step; a number of segments, or "auto", only states at their borders,
        and `backward` runs forward again, a segment at a time: the same gradients to the bit, in a part of the memory.
        memory_limit: bytes for the tape and all that is between layers, in place of a number of segments: as few of
        them as keep it below, none if all of it fits. Neither counts x, y and dx; nor, with two directions, what is
        kept whole then: y between layers, its gradient, the masks of each step, x with input_dropout.

        Returns y (T, B, D*H), laid out as x is and read-only, since the tape refers to it (so does the tape to x:
        leave it unchanged until `backward`), and the final state at the true end of each sequence.
        Raises TypeError for a wrong dtype and ValueError for a wrong shape or value.
        """
        batch = checked_batch(self, x, lengths, reset)
        if batch.one_hot and self.input_dropout:
            raise ValueError(f"expected x in vectors for input_dropout = {self.input_dropout}, got integer x")
        tape = Tape(self, batch, Kept.checked(checkpoint, memory_limit))
        drawn = self._rng.bit_generator.state if self._drops or self.dropout else None
        try:
            y, final = Forward(self, batch, state, tape).run()
        except BaseException:
            if drawn is not None:  # what is refused, or interrupted, changes nothing
                self._rng.bit_generator.state = drawn
            raise
        y.flags.writeable = False
        tape.y_shape = y.shape
        return y, final, tape

    def backward(self, tape: Tape, dy: Any, dstate: State = None) -> tuple[np.ndarray | None, State]:
        """BPTT: (dx, dstate) for the gradients of y and of the final state; adds into `grads`.

        dy: the shape of y; None: zeros. dstate: that of the final state; None: zeros. dx is None where x held
        indices. A tape may be used again, as long as x and the parameters are unchanged.
        Raises TypeError or ValueError for a tape of another layer, a wrong dtype or a wrong shape.
        """
        if not isinstance(tape, Tape) or tape.layer is not self:
            came = "another layer's" if isinstance(tape, Tape) else type(tape).__name__
            raise ValueError(f"expected the tape that this layer's forward returned, got {came}")
        return Backward(tape, dy, dstate).run()

    # ------------------------------------------------------------ how a pass is divided

    @property
    def _step_work(self) -> int:
        """Multiply-adds of a step of one sequence in the first layer: one for each number of W_ih and W_hh."""
        return self._gates * self.hidden_size * (self.input_size + self.hidden_size)

    def _parts(self, T: int, B: int) -> int:
        """Into how many walks a batch is divided: by its size alone, so that threads do not change the results."""
        weights = self._step_work
        if T * B * weights < threads.WORTH_CUTTING:
            return 1
        # 16 rows fill the tiles; beyond two walks, large weights are better read for more rows at once
        parts = B // 16 if weights <= 1 << 18 else max(min(2, B // 16), B // 32)
        return max(1, min(8, parts))

    def _at_once(self, batch: Batch, training: bool) -> bool:
        """Whether the layers of a stack run at once, each a step behind the one below: for a batch that is too small to
        be divided, if the work is worth it and each step needs but the steps before it. Not where something is dropped:
        a mask between layers is for all steps, and with zoneout y is for a moment not what it was when forward runs
        again."""
        if self.num_layers == 1 or self._directions == 2 or len(batch.walks) > 1:
            return False
        if training and (self.dropout or self._drops):
            return False
        return batch.T * batch.B * self._step_work >= threads.WORTH_CUTTING

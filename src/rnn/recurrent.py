"""What RNN, GRU and LSTM share: a stack of layers and directions, walked forwards and backwards.

    layer(x)                 inference: no history is kept
    layer.forward(x)         training: a tape of every layer and direction
    layer.backward(tape, dy) back-propagation through time, last layer first

`inputs` checks what comes in; `_core.Scan` walks one layer in one direction; `segments.Column` walks a stack a segment
at a time, and keeps little; `threads` runs walks side by side; here, between layers, the directions are merged and
dropout is applied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from . import _core, threads
from .checks import boolean, float_dtype, positive_float, positive_int, probability
from .inputs import FEW_INDICES, Batch, checked_batch, checked_state, time_major, walkable
from .module import Module, checked_array
from .noise import NO_NOISE, Noise, StepMask, draw, draw_between, masked, scaled
from .segments import Column, Kept

State = Any  # h (L*D, B, H), or (h, c) for an LSTM

_MERGES = ("concat", "sum", "mul", "ave")
_KEPT = {"rnn": "", "gru": "rzn", "lstm": "ifgoc"}  # what the tape begins with, in this order, and c
_PIECE = 1 << 12  # rows
_MOST_INT8 = 1 << 17  # terms of a product whose sums fit 32 bits


@dataclass(slots=True)
class Tape:
    """What `backward` needs of one call to `forward`; to be given back to the layer that made it."""

    layer: Any
    batch: Batch
    scans: list[list[Any]] = field(default_factory=list)  # [layer][direction and walk]
    columns: list[list[Column | None]] = field(default_factory=list)  # where the scans are walked in segments
    inputs: list[np.ndarray] = field(default_factory=list)  # x of each layer, (T, B, ...)
    outputs: list[list[np.ndarray]] = field(default_factory=list)  # y of each direction, where merged by "mul"
    masks: list[np.ndarray | None] = field(default_factory=list)  # dropout behind each layer
    noise: list[list[Noise]] = field(default_factory=list)  # [layer][direction]: what else was dropped
    stacked: bool = False  # whether each column goes through all layers
    at_once: bool = False  # whether the layers ran at once, each a step behind the one below
    y_shape: tuple[int, ...] = ()

    @property
    def groups(self) -> Sequence[Sequence[int]]:
        """Layers that a backward pass walks together."""
        L = self.layer.num_layers
        return [range(L)] if self.stacked else [(k,) for k in range(L)]

    def gates(self, layer: int = 0, direction: int = 0) -> dict[str, np.ndarray]:
        """What went on inside: the activations of the gates at every step, by name, each (T, B, H), zero in padding.

        >>> import numpy as np, fastrnn
        >>> lstm = fastrnn.LSTM(3, 8, rng=0)
        >>> y, state, tape = lstm.forward(np.ones((5, 2, 3), np.float32))
        >>> {name: array.shape for name, array in tape.gates().items()}
        {'i': (5, 2, 8), 'f': (5, 2, 8), 'g': (5, 2, 8), 'o': (5, 2, 8), 'c': (5, 2, 8)}

        LSTM: i, f, g, o and the cell state c. GRU: r, z, n. RNN: none, its h is y.
        layer k, direction d: which one.  Raises IndexError if there is none.
        """
        shape = (self.batch.T, self.batch.B, self.layer.hidden_size)
        found = {name: np.zeros(shape, self.layer.dtype) for name in _KEPT[self.layer.cell]}
        for steps, rows, values in self.walked(layer, direction):
            for name, array in found.items():
                array[steps, rows] = values[name]
        return found

    def scans_of(self, layer: int, direction: int) -> list[tuple[_core.Walk, Any, Column | None]]:
        """The walks through one layer in one direction, each with its scan and the column that this is in."""
        walks = self.batch.walks
        some = slice(direction * len(walks), (direction + 1) * len(walks))
        if not self.scans[layer][some]:
            raise IndexError(f"expected a direction below {self.layer._directions}, got {direction}")
        return list(zip(walks, self.scans[layer][some], self.columns[layer][some], strict=True))

    def walked(self, layer: int, direction: int) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """(time steps, batch rows, h and what was kept of them by name (rows, H)), some thousand rows of a walk at a
        time."""
        H, names = self.layer.hidden_size, _KEPT[self.layer.cell]
        for walk, scan, column in self.scans_of(layer, direction):
            steps, rows = walk.where(self.layer._backwards(direction))
            pieces = [(0, walk.T, scan.tape, scan.c, None)] if column is None else column.replayed(scan)
            for s0, s1, kept, c, h in pieces:
                first, end = walk.start[s0], walk.start[s1]
                for start in range(first, end, _PIECE):
                    some = slice(start, min(start + _PIECE, end))
                    part = slice(some.start - first, some.stop - first)
                    values = {name: kept[part, g * H : (g + 1) * H] for g, name in enumerate(names) if name != "c"}
                    if c is not None:
                        values["c"] = c[part]
                    values["h"] = scan.y[steps[some], rows[some]] if h is None else h[part]
                    yield steps[some], rows[some], values


class Recurrent(Module):
    """What RNN, GRU and LSTM share: stacking, directions, ragged batches, dropout and the passes.

    A cell gives its gate count, the widths of its states and its row in the table of kernels.
    """

    cell: ClassVar[str]
    _gates: ClassVar[int]

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
        self.bias = boolean("bias", bias)
        self.batch_first = boolean("batch_first", batch_first)
        self.dropout = probability("dropout", dropout)
        self.weight_dropout = probability("weight_dropout", weight_dropout)
        self.input_dropout = probability("input_dropout", input_dropout)
        self.recurrent_dropout = probability("recurrent_dropout", recurrent_dropout)
        self.zoneout = probability("zoneout", zoneout)
        self.bidirectional = boolean("bidirectional", bidirectional)
        self.reverse = boolean("reverse", reverse)
        self.merge = merge
        self.clip = None if clip is None else positive_float("clip", clip)
        self.grad_clip = None if grad_clip is None else positive_float("grad_clip", grad_clip)
        self.layer_norm = boolean("layer_norm", layer_norm)
        if merge not in _MERGES:
            raise ValueError(f"expected merge among {', '.join(_MERGES)}, got {merge!r}")
        if self.bidirectional and self.reverse:
            raise ValueError("expected reverse=False of a bidirectional layer, which runs both ways, got True")
        self.stream_weights = str(float_dtype(dtype))
        self._rng = np.random.default_rng(rng)
        self._options = {  # of every scan
            "activations": self._activation_codes(),
            "clip": math.inf if clip is None else float(clip),
            "grad_clip": math.inf if grad_clip is None else float(grad_clip),
            "coupled": getattr(self, "coupled", False),
            "zoneout": self._zoneout,
        }
        self._kernel_index = self._kernel()
        self._is_double = float_dtype(dtype) == np.float64
        super().__init__(self._parameter_shapes(), dtype)
        bound = 1 / math.sqrt(self.hidden_size)  # torch's initial values
        for name, array in self.params.items():
            if name.startswith("gain"):
                array[...] = 1
            elif not name.startswith("bias_c"):  # which stays zero, as that of torch.nn.LayerNorm
                array[...] = self._rng.uniform(-bound, bound, array.shape)

    # ------------------------------------------------------------ shapes

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

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
        return any((self.weight_dropout, self.input_dropout, self.recurrent_dropout, *self._zoneout))

    @property
    def _merged_size(self) -> int:
        return self._output_size * (self._directions if self.merge == "concat" else 1)

    def _suffixes(self, k: int) -> list[str]:
        return [f"_l{k}", f"_l{k}_reverse"][: self._directions]

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        rows = self._gates * self.hidden_size
        for k in range(self.num_layers):
            for suffix in self._suffixes(k):
                shapes[f"weight_ih{suffix}"] = (rows, self.input_size if k == 0 else self._merged_size)
                shapes[f"weight_hh{suffix}"] = (rows, self._output_size)
                if self.bias:
                    shapes[f"bias_ih{suffix}"] = shapes[f"bias_hh{suffix}"] = (rows,)
                shapes |= self._further_shapes(suffix)
        return shapes

    def _further_shapes(self, suffix: str) -> dict[str, tuple[int, ...]]:
        gains = ("gain_ih", "gain_hh") if self.layer_norm else ()
        return {f"{name}{suffix}": (self._gates * self.hidden_size,) for name in gains}

    # ------------------------------------------------------------ what the cell gives to the kernels

    _views = (*Module._views, "_weights", "_gradients", "_short_calls")

    def _allocate(self) -> None:
        super()._allocate()
        suffixes = [suffix for k in range(self.num_layers) for suffix in self._suffixes(k)]
        self._weights = [self._arrays(self._params, suffix) for suffix in suffixes]  # [layer * D + direction]
        self._gradients = [self._arrays(self._grads, suffix) for suffix in suffixes]
        self._short_calls = None
        if self._directions == 1 and not self.reverse and _core.ShortCalls.takes(self.num_layers):
            self._short_calls = _core.ShortCalls(
                self._kernel_index, self._is_double, self.batch_first, self._weights, self._options
            )

    def _kernel(self) -> int:
        raise NotImplementedError

    def _activation_codes(self) -> tuple[tuple[int, float, float], ...]:
        return ()

    def _arrays(self, of: dict[str, np.ndarray], suffix: str) -> tuple[np.ndarray | None, ...]:
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
        y, final, _ = self._run(batch, state)
        return y, final

    def stream(self, batch: int = 1) -> _core.Stream:
        """A stream of this layer: the state of `batch` (B) sequences that are still coming in, zero at first.

        >>> import numpy as np, fastrnn
        >>> stream = fastrnn.GRU(8, 16, rng=0).stream()
        >>> stream.step(np.ones(8, np.float32)).shape, stream.run(np.ones((20, 8), np.float32)).shape
        ((16,), (20, 16))

        A step takes a fraction of the time of a call, see `Stream`, which has `step`, `run`, `state`, `reset`, `copy`
        and `refresh`. Dropout is off. The weights are packed here: what changes in them later is not seen until
        `refresh`.
        Raises TypeError or ValueError unless batch is a positive integer, ValueError for a layer that reads from the
        end of a sequence, which a stream has not got.
        """
        if self.bidirectional or self.reverse:
            option = "bidirectional" if self.bidirectional else "reverse"
            raise ValueError(f"expected a layer that runs forwards, got {option}=True: a stream has no end to start at")
        return _core.Stream(self, positive_int("batch", batch))

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
        self.stream_weights = weights

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
        y, final, tape = self._run(batch, state, Kept.checked(checkpoint, memory_limit))
        y.flags.writeable = False
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
        batch = tape.batch
        if dy is None:
            dy = np.zeros(tape.y_shape, self.dtype)
        dy = walkable(time_major(self, checked_array("dy", dy, tape.y_shape, self.dtype), batch.unbatched))
        final = checked_state(self, dstate, batch.B, batch.unbatched, "dstate")
        initial = tuple(np.empty_like(array) for array in final)
        tasks: list[Any] = []
        finishing: list[Any] = []
        for layers in reversed(tape.groups):
            mask = tape.masks[layers[-1]]
            if mask is not None:
                dy = dy * mask
            dy, own, finish = self._backward_layers(tape, layers, dy, final, initial, search=False)
            tasks, finishing = tasks + own, [*finishing, finish]
            if layers[0] == 0 or not tape.at_once:
                _walk(tasks, tape.columns[0] if tape.stacked else tape.scans[layers[0]])
                for each in finishing:
                    each()
                tasks, finishing = [], []
        return None if dy is None else self._user_layout(dy, batch), self._user_state(initial, batch)

    def _run(self, batch: Batch, state: State, keep: Kept | None = None) -> tuple[np.ndarray, State, Tape]:
        """All layers; for training, where `keep` says what is kept."""
        training = keep is not None
        initial = checked_state(self, state, batch.B, batch.unbatched)
        final = tuple(np.empty_like(array) for array in initial)
        tape = Tape(self, batch)
        if batch.one_hot and (training or batch.x.size > FEW_INDICES):
            batch.number(self.input_size, self._gates * self.hidden_size)
        noise, drops = self._draw(batch.B, training)
        y = None
        if keep is not None and not keep.is_all and self._directions == 1:
            y = self._run_columns(batch, tape, noise, drops, initial, final, keep)
        if y is None:
            y = self._run_layers(batch, tape, noise, drops, initial, final, keep)
        y = self._user_layout(y, batch)
        tape.y_shape = y.shape
        return y, self._user_state(final, batch), tape

    def _draw(self, B: int, training: bool) -> tuple[list[list[Noise]], list[StepMask | None]]:
        """What a pass drops: in each layer and direction, and behind each layer but the last."""
        L = self.num_layers
        noise = [[NO_NOISE] * self._directions] * L
        if training and self._drops:
            noise = [draw(self, k, B) for k in range(L)]
        if training and self.dropout:
            return noise, [draw_between(self, B) for _ in range(L - 1)]
        return noise, [None] * (L - 1)

    def _run_layers(
        self,
        batch: Batch,
        tape: Tape,
        noise: list[list[Noise]],
        drops: list[StepMask | None],
        initial: Any,
        final: Any,
        keep: Kept | None,
    ) -> np.ndarray:
        """All layers, each through all steps: y of the last."""
        training = keep is not None
        at_once = tape.at_once = self._at_once(batch, training)
        x = batch.x
        waiting: list[Any] = []
        for k in range(self.num_layers):
            last = k == self.num_layers - 1
            y = self._empty_output(batch, last)
            outputs = self._direction_views(y)
            drawn = noise[k]
            if drawn[0] is not NO_NOISE:
                drawn = [each.at_all_steps(batch.T) for each in drawn]
            x = masked(x, drawn[0].x)
            scans = self._layer_scans(batch, k, x, outputs, initial, final, drawn)
            columns = [] if keep is None else self._kept(batch, x, scans, keep)
            if waiting:
                scans[0].follow(waiting[-1])
            waiting += [column or scan for scan, column in zip(scans, columns, strict=True)] if any(columns) else scans
            if last or not at_once:
                _walk([run.forward for run in waiting], waiting)
                waiting = []
            y = self._merge(y, outputs)
            dropped = None if last else drops[k]
            mask = None if dropped is None else scaled(dropped.whole(batch.T), dropped.p, self.dtype)
            if training:
                tape.noise.append(drawn)
                tape.scans.append(scans)
                tape.columns.append(columns)
                tape.inputs.append(x)
                tape.outputs.append(outputs if self.merge == "mul" else [])
                tape.masks.append(mask)
            x = y = masked(y, mask)
        return y

    def _run_columns(
        self,
        batch: Batch,
        tape: Tape,
        noise: list[list[Noise]],
        drops: list[StepMask | None],
        initial: Any,
        final: Any,
        keep: Kept,
    ) -> np.ndarray | None:
        """All layers of a stack that runs in one direction, a segment at a time; None if the tape is to be kept."""
        y, last = self._empty_output(batch, True), self.num_layers - 1
        in_scans = [each[0]._replace(keeps_h=None, keeps_c=None) for each in noise]
        weights = [self._masked_weights(k, each) for k, each in enumerate(in_scans)]
        columns, alone = [], len(batch.walks) == 1
        for walk in batch.walks:
            scans = [
                _core.Scan(
                    self._kernel_index, self._is_double, weights[k], self._options, walk, k, self.reverse,
                    None if k else batch.x, y if k == last else None, initial, final, batch.reset, in_scans[k],
                )
                for k in range(self.num_layers)
            ]  # fmt: skip
            columns.append(Column(walk, self.reverse, scans, batch.x, [each[0] for each in noise], drops, alone))
        counts = [keep.segments(column, len(columns)) for column in columns]
        if not any(counts):
            return None
        for column, count in zip(columns, counts, strict=True):
            column.divide(count or 2)
        threads.run([column.forward for column in columns])
        tape.stacked, tape.noise, tape.inputs = True, noise, [batch.x]
        tape.scans = [[column.scans[k] for column in columns] for k in range(self.num_layers)]
        tape.columns = [list(columns)] * self.num_layers
        tape.masks, tape.outputs = [None] * self.num_layers, [[]] * self.num_layers
        return y

    def _at_once(self, batch: Batch, training: bool) -> bool:
        """Whether the layers of a stack run at once, each a step behind the one below: for a batch that is too small to
        be divided, if the work is worth it and each step needs but the steps before it. Not where something is dropped:
        a mask between layers is for all steps, and with zoneout y is for a moment not what it was when forward runs
        again."""
        if self.num_layers == 1 or self._directions == 2 or len(batch.walks) > 1:
            return False
        if training and (self.dropout or self._drops):
            return False
        rows = self._gates * self.hidden_size
        return batch.T * batch.B * rows * (self.input_size + self.hidden_size) >= threads.WORTH_CUTTING

    def _layer_scans(
        self,
        batch: Batch,
        k: int,
        x: np.ndarray,
        outputs: list[np.ndarray],
        initial: Any,
        final: Any,
        noise: list[Noise],
    ) -> list[Any]:
        """All directions and walks of layer k."""
        scans = []
        for d, y in enumerate(outputs):
            at = k * self._directions + d
            weights = self._masked_weights(at, noise[d])
            for walk in batch.walks:
                scan = _core.Scan(
                    self._kernel_index, self._is_double, weights, self._options, walk, at, self._backwards(d),
                    x, y, initial, final, batch.reset, noise[d],
                )  # fmt: skip
                scans.append(scan)
        return scans

    def _kept(self, batch: Batch, x: np.ndarray, scans: list[Any], keep: Kept) -> list[Column | None]:
        """Let the scans of a layer keep their tape, but those of two directions that are walked in segments: by these
        columns."""
        if keep.is_all or self._directions == 1:
            for scan in scans:
                scan.keep()
            return [None] * len(scans)
        columns: list[Column | None] = []
        for i, scan in enumerate(scans):
            d, index = divmod(i, len(batch.walks))
            column = Column(batch.walks[index], self._backwards(d), [scan], x, [NO_NOISE], [], alone=False)
            count = keep.segments(column, len(scans) * self.num_layers)
            if count:
                column.divide(count)
            else:
                scan.keep()
            columns.append(column if count else None)
        return columns

    def _masked_weights(self, at: int, noise: Noise) -> tuple[np.ndarray | None, ...]:
        if noise.weight_hh is None:
            return self._weights[at]
        ih, hh, *others = self._weights[at]
        return ih, hh if hh is None else masked(hh, noise.weight_hh), *others

    def _backward_layers(
        self, tape: Tape, layers: Sequence[int], dy: np.ndarray, final: Any, initial: Any, search: bool
    ) -> tuple[np.ndarray | None, list[Any], Any]:
        """BPTT through a group of layers, to be run: (dx, tasks that write it, what is to be done after them).

        That adds into the gradients and writes those of the initial states. In a search the tasks' results say where
        values that are not finite arise. dx of two directions is made of parts, and masked, after the tasks.
        """
        k, D = layers[0], self._directions
        x, scans, columns = tape.inputs[k], iter(tape.scans[k]), iter(tape.columns[k])
        one_hot = x.ndim == 2
        tasks, ends = [], []
        d_inputs: list[Any] = []
        for d, part in enumerate(self._unmerge(dy, tape.outputs[layers[-1]])):
            dx = None if one_hot else _core.new_array(x.shape, self.dtype)
            d_inputs.append(dx)
            for index, walk in enumerate(tape.batch.walks):
                scan, column, owns = next(scans), next(columns), []
                for each in layers:
                    gradients, mask = self._gradients[each * D + d], tape.noise[each][d].weight_hh
                    numbered = walk.columns if one_hot and each == k else None
                    own = _walk_gradients(gradients, index, numbered, mask is not None)
                    owns.append(own)
                    if own is not gradients:
                        ends.append((gradients, own, mask, numbered))
                if column is None:
                    scan.rewind()
                    tasks.append(partial(scan.backward, part, dx, final, initial, owns[0], search))
                else:
                    tasks.append(partial(column.backward, part, dx, final, initial, owns, search))

        def finish() -> None:
            tables = []
            for gradients, own, mask, numbered in ends:
                if mask is not None:
                    own[1][...] *= mask
                if numbered is not None:
                    tables.append((own[0], numbered, gradients[0]))
                first = 0 if numbered is None else 1
                for g, mine in zip(gradients[first:], own[first:], strict=True):
                    if g is not None and g is not mine:
                        g += mine
            if one_hot:
                _add_tables(tables)
                return
            if len(d_inputs) == 2:
                d_inputs[0] += d_inputs[1]
            if tape.noise[k][0].x is not None:
                d_inputs[0] *= tape.noise[k][0].x

        return d_inputs[0], tasks, finish

    def _parts(self, T: int, B: int) -> int:
        """Into how many walks a batch is divided: by its size alone, so that threads do not change the results."""
        weights = self._gates * self.hidden_size * (self.input_size + self.hidden_size)
        if T * B * weights < threads.WORTH_CUTTING:
            return 1
        # 16 rows fill the tiles; beyond two walks, large weights are better read for more rows at once
        parts = B // 16 if weights <= 1 << 18 else max(min(2, B // 16), B // 32)
        return max(1, min(8, parts))

    # ------------------------------------------------------------ layouts

    def _backwards(self, d: int) -> bool:
        return d == 1 or self.reverse

    def _input_size(self, k: int) -> int:
        return self.input_size if k == 0 else self._merged_size

    def _empty_output(self, batch: Batch, last: bool) -> np.ndarray:
        """y (T, B, D*P) of a layer, in the caller's layout if it is the last."""
        width = self._directions * self._output_size
        swap = self.batch_first and last
        shape = (batch.B, batch.T, width) if swap else (batch.T, batch.B, width)
        y = _core.new_array(shape, self.dtype)
        return y.swapaxes(0, 1) if swap else y

    def _direction_views(self, y: np.ndarray) -> list[np.ndarray]:
        if self._directions == 1:
            return [y]
        P = self._output_size
        return [y[:, :, d * P : (d + 1) * P] for d in range(self._directions)]

    def _merge(self, y: np.ndarray, outputs: list[np.ndarray]) -> np.ndarray:
        if self.merge == "concat" or len(outputs) == 1:
            return y
        a, b = outputs
        if self.merge == "mul":
            return a * b
        return a + b if self.merge == "sum" else (a + b) / 2

    def _unmerge(self, dy: np.ndarray, outputs: list[np.ndarray]) -> list[np.ndarray]:
        """Gradients of the directions' outputs."""
        if self._directions == 1:
            return [dy]
        if self.merge == "concat":
            return [dy[:, :, : self._output_size], dy[:, :, self._output_size :]]
        if self.merge == "mul":
            return [dy * outputs[1], dy * outputs[0]]
        return [dy, dy] if self.merge == "sum" else [dy / 2] * 2

    def _user_layout(self, array: np.ndarray, batch: Batch) -> np.ndarray:
        if batch.unbatched:
            return array[:, 0]
        return array.swapaxes(0, 1) if self.batch_first else array

    def _user_state(self, state: tuple[np.ndarray, ...], batch: Batch) -> State:
        if batch.unbatched:
            state = tuple(array[:, 0] for array in state)
        return state if len(state) == 2 else state[0]


def _walk(tasks: list[Any], scans: list[Any]) -> None:
    """Run tasks that each walk through a scan: several side by side, one by itself by units."""
    most = scans[0].threads if len(tasks) == 1 else 1
    if most == 1:
        threads.run(tasks)
        return
    with threads.crew(most, scans[0].work) as crew:
        tasks[0](crew=crew)


def _walk_gradients(gradients: Any, index: int, columns: np.ndarray | None, masks_hh: bool) -> tuple[Any, ...]:
    """Where a walk adds: the first into the gradients themselves, the others into arrays that are added in turn.

    So does the first where the gradient of W_hh is yet to be masked. With one-hot input, that of W_ih (G*H, I) is for
    every walk a table (n, G*H) of the columns that it needs.
    """
    if index == 0 and columns is None and not masks_hh:
        return gradients
    ih, *others = gradients
    if index > 0:
        others = [None if g is None else _zeros_like(g) for g in others]
    if columns is not None:
        ih = _core.new_array((len(columns), len(ih)), ih.dtype, zero=True)
    elif index > 0:
        ih = _zeros_like(ih)
    if index == 0 and masks_hh:
        others[0] = _zeros_like(others[0])
    return ih, *others


def _zeros_like(array: np.ndarray) -> np.ndarray:
    return _core.new_array(array.shape, array.dtype, zero=True)


def _add_tables(tables: list[tuple[np.ndarray, Any, Any]]) -> None:
    """For each (table (n, G*H), columns (n,), dW_ih (G*H, I)):  those columns of dW_ih += the rows of the table."""

    def add(rows: slice) -> None:
        for table, columns, dw in tables:
            _core.add_to_columns(table[:, rows], columns, dw[rows])

    # by blocks of rows of dW_ih, each in the order of the walks; a sum takes as long as some 32 multiply-adds
    work = 32 * sum(table.size for table, _, _ in tables)
    threads.run([partial(add, rows) for rows in threads.blocks(len(tables[0][2]), work)])

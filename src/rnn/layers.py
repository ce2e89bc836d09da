"""RNN, GRU and LSTM: recurrent layers with torch's parameters, over NumPy arrays.

Each says which parameters it has and which kernel computes it; all else is in `recurrent`.  What the cells compute is
in kernels/ (fast) and in reference/ (readable).
"""

from __future__ import annotations

from typing import Any

from .activations import Activation, activation_code, activation_codes
from .checks import boolean, non_negative_int, positive_int
from .recurrent import Recurrent

# Rows of the table of kernels: CellKind in kernels/table.hpp
_RNN_TANH, _RNN_RELU, _RNN_GENERAL, _GRU, _GRU_GENERAL, _GRU_BEFORE, _GRU_BEFORE_GENERAL, _LSTM, _LSTM_GENERAL = range(
    9
)
_RNN_TANH_NORMED, _RNN_RELU_NORMED, _GRU_NORMED, _LSTM_NORMED = range(9, 13)

# With layer normalisation: the rows that there are, and what there is no row of
_NORMED = {_RNN_TANH: _RNN_TANH_NORMED, _RNN_RELU: _RNN_RELU_NORMED, _GRU: _GRU_NORMED, _LSTM: _LSTM_NORMED}
_NOT_NORMED = {"clip": None, "reset_after": True, "proj_size": 0, "peephole": False, "coupled": False}


def _with_norms(layer: Recurrent, kernel: int, activations: Any) -> int:
    """The row of a cell, or if the layer wants it, that of the same cell with layer normalisation."""
    if not layer.layer_norm:
        return kernel
    for name, only in _NOT_NORMED.items():
        if getattr(layer, name, only) != only:
            raise ValueError(f"expected {name}={only} beside layer_norm=True, got {getattr(layer, name)!r}")
    if kernel not in _NORMED:
        raise ValueError(f"expected a cell's usual activations beside layer_norm=True, got {activations!r}")
    return _NORMED[kernel]


class RNN(Recurrent):
    """The vanilla recurrent network, h(t) = tanh(W_ih x(t) + b_ih + W_hh h(t-1) + b_hh).

    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.RNN(8, 16, rng=0)
    >>> x = np.ones((20, 4, 8), np.float32)                  # T, B, I
    >>> y, h = layer(x)                                      # inference
    >>> y.shape, h.shape
    ((20, 4, 16), (1, 4, 16))
    >>> y, h, tape = layer.forward(x)                        # training
    >>> dx, dh = layer.backward(tape, np.ones_like(y))       # adds into layer.grads
    >>> dx.shape, layer.grads["weight_hh_l0"].shape
    ((20, 4, 8), (16, 16))

    input_size I, hidden_size H, num_layers L: sizes.
    nonlinearity: "tanh" or "relu", or any activation of ONNX: a name, (name, alpha) or (name, alpha, beta), see
    fastrnn.activations; the first two have kernels of their own, the others run slower.
    bias: whether there are b_ih and b_hh.
    batch_first: x and y are (B, T, ...) in place of (T, B, ...); states are not affected.
    dropout: probability of a zero behind each layer but the last, in training.
    weight_dropout, input_dropout, recurrent_dropout: likewise of a zero in weight_hh, in x of each layer, and in h(t-1)
    where it enters the product; drawn once for a call (and sequence) and the same at all steps.
    zoneout: probability that a unit of h keeps its value at a step, in training; in inference, h moves by the mean.
    Sources of these four: fastrnn.noise. They work together, with all else but one: input_dropout needs x in vectors.
    bidirectional: a second direction runs from the end to the start.   reverse: the only direction does.
    merge: how two directions become one y: "concat" (as torch), "sum", "mul" or "ave" (as Keras).
    clip: pre-activations are held within +-clip, as ONNX's attribute says.
    grad_clip: in `backward`, the gradient of every pre-activation is held within +-grad_clip at its step, before it
    goes on to weights, x and the step before (Graves 2013); those of c, and of h beside a GRU's gates, are not.
    layer_norm: both products are normalised, each over all units and gates of a row (Ba, Kiros and Hinton 2016):
    LN(W_ih x(t)) gain_ih + b_ih and LN(W_hh h(t-1)) gain_hh + b_hh take the place of W_ih x(t) + b_ih and
    W_hh h(t-1) + b_hh; LN(a) = (a - mean(a)) / sqrt(var(a) + 1e-5). Not together with clip and other activations.
    dtype: float32 or float64, of parameters and all arrays.
    rng: None, an int or a numpy Generator: initial values (torch's: uniform in +-1/sqrt(H)) and all that is dropped.
    All are fixed once the layer is made, but for the probabilities and grad_clip: these may be assigned, as in
    ``layer.dropout = 0.2``, for the calls that come then and for streams that are made or refreshed then.

    Parameters (`params`, names and shapes of torch): weight_ih_l{k} (H, I or D*H), weight_hh_l{k} (H, H),
    bias_ih_l{k}, bias_hh_l{k} (H,); with layer_norm gain_ih_l{k}, gain_hh_l{k} (H,), at first one; "_reverse" is
    appended for the second direction.
    Raises TypeError or ValueError for arguments out of range.
    Source: J. L. Elman, Finding structure in time, Cognitive Science 14 (1990).
    """

    cell = "rnn"
    _gates = 1
    _fixed = Recurrent._fixed | {"nonlinearity"}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Activation = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        weight_dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        merge: str = "concat",
        clip: float | None = None,
        grad_clip: float | None = None,
        layer_norm: bool = False,
        dtype: Any = "float32",
        rng: Any = None,
    ) -> None:
        self.nonlinearity = nonlinearity
        activation_code(nonlinearity)
        super().__init__(
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            weight_dropout=weight_dropout, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
            zoneout=zoneout, bidirectional=bidirectional, reverse=reverse, merge=merge, clip=clip,
            grad_clip=grad_clip, layer_norm=layer_norm, dtype=dtype, rng=rng,
        )  # fmt: skip

    def _kernel(self) -> int:
        kernel = _RNN_TANH if self.nonlinearity == "tanh" else _RNN_RELU
        if self.clip is not None or self.nonlinearity not in ("tanh", "relu"):
            kernel = _RNN_GENERAL
        return _with_norms(self, kernel, self.nonlinearity)

    def _activation_codes(self) -> tuple[tuple[int, float, float], ...]:
        return (activation_code(self.nonlinearity),)


class GRU(Recurrent):
    """The gated recurrent unit.

        r = sigmoid(W_ir x(t) + b_ir + W_hr h(t-1) + b_hr)         z alike
        n = tanh(W_in x(t) + b_in + r (W_hn h(t-1) + b_hn))        h(t) = (1 - z) n + z h(t-1)

    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.GRU(8, 16, num_layers=2, bidirectional=True, rng=0)
    >>> y, h = layer(np.ones((20, 4, 8), np.float32))
    >>> y.shape, h.shape
    ((20, 4, 32), (4, 4, 16))

    reset_after: True, the product is made before the reset gate is applied, as torch and cuDNN do; False, after it,
    n = tanh(W_in x(t) + b_in + W_hn (r h(t-1)) + b_hn), as the original and Keras's reset_after=False do.
    activations: of the gates r, z and of n, see `RNN` for what one can be; all but the default run slower.
    layer_norm: as in `RNN`, over 3H numbers; of the GRU with reset_after.
    The other arguments are those of `RNN`. Parameters as there with 3H rows, gates in the order r, z, n.
    Raises TypeError or ValueError for arguments out of range.
    Source: K. Cho et al., Learning phrase representations using RNN encoder-decoder, EMNLP 2014.
    """

    cell = "gru"
    _gates = 3
    _fixed = Recurrent._fixed | {"reset_after", "activations"}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        activations: tuple[Activation, Activation] = ("sigmoid", "tanh"),
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        weight_dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        merge: str = "concat",
        clip: float | None = None,
        grad_clip: float | None = None,
        layer_norm: bool = False,
        dtype: Any = "float32",
        rng: Any = None,
    ) -> None:
        self.reset_after = boolean("reset_after", reset_after)
        activation_codes(activations, 2)
        self.activations = tuple(activations)
        super().__init__(
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            weight_dropout=weight_dropout, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
            zoneout=zoneout, bidirectional=bidirectional, reverse=reverse, merge=merge, clip=clip,
            grad_clip=grad_clip, layer_norm=layer_norm, dtype=dtype, rng=rng,
        )  # fmt: skip

    def _kernel(self) -> int:
        general = self.clip is not None or tuple(self.activations) != ("sigmoid", "tanh")
        if self.reset_after:
            return _with_norms(self, _GRU_GENERAL if general else _GRU, self.activations)
        return _with_norms(self, _GRU_BEFORE_GENERAL if general else _GRU_BEFORE, self.activations)

    def _activation_codes(self) -> tuple[tuple[int, float, float], ...]:
        return activation_codes(self.activations, 2)


class LSTM(Recurrent):
    """Long short-term memory.

        i, f, o = sigmoid(W x(t) + b + W' h(t-1) + b')             g = tanh(alike)
        c(t) = f c(t-1) + i g                                      h(t) = o tanh(c(t))

    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.LSTM(8, 16, rng=0)
    >>> y, (h, c) = layer(np.ones((20, 4, 8), np.float32), lengths=np.array([20, 3, 12, 7]))
    >>> y.shape, h.shape, c.shape
    ((20, 4, 16), (1, 4, 16), (1, 4, 16))

    proj_size P: if not 0, h(t) = W_hr (o tanh(c(t))) of width P < H (weight_hr_l{k} (P, H)); y and h are then P wide.
    peephole: i and f also see c(t-1), o sees c(t), through weight_peephole_l{k} (3, H), rows i, f, o.
    coupled: f = 1 - i, as ONNX's input_forget says; the rows of f in the weights are then unused.
    zoneout_cell: as `zoneout`, of c; the h of that step still sees the new c.
    layer_norm: as in `RNN`, over 4H numbers; and h(t) = o tanh(LN(c(t)) gain_c + bias_c), while c itself is carried on
    as it is: gain_c_l{k}, bias_c_l{k} (H,), at first one and zero. Not together with proj_size, peephole and coupled.
    activations: of the gates i, f, o, of g, and of c, see `RNN` for what one can be; all but the default run slower.
    The other arguments are those of `RNN`. Parameters as there with 4H rows, gates in the order i, f, g, o.
    Raises TypeError or ValueError for arguments out of range.
    Source: S. Hochreiter and J. Schmidhuber, Long short-term memory, Neural Computation 9 (1997); F. Gers et al.,
    Learning to forget, Neural Computation 12 (2000), and Learning precise timing, JMLR 3 (2002), for peepholes.
    """

    cell = "lstm"
    _gates = 4
    _fixed = Recurrent._fixed | {"proj_size", "peephole", "coupled", "activations"}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        proj_size: int = 0,
        peephole: bool = False,
        coupled: bool = False,
        zoneout_cell: float = 0.0,
        activations: tuple[Activation, Activation, Activation] = ("sigmoid", "tanh", "tanh"),
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        weight_dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        merge: str = "concat",
        clip: float | None = None,
        grad_clip: float | None = None,
        layer_norm: bool = False,
        dtype: Any = "float32",
        rng: Any = None,
    ) -> None:
        self.proj_size = non_negative_int("proj_size", proj_size)
        if self.proj_size >= positive_int("hidden_size", hidden_size):
            raise ValueError(f"expected proj_size smaller than hidden_size = {hidden_size}, got {proj_size}")
        self.peephole = boolean("peephole", peephole)
        self.coupled = boolean("coupled", coupled)
        self.zoneout_cell = zoneout_cell
        activation_codes(activations, 3)
        self.activations = tuple(activations)
        super().__init__(
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            weight_dropout=weight_dropout, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
            zoneout=zoneout, bidirectional=bidirectional, reverse=reverse, merge=merge, clip=clip,
            grad_clip=grad_clip, layer_norm=layer_norm, dtype=dtype, rng=rng,
        )  # fmt: skip

    @property
    def _output_size(self) -> int:
        return self.proj_size or self.hidden_size

    @property
    def _state_widths(self) -> tuple[int, ...]:
        return (self._output_size, self.hidden_size)

    @property
    def _zoneout(self) -> tuple[float, float]:
        return self.zoneout, self.zoneout_cell

    def _further_shapes(self, suffix: str) -> dict[str, tuple[int, ...]]:
        shapes = super()._further_shapes(suffix)
        if self.layer_norm:
            shapes[f"gain_c{suffix}"] = (self.hidden_size,)
        if self.layer_norm and self.bias:
            shapes[f"bias_c{suffix}"] = (self.hidden_size,)
        if self.proj_size:
            shapes[f"weight_hr{suffix}"] = (self.proj_size, self.hidden_size)
        if self.peephole:
            shapes[f"weight_peephole{suffix}"] = (3, self.hidden_size)
        return shapes

    def _kernel(self) -> int:
        plain = self.clip is None and tuple(self.activations) == ("sigmoid", "tanh", "tanh")
        kernel = _LSTM if plain and not self.peephole and not self.coupled else _LSTM_GENERAL
        return _with_norms(self, kernel, self.activations)

    def _activation_codes(self) -> tuple[tuple[int, float, float], ...]:
        return activation_codes(self.activations, 3)

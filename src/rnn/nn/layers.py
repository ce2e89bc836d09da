"""RNN, GRU and LSTM: recurrent layers with torch's parameters, over NumPy arrays.

Each says which options and parameters it has and which row of the kernel table computes it; all else is in `recurrent`.
What the cells compute is in kernels/cells/ (fast) and in reference/ (readable).
"""

from __future__ import annotations

from typing import Any

from .activations import Activation, activation_codes
from .options import GRU_ACTIVATIONS, LSTM_OPTIONS, NONLINEARITY, RESET_AFTER, documented
from .recurrent import Recurrent

__all__ = ["GRU", "LSTM", "RNN"]

# There is no row of the table with layer normalisation and any of these
_NOT_NORMED = {"clip": None, "reset_after": True, "proj_size": 0, "peephole": False, "coupled": False}


def _normed(layer: Recurrent, row: str, is_general: bool, activations: Any) -> str:
    """The row of a cell with layer normalisation."""
    for name, only in _NOT_NORMED.items():
        if getattr(layer, name, only) != only:
            raise ValueError(f"expected {name}={only} beside layer_norm=True, got {getattr(layer, name)!r}")
    if is_general:
        raise ValueError(f"expected a cell's usual activations beside layer_norm=True, got {activations!r}")
    return f"{row} layer norm"


@documented(NONLINEARITY)
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
    {own}
    {shared}
    Sources of the dropouts within a layer: fastrnn.engine.dropout. They work together.
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
    _own_options = (NONLINEARITY,)
    nonlinearity: Activation

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
        super().__init__(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})

    def _kernel(self) -> str:
        is_general = self.clip is not None or self.nonlinearity not in ("tanh", "relu")
        if self.layer_norm:
            return _normed(self, f"rnn {self.nonlinearity}", is_general, self.nonlinearity)
        return "rnn general" if is_general else f"rnn {self.nonlinearity}"

    def _activation_codes(self) -> tuple[tuple[int, float, float], ...]:
        return activation_codes((self.nonlinearity,), 1)


@documented(RESET_AFTER, GRU_ACTIVATIONS)
class GRU(Recurrent):
    """The gated recurrent unit.

        r = sigmoid(W_ir x(t) + b_ir + W_hr h(t-1) + b_hr)         z alike
        n = tanh(W_in x(t) + b_in + r (W_hn h(t-1) + b_hn))        h(t) = (1 - z) n + z h(t-1)

    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.GRU(8, 16, num_layers=2, bidirectional=True, rng=0)
    >>> y, h = layer(np.ones((20, 4, 8), np.float32))
    >>> y.shape, h.shape
    ((20, 4, 32), (4, 4, 16))

    {own}
    layer_norm: over 3H numbers; of the GRU with reset_after.
    The other arguments are those of `RNN`. Parameters as there with 3H rows, gates in the order r, z, n.
    Raises TypeError or ValueError for arguments out of range.
    Source: K. Cho et al., Learning phrase representations using RNN encoder-decoder, EMNLP 2014.
    """

    cell = "gru"
    _gates = 3
    _own_options = (RESET_AFTER, GRU_ACTIVATIONS)
    reset_after: bool
    activations: tuple[Activation, Activation]

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
        super().__init__(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})

    def _kernel(self) -> str:
        is_general = self.clip is not None or self.activations != GRU_ACTIVATIONS.default
        row = "gru" if self.reset_after else "gru reset before"
        if self.layer_norm:
            return _normed(self, row, is_general, self.activations)
        return f"{row} general" if is_general else row

    def _activation_codes(self) -> tuple[tuple[int, float, float], ...]:
        return activation_codes(self.activations, 2)


@documented(*LSTM_OPTIONS)
class LSTM(Recurrent):
    """Long short-term memory.

        i, f, o = sigmoid(W x(t) + b + W' h(t-1) + b')             g = tanh(alike)
        c(t) = f c(t-1) + i g                                      h(t) = o tanh(c(t))

    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.LSTM(8, 16, rng=0)
    >>> y, (h, c) = layer(np.ones((20, 4, 8), np.float32), lengths=np.array([20, 3, 12, 7]))
    >>> y.shape, h.shape, c.shape
    ((20, 4, 16), (1, 4, 16), (1, 4, 16))

    {own}
    layer_norm: over 4H numbers; and h(t) = o tanh(LN(c(t)) gain_c + bias_c), while c itself is carried on as it is:
    gain_c_l{k}, bias_c_l{k} (H,), at first one and zero. Not together with proj_size, peephole and coupled.
    The other arguments are those of `RNN`. Parameters as there with 4H rows, gates in the order i, f, g, o.
    Raises TypeError or ValueError for arguments out of range.
    Source: S. Hochreiter and J. Schmidhuber, Long short-term memory, Neural Computation 9 (1997); F. Gers et al.,
    Learning to forget, Neural Computation 12 (2000), and Learning precise timing, JMLR 3 (2002), for peepholes.
    """

    cell = "lstm"
    _gates = 4
    _own_options = LSTM_OPTIONS
    proj_size: int
    peephole: bool
    coupled: bool
    zoneout_cell: float
    activations: tuple[Activation, Activation, Activation]

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
        super().__init__(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})

    @property
    def _states(self) -> tuple[tuple[str, int], ...]:
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"expected proj_size smaller than hidden_size = {self.hidden_size}, got {self.proj_size}")
        return (("h", self.proj_size or self.hidden_size), ("c", self.hidden_size))

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

    def _kernel(self) -> str:
        usual = self.clip is None and self.activations == ("sigmoid", "tanh", "tanh")
        if self.layer_norm:
            return _normed(self, "lstm", not usual, self.activations)
        return "lstm" if usual and not self.peephole and not self.coupled else "lstm general"

    def _activation_codes(self) -> tuple[tuple[int, float, float], ...]:
        return activation_codes(self.activations, 3)

"""Initial values of a recurrent layer by name. A new layer has torch's, ``uniform`` for all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..util.checks import finite_float
from .recurrent import Recurrent

__all__ = ["initialize"]

_WEIGHTS = ("uniform", "glorot", "orthogonal")
_BIASES = ("uniform", "zeros")


def initialize(
    layer: Recurrent,
    *,
    weight_ih: str = "glorot",
    weight_hh: str = "orthogonal",
    bias: str = "zeros",
    forget_bias: float = 0.0,
    rng: Any = None,
) -> None:
    """Give the parameters of a layer new values, in place.

    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.LSTM(8, 16, rng=0)
    >>> fastrnn.initialize(layer, weight_hh="orthogonal", forget_bias=1.0, rng=0)
    >>> W = layer.params["weight_hh_l0"][:16]  # of gate i
    >>> bool(np.allclose(W @ W.T, np.eye(16), atol=1e-5))
    True

    weight_ih, weight_hh: "uniform", in +-1/sqrt(H) as torch; "glorot", uniform in +-sqrt(6 / (fan in + fan out));
    "orthogonal", with orthonormal rows or columns. Each gate's matrix is drawn by itself.  A projection is drawn as
    weight_ih is, peepholes always as "uniform".
    Gains of layer normalisation become one, bias_c zero.
    bias: "uniform" as torch, or "zeros".  forget_bias: what bias_ih of an LSTM's forget gate is then set to, if not 0.
    rng: None, an int or a numpy Generator.

    Raises TypeError for what is no recurrent layer, or no number as forget_bias; ValueError for another name, or for a
    forget_bias that is not finite or of a layer that has no forget gate or no bias. Nothing is changed then.
    Sources: X. Glorot and Y. Bengio 2010; A. Saxe et al. 2014; R. Jozefowicz et al. 2015 for the forget gate.
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"expected a recurrent layer, got {type(layer).__name__}")
    for name, value, known in (
        ("weight_ih", weight_ih, _WEIGHTS),
        ("weight_hh", weight_hh, _WEIGHTS),
        ("bias", bias, _BIASES),
    ):
        if value not in known:
            raise ValueError(f"expected {name} among {', '.join(known)}, got {value!r}")
    finite_float("forget_bias", forget_bias, least=-float(np.finfo(layer.dtype).max))
    if forget_bias and (layer.cell != "lstm" or not layer.bias):
        raise ValueError(f"expected forget_bias=0 of a layer without a forget gate or bias, got {forget_bias}")
    generator, H = np.random.default_rng(rng), layer.hidden_size
    for name, array in layer.params.items():
        if name.startswith(("gain", "bias_c")):  # of layer normalisation: as in a new layer
            array[...] = name.startswith("gain")
            continue
        if name.startswith("bias"):
            array[...] = generator.uniform(-1, 1, array.shape) / math.sqrt(H) if bias == "uniform" else 0
            if forget_bias and name.startswith("bias_ih"):
                array[H : 2 * H] = forget_bias
            continue
        kind = weight_hh if name.startswith("weight_hh") else weight_ih
        gated = name.startswith(("weight_ih", "weight_hh"))
        for gate in np.split(array, array.shape[0] // H) if gated else [array]:
            gate[...] = _drawn("uniform" if "peephole" in name else kind, gate.shape, H, generator)


def _drawn(kind: str, shape: tuple[int, ...], H: int, generator: np.random.Generator) -> np.ndarray:
    rows, columns = shape
    if kind == "uniform":
        return generator.uniform(-1, 1, shape) / math.sqrt(H)
    if kind == "glorot":
        return generator.uniform(-1, 1, shape) * math.sqrt(6 / (rows + columns))
    q, r = np.linalg.qr(generator.normal(size=(max(shape), min(shape))))
    q *= np.sign(np.diag(r))  # makes the distribution uniform over orthogonal matrices
    drawn: np.ndarray = q if rows >= columns else q.T
    return drawn

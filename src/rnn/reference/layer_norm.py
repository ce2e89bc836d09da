"""Layer normalisation of what a cell computes (J. L. Ba, J. R. Kiros and G. E. Hinton, Layer normalization, 2016).

    LN(a) = (a - mean(a)) / sqrt(var(a) + 1e-5)          over each row of a (B, N)

A cell then has  gain_ih * LN(W_ih x) + b_ih  and  gain_hh * LN(W_hh h) + b_hh  instead of W_ih x + b_ih and
W_hh h + b_hh; a row holds the pre-activations of all gates.  h(t) of an LSTM is made from  gain_c * LN(c(t)) + bias_c.
"""

from __future__ import annotations

import numpy as np

from .steps import bias_gradient

__all__ = ["EPSILON", "LayerNorm"]

EPSILON = 1e-5  # that of torch.nn.LayerNorm


class LayerNorm:
    """gain * LN(a), and its gradients; without a gain, a itself.

    A call and `backward` take one step t, (B, N), or all steps, (T, B, N).
    """

    def __init__(self, gain: np.ndarray | None, T: int, B: int) -> None:
        self.gain = gain
        if gain is not None:
            self.normed = np.empty((T, B, len(gain)), gain.dtype)  # LN(a)
            self.rstd = np.empty((T, B, 1), gain.dtype)  # 1 / sqrt(var(a) + 1e-5)

    def __call__(self, a: np.ndarray, t: int | slice = slice(None)) -> np.ndarray:
        if self.gain is None:
            return a
        centred = a - a.mean(axis=-1, keepdims=True)
        self.rstd[t] = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        self.normed[t] = centred * self.rstd[t]
        scaled: np.ndarray = self.gain * self.normed[t]
        return scaled

    def backward(self, d: np.ndarray, t: int | slice = slice(None)) -> np.ndarray:
        """dL/da from d = dL/d(gain * LN(a)), with g = d * gain and n = LN(a):

            dL/da = rstd * (g - mean(g) - n * mean(g * n))

        A change of a changes n by rstd times that change, without its mean and without its part along n.
        """
        if self.gain is None:
            return d
        g, n = d * self.gain, self.normed[t]
        along_n = (g * n).mean(axis=-1, keepdims=True)
        da: np.ndarray = self.rstd[t] * (g - g.mean(axis=-1, keepdims=True) - n * along_n)
        return da

    def gradient(self, name: str, d: np.ndarray) -> dict[str, np.ndarray]:
        """The gradient of the gain, by its name: the sum of d * LN(a) over all steps, d (T, B, N)."""
        return {} if self.gain is None else {name: bias_gradient(d * self.normed)}

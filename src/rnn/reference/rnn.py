"""The vanilla RNN (Goodfellow, Bengio and Courville, Deep Learning, 2016, equations 10.8 and 10.9).

    a(t) = b + W h(t-1) + U x(t)            (B, H)
    h(t) = f(a(t))                          f = tanh or relu, or any other activation

In training there may be dropout (`DropoutMasks`): masks for W and for h(t-1) in the product W h(t-1); and zoneout,
h(t) = k(t) h(t-1) + (1 - k(t)) f(a(t)).

With layer normalisation (see layer_norm.py), W h(t-1) and U x(t) are normalised before they are added up.

U is weight_ih (H, I), W is weight_hh (H, H), b is bias_ih + bias_hh (H,) each.  A batch holds one sequence a row, so
W h is written ``h @ W.T``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .activations import Activation, Spec
from .dropout import NO_MASKS, DropoutMasks, masked
from .layer_norm import LayerNorm
from .steps import (
    Steps,
    bias_gradient,
    clipped,
    input_gradients,
    input_product,
    plus,
    unzoned,
    weight_gradient,
    zoned,
)

__all__ = ["RNNTape", "rnn_backward", "rnn_forward"]


class RNNTape(NamedTuple):
    """What the backward pass needs of the forward pass."""

    x: np.ndarray  # (T, B, I) or (T, B) indices
    h_before: np.ndarray  # (T, B, H)  h(t-1) with its dropout mask, as it enters the product
    a: np.ndarray  # (T, B, H)
    h: np.ndarray  # (T, B, H)  f(a)
    f: Activation
    steps: Steps
    weight_ih: np.ndarray
    weight_hh: np.ndarray  # masked
    has_bias: bool
    noise: DropoutMasks
    norm_ih: LayerNorm
    norm_hh: LayerNorm


def rnn_forward(
    x: np.ndarray,
    h0: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias_ih: np.ndarray | None = None,
    bias_hh: np.ndarray | None = None,
    gain_ih: np.ndarray | None = None,
    gain_hh: np.ndarray | None = None,
    *,
    nonlinearity: Spec = "tanh",
    clip: float | None = None,
    reset: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    noise: DropoutMasks = NO_MASKS,
) -> tuple[np.ndarray, np.ndarray, RNNTape]:
    """One layer and one direction: x (T, B, I), h0 (B, H) -> y (T, B, H), h_n (B, H), tape.

    >>> y, h_n, tape = rnn_forward(np.ones((5, 2, 3)), np.zeros((2, 4)), np.ones((4, 3)), np.eye(4))
    >>> y.shape, h_n.shape
    ((5, 2, 4), (2, 4))
    """
    f = Activation(nonlinearity, clip)
    steps = Steps.of(len(x), lengths, reset)
    x = steps.without_padding(x)
    norm_ih, norm_hh = (LayerNorm(gain, *x.shape[:2]) for gain in (gain_ih, gain_hh))
    a = plus(norm_ih(input_product(x, weight_ih)), bias_ih, bias_hh)  # b + U x(t) of every step
    h_before, f_of_a, h_after = (np.empty_like(a) for _ in range(3))
    weight_hh = masked(weight_hh, noise.weight_hh)
    h = h0
    for t in range(len(x)):
        h = steps.restart(t, h)
        h_before[t] = masked(h, noise.h)
        a[t] += norm_hh(h_before[t] @ weight_hh.T, t)
        f_of_a[t] = f(a[t])
        h_after[t] = zoned(noise.zoneout_h, t, f_of_a[t], h)
        h = steps.advance(t, h_after[t], h)
    weights = (weight_ih, weight_hh, bias_ih is not None, noise, norm_ih, norm_hh)
    tape = RNNTape(x, h_before, a, f_of_a, f, steps, *weights)
    return steps.without_padding(h_after), h.copy(), tape


def rnn_backward(
    tape: RNNTape, dy: np.ndarray, dh_n: np.ndarray, *, grad_clip: float | None = None
) -> tuple[np.ndarray | None, np.ndarray, dict[str, np.ndarray]]:
    """Back-propagation through time: dy (T, B, H), dh_n (B, H) -> dx (T, B, I), dh0 (B, H), grads by parameter name.

    h(t) reaches the loss L in two ways: through its own output y(t), and through a(t+1).  So, from the last step back,

        dL/dh(t) = dL/dy(t) + W^T dL/da(t+1)
        dL/da(t) = dL/dh(t) * f'(a(t))                  tanh' = 1 - h(t)^2

    and since each parameter is used at every step, its gradient is a sum over the steps:

        dL/dW = sum da(t) h(t-1)^T      dL/dU = sum da(t) x(t)^T      dL/db = sum da(t)      dL/dx(t) = U^T da(t)
    """
    steps, noise, norm_hh = tape.steps, tape.noise, tape.norm_hh
    da = np.empty_like(tape.a)
    dh = dh_n
    for t in reversed(range(len(da))):
        dh_t, dh_zoneout = unzoned(noise.zoneout_h, t, steps.only_running(t, dh + dy[t]))
        da[t] = clipped(dh_t * tape.f.slope(tape.a[t], tape.h[t]), grad_clip)
        dh_before = masked(norm_hh.backward(da[t], t) @ tape.weight_hh, noise.h) + dh_zoneout
        dh = steps.restart(t, steps.advance(t, dh_before, dh))

    dx, dweight_ih = input_gradients(tape.x, tape.weight_ih, tape.norm_ih.backward(da))
    dweight_hh = weight_gradient(norm_hh.backward(da), tape.h_before)
    grads = {"weight_ih": dweight_ih, "weight_hh": masked(dweight_hh, noise.weight_hh)}
    grads |= tape.norm_ih.gradient("gain_ih", da) | norm_hh.gradient("gain_hh", da)
    if tape.has_bias:
        grads |= {"bias_ih": bias_gradient(da), "bias_hh": bias_gradient(da)}
    return dx, dh, grads

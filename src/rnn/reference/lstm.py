"""Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000).

    i = f(W_ii x + b_ii + W_hi h + b_hi + p_i * c)          the input gate          h is h(t-1), c is c(t-1)
    f = f(W_if x + b_if + W_hf h + b_hf + p_f * c)          the forget gate         coupled: f = 1 - i instead
    g = g(W_ig x + b_ig + W_hg h + b_hg)                    the cell input
    c(t) = f * c + i * g
    o = f(W_io x + b_io + W_ho h + b_ho + p_o * c(t))       the output gate
    h(t) = W_hr (o * h(c(t)))                               without weight_hr just o * h(c(t))

The activations f, g, h are sigmoid, tanh, tanh unless told otherwise; in the code they are `gate`, `squash_in` and
`squash_out`.  The peepholes p (Gers and Schmidhuber 2000) are the rows i, f, o of weight_peephole (3, H), the
projection (Sak et al. 2014) is weight_hr (P, H).  The rows of weight_ih (4H, I), weight_hh (4H, P), bias_ih and bias_hh
(4H,) are those of i, f, g, o in turn; P = H without projection.

With layer normalisation (see layer_norm.py), the four products W_i. x are normalised together, and the four W_h. h,
before their biases are added; c(t) is normalised in the formula of h(t) only, not for c(t+1) and p_o.

In training there may be dropout (`DropoutMasks`): masks for the W_h. and for the h that they multiply; and zoneout,
with which a unit of c or of h may keep its old value.  h(t) and p_o use the new c(t) even where c keeps its old value.
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

__all__ = ["LSTMTape", "lstm_backward", "lstm_forward"]


class LSTMTape(NamedTuple):
    """What the backward pass needs of the forward pass."""

    x: np.ndarray  # (T, B, I) or (T, B) indices
    h_before: np.ndarray  # (T, B, P)   h(t-1) with its dropout mask, as it enters the product
    c_before: np.ndarray  # (T, B, H)   c(t-1)
    a: np.ndarray  # (T, B, 4H)  pre-activations of i, f, g, o
    gates: np.ndarray  # (T, B, 4H)  i, f, g, o
    c: np.ndarray  # (T, B, H)   c(t), before zoneout
    c_seen: np.ndarray  # (T, B, H)   c(t) as it enters h(t): with layer normalisation, normalised
    q: np.ndarray  # (T, B, H)   squash_out(c_seen)
    activations: tuple[Activation, ...]
    coupled: bool
    steps: Steps
    weight_ih: np.ndarray
    weight_hh: np.ndarray  # masked
    weight_peephole: np.ndarray | None
    weight_hr: np.ndarray | None
    has_bias: bool
    noise: DropoutMasks
    norm_ih: LayerNorm
    norm_hh: LayerNorm
    norm_c: LayerNorm


def lstm_forward(
    x: np.ndarray,
    h0: np.ndarray,
    c0: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias_ih: np.ndarray | None = None,
    bias_hh: np.ndarray | None = None,
    weight_peephole: np.ndarray | None = None,
    weight_hr: np.ndarray | None = None,
    gain_ih: np.ndarray | None = None,
    gain_hh: np.ndarray | None = None,
    gain_c: np.ndarray | None = None,
    bias_c: np.ndarray | None = None,
    *,
    coupled: bool = False,
    activations: tuple[Spec, Spec, Spec] = ("sigmoid", "tanh", "tanh"),
    clip: float | None = None,
    reset: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    noise: DropoutMasks = NO_MASKS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, LSTMTape]:
    """One layer and one direction: x (T, B, I), h0 (B, P), c0 (B, H) -> y (T, B, P), h_n (B, P), c_n (B, H), tape.

    clip limits the pre-activations of the gates, not c(t).

    >>> h0 = c0 = np.zeros((2, 4))
    >>> y, h_n, c_n, tape = lstm_forward(np.ones((5, 2, 3)), h0, c0, np.ones((16, 3)), np.ones((16, 4)))
    >>> y.shape, c_n.shape
    ((5, 2, 4), (2, 4))
    """
    gate, squash_in = (Activation(spec, clip) for spec in activations[:2])
    squash_out = Activation(activations[2])
    steps = Steps.of(len(x), lengths, reset)
    x = steps.without_padding(x)

    norm_ih, norm_hh, norm_c = (LayerNorm(gain, *x.shape[:2]) for gain in (gain_ih, gain_hh, gain_c))
    a = plus(norm_ih(input_product(x, weight_ih)), bias_ih, bias_hh)
    gates = np.empty_like(a)
    h_before, h_after = (np.empty((*a.shape[:2], h0.shape[1]), a.dtype) for _ in range(2))
    c_before, c_after, c_seen, q = (np.empty((*a.shape[:2], c0.shape[1]), a.dtype) for _ in range(4))
    weight_hh = masked(weight_hh, noise.weight_hh)
    h, c = h0, c0
    for t in range(len(x)):
        h = steps.restart(t, h)
        h_before[t] = masked(h, noise.h)
        c_before[t] = c = steps.restart(t, c)
        a[t] += norm_hh(h_before[t] @ weight_hh.T, t)
        (a_i, a_f, a_g, a_o), (i, f, g, o) = by_gate(a[t]), by_gate(gates[t])
        if weight_peephole is not None:
            a_i += weight_peephole[0] * c
            a_f += weight_peephole[1] * c
        i[...] = gate(a_i)
        f[...] = 1 - i if coupled else gate(a_f)
        g[...] = squash_in(a_g)
        c_after[t] = f * c + i * g
        if weight_peephole is not None:
            a_o += weight_peephole[2] * c_after[t]
        o[...] = gate(a_o)
        c_seen[t] = norm_c(c_after[t], t)
        q[t] = squash_out(plus(c_seen[t], bias_c))
        h_new = o * q[t] if weight_hr is None else (o * q[t]) @ weight_hr.T
        h_after[t] = zoned(noise.zoneout_h, t, h_new, h)
        h = steps.advance(t, h_after[t], h)
        c = steps.advance(t, zoned(noise.zoneout_c, t, c_after[t], c), c)
    squashes = (gate, squash_in, squash_out)
    weights = (weight_ih, weight_hh, weight_peephole, weight_hr, bias_ih is not None, noise)
    norms = (norm_ih, norm_hh, norm_c)
    tape = LSTMTape(x, h_before, c_before, a, gates, c_after, c_seen, q, squashes, coupled, steps, *weights, *norms)
    return steps.without_padding(h_after), h.copy(), c.copy(), tape


def lstm_backward(
    tape: LSTMTape, dy: np.ndarray, dh_n: np.ndarray, dc_n: np.ndarray, *, grad_clip: float | None = None
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Back-propagation through time: dy (T, B, P), dh_n (B, P), dc_n (B, H) -> dx, dh0, dc0, grads by parameter name.

    With d for dL/d, c for c(t-1), q = h(c(t)), and dh(t), dc(t) what this step's output and step t+1 hand back:

        dm = W_hr^T dh(t)                                         m = o * q
        do = dm * q                                               da_o = do * f'(a_o)
        dc(t) += dm * o * h'(c(t)) + p_o * da_o                   the first through the norm of c(t), if there is one

        di = dc(t) * g         coupled: dc(t) * (g - c)           da_i = di * f'(a_i)
        df = dc(t) * c         coupled: 0                         da_f = df * f'(a_f)
        dg = dc(t) * i                                            da_g = dg * g'(a_g)

        handed back: dc = dc(t) * f + p_i * da_i + p_f * da_f     dh = W_hh^T da
    """
    gate, squash_in, squash_out = tape.activations
    steps, coupled, weight_peephole, weight_hr = tape.steps, tape.coupled, tape.weight_peephole, tape.weight_hr
    noise, norm_hh = tape.noise, tape.norm_hh
    da, dc_seen, dh_after = np.empty_like(tape.a), np.empty_like(tape.c), np.empty_like(tape.h_before)
    dh, dc = dh_n, dc_n
    for t in reversed(range(len(da))):
        c, c_seen, q = tape.c_before[t], tape.c_seen[t], tape.q[t]
        (a_i, a_f, a_g, a_o), (i, f, g, o) = by_gate(tape.a[t]), by_gate(tape.gates[t])
        da_i, da_f, da_g, da_o = by_gate(da[t])
        dh_after[t], dh_zoneout = unzoned(noise.zoneout_h, t, steps.only_running(t, dh + dy[t]))
        dc_t, dc_zoneout = unzoned(noise.zoneout_c, t, steps.only_running(t, dc))
        dm = dh_after[t] if weight_hr is None else dh_after[t] @ weight_hr
        da_o[...] = clipped(dm * q * gate.slope(a_o, o), grad_clip)
        dc_seen[t] = dm * o * squash_out.slope(c_seen, q)
        dc_t = dc_t + tape.norm_c.backward(dc_seen[t], t)
        if weight_peephole is not None:
            dc_t += weight_peephole[2] * da_o

        da_i[...] = clipped(dc_t * (g - c if coupled else g) * gate.slope(a_i, i), grad_clip)
        da_f[...] = 0 if coupled else clipped(dc_t * c * gate.slope(a_f, f), grad_clip)
        da_g[...] = clipped(dc_t * i * squash_in.slope(a_g, g), grad_clip)

        dc_before = dc_t * f + dc_zoneout
        if weight_peephole is not None:
            dc_before += weight_peephole[0] * da_i + weight_peephole[1] * da_f
        dh_before = masked(norm_hh.backward(da[t], t) @ tape.weight_hh, noise.h) + dh_zoneout
        dh = steps.restart(t, steps.advance(t, dh_before, dh))
        dc = steps.restart(t, steps.advance(t, dc_before, dc))

    dx, dweight_ih = input_gradients(tape.x, tape.weight_ih, tape.norm_ih.backward(da))
    dweight_hh = weight_gradient(norm_hh.backward(da), tape.h_before)
    grads = {"weight_ih": dweight_ih, "weight_hh": masked(dweight_hh, noise.weight_hh)}
    grads |= tape.norm_ih.gradient("gain_ih", da) | norm_hh.gradient("gain_hh", da)
    grads |= tape.norm_c.gradient("gain_c", dc_seen)
    if tape.has_bias:
        grads |= {"bias_ih": bias_gradient(da), "bias_hh": bias_gradient(da), "bias_c": bias_gradient(dc_seen)}
    H = tape.c.shape[2]
    if weight_peephole is not None:  # each peephole multiplies its own unit's cell: i and f see c(t-1), o sees c(t)
        of_i, of_f, of_o = da[:, :, :H] * tape.c_before, da[:, :, H : 2 * H] * tape.c_before, da[:, :, 3 * H :] * tape.c
        grads["weight_peephole"] = np.stack([bias_gradient(of_i), bias_gradient(of_f), bias_gradient(of_o)])
    if weight_hr is not None:
        grads["weight_hr"] = weight_gradient(dh_after, tape.gates[:, :, 3 * H :] * tape.q)
    return dx, dh, dc, grads


def by_gate(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(B, 4H) as views (B, H) of the columns of i, f, g, o."""
    H = array.shape[1] // 4
    return array[:, :H], array[:, H : 2 * H], array[:, 2 * H : 3 * H], array[:, 3 * H :]

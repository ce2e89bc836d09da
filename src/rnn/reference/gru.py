"""The gated recurrent unit (Cho et al. 2014), in its two forms.

    r = f(W_ir x + b_ir + W_hr h + b_hr)            the reset gate         h is h(t-1)
    z = f(W_iz x + b_iz + W_hz h + b_hz)            the update gate
    n = g(W_in x + b_in + r * (W_hn h + b_hn))      the candidate          reset_after=True: torch, cuDNN
    n = g(W_in x + b_in + W_hn (r * h) + b_hn)                             reset_after=False: the original
    h(t) = (1 - z) * n + z * h

f is the sigmoid and g is tanh unless told otherwise.  The rows of weight_ih (3H, I), weight_hh (3H, H), bias_ih and
bias_hh (3H,) are those of r, z, n in turn.

With layer normalisation (see layer_norm.py), the three products W_i. x are normalised together, and the three W_h. h,
before their biases are added; reset_after must then be True.

In training there may be dropout (`DropoutMasks`): masks for the W_h. and for the h that they multiply, but not for the
h that z multiplies; and zoneout, h(t) = k(t) h(t-1) + (1 - k(t)) ((1 - z) * n + z * h).
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

__all__ = ["GRUTape", "gru_backward", "gru_forward"]


class GRUTape(NamedTuple):
    """What the backward pass needs of the forward pass."""

    x: np.ndarray  # (T, B, I) or (T, B) indices
    h_before: np.ndarray  # (T, B, H)   h(t-1)
    h_seen: np.ndarray  # (T, B, H)   h(t-1) with its dropout mask, as it enters the products
    a: np.ndarray  # (T, B, 3H)  pre-activations of r, z, n
    gates: np.ndarray  # (T, B, 3H)  r, z, n
    m: np.ndarray  # (T, B, H)   W_hn h + b_hn if reset_after, else r * h
    f: Activation
    g: Activation
    reset_after: bool
    steps: Steps
    weight_ih: np.ndarray
    weight_hh: np.ndarray  # masked
    has_bias: bool
    noise: DropoutMasks
    norm_ih: LayerNorm
    norm_hh: LayerNorm


def gru_forward(
    x: np.ndarray,
    h0: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias_ih: np.ndarray | None = None,
    bias_hh: np.ndarray | None = None,
    gain_ih: np.ndarray | None = None,
    gain_hh: np.ndarray | None = None,
    *,
    reset_after: bool = True,
    activations: tuple[Spec, Spec] = ("sigmoid", "tanh"),
    clip: float | None = None,
    reset: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    noise: DropoutMasks = NO_MASKS,
) -> tuple[np.ndarray, np.ndarray, GRUTape]:
    """One layer and one direction: x (T, B, I), h0 (B, H) -> y (T, B, H), h_n (B, H), tape.

    >>> y, h_n, tape = gru_forward(np.ones((5, 2, 3)), np.zeros((2, 4)), np.ones((12, 3)), np.ones((12, 4)))
    >>> y.shape, h_n.shape
    ((5, 2, 4), (2, 4))
    """
    f, g = (Activation(spec, clip) for spec in activations)
    steps = Steps.of(len(x), lengths, reset)
    x = steps.without_padding(x)
    H = weight_hh.shape[1]
    weight_hh = masked(weight_hh, noise.weight_hh)
    W_rz, W_n = weight_hh[: 2 * H], weight_hh[2 * H :]
    b_rz, b_n = (0, 0) if bias_hh is None else (bias_hh[: 2 * H], bias_hh[2 * H :])

    norm_ih, norm_hh = (LayerNorm(gain, *x.shape[:2]) for gain in (gain_ih, gain_hh))
    a = plus(norm_ih(input_product(x, weight_ih)), bias_ih)
    gates = np.empty_like(a)
    h_before, h_seen, m, h_after = (np.empty((*a.shape[:2], H), a.dtype) for _ in range(4))
    h = h0
    for t in range(len(x)):
        h_before[t] = h = steps.restart(t, h)
        seen = h_seen[t] = masked(h, noise.h)
        if reset_after:
            product = norm_hh(seen @ weight_hh.T, t)
            a[t, :, : 2 * H] += product[:, : 2 * H] + b_rz
            m[t] = product[:, 2 * H :] + b_n
        else:
            a[t, :, : 2 * H] += seen @ W_rz.T + b_rz
        gates[t, :, : 2 * H] = f(a[t, :, : 2 * H])
        r, z, n = by_gate(gates[t])
        if reset_after:
            a[t, :, 2 * H :] += r * m[t]
        else:
            m[t] = r * seen
            a[t, :, 2 * H :] += m[t] @ W_n.T + b_n
        n[...] = g(a[t, :, 2 * H :])
        h_after[t] = zoned(noise.zoneout_h, t, (1 - z) * n + z * h, h)
        h = steps.advance(t, h_after[t], h)
    weights = (weight_ih, weight_hh, bias_ih is not None, noise, norm_ih, norm_hh)
    tape = GRUTape(x, h_before, h_seen, a, gates, m, f, g, reset_after, steps, *weights)
    return steps.without_padding(h_after), h.copy(), tape


def gru_backward(
    tape: GRUTape, dy: np.ndarray, dh_n: np.ndarray, *, grad_clip: float | None = None
) -> tuple[np.ndarray | None, np.ndarray, dict[str, np.ndarray]]:
    """Back-propagation through time: dy (T, B, H), dh_n (B, H) -> dx (T, B, I), dh0 (B, H), grads by parameter name.

    With d for dL/d, h for h(t-1), and dh(t) = dy(t) + what step t+1 hands back:

        dn = dh(t) * (1 - z)        da_n = dn * g'(a_n)
        dz = dh(t) * (h - n)        da_z = dz * f'(a_z)
        dr, by the form             da_r = dr * f'(a_r)

        reset after    a_n = ... + r * m, m = W_hn h + b_hn:    dm = da_n * r          dr = da_n * m
        reset before   a_n = ... + W_hn m, m = r * h:           dm = W_hn^T da_n       dr = dm * h

        handed back: dh = dh(t) * z + W_hr^T da_r + W_hz^T da_z + (W_hn^T dm after, r * dm before)
    """
    steps, reset_after, noise = tape.steps, tape.reset_after, tape.noise
    H = tape.h_before.shape[2]
    W_rz, W_n = tape.weight_hh[: 2 * H], tape.weight_hh[2 * H :]
    da = np.empty_like(tape.a)
    dh = dh_n
    for t in reversed(range(len(da))):
        h, seen, m = tape.h_before[t], tape.h_seen[t], tape.m[t]
        (a_r, a_z, a_n), (r, z, n), (da_r, da_z, da_n) = by_gate(tape.a[t]), by_gate(tape.gates[t]), by_gate(da[t])
        dh_t, dh_zoneout = unzoned(noise.zoneout_h, t, steps.only_running(t, dh + dy[t]))
        da_n[...] = clipped(dh_t * (1 - z) * tape.g.slope(a_n, n), grad_clip)
        da_z[...] = clipped(dh_t * (h - n) * tape.f.slope(a_z, z), grad_clip)
        if reset_after:
            da_r[...] = clipped(da_n * m * tape.f.slope(a_r, r), grad_clip)
            dproduct = np.concatenate([da_r, da_z, da_n * r], axis=1)
            dh_seen = tape.norm_hh.backward(dproduct, t) @ tape.weight_hh
        else:
            dm = da_n @ W_n
            da_r[...] = clipped(dm * seen * tape.f.slope(a_r, r), grad_clip)
            dh_seen = da[t, :, : 2 * H] @ W_rz + dm * r
        dh_before = dh_t * z + masked(dh_seen, noise.h) + dh_zoneout
        dh = steps.restart(t, steps.advance(t, dh_before, dh))

    # The sums over the steps.  With reset_after, W_hn multiplies h; otherwise it multiplies m = r * h.
    dx, dweight_ih = input_gradients(tape.x, tape.weight_ih, tape.norm_ih.backward(da))
    da_rz, da_n, r = da[:, :, : 2 * H], da[:, :, 2 * H :], tape.gates[:, :, :H]
    dproduct = np.concatenate([da_rz, da_n * r], axis=2) if reset_after else da
    if reset_after:
        dweight_hh = weight_gradient(tape.norm_hh.backward(dproduct), tape.h_seen)
    else:
        dweight_hh = np.concatenate([weight_gradient(da_rz, tape.h_seen), weight_gradient(da_n, tape.m)])
    grads = {"weight_ih": dweight_ih, "weight_hh": masked(dweight_hh, noise.weight_hh)}
    grads |= tape.norm_ih.gradient("gain_ih", da) | tape.norm_hh.gradient("gain_hh", dproduct)
    if tape.has_bias:
        grads |= {"bias_ih": bias_gradient(da), "bias_hh": bias_gradient(dproduct)}
    return dx, dh, grads


def by_gate(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B, 3H) as views (B, H) of the columns of r, z, n."""
    H = array.shape[1] // 3
    return array[:, :H], array[:, H : 2 * H], array[:, 2 * H :]

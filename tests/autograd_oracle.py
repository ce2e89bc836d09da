"""Every cell and every layer option once more, in torch: one sequence at a time, cut to its length, one step at a time.

What the reference does with masks over a batch is done here by slicing, and the gradients are autograd's, so that the
two have no line in common.  Imports nothing of torch itself: the caller passes the module.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from fastrnn.reference import DropoutMasks

from problems import output_width, state_width
from states import as_tuple


def leaf(torch, array):
    return torch.tensor(array, requires_grad=True)


def differentiated(torch, p, y, state, x, initial, params):
    """Back-propagate the loss of the problem and collect everything as NumPy arrays."""
    loss = (y * torch.from_numpy(p.dy)).sum()
    loss = loss + sum((s * torch.from_numpy(d)).sum() for s, d in zip(state, as_tuple(p.dstate), strict=True))
    loss.backward()
    return SimpleNamespace(
        y=y.detach().numpy(),
        state=[s.detach().numpy() for s in state],
        dx=None if x is None else x.grad.numpy(),
        dstate=[s.grad.numpy() for s in initial],
        grads={name: parameter.grad.numpy() for name, parameter in params.items()},
    )


def run_autograd(torch, p):
    """What the layer of a problem computes, and its gradients: y, state, dx, dstate, grads."""
    layer = p.layer
    params = {name: leaf(torch, array) for name, array in layer.params.items()}
    initial = [leaf(torch, s) for s in as_tuple(p.state)]
    one_hot = np.issubdtype(p.x.dtype, np.integer)
    x = torch.eye(layer.input_size, dtype=torch.float64)[torch.from_numpy(p.x)] if one_hot else leaf(torch, p.x)

    unbatched, batch_first = x.ndim == 2, layer.batch_first
    by_row = [x] if unbatched else (x if batch_first else x.swapaxes(0, 1)).unbind(0)
    reset = p.call.get("reset", np.zeros(p.x.shape[: x.ndim - 1], bool))
    resets = [reset] if unbatched else (reset if batch_first else reset.T)
    T = len(by_row[0])
    lengths = p.call.get("lengths", [T] * len(by_row))
    ys, finals = [], []
    for b, length in enumerate(lengths):
        masks = [torch.from_numpy(mask[:length, b]) for mask in p.call.get("dropout_masks", [])]
        start = [s if unbatched else s[:, b] for s in initial]
        dropped = masks_of_row(torch, layer, p.call.get("noise"), b)
        y, final = run_row(torch, layer, params, by_row[b][:length], start, resets[b], masks, dropped)
        ys.append(torch.cat([y, y.new_zeros(T - length, output_width(layer))]))
        finals.append(final)
    y = ys[0] if unbatched else torch.stack(ys, 0 if batch_first else 1)
    state = finals[0] if unbatched else [torch.stack(s, 1) for s in zip(*finals, strict=True)]
    return differentiated(torch, p, y, state, None if one_hot else x, initial, params)


def masks_of_row(torch, layer, masks, b):
    """[layer][direction]: the masks that row b meets, as tensors; without any, ones, and the means of zoneout."""

    def tensor(mask, otherwise):
        return torch.tensor(otherwise if mask is None else mask, dtype=torch.float64)

    def of(n):
        n_b = {name: mask if mask is None or name == "weight_hh" else mask.swapaxes(0, -2)[b]
               for name, mask in n._asdict().items()}  # fmt: skip
        means = [0.0, 0.0] if masks else [layer.zoneout, getattr(layer, "zoneout_cell", 0.0)]
        return SimpleNamespace(
            x=tensor(n_b["x"], 1.0), weight_hh=tensor(n_b["weight_hh"], 1.0), h=tensor(n_b["h"], 1.0),
            keeps=[(lambda t, keeps=keeps, p=p: tensor(keeps if keeps is None else keeps[t], p))
                   for keeps, p in zip((n_b["zoneout_h"], n_b["zoneout_c"]), means, strict=True)],
        )  # fmt: skip

    return [
        [of(n) for n in directions]
        for directions in masks or [[DropoutMasks()] * (2 if layer.bidirectional else 1)] * layer.num_layers
    ]


def run_row(torch, layer, params, x, start, reset, masks, dropped):
    """All layers over one sequence x (T, I): its y (T, width), and its final states (L*D, H)."""
    finals = []
    for k in range(layer.num_layers):
        outputs = []
        x = x * dropped[k][0].x
        for d, suffix in enumerate(("", "_reverse") if layer.bidirectional else ("",)):
            row, drawn = len(finals), dropped[k][d]
            weights = {name: params.get(f"{name}_l{k}{suffix}") for name in
                       ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole",
                        "gain_ih", "gain_hh", "gain_c", "bias_c")}  # fmt: skip
            weights["weight_hh"] = weights["weight_hh"] * drawn.weight_hh
            order = list(range(len(x)))
            if layer.reverse or suffix:
                order.reverse()
            state, y = [s[row] for s in start], {}
            for t in order:
                if reset[t]:
                    state = [torch.zeros_like(s) for s in state]
                new = STEPS[layer.cell](torch, layer, x[t], state, drawn.h, **weights)
                keeps = [keep(t) for keep in drawn.keeps]
                state = [k * old + (1 - k) * s for k, old, s in zip(keeps, state, new, strict=False)]
                y[t] = state[0]
            finals.append(state)
            outputs.append(torch.stack([y[t] for t in sorted(y)]) if y else x.new_zeros(0, state_width(layer)))
        x = merged(torch, layer, outputs)
        if masks and k < layer.num_layers - 1:
            x = x * masks[k]
    return x, [torch.stack(s) for s in zip(*finals, strict=True)]


def merged(torch, layer, outputs):
    if len(outputs) == 1:
        return outputs[0]
    if layer.merge == "concat":
        return torch.cat(outputs, -1)
    total = outputs[0] * outputs[1] if layer.merge == "mul" else outputs[0] + outputs[1]
    return total / 2 if layer.merge == "ave" else total


def normed(torch, a, gain):
    return a if gain is None else torch.nn.functional.layer_norm(a, a.shape, gain)


def rnn_step(torch, layer, x, state, m, weight_ih, weight_hh, bias_ih, bias_hh, gain_ih, gain_hh, **_):
    a = plus(normed(torch, weight_ih @ x, gain_ih), bias_ih)
    a = a + plus(normed(torch, weight_hh @ (m * state[0]), gain_hh), bias_hh)
    return [activate(torch, layer.nonlinearity, layer.clip, a)]


def gru_step(torch, layer, x, state, m, weight_ih, weight_hh, bias_ih, bias_hh, gain_ih, gain_hh, **_):
    f, g = (lambda a, spec=spec: activate(torch, spec, layer.clip, a) for spec in layer.activations)
    (h,) = state
    W_n, b_n = weight_hh.chunk(3)[2], None if bias_hh is None else bias_hh.chunk(3)[2]
    x_r, x_z, x_n = plus(normed(torch, weight_ih @ x, gain_ih), bias_ih).chunk(3)
    h_r, h_z, h_n = plus(normed(torch, weight_hh @ (m * h), gain_hh), bias_hh).chunk(3)
    r = f(x_r + h_r)
    z = f(x_z + h_z)
    n = g(x_n + (r * h_n if layer.reset_after else plus(W_n @ (r * m * h), b_n)))
    return [(1 - z) * n + z * h]


def lstm_step(torch, layer, x, state, m, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_peephole,
              gain_ih, gain_hh, gain_c, bias_c):  # fmt: skip
    f, g = (lambda a, spec=spec: activate(torch, spec, layer.clip, a) for spec in layer.activations[:2])
    h, c = state
    p_i, p_f, p_o = (0, 0, 0) if weight_peephole is None else weight_peephole
    a_x = plus(normed(torch, weight_ih @ x, gain_ih), bias_ih)
    a_h = plus(normed(torch, weight_hh @ (m * h), gain_hh), bias_hh)
    a_i, a_f, a_g, a_o = (a_x + a_h).chunk(4)
    i = f(a_i + p_i * c)
    c = (1 - i if layer.coupled else f(a_f + p_f * c)) * c + i * g(a_g)
    c_seen = plus(normed(torch, c, gain_c), bias_c)
    h = f(a_o + p_o * c) * activate(torch, layer.activations[2], None, c_seen)
    return [h if weight_hr is None else weight_hr @ h, c]


STEPS = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}


def plus(a, bias):
    return a if bias is None else a + bias


def activate(torch, spec, clip, a):
    name, *parameters = (spec,) if isinstance(spec, str) else spec
    parameters += ONNX_DEFAULTS.get(name, [])[len(parameters) :]
    functional = torch.nn.functional
    if clip is not None:
        a = a.clamp(-clip, clip)
    return {
        "tanh": torch.tanh,
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "identity": torch.clone,
        "affine": lambda a, alpha, beta: alpha * a + beta,
        "leaky_relu": functional.leaky_relu,
        "thresholded_relu": lambda a, alpha: functional.threshold(a, alpha, 0),
        "scaled_tanh": lambda a, alpha, beta: alpha * torch.tanh(beta * a),
        "hard_sigmoid": lambda a, alpha, beta: (alpha * a + beta).clamp(0, 1),
        "elu": functional.elu,
        "softsign": functional.softsign,
        "softplus": lambda a: torch.logaddexp(a, torch.zeros_like(a)),
    }[name](a, *parameters)


ONNX_DEFAULTS = {
    "affine": [1.0, 0.0],
    "leaky_relu": [0.01],
    "thresholded_relu": [1.0],
    "scaled_tanh": [1.0, 1.0],
    "hard_sigmoid": [0.2, 0.5],
    "elu": [1.0],
}

"""Valid calls of what goes with a layer: output layer and losses, optimisers, ragged batches, initial values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import fastrnn
import numpy as np
from fastrnn import optim, reference

from .agreement import Outcome, Precision, named
from .child import Log
from .layers import FLOATS, Subject, chance, laid_out, pick, size
from .valid import begin, expect_agreement, expect_same_bits


def heads(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    """The output layer, the loss, and both in one."""
    H, K, dtype = size(rng), size(rng), pick(rng, FLOATS)
    shape = tuple(int(n) for n in rng.integers(0 if chance(rng, 0.1) else 1, 6, int(rng.integers(0, 4))))
    head = fastrnn.Linear(H, K, bias=chance(rng, 0.7), dtype=dtype, rng=rng)
    h, do = (laid_out(rng, rng.standard_normal((*shape, n)).astype(dtype)) for n in (H, K))
    begin(log, f"Linear({H}, {K}, bias={head.bias}, dtype={dtype})", f"forward and backward of {h.shape}", 2)
    o, tape = head.forward(h)
    ours = named(o, None, head.backward(tape, do), None, {f"{name}_l": g for name, g in head.grads.items()})
    expect_agreement(log, ours, partial(head_of_reference, head, h, do))
    if h.size == 0:
        return
    targets, mask = rng.integers(0, K, shape).astype("uint8"), None
    if chance(rng, 0.5):
        mask = np.asarray(rng.random(shape) < 0.7)
        mask.flat[0] = True
    begin(log, f"Linear({H}, {K}, dtype={dtype})", f"losses of {h.shape}", 3)
    loss, dlogits = fastrnn.softmax_cross_entropy(o, targets, mask=mask)
    expect_agreement(log, {"y": np.array(loss, dtype), "dx": dlogits}, partial(loss_of_reference, o, targets, mask))
    head.zero_grad()
    loss, dh = head.cross_entropy(h, targets, mask=mask)
    ours = {"y": np.array(loss, dtype), "dx": dh, **{f"{name}_l": g for name, g in head.grads.items()}}
    expect_agreement(log, ours, partial(fused_of_reference, head, h, targets, mask))


def head_of_reference(head: Any, h: Any, do: Any, precision: Precision) -> Outcome:
    cast = precision.cast
    weight, h, do = cast(head.params["weight"]), cast(h), cast(do)
    dh, grads = reference.linear_backward(h, weight, do, bias=head.bias)
    o = reference.linear_forward(h, weight, cast(head.params["bias"]) if head.bias else None)
    return named(o, None, dh, None, {f"{name}_l": g for name, g in grads.items()})


def loss_of_reference(o: Any, targets: Any, mask: Any, precision: Precision) -> Outcome:
    loss, dlogits = reference.softmax_cross_entropy(precision.cast(o), targets, mask=mask)
    return {"y": np.array(loss, precision.dtype), "dx": dlogits}


def fused_of_reference(head: Any, h: Any, targets: Any, mask: Any, precision: Precision) -> Outcome:
    o = head_of_reference(head, h, np.zeros((*h.shape[:-1], head.out_features)), precision)["y"]
    loss, do = reference.softmax_cross_entropy(o, targets, mask=mask)
    return head_of_reference(head, h, do, precision) | {"y": np.array(loss, precision.dtype)}


OPTIMISERS: tuple[Callable[[Any], Any], ...] = (
    lambda modules: optim.SGD(modules, lr=0.1, momentum=0.9, nesterov=True),
    lambda modules: optim.SGD(modules, lr=optim.Cosine(0.1, steps=5), weight_decay=0.1),
    lambda modules: optim.Adam(modules, lr=0.01, weight_decay=0.1),
    lambda modules: optim.AdamW(
        modules, lr=optim.WarmUp(0.01, steps=3), groups={"*bias*": {"weight_decay": 0}, "*": {}}
    ),
    lambda modules: optim.RMSprop(modules, lr=0.01, momentum=0.5, centered=True),
)


def optimisers(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    """Steps of an optimiser, and of another that goes on from its state: the same bits. Clipping of gradients."""
    make, biased = pick(rng, OPTIMISERS), subject.options.get("bias", True)
    if make is OPTIMISERS[3] and not biased:
        return
    begin(log, subject, "steps of an optimiser", 6)
    first, second = copy.deepcopy(subject.layer), copy.deepcopy(subject.layer)
    one, other = make([first]), make([second])
    for _ in range(2):
        give_gradients(rng, first)
        one.step(max_norm=pick(rng, (None, 1.0, 1e9)), scale=0.5)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(one.state_dict())
    give_gradients(rng, first)
    for name, g in second.grads.items():
        g[...] = first.grads[name]
    squares = sum(float((g.astype(np.float64) ** 2).sum()) for g in first.grads.values())
    norms = one.step(max_norm=2.0), other.step(max_norm=2.0), optim.clip_grad_norm([first], 2.0)
    if not np.allclose(norms, np.sqrt(squares), rtol=1e-5):
        log.fail(f"norms {norms} of gradients are not {np.sqrt(squares)}, in {log.at}")
    clipped = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in first.grads.values()))
    if clipped > 2.0 * (1 + 1e-5):
        log.fail(f"gradients clipped to 2 have norm {clipped}, in {log.at}")
    expect_same_bits(log, dict(first.params), dict(second.params), "where another optimiser goes on")


def give_gradients(rng: np.random.Generator, layer: Any) -> None:
    for g in layer.grads.values():
        g[...] = rng.standard_normal(g.shape)


def padding(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    shape = tuple(int(n) for n in rng.integers(0, 4, int(rng.integers(0, 3))))
    lengths, batch_first = rng.integers(0, 9, int(rng.integers(1, 6))), chance(rng, 0.5)
    sequences = [laid_out(rng, rng.standard_normal((n, *shape)).astype(pick(rng, ("float32",)))) for n in lengths]
    begin(log, f"{len(lengths)} sequences (., {shape})", "pad_sequence and unpad_sequence", 2)
    x, found = fastrnn.pad_sequence(sequences, batch_first=batch_first, padding_value=7)
    parts = fastrnn.unpad_sequence(x, found, batch_first=batch_first)
    if not all(np.array_equal(a, b) for a, b in zip(parts, sequences, strict=True)):
        log.fail(f"sequences do not come back, in {log.at}")


def initial_values(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    layer = copy.deepcopy(subject.layer)
    kinds = ("uniform", "glorot", "orthogonal")
    begin(log, subject, "initialize")
    forget = 1.0 if layer.cell == "lstm" and layer.bias else 0.0
    fastrnn.initialize(layer, weight_ih=pick(rng, kinds), weight_hh=pick(rng, kinds),
                       bias=pick(rng, ("uniform", "zeros")), forget_bias=forget, rng=rng)  # fmt: skip
    if not all(np.isfinite(array).all() for array in layer.params.values()):
        log.fail(f"initial values are not finite, in {log.at}")


SCENARIOS: tuple[Callable[[np.random.Generator, Subject, Log], None], ...] = (
    heads,
    optimisers,
    padding,
    initial_values,
)

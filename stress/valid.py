"""Valid calls: each scenario makes some with a random layer, and compares them with the reference or to the bit.

against the reference   inference, training, streams, output layer and loss
to the bit              checkpointed and plain training, any number of threads, streams in pieces and whole,
                        copies, pickles and state dicts
within the bound        each row of a ragged batch and that row alone
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import fastrnn
import numpy as np
from fastrnn import optim, reference
from fastrnn.training import first_nonfinite

from .agreement import Outcome, Precision, Run, disagreement, inference_of_reference, named, training_of_reference
from .child import Log
from .layers import FLOATS, Call, Subject, as_tuple, chance, laid_out, pick, random_call, random_state, size

Scenario = Callable[[np.random.Generator, Subject, Log], None]


def begin(log: Log, subject: Any, what: str, calls: int = 1) -> None:
    log.begin(f"{what} of {subject}")
    log.seen["valid calls"] += calls


def expect_same_bits(log: Log, a: Outcome, b: Outcome, what: str) -> None:
    """Note each array that is not that of the other, NaN included."""
    for name, array in a.items():
        if not np.array_equal(array, b[name], equal_nan=True):
            log.fail(f"{name} has other bits {what}, in {log.at}")
            return


def expect_agreement(log: Log, ours: Outcome, run: Run) -> None:
    with np.errstate(all="ignore"):
        wrong = disagreement(ours, run)
    if wrong is not None:
        log.fail(f"{wrong}, in {log.at}")


# ------------------------------------------------------------ against the reference


def inference(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    layer, call = subject.layer, random_call(rng, subject.layer)
    begin(log, subject, f"inference {call}", 2)
    before = call.x.copy()
    ours = named(*layer(call.x, call.state, **call.keywords))
    expect_same_bits(log, named(*layer(call.x, call.state, **call.keywords)), ours, "the second time")
    if not np.array_equal(before, call.x):
        log.fail(f"x was changed, in {log.at}")
    if subject.is_continuous or layer.dtype == np.float64:
        expect_agreement(log, ours, partial(inference_of_reference, layer, call))


def training(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    """Forward, and backward twice along one tape."""
    layer, call = subject.layer, training_call(rng, subject)
    begin(log, subject, f"training {call}", 3)
    y, state, tape = layer.forward(call.x, call.state, **call.keywords)
    dy, dstate = random_gradients(rng, layer, y, call)
    layer.zero_grad()
    ours = named(y, state, *layer.backward(tape, dy, dstate), layer.grads)
    begin(log, subject, f"the second way back of training {call}", 0)
    again = named(None, None, *layer.backward(tape, dy, dstate))
    expect_same_bits(log, again, ours, "the second time")
    layer.zero_grad()
    grads = {name: ours[name] for name in layer.grads}
    if subject.is_smooth or (layer.dtype == np.float64):
        expect_agreement(log, ours, partial(training_of_reference, layer, call, tape, dy, dstate))
    elif subject.is_continuous:
        outputs = {name: array for name, array in ours.items() if name == "y" or name.startswith("state")}
        expect_agreement(log, outputs, partial(training_of_reference, layer, call, tape, dy, dstate))
    if chance(rng, 0.3):
        look_inside(rng, subject, log, tape, dy, dstate)
    if not all(np.isfinite(g).all() for g in grads.values()) and first_nonfinite(tape, dy, dstate) is None:
        log.fail(f"gradients are not finite and first_nonfinite finds nothing, in {log.at}")


def look_inside(rng: np.random.Generator, subject: Subject, log: Log, tape: Any, dy: Any, dstate: Any) -> None:
    layer = subject.layer
    begin(log, subject, "gates and first_nonfinite", 2)
    k, d = int(rng.integers(layer.num_layers)), int(rng.integers(2 if layer.bidirectional else 1))
    gates = tape.gates(k, d)
    if any(array.shape != (tape.batch.T, tape.batch.B, layer.hidden_size) for array in gates.values()):
        log.fail(f"gates have other shapes, in {log.at}")
    first_nonfinite(tape, dy, dstate)


def training_call(rng: np.random.Generator, subject: Subject) -> Call:
    """One that may be trained: vectors where inputs are dropped."""
    given = {"one_hot": False} if subject.layer.input_dropout else {}
    return random_call(rng, subject.layer, **given)


def random_gradients(rng: np.random.Generator, layer: Any, y: np.ndarray, call: Call) -> tuple[Any, Any]:
    dy = None if chance(rng, 0.1) else laid_out(rng, rng.standard_normal(y.shape).astype(layer.dtype))
    dstate = random_state(rng, layer, *(() if call.unbatched else (call.B,))) if chance(rng, 0.5) else None
    return dy, dstate


# ------------------------------------------------------------ to the bit


def checkpointed(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    call, found = training_call(rng, subject), []
    keep: dict[str, Any] = {"checkpoint": pick(rng, ("auto", 1, 2, 3, 7, 1000, 2**31, 2**40, 2**62))}
    if chance(rng, 0.3):
        keep = {"memory_limit": pick(rng, (10**5, 10**6, 2**31, 2**62))}
    gradients: Any = None
    for kept in ({}, keep):
        layer = copy.deepcopy(subject.layer)  # and so its generator
        layer.zero_grad()
        begin(log, subject, f"training {call} with {kept}", 2)
        try:
            y, state, tape = layer.forward(call.x, call.state, **call.keywords, **kept)
        except ValueError as error:
            if "memory_limit of at least" in str(error):
                return
            raise
        gradients = gradients or random_gradients(rng, layer, y, call)
        found.append(named(y, state, *layer.backward(tape, *gradients), layer.grads))
    expect_same_bits(log, *found, f"with {keep}")


def threaded(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    """Training and a stream on one to three threads; sometimes with enough to do that others come."""
    if chance(rng, 0.5):
        sizes = {"input_size": int(rng.integers(20, 71)), "hidden_size": int(rng.integers(50, 71)), "num_layers": 2}
        options = subject.options | sizes | ({"proj_size": 9} if "proj_size" in subject.options else {})
        subject = Subject(type(subject.layer)(**options, rng=0), options)
        given = {"T": 40, "B": int(rng.integers(1, 71)), "unbatched": False}
    else:
        given = {}
    call = random_call(rng, subject.layer, **({"one_hot": False} | given))
    gradients: Any = None
    found = []
    streams = not (subject.layer.bidirectional or subject.layer.reverse) and call.B > 0 and call.T > 0
    for count in (1, 2, 3):
        fastrnn.set_num_threads(count)
        layer = copy.deepcopy(subject.layer)
        layer.zero_grad()
        begin(log, subject, f"training {call} on {count} threads", 3)
        y, state, tape = layer.forward(call.x, call.state, **call.keywords)
        gradients = gradients or random_gradients(rng, layer, y, call)
        found.append(named(y, state, *layer.backward(tape, *gradients), layer.grads))
        if streams:
            begin(log, subject, f"a stream over {call} on {count} threads")
            found[-1]["streamed"] = layer.stream(call.B).run(call.x)
    fastrnn.set_num_threads(1)
    for count in (1, 2):
        expect_same_bits(log, found[0], found[count], f"on {count + 1} threads")


def copies(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    """Pickles, copies and state dicts give a layer of the same bits, without gradients."""
    layer, call = subject.layer, random_call(rng, subject.layer)
    begin(log, subject, "copies", 6)
    layer.grads[next(iter(layer.grads))][...] = 1
    twins = {"a pickle": pickle.loads(pickle.dumps(layer)), "a deep copy": copy.deepcopy(layer)}
    layer.zero_grad()
    twins["a state dict"] = other = type(layer)(**subject.options, rng=1)
    other.load_state_dict(layer.state_dict())
    expected = named(*layer(call.x, call.state, **call.keywords))
    for what, twin in twins.items():
        begin(log, subject, f"a call of {what} {call}")
        expect_same_bits(log, named(*twin(call.x, call.state, **call.keywords)), expected, f"in {what}")
    if any(array.any() for array in twins["a pickle"].grads.values()):
        log.fail(f"a pickle carries gradients, in {log.at}")
    begin(log, subject, "deep copy and pickle of params", 2)
    for params in (copy.deepcopy(layer.params), pickle.loads(pickle.dumps(layer.params))):
        expect_same_bits(log, dict(params), dict(layer.params), "in a copy of params")
        params[next(iter(params))][...] += 1
    expect_same_bits(log, named(*layer(call.x, call.state, **call.keywords)), expected, "after that of its params")


# ------------------------------------------------------------ rows and pieces


def rows_alone(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    """Each row of a ragged batch is that row alone."""
    layer = subject.layer
    if not subject.is_continuous:
        return
    call = random_call(rng, layer, B=int(rng.integers(1, 6)), ragged=True, reset=False, unbatched=False)
    begin(log, subject, f"ragged inference {call}")
    y, state = layer(call.x, call.state, **call.keywords)
    x, y = (array.swapaxes(0, 1) if layer.batch_first else array for array in (call.x, y))
    for b, length in enumerate(call.keywords["lengths"].tolist()):
        alone = Call(length, 1, x[:length, b], row_of(call.state, b), unbatched=True)
        begin(log, subject, f"row {b} of {length} steps alone {alone}")
        own = named(*layer(alone.x, alone.state))
        within = named(y[:length, b], row_of(state, b))
        expect_agreement(log, within, partial(row_of_reference, layer, alone, own))
        if y[length:, b].any():
            log.fail(f"y is not zero in the padding of row {b}, in {log.at}")


def row_of_reference(layer: Any, alone: Call, own: Outcome, precision: Precision) -> Outcome:
    """What the layer itself made of a row alone; in another precision, or from something else, the reference."""
    is_own = precision.dtype == layer.dtype and precision.rng is None
    return own if is_own else inference_of_reference(layer, alone, precision)


def row_of(state: Any, b: int) -> Any:
    if state is None:
        return None
    rows = tuple(array[:, b] for array in as_tuple(state))
    return rows if len(rows) == 2 else rows[0]


def streams(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    """A stream over a whole block, against the reference and against itself in pieces."""
    layer = subject.layer
    if layer.bidirectional or layer.reverse:
        return
    T, B = int(rng.integers(0, 14)), int(pick(rng, (1, 1, 2, 3, 8, 17)))
    call = random_call(rng, layer, T=T, B=B, ragged=False, reset=False, unbatched=False)
    stored = pick(rng, ("float32", "float32", "bfloat16", "int8")) if layer.dtype == np.float32 else None
    if stored:
        layer.compress(stored)
    begin(log, subject, f"a stream with weights {stored} over {call}", 3)
    stream = layer.stream(B)
    stream.state = call.state
    ours = named(stream.run(call.x), stream.state)
    if stored in (None, "float32") and (subject.is_continuous or layer.dtype == np.float64):
        expect_agreement(log, ours, partial(inference_of_reference, layer, call))
    again = layer.stream(B)
    again.state = call.state
    begin(log, subject, f"a stream with weights {stored} over {call} in pieces", 0)
    again, y = in_pieces(rng, again, layer, call, log)
    expect_same_bits(log, named(y, again.state), ours, "in pieces")
    begin(log, subject, f"reset, rows that sit out and refresh of a stream with weights {stored}", 6)
    sitting_out(rng, again, layer, call, log)
    if stored:
        layer.compress("float32")


def in_pieces(rng: np.random.Generator, stream: Any, layer: Any, call: Call, log: Log) -> tuple[Any, np.ndarray]:
    """The stream, or the last of its copies, and y of all steps."""
    x = call.x.swapaxes(0, 1) if layer.batch_first else call.x
    width = getattr(layer, "proj_size", 0) or layer.hidden_size
    found, t = [], 0
    while t < call.T:
        log.seen["valid calls"] += 1
        n = int(min(call.T - t, pick(rng, (1, 1, 2, 3, 5))))
        if chance(rng, 0.1):
            stream = pick(rng, (copy.copy, copy.deepcopy, lambda s: s.copy()))(stream)
        if n == 1 and chance(rng, 0.7):
            out = np.empty((call.B, width), layer.dtype) if chance(rng, 0.5) else None
            y = stream.step(x[t], out=out)[None]
        else:
            block = x[t : t + n]
            y = stream.run(block.swapaxes(0, 1) if layer.batch_first else block)
            y = y.swapaxes(0, 1) if layer.batch_first else y
        found.append(y.copy())
        t += n
    y = np.concatenate(found) if found else np.zeros((0, call.B, width), layer.dtype)
    return stream, y.swapaxes(0, 1) if layer.batch_first else y


def sitting_out(rng: np.random.Generator, stream: Any, layer: Any, call: Call, log: Log) -> None:
    """Rows that sit out keep their state; reset zeroes the rows named; refresh takes the new weights."""
    if call.T == 0:
        return
    x_t = call.x[:, 0] if layer.batch_first else call.x[0]
    active = rng.random(call.B) < 0.5
    before = as_tuple(stream.state)
    stream.step(x_t, active=active)
    for old, new in zip(before, as_tuple(stream.state), strict=True):
        if not np.array_equal(old[:, ~active], new[:, ~active], equal_nan=True):
            log.fail(f"a row that sat out has another state, in {log.at}")
    stream.reset(np.flatnonzero(active))
    if any(array[:, active].any() for array in as_tuple(stream.state)):
        log.fail(f"reset leaves a state, in {log.at}")
    state = stream.state
    name = next(iter(layer.params))
    layer.params[name] *= 0.5
    stream.refresh()
    fresh = layer.stream(call.B)
    fresh.state = state
    expect_same_bits(log, named(stream.step(x_t)), named(fresh.step(x_t)), "after refresh")
    layer.params[name] *= 2


# ------------------------------------------------------------ what goes with a layer


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


# each as often as it stands here
SCENARIOS: tuple[Scenario, ...] = (
    inference, inference, inference, inference, training, training, training, checkpointed, checkpointed,
    rows_alone, streams, streams, streams, copies, heads, optimisers, padding, initial_values,
)  # fmt: skip

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
from fastrnn.training import first_nonfinite

from .agreement import Outcome, Precision, Run, disagreement, inference_of_reference, named, training_of_reference
from .child import Log
from .layers import NOT_NORMED, Call, Subject, as_tuple, chance, laid_out, pick, random_call, random_state

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
    for saving in ({}, keep):
        layer = copy.deepcopy(subject.layer)  # and so its generator
        layer.zero_grad()
        begin(log, subject, f"training {call} with {saving}", 2)
        try:
            y, state, tape = layer.forward(call.x, call.state, **call.keywords, **saving)
        except ValueError as error:
            if "memory_limit of at least" in str(error):
                return
            raise
        gradients = gradients or random_gradients(rng, layer, y, call)
        found.append(named(y, state, *layer.backward(tape, *gradients), layer.grads))
    expect_same_bits(log, *found, f"with {keep}")


def threaded(rng: np.random.Generator, subject: Subject, log: Log) -> None:
    """Training, and streams again and again, on one to three threads; mostly with enough to do that others come."""
    given: dict[str, Any] = {}
    if chance(rng, 0.7):
        subject = enlarged(rng, subject)
        given = {"T": 40, "B": int(rng.integers(1, 71)), "unbatched": False}
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
        for again in range(4 if streams else 0):
            begin(log, subject, f"a stream over {call} on {count} threads")
            found[-1][f"what was streamed, {again}"] = layer.stream(call.B).run(call.x)
    fastrnn.set_num_threads(1)
    for count in (1, 2):
        expect_same_bits(log, found[0], found[count], f"on {count + 1} threads")


def enlarged(rng: np.random.Generator, subject: Subject) -> Subject:
    """A layer of the same options, large enough to be shared."""
    sizes = {"input_size": int(rng.integers(20, 71)), "hidden_size": int(rng.integers(50, 71)), "num_layers": 2}
    options = subject.options | sizes | ({"proj_size": 9} if "proj_size" in subject.options else {})
    if chance(rng, 0.3):
        options = {name: value for name, value in options.items() if name not in NOT_NORMED} | {"layer_norm": True}
    return Subject(type(subject.layer)(**options, rng=0), options)


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


# each as often as it stands here
SCENARIOS: tuple[Scenario, ...] = (
    inference, inference, inference, inference, training, training, training, checkpointed, checkpointed,
    rows_alone, streams, streams, streams, copies,
)  # fmt: skip

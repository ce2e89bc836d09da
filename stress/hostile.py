"""Hostile calls: each must raise TypeError or ValueError, or be right; and nothing may have changed then.

    Place       where an argument goes: what is good there, the call, what must not change
    hostile     a value in a place, and the judgement over what came of it
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fastrnn
import numpy as np
from fastrnn import optim, reference

from .child import Log
from .layers import KINDS, Subject, as_tuple, chance, pick, random_call, random_state
from .values import HUGE, OwnError, Value, no_argument, value_like

REFUSALS = (TypeError, ValueError)


@dataclass
class Place:
    """Where an argument goes.

    what: its name.   good: what is right there.   call: gives it in, and returns what came as arrays.
    most_axes: an array of more is wrong.   is_shape_fixed: any other shape is wrong.   undo: after a call that went well.
    """

    what: str
    good: np.ndarray
    call: Callable[[Any], tuple[Any, ...]]
    most_axes: int = 3
    is_shape_fixed: bool = False
    undo: Callable[[], None] = lambda: None
    watch: Callable[[], Any] = lambda: None  # what must not change in an error, beyond the layer
    is_output: bool = False
    any_dtype: bool = False  # all of them, or more than ours


class Judge:
    """A layer that hostile calls meet, and what must be the same after each of them."""

    def __init__(self, rng: np.random.Generator, subject: Subject, log: Log) -> None:
        self.rng, self.subject, self.log, self.layer = rng, subject, log, subject.layer
        self.x = rng.standard_normal((2, 1, subject.layer.input_size)).astype(subject.layer.dtype)
        self.expected = self.canary()

    def canary(self) -> bytes:
        """The bits of a call that is always the same."""
        return self.layer(self.x)[0].tobytes()

    def watched(self) -> tuple[Any, ...]:
        layer = self.layer
        return (layer._flat_params.tobytes(), layer._flat_grads.tobytes(), repr(layer._rng.bit_generator.state))

    def meet(self, what: str, call: Callable[[], Any], *, verdict: str, is_huge: bool = False,
             watch: Callable[[], Any] = lambda: None, refusals: tuple[type[BaseException], ...] = REFUSALS) -> Any:  # fmt: skip
        """What the call returned; None if it raised. Judges the error, and that nothing has changed."""
        self.log.begin(f"{what} of {self.subject}")
        self.log.seen["hostile calls"] += 1
        before = self.watched(), watch()
        try:
            with np.errstate(all="ignore"):
                found = call()
        except Exception as error:
            name = type(error).__name__
            self.log.seen[name] += 1
            allowed = isinstance(error, (*refusals, OwnError)) or (is_huge and isinstance(error, MemoryError))
            if not allowed:
                self.log.fail(f"{name}: {str(error)[:200]}, in {self.log.at}")
            elif verdict == "right":
                self.log.fail(f"refused: {error}, in {self.log.at}")
            if (self.watched(), watch()) != before:
                self.log.fail(f"something has changed after {name}, in {self.log.at}")
            found = None
        else:
            self.log.seen["taken"] += 1
            if verdict == "wrong":
                self.log.fail(f"taken, in {self.log.at}")
        return found

    def still_works(self) -> None:
        self.log.begin(f"a call after {self.log.at}")
        if self.canary() != self.expected:
            self.log.fail(f"another result in {self.log.at}")
            self.expected = self.canary()

    def place(self, place: Place) -> None:
        """A hostile value in a place."""
        value = value_like(self.rng, place.good, place.most_axes, place.is_shape_fixed)
        if place.is_output and value.verdict == "right":
            fits = isinstance(value.value, np.ndarray) and value.value.flags.carray
            value.verdict = "right" if fits else "wrong"
        if place.any_dtype and value.verdict == "wrong":
            value.verdict = "either"
        given = value.value
        plain = isinstance(given, np.ndarray) and not value.is_huge and not given.dtype.hasobject
        before = given.tobytes() if plain else None
        found = self.meet(
            f"{value.what} as {place.what}", lambda: place.call(given),
            verdict=value.verdict, is_huge=value.is_huge, watch=place.watch,
        )  # fmt: skip
        if found is None or not place.is_output:
            if plain and given.tobytes() != before:
                self.log.fail(f"the argument was changed, in {self.log.at}")
        if found is not None:
            place.undo()
            if value.verdict == "right":
                self.compare(place, found)
        self.still_works()

    def compare(self, place: Place, found: tuple[Any, ...]) -> None:
        """Whether what came is what the good value gives, within what sums in another order may differ."""
        expected = place.call(place.good)
        place.undo()
        for ours, theirs in zip(found, expected, strict=True):
            scale = np.abs(theirs).max(initial=1)
            tolerance = 1e-3 if theirs.dtype == np.float32 else 1e-8
            if scale < 100 and not np.allclose(ours, theirs, rtol=0, atol=tolerance * scale):
                self.log.fail(f"the result is not that of {place.what} itself, in {self.log.at}")


def flat(found: Any) -> tuple[Any, ...]:
    """Arrays within tuples, one after the other."""
    if isinstance(found, (tuple, list)):
        return tuple(array for each in found for array in flat(each))
    return () if found is None else (np.array(found),)


# ------------------------------------------------------------ arrays of calls


def arrays_of_calls(judge: Judge) -> None:
    """x, state, lengths and reset of inference and training, dy and dstate of the way back."""
    rng, layer = judge.rng, judge.layer
    call = random_call(rng, layer, T=int(rng.integers(1, 5)), B=int(rng.integers(1, 4)), unbatched=False, one_hot=False)
    T, B = call.T, call.B
    state, lengths = random_state(rng, layer, B), rng.integers(0, T + 1, B)
    reset = rng.random(call.x.shape[:2]) < 0.3
    random_state_before = layer._rng.bit_generator.state

    def trained(x: Any = call.x, state: Any = None, **keywords: Any) -> tuple[Any, ...]:
        return flat(layer.forward(x, state, **keywords)[:2])

    def same_noise() -> None:
        layer._rng.bit_generator.state = random_state_before
        layer.zero_grad()

    def inferred(x: Any = call.x, state: Any = None, **keywords: Any) -> tuple[Any, ...]:
        return flat(layer(x, state, **keywords))

    run = pick(rng, (inferred, trained))
    places = [
        Place("x", call.x, run, 3, undo=same_noise),
        Place("lengths", lengths, lambda value: run(lengths=value), 1, True, same_noise),
        Place("reset", reset, lambda value: run(reset=value), 2, True, same_noise),
    ]
    places += state_places("the state", state, lambda value: run(state=value), same_noise)
    y, _, tape = layer.forward(call.x, state, lengths=lengths)
    same_noise()
    dy, dstate = rng.standard_normal(y.shape).astype(layer.dtype), random_state(rng, layer, B)
    dy_place = Place("dy", dy, lambda value: flat(layer.backward(tape, value)), 3, True, same_noise)
    places.append(dy_place)
    places += state_places("dstate", dstate, lambda value: flat(layer.backward(tape, dy, value)), same_noise)
    for _ in range(14):
        judge.place(pick(rng, places))
    integers = rng.integers(0, layer.input_size, call.x.shape[:2])
    if not layer.input_dropout:
        judge.place(Place("integer x", integers, run, 2, undo=same_noise, any_dtype=True))
    for value in (-1, layer.input_size, 2**31, -(2**63), 2**63 - 1):
        wrong = integers.copy()
        wrong.flat[int(rng.integers(wrong.size))] = value
        judge.meet(f"index {value}", lambda wrong=wrong: run(wrong), verdict="wrong")
    judge.meet("an index of 2**63", lambda: run(np.full_like(integers, 2**63, "uint64")), verdict="wrong")
    for value in (-1, T + 1, 2**31, 2**62, -(2**63)):
        wrong = lengths.copy()
        wrong[int(rng.integers(B))] = value
        judge.meet(f"length {value}", lambda wrong=wrong: run(lengths=wrong), verdict="wrong")
    judge.meet("lengths of 2**63", lambda: run(lengths=np.full(B, 2**63, "uint64")), verdict="wrong")
    judge.meet("lengths that are one number", lambda: run(lengths=T), verdict="wrong")
    judge.meet("lengths in floats", lambda: run(lengths=lengths.astype(float)), verdict="wrong")
    judge.still_works()


def state_places(
    what: str, state: Any, call: Callable[[Any], tuple[Any, ...]], undo: Callable[[], None] = lambda: None
) -> list[Place]:
    """A place for each array of a state."""
    if not isinstance(state, tuple):
        return [Place(what, state, call, 3, True, undo)]
    h, c = state
    return [
        Place(f"{what} h", h, lambda value: call((value, c)), 3, True, undo),
        Place(f"{what} c", c, lambda value: call((h, value)), 3, True, undo),
    ]


def states_of_other_kinds(judge: Judge) -> None:
    rng, layer = judge.rng, judge.layer
    x = rng.standard_normal((2, 2, layer.input_size)).astype(layer.dtype)
    parts = as_tuple(random_state(rng, layer, 2))
    values = [(), parts[:1] * 3, parts + parts, {"h": parts[0]}, "hc", iter(parts), [None], (None, None), 0, [[]], np.stack(parts[:1])]
    values += [(parts[0],), parts[0]] if layer.cell == "lstm" else [parts, (parts[0], parts[0])]
    for value in values:
        what = f"a state that is {type(value).__name__} of {len(value) if hasattr(value, '__len__') else '?'}"
        verdict = "either" if layer.num_layers == 1 and layer.cell != "lstm" else "wrong"
        judge.meet(what, lambda value=value: layer(x, value), verdict=verdict)
        judge.meet(what, lambda value=value: layer.forward(x, value), verdict=verdict)
    judge.meet("no x", lambda: layer(None), verdict="wrong")
    for _ in range(4):
        value = no_argument(rng)
        judge.meet(f"{type(value).__name__} as x", lambda value=value: layer(value), verdict="either")
    judge.still_works()


def nonfinite(judge: Judge) -> None:
    """NaN or infinity in one row stays in that row."""
    rng, layer = judge.rng, judge.layer
    B, T = int(rng.integers(2, 20)), int(rng.integers(1, 6))
    call = random_call(rng, layer, T=T, B=B, one_hot=False, unbatched=False, ragged=False, reset=False)
    b, axis = int(rng.integers(B)), 0 if layer.batch_first else 1
    dirty = np.array(call.x)
    dirty[(slice(None), b)[::1 if axis else -1]] = pick(rng, (np.nan, np.inf, -np.inf, 1e30))
    others = np.arange(B) != b
    judge.log.begin(f"values that are not finite in row {b} of {call}, in {judge.subject}")
    judge.log.seen["hostile calls"] += 2
    with np.errstate(all="ignore"):
        clean, found = layer(call.x, call.state)[0], layer(dirty, call.state)[0]
        _, _, tape = layer.forward(dirty, call.state)
        layer.backward(tape, np.array(found))
    layer.zero_grad()
    if not np.array_equal(np.compress(others, clean, axis), np.compress(others, found, axis), equal_nan=True):
        judge.log.fail(f"another row has changed, in {judge.log.at}")
    judge.still_works()


# ------------------------------------------------------------ tapes


def tapes(judge: Judge) -> None:
    """Foreign tapes and none; tapes after the parameters, x or the mask have changed."""
    rng, layer, subject = judge.rng, judge.layer, judge.subject
    call = random_call(rng, layer, **({"one_hot": False} if layer.input_dropout else {}))
    keep = pick(rng, ({}, {"checkpoint": 3}, {"checkpoint": "auto"}))
    begin = judge.log.begin
    begin(f"training {call} {keep} of {subject}")
    call.x, call.keywords = np.array(call.x), {name: np.array(value) for name, value in call.keywords.items()}
    y, _, tape = layer.forward(call.x, call.state, **call.keywords, **keep)
    dy = np.ones_like(y)
    other = copy.deepcopy(layer)
    foreign = (None, 5, "tape", (), y, other.forward(call.x, call.state, **call.keywords)[2], {}, object, tape.batch)
    for value in foreign:
        judge.meet(f"{type(value).__name__} as a tape", lambda value=value: layer.backward(value, dy), verdict="wrong")
    judge.meet("the tape of the reference", lambda: layer.backward(
        reference.forward(layer, call.x, call.state, **call.keywords)[2], dy), verdict="wrong")  # fmt: skip
    for what, handle in (("a copy", copy.deepcopy), ("a pickle", pickle.dumps)):
        judge.meet(f"{what} of a tape", lambda handle=handle: handle(tape), verdict="either")
    for layers in (-1, layer.num_layers, 2**40, 1.5, None, "0"):
        judge.meet(f"gates of layer {layers}", lambda at=layers: tape.gates(at), verdict="either", refusals=(*REFUSALS, IndexError))
    judge.still_works()
    saved = layer.state_dict()
    name = pick(rng, tuple(saved))
    changes: tuple[Callable[[], None], ...] = (
        lambda: layer.params.__setitem__(name, saved[name] * 2),
        lambda: layer.load_state_dict({key: value + 1 for key, value in saved.items()}),
        lambda: layer.params[name].fill(np.nan),
        lambda: call.x.fill(0),
        lambda: [value.fill(0) for value in call.keywords.values()] and None,
        lambda: layer.compress("int8") if layer.dtype == np.float32 else None,
        lambda: fastrnn.initialize(layer, rng=0),
    )
    for _ in range(2):
        change = pick(rng, changes)
        begin(f"change {changes.index(change)} before the way back along {call} {keep} of {subject}")
        change()
        judge.meet(f"a way back after change {changes.index(change)} {call} {keep}",
                   lambda: layer.backward(tape, dy), verdict="either")  # fmt: skip
    layer.load_state_dict(saved)
    if layer.dtype == np.float32:
        layer.compress("float32")
    layer.zero_grad()
    judge.still_works()


# ------------------------------------------------------------ streams


def streams(judge: Judge) -> None:
    """Arrays of steps and runs, outputs that overlap, rows, batches and weights that there are not."""
    rng, layer = judge.rng, judge.layer
    for batch in (0, -1, 2.0, None, "1", True, [1], np.float64(1), float("nan"), pick(rng, HUGE[2:])):
        judge.meet(f"stream({batch})", lambda batch=batch: layer.stream(batch), verdict="wrong" if not isinstance(batch, int) or batch < 1 or batch is True else "either", is_huge=True)
    for weights in ("int4", None, 8, b"int8", ["int8"], "INT8"):
        judge.meet(f"compress({weights!r})", lambda weights=weights: layer.compress(weights), verdict="wrong")
    if layer.bidirectional or layer.reverse:
        judge.meet("a stream", lambda: layer.stream(), verdict="wrong")
        return
    B, T = int(pick(rng, (1, 2, 5))), int(rng.integers(1, 4))
    stored = pick(rng, ("float32", "bfloat16", "int8"))
    if layer.dtype == np.float32:
        layer.compress(stored)
    stream = layer.stream(B)
    start = random_state(rng, layer, B)
    stream.state = start
    call = random_call(rng, layer, T=T, B=B, one_hot=False, unbatched=False, ragged=False, reset=False)
    width = getattr(layer, "proj_size", 0) or layer.hidden_size
    x, x_t = np.ascontiguousarray(call.x), np.ascontiguousarray(call.x[:, 0] if layer.batch_first else call.x[0])
    active = rng.random(x.shape[:2]) < 0.7
    active_t = active[:, 0] if layer.batch_first else active[0]

    def watch() -> Any:
        return [array.tobytes() for array in as_tuple(stream.state)]

    def back() -> None:
        stream.state = start

    def on(method: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        return lambda *args, **keywords: flat((method(*args, **keywords), stream.state))

    step, run = on(stream.step), on(stream.run)
    y, y_t = np.zeros((*x.shape[:2], width), layer.dtype), np.zeros((B, width), layer.dtype)
    own = {"undo": back, "watch": watch}
    places = [
        Place("x of a run", x, run, 3, **own), Place("x of a step", x_t, step, 2, **own),
        Place("active of a run", active, lambda value: run(x, active=value), 2, True, **own),
        Place("active of a step", active_t, lambda value: step(x_t, active=value), 1, True, **own),
        Place("out of a run", y, lambda value: run(x, out=value), 3, True, is_output=True, **own),
        Place("out of a step", y_t, lambda value: step(x_t, out=value), 2, True, is_output=True, **own),
    ]  # fmt: skip

    def set_state(value: Any) -> tuple[Any, ...]:
        stream.state = value
        return flat(stream.state)

    places += [Place(p.what, p.good, p.call, 3, True, back, watch) for p in state_places("a stream's state", start, set_state)]
    for _ in range(14):
        judge.place(pick(rng, places))
    rows: tuple[Any, ...] = (B, -B - 1, 2**63, 1.5, "0", [0, B], np.ones(B + 1, bool), {}, object(), np.array([0.5]))
    for value in rows:
        judge.meet(f"reset({value})", lambda value=value: stream.reset(value), verdict="either", watch=watch, refusals=(*REFUSALS, IndexError))
    back()
    for value in (-1, layer.input_size, 2**62, -(2**63)):
        judge.meet(f"index {value}", lambda value=value: stream.step(np.full(B, value)), verdict="wrong", watch=watch)
    overlaps(judge, stream, back, watch, B, width)
    for what, handle in (("a pickle", pickle.dumps), ("an attribute", lambda s: setattr(s, "batch", 7))):
        judge.meet(f"{what} of a stream", lambda handle=handle: handle(stream), verdict="either", refusals=(*REFUSALS, AttributeError), watch=watch)
    if layer.dtype == np.float32:
        with_weights_not_finite(judge, stream, stored)
        layer.compress("float32")
    judge.still_works()


def overlaps(judge: Judge, stream: Any, back: Any, watch: Any, B: int, width: int) -> None:
    """out in the memory of x or of the mask: right or refused."""
    layer, rng, T = judge.layer, judge.rng, 3
    I, axes = layer.input_size, (B, 3) if layer.batch_first else (3, B)
    values = rng.standard_normal((*axes, I)).astype(layer.dtype)
    memory = np.zeros(T * B * (I + width) + 8, layer.dtype)
    shift = int(rng.integers(0, 8))
    x = memory[: values.size].reshape(values.shape)
    out = memory[shift : shift + T * B * width].reshape(*axes, width)
    back()
    expected = stream.run(values).copy()
    back()
    x[...] = values
    found = judge.meet(f"out over x of a run, {shift} elements later", lambda: stream.run(x, out=out), verdict="either", watch=watch)
    if found is not None and not np.array_equal(found, expected, equal_nan=True):
        judge.log.fail(f"another result where out overlaps x, in {judge.log.at}")
    back()
    mask = memory.view(np.bool_)[: T * B].reshape(axes)
    memory.fill(0)
    mask[...] = rng.random(axes) < 0.5
    expected = stream.run(values, active=mask).copy()
    back()
    found = judge.meet(
        "out over the mask of a run", lambda: stream.run(values, out=memory[: T * B * width].reshape(*axes, width), active=mask),
        verdict="either", watch=watch,
    )  # fmt: skip
    if found is not None and not np.array_equal(found, expected, equal_nan=True):
        judge.log.fail(f"another result where out overlaps the mask, in {judge.log.at}")
    back()


def with_weights_not_finite(judge: Judge, stream: Any, stored: str) -> None:
    layer = judge.layer
    name = pick(judge.rng, [n for n in layer.params if n.startswith("weight")])
    saved = layer.params[name].copy()
    layer.params[name].flat[0] = np.nan
    verdict = "either" if stored == "float32" or not name.startswith(("weight_ih", "weight_hh")) else "wrong"
    judge.meet(f"refresh with NaN in {name}, weights {stored}", stream.refresh, verdict=verdict)
    layer.params[name] = saved
    stream.refresh()


# ------------------------------------------------------------ options and further arguments


def arguments_of_training(judge: Judge) -> None:
    """checkpoint and memory_limit."""
    rng, layer = judge.rng, judge.layer
    x = rng.standard_normal((3, 2, layer.input_size)).astype(layer.dtype)
    if layer.batch_first:
        x = x.swapaxes(0, 1)
    for name in ("checkpoint", "memory_limit"):
        for value in (0, -1, 1.5, "all", b"auto", True, [2], float("nan"), np.float32(2), object(), 1j):
            judge.meet(f"{name}={value!r}", lambda name=name, value=value: layer.forward(x, **{name: value}), verdict="wrong")
        for value in (*HUGE, np.int64(2), np.uint8(3)):
            judge.meet(f"{name}={value!r}"[:60], lambda name=name, value=value: layer.forward(x, **{name: value}), verdict="either" if value < 100 or value >= 2**63 else "right")
    judge.meet("checkpoint and memory_limit", lambda: layer.forward(x, checkpoint=2, memory_limit=10**9), verdict="wrong")
    for name in ("state_dict", "states", "mask"):
        judge.meet(f"{name}=", lambda name=name: layer.forward(x, **{name: None}), verdict="wrong")
    for n in (0, -1, 1.5, "2", None, True):
        judge.meet(f"set_num_threads({n!r})", lambda n=n: fastrnn.set_num_threads(n), verdict="wrong")
    judge.still_works()


def parameters(judge: Judge) -> None:
    """Values in the place of parameters, names that there are not, state dicts that do not fit."""
    rng, layer = judge.rng, judge.layer
    name = pick(rng, tuple(layer.params))
    saved = layer.state_dict()
    refusals = (*REFUSALS, KeyError)

    def restore() -> None:
        layer.load_state_dict(saved)

    def assign(value: Any) -> tuple[Any, ...]:
        layer.params[name] = value
        return flat(layer.params[name])

    def load(value: Any) -> tuple[Any, ...]:
        layer.load_state_dict(saved | {name: value})
        return flat(layer.params[name])

    for _ in range(3):
        judge.place(Place(f"params[{name!r}]", saved[name], assign, 2, True, restore))
        judge.place(Place(f"{name} of a state dict", saved[name], load, 2, True, restore))
    partly = {key: value for key, value in saved.items() if key != name}
    for value in ({}, partly, saved | {"more": saved[name]}, None, 5, "abc", [1], list(saved.items()), object()):
        judge.meet(f"load_state_dict({type(value).__name__})", lambda value=value: layer.load_state_dict(value), verdict="wrong", refusals=refusals)
    for key in ("weight", "", 5, None, ("weight_ih_l0",)):
        judge.meet(f"params[{key!r}]", lambda key=key: layer.params.__setitem__(key, saved[name]), verdict="wrong", refusals=refusals)
    for method in ("pop", "clear", "update", "setdefault", "popitem", "__delitem__", "__ior__"):
        judge.meet(f"params.{method}", lambda method=method: getattr(layer.params, method)(), verdict="wrong")
    for attribute in ("params", "grads"):
        judge.meet(f"another {attribute}", lambda at=attribute: setattr(layer, at, {}), verdict="wrong", refusals=(*REFUSALS, AttributeError))
    restore()
    judge.still_works()


def writable_options(judge: Judge) -> None:
    """Options of a layer that exists: refused, or they count."""
    rng, subject = judge.rng, judge.subject
    layer = copy.deepcopy(subject.layer)
    changes: dict[str, Any] = {
        "hidden_size": pick(rng, (1, 4, 71)), "input_size": pick(rng, (1, 4, 71)), "num_layers": 4, "bias": not layer.bias,
        "batch_first": not layer.batch_first, "bidirectional": not layer.bidirectional, "reverse": not layer.reverse,
        "clip": 0.2, "layer_norm": not layer.layer_norm, "dtype": np.dtype("float64"),
        "zoneout": 0.7, "grad_clip": 0.1,
    }  # fmt: skip
    if layer.bidirectional:
        changes["merge"] = "sum"
    if layer.cell == "lstm":
        changes |= {"proj_size": 1, "peephole": not layer.peephole, "coupled": not layer.coupled, "activations": ("tanh",) * 3}
    elif layer.cell == "gru":
        changes |= {"reset_after": not layer.reset_after, "activations": ("tanh",) * 2}
    else:
        changes["nonlinearity"] = "relu"
    name = pick(rng, tuple(changes))
    value = changes[name]
    if getattr(layer, name) == value:
        return
    x = rng.standard_normal((3, 2, layer.input_size)).astype(layer.dtype)
    if layer.batch_first:
        x = x.swapaxes(0, 1)
    before = layer(x)[0]
    refusals = (*REFUSALS, AttributeError)
    refused = judge.meet(f"{name} = {value!r}", lambda: (setattr(layer, name, value), 1), verdict="either", refusals=refusals) is None
    options = subject.options | ({} if refused else {name: value})

    def run() -> tuple[Any, ...]:
        y, _, tape = layer.forward(x)
        return flat(layer(x)[0]) if layer.backward(tape, np.ones_like(y)) else ()

    found = judge.meet(f"a call after {name} = {value!r}", run, verdict="right" if refused else "either")
    if found is None or refused:
        if found is not None and not np.array_equal(found[0], before, equal_nan=True):
            judge.log.fail(f"another result, in {judge.log.at}")
        return
    if name == "grad_clip":
        judge.log.fail(f"grad_clip may be changed: whether it counts is not known, in {judge.log.at}")
    elif np.array_equal(found[0], before, equal_nan=True) and options != subject.options:
        judge.log.fail(f"{name} = {value!r} is ignored, in {judge.log.at}")


# what is wrong for an argument of each kind
SIZES = (0, -1, -(2**63), 1.5, "3", None, True, [3], np.float32(3), np.array([3]), float("nan"), float("inf"), 1j, object())
NUMBERS = (-0.1, float("nan"), float("inf"), "0.5", None, [0.5], 1j, object(), np.array([0.1, 0.2]), -(10**400), 10**400)
FLAGS = (1, 0, "yes", None, [], np.array([True, False]), 1.0, object())
NAMES = ("CONCAT", "", None, 5, [], object(), b"concat", ("concat",))
DTYPES = ("float16", ">f4", ">f8", "int32", "O", "complex64", "nonsense", "", 5, object(), [("a", "f4")], "f4,f4", "(", 1.5, "longdouble")
ACTIVATION = ("nonsense", "", None, 5, [], (), ("tanh", 1.0), ("elu", "a"), ("elu", 1.0, 2.0), ("elu", float("nan")),
              ("elu", float("inf")), ("elu", 10**400), ("elu", None), b"tanh", ("hard_sigmoid", [1.0]), [["tanh"]], object())  # fmt: skip
RNGS = ("abc", -1, 1.5, object(), [-1], [1.5], {}, b"a", "")

WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("input_size", "hidden_size", "num_layers"), SIZES),
    **dict.fromkeys(("dropout", "weight_dropout", "input_dropout", "recurrent_dropout", "zoneout"), (*NUMBERS, 1.1, True)),
    **dict.fromkeys(("clip", "grad_clip"), (0, 0.0, True, *(value for value in NUMBERS if value is not None))),
    **dict.fromkeys(("bias", "batch_first", "bidirectional", "reverse", "layer_norm"), FLAGS),
    "merge": NAMES, "dtype": DTYPES, "rng": RNGS, "nonsense": (1,),
}  # fmt: skip
OF_CELLS: dict[str, dict[str, tuple[Any, ...]]] = {
    "RNN": {"nonlinearity": ACTIVATION, "activations": (("tanh",),)},
    "GRU": {"activations": (*ACTIVATION, ("sigmoid",), ("sigmoid",) * 3), "reset_after": FLAGS},
    "LSTM": {
        "activations": (*ACTIVATION, ("sigmoid",) * 2, ("sigmoid",) * 4),
        "proj_size": (-1, 1.5, "1", None, True, 3, 4, 2**63, [1]),
        **dict.fromkeys(("peephole", "coupled"), FLAGS),
        "zoneout_cell": (*NUMBERS, 1.1),
    },
}


def constructors(judge: Judge) -> None:
    """Wrong arguments of every kind, and sizes beyond all memory."""
    rng = judge.rng
    kind = pick(rng, KINDS)
    table = WRONG | OF_CELLS[kind.__name__]
    for _ in range(14):
        name = pick(rng, tuple(table))
        value = pick(rng, table[name])
        given: dict[str, Any] = {"input_size": 2, "hidden_size": 3, name: value}
        if name == "activations" and chance(rng, 0.7) and kind is not fastrnn.RNN and value in ACTIVATION:
            given[name] = ("sigmoid", *(value,) * (1 if kind is fastrnn.GRU else 2))
        verdict = "either" if name == "clip" and value is None else "wrong"
        judge.meet(f"{kind.__name__}({name}={given[name]!r})"[:120], lambda given=given: kind(**given), verdict=verdict)
    name = pick(rng, ("input_size", "hidden_size", "input_size", "hidden_size", "num_layers"))
    given = {"input_size": 2, "hidden_size": 3, name: pick(rng, HUGE)}
    judge.meet(f"{kind.__name__}({name}={given[name]})"[:120], lambda: kind(**given), verdict="either", is_huge=True)
    linear = {**dict.fromkeys(("in_features", "out_features"), SIZES), "bias": FLAGS, "dtype": DTYPES, "rng": RNGS}
    for _ in range(4):
        name = pick(rng, tuple(linear))
        given = {"in_features": 2, "out_features": 3, name: pick(rng, linear[name])}
        judge.meet(f"Linear({name}={given[name]!r})", lambda given=given: fastrnn.Linear(**given), verdict="wrong")
    given = {"in_features": 2, "out_features": 3, pick(rng, ("in_features", "out_features")): pick(rng, HUGE)}
    judge.meet(f"Linear({given})"[:120], lambda: fastrnn.Linear(**given), verdict="either", is_huge=True)
    judge.still_works()


# ------------------------------------------------------------ what goes with a layer


def heads(judge: Judge) -> None:
    """Arguments of Linear, the losses, and of pad_sequence and unpad_sequence."""
    rng, dtype = judge.rng, pick(judge.rng, ("float32", "float64"))
    head = fastrnn.Linear(4, 3, dtype=dtype, rng=0)
    h, o = (rng.standard_normal((2, 5, n)).astype(dtype) for n in (4, 3))
    targets, mask = rng.integers(0, 3, (2, 5)), np.ones((2, 5), bool)

    def watch() -> Any:
        return head._flat_params.tobytes(), head._flat_grads.tobytes()

    loss, cross_entropy = fastrnn.softmax_cross_entropy, head.cross_entropy
    own = {"undo": head.zero_grad, "watch": watch}
    x, lengths = fastrnn.pad_sequence([np.ones((3, 2)), np.ones((5, 2))])
    places = [
        Place("h of Linear", h, lambda v: flat(head.forward(v)[0]), 64, **own),
        Place("the tape of Linear", h, lambda v: flat(head.backward(v, o)), 64, True, **own),
        Place("do of Linear", o, lambda v: flat(head.backward(h, v)), 64, True, **own),
        Place("h of cross_entropy", h, lambda v: flat(cross_entropy(v, targets)), 64, True, **own),
        Place("targets of cross_entropy", targets, lambda v: flat(cross_entropy(h, v)), 64, True, **own),
        Place("mask of cross_entropy", mask, lambda v: flat(cross_entropy(h, targets, mask=v)), 64, True, **own),
        Place("logits", o, lambda v: flat(loss(v, np.asarray(targets))), 64, False, any_dtype=True),
        Place("targets", targets, lambda v: flat(loss(o, v)), 64, True),
        Place("mask", mask, lambda v: flat(loss(o, targets, mask=v)), 64, True),
        Place("y of unpad_sequence", x, lambda v: flat(fastrnn.unpad_sequence(v, lengths)), 64, False, any_dtype=True),
        Place("lengths of unpad_sequence", lengths, lambda v: flat(fastrnn.unpad_sequence(x, v)), 1, True),
        Place("a sequence", np.ones((3, 2)), lambda v: flat(fastrnn.pad_sequence([np.ones((5, 2)), v])), 64, False),
    ]
    for _ in range(12):
        judge.place(pick(rng, places))
    for value in (-1, 3, 2**31, 2**62, -(2**63)):
        wrong = targets.copy()
        wrong.flat[int(rng.integers(wrong.size))] = value
        judge.meet(f"target {value}", lambda wrong=wrong: cross_entropy(h, wrong), verdict="wrong", watch=watch)
        judge.meet(f"target {value}", lambda wrong=wrong: loss(o, wrong), verdict="wrong")
    judge.meet("a mask of nothing", lambda: loss(o, targets, mask=~mask), verdict="wrong")
    for value in (None, 5, "ab", [], [1, 2], [[]], {}, np.float64(1), iter([]), [np.ones(2), None]):
        judge.meet(f"pad_sequence({value!r})", lambda value=value: fastrnn.pad_sequence(value), verdict="either" if type(value) is list else "wrong")
    for value in ("a", None, [1, 2], object(), 1j, 2**70, 10**400):
        judge.meet(f"padding_value={str(value)[:30]}", lambda value=value: fastrnn.pad_sequence([np.ones(2)], padding_value=value), verdict="either" if value == 2**70 else "wrong")
    judge.still_works()


def optimisers(judge: Judge) -> None:
    """Modules, options, groups, state dicts, scales and norms that there are not."""
    rng, layer = judge.rng, judge.layer
    kind = pick(rng, (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop))
    for modules in (layer, [], None, [layer, layer], [layer, None], "ab", 5, [5], {}):
        judge.meet(f"{kind.__name__} of {type(modules).__name__}", lambda modules=modules: kind(modules), verdict="wrong")
        judge.meet(f"clip_grad_norm of {type(modules).__name__}", lambda modules=modules: optim.clip_grad_norm(modules, 1.0), verdict="wrong")
    options: dict[str, tuple[Any, ...]] = {"lr": (True, *NUMBERS), "weight_decay": (True, *NUMBERS), "nonsense": (1,)}
    options["groups"] = (5, "ab", [1], {"*": 5}, {"*": {"nonsense": 1}}, {"none such": {}}, {5: {}}, {"*": {"lr": -1}}, {"[": {}})
    if kind in (optim.Adam, optim.AdamW):
        options |= {"betas": (0.9, (0.9,), (1.0, 0.9), (-0.1, 0.9), ("a", 0.9), None, (float("nan"), 0.9), "ab", (0.9, 10**400)), "eps": (True, *NUMBERS)}
    if kind is optim.RMSprop:
        options |= {"alpha": (1.0, -0.1, "a", None, 10**400, float("nan")), "eps": (0, *NUMBERS), "momentum": NUMBERS, "centered": FLAGS}
    if kind is optim.SGD:
        options |= {"momentum": NUMBERS, "dampening": NUMBERS, "nesterov": FLAGS}
    for _ in range(10):
        name = pick(rng, tuple(options))
        value = pick(rng, options[name])
        verdict = "either" if (name, value) in (("groups", None),) else "wrong"
        judge.meet(f"{kind.__name__}({name}={str(value)[:40]})", lambda name=name, value=value: kind([layer], **{name: value}), verdict=verdict)
    optimiser = kind([layer], lr=0.0)
    watch = optimiser.state_dict

    def state() -> Any:
        return [array.tobytes() for array in watch().values()]

    for value in (0, -1.0, float("nan"), "1", [1.0], object(), 1j, np.array([1.0, 2.0])):
        judge.meet(f"max_norm={value!r}", lambda value=value: optimiser.step(max_norm=value), verdict="wrong", watch=state)
        judge.meet(f"clip_grad_norm {value!r}", lambda value=value: optim.clip_grad_norm([layer], value), verdict="wrong")
    for value in (-1.0, float("nan"), float("inf"), "1", None, 1j, [1], 10**400):
        judge.meet(f"scale={str(value)[:40]}", lambda value=value: optimiser.step(scale=value), verdict="wrong", watch=state)
        judge.meet(f"lr = {str(value)[:40]}", lambda value=value: setattr(optimiser, "lr", value), verdict="wrong", watch=state)
    for schedule in (lambda step: None, lambda step: "a", lambda step: float("nan"), lambda step: -1.0, lambda step: 10**400):
        optimiser.lr = schedule
        judge.meet("a schedule that gives no rate", optimiser.step, verdict="wrong", watch=state)
    optimiser.lr = 0.0
    saved = optimiser.state_dict()
    name = pick(rng, tuple(saved))
    refusals = (*REFUSALS, KeyError)
    for value in ({}, None, 5, saved | {"more": 1}, saved | {name: "a"}, saved | {name: np.zeros((1,) * 5)}, saved | {"steps": np.array(-1)}, saved | {"steps": 2.0}, saved | {"steps": np.array(2**63, "u8")}):
        judge.meet(f"load_state_dict of an optimiser, {type(value).__name__} {name}", lambda value=value: optimiser.load_state_dict(value), verdict="wrong", watch=state, refusals=refusals)
    schedules: tuple[Callable[..., Any], ...] = (optim.Cosine, optim.StepDecay)
    for value in NUMBERS:
        make = pick(rng, schedules)
        judge.meet(f"a schedule of {str(value)[:40]}", lambda make=make, value=value: make(value, 3), verdict="wrong")
        judge.meet(f"a schedule to {str(value)[:40]}", lambda make=make, value=value: make(0.1, 3, value), verdict="wrong")
    for value in SIZES:
        judge.meet(f"a schedule of {value!r} steps", lambda value=value: pick(rng, schedules)(0.1, value), verdict="wrong")
        judge.meet(f"a warm-up of {value!r} steps", lambda value=value: optim.WarmUp(0.1, value), verdict="wrong")
    judge.still_works()


def initial_values(judge: Judge) -> None:
    rng, layer = judge.rng, judge.layer
    for name in ("weight_ih", "weight_hh", "bias"):
        value = pick(rng, ("nonsense", None, 5, [], object(), b"zeros"))
        judge.meet(f"initialize({name}={value!r})", lambda name=name, value=value: fastrnn.initialize(layer, **{name: value}), verdict="wrong")
    value = pick(rng, ("a", [1.0, 2.0], object(), float("nan"), float("inf"), 1j, 10**400, np.array([1.0, 2.0])))
    judge.meet(f"initialize(forget_bias={str(value)[:30]})", lambda: fastrnn.initialize(layer, forget_bias=value), verdict="wrong")
    value = pick(rng, RNGS)
    judge.meet(f"initialize(rng={value!r})", lambda: fastrnn.initialize(layer, rng=value), verdict="wrong")
    for value in (None, 5, fastrnn.Linear(2, 3), "layer"):
        judge.meet(f"initialize({type(value).__name__})", lambda value=value: fastrnn.initialize(value), verdict="wrong")
    judge.still_works()


SCENARIOS: tuple[Callable[[Judge], None], ...] = (
    arrays_of_calls, arrays_of_calls, states_of_other_kinds, nonfinite, tapes, streams, streams, arguments_of_training,
    parameters, writable_options, constructors, heads, optimisers, initial_values,
)  # fmt: skip

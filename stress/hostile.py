"""Hostile calls of a layer and of its streams: arrays, states, tapes, outputs. `judge` says what they must not do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import fastrnn
import numpy as np
from fastrnn import reference

from .judge import Judge, Place, flat, nothing
from .layers import as_tuple, pick, random_call, random_state
from .values import HUGE, no_argument

# ------------------------------------------------------------ arrays of calls


def arrays_of_calls(judge: Judge) -> None:
    """x, state, lengths and reset of inference and training, dy and dstate of the way back."""
    rng, layer = judge.rng, judge.layer
    call = random_call(rng, layer, T=int(rng.integers(1, 5)), B=int(rng.integers(1, 4)), unbatched=False, one_hot=False)
    state, lengths = random_state(rng, layer, call.B), rng.integers(0, call.T + 1, call.B)
    reset = rng.random(call.x.shape[:2]) < 0.3
    drawn = layer._rng.bit_generator.state

    def trained(x: Any = call.x, state: Any = None, **keywords: Any) -> tuple[Any, ...]:
        return flat(layer.forward(x, state, **keywords)[:2])

    def inferred(x: Any = call.x, state: Any = None, **keywords: Any) -> tuple[Any, ...]:
        return flat(layer(x, state, **keywords))

    def same_masks() -> None:
        layer._rng.bit_generator.state = drawn
        layer.zero_grad()

    run = pick(rng, (inferred, trained))
    places = [
        Place("x", call.x, run, 3, undo=same_masks),
        Place("lengths", lengths, lambda value: run(lengths=value), 1, True, same_masks),
        Place("reset", reset, lambda value: run(reset=value), 2, True, same_masks),
        *state_places("the state", state, lambda value: run(state=value), same_masks),
    ]
    y, _, tape = layer.forward(call.x, state, lengths=lengths)
    same_masks()
    dy, dstate = rng.standard_normal(y.shape).astype(layer.dtype), random_state(rng, layer, call.B)
    places.append(Place("dy", dy, lambda value: flat(layer.backward(tape, value)), 3, True, same_masks))
    places += state_places("dstate", dstate, lambda value: flat(layer.backward(tape, dy, value)), same_masks)
    for _ in range(14):
        judge.place(pick(rng, places))
    indices(judge, rng.integers(0, layer.input_size, call.x.shape[:2]), run, same_masks)
    lengths_out_of_range(judge, lengths, call.T, lambda value: run(lengths=value))
    judge.still_works()


def state_places(
    what: str, state: Any, call: Callable[[Any], tuple[Any, ...]], undo: Callable[[], None] = nothing
) -> list[Place]:
    """A place for each array of a state."""
    if not isinstance(state, tuple):
        return [Place(what, state, call, 3, True, undo)]
    h, c = state
    return [
        Place(f"{what} h", h, lambda value: call((value, c)), 3, True, undo),
        Place(f"{what} c", c, lambda value: call((h, value)), 3, True, undo),
    ]


def indices(judge: Judge, x: np.ndarray, run: Callable[[Any], Any], undo: Callable[[], None]) -> None:
    rng, I = judge.rng, judge.layer.input_size
    if not judge.layer.input_dropout:
        judge.place(Place("integer x", x, run, 2, undo=undo, any_dtype=True, is_read_whole=True))
    judge.each("index", (-1, I, 2**31, -(2**63), 2**63 - 1), lambda value: run(with_one(rng, x, value)))
    judge.meet("indices of 2**63", lambda: run(np.full_like(x, 2**63, "uint64")), verdict="wrong")


def lengths_out_of_range(judge: Judge, lengths: np.ndarray, T: int, run: Callable[[Any], Any]) -> None:
    wrong = (-1, T + 1, 2**31, 2**62, -(2**63))
    judge.each("a length of", wrong, lambda value: run(with_one(judge.rng, lengths, value)))
    judge.each("lengths", (T, lengths.astype(float), np.full(lengths.shape, 2**63, "uint64"), ["1"], {}, "1"), run)


def with_one(rng: np.random.Generator, array: np.ndarray, value: Any) -> np.ndarray:
    """A copy with one element of that value."""
    changed = array.copy()
    changed.flat[int(rng.integers(changed.size))] = value
    return changed


def states_of_other_kinds(judge: Judge) -> None:
    """Not an array, or not a pair; and no x."""
    rng, layer = judge.rng, judge.layer
    x = rng.standard_normal((2, 2, layer.input_size)).astype(layer.dtype)
    parts = as_tuple(random_state(rng, layer, 2))
    values = [(), parts[:1] * 3, parts + parts, {"h": parts[0]}, "hc", iter(parts), [None], (None, 0), 0, [[]]]
    values += [(parts[0],), parts[0]] if layer.cell == "lstm" else [parts, (parts[0], parts[0])]
    judge.each("a state that is", values, partial(layer.__call__, x))
    judge.each("a state that is", values, partial(layer.forward, x))
    judge.meet("no x", lambda: layer(None), verdict="wrong")
    judge.each("x that is", [no_argument(rng) for _ in range(4)], layer, "either")
    judge.still_works()


def nonfinite(judge: Judge) -> None:
    """NaN or infinity in one row stays in that row."""
    rng, layer = judge.rng, judge.layer
    B, T = int(rng.integers(2, 20)), int(rng.integers(1, 6))
    call = random_call(rng, layer, T=T, B=B, one_hot=False, unbatched=False, ragged=False, reset=False)
    b, axis = int(rng.integers(B)), 0 if layer.batch_first else 1
    dirty = np.array(call.x)
    dirty[b if layer.batch_first else (slice(None), b)] = pick(rng, (np.nan, np.inf, -np.inf, 1e30))
    judge.log.begin(f"values that are not finite in row {b} of {call}, in {judge.subject}")
    judge.log.seen["hostile calls"] += 2
    with np.errstate(all="ignore"):
        clean, found = layer(call.x, call.state)[0], layer(dirty, call.state)[0]
        _, _, tape = layer.forward(dirty, call.state)
        layer.backward(tape, np.array(found))
    layer.zero_grad()
    others = np.arange(B) != b
    if not np.array_equal(np.compress(others, clean, axis), np.compress(others, found, axis), equal_nan=True):
        judge.log.fail(f"another row has changed, in {judge.log.at}")
    judge.still_works()


# ------------------------------------------------------------ tapes


def tapes(judge: Judge) -> None:
    """Foreign tapes and none; tapes after the parameters, x or the mask have changed."""
    rng, layer = judge.rng, judge.layer
    call = random_call(rng, layer, **({"one_hot": False} if layer.input_dropout else {}))
    call.x, call.keywords = np.array(call.x), {name: np.array(value) for name, value in call.keywords.items()}
    keep = pick(rng, ({}, {"checkpoint": 3}, {"checkpoint": "auto"}))
    judge.log.begin(f"training {call} {keep} of {judge.subject}")
    y, _, tape = layer.forward(call.x, call.state, **call.keywords, **keep)
    dy = np.ones_like(y)
    other = copy.deepcopy(layer).forward(call.x, call.state, **call.keywords)[2]
    of_reference = reference.forward(layer, call.x, call.state, **with_signed_lengths(call.keywords))[2]
    foreign = (None, 5, "tape", (), y, other, of_reference, {}, object, tape.batch)
    judge.each("a tape that is", foreign, lambda value: layer.backward(value, dy))
    judge.each("a copy of a tape by", (copy.deepcopy, pickle.dumps), lambda handle: handle(tape), "either")
    judge.each(
        "gates of layer", (-1, layer.num_layers, 2**40, 1.5, None, "0"), tape.gates, "either", also=(IndexError,)
    )
    judge.still_works()
    saved = layer.state_dict()
    name = pick(rng, tuple(saved))
    changes: tuple[Callable[[], Any], ...] = (
        lambda: layer.params.__setitem__(name, saved[name] * 2),
        lambda: layer.load_state_dict({key: value + 1 for key, value in saved.items()}),
        lambda: layer.params[name].fill(np.nan),
        lambda: call.x.fill(0),
        lambda: [value.fill(0) for value in call.keywords.values()],
        lambda: layer.compress("int8") if layer.dtype == np.float32 else None,
        lambda: fastrnn.initialize(layer, rng=0),
    )
    for _ in range(2):
        change = pick(rng, changes)
        change()
        what = f"a way back after change {changes.index(change)} along {call} {keep}"
        judge.meet(what, lambda: layer.backward(tape, dy), verdict="either")
    layer.load_state_dict(saved)
    if layer.dtype == np.float32:
        layer.compress("float32")
    layer.zero_grad()
    judge.still_works()


def with_signed_lengths(keywords: dict[str, Any]) -> dict[str, Any]:
    return keywords | ({"lengths": keywords["lengths"].astype(int)} if "lengths" in keywords else {})


# ------------------------------------------------------------ streams


def streams(judge: Judge) -> None:
    """Arrays of steps and runs, outputs that overlap, rows, batches and weights that there are not."""
    rng, layer = judge.rng, judge.layer
    judge.each("stream", (0, -1, 2.0, None, "1", True, [1], np.float64(1), float("nan")), layer.stream)
    judge.each("compress", ("int4", None, 8, b"int8", ["int8"], "INT8"), layer.compress)
    if layer.bidirectional or layer.reverse:
        judge.meet("a stream", layer.stream, verdict="wrong")
        return
    judge.each("stream", (pick(rng, HUGE[2:]),), layer.stream, "either", is_huge=True)
    stored = pick(rng, ("float32", "bfloat16", "int8"))
    if layer.dtype == np.float32:
        layer.compress(stored)
    B = int(pick(rng, (1, 2, 5)))
    stream, start = layer.stream(B), random_state(rng, layer, B)
    stream.state = start

    def watch() -> Any:
        return [array.tobytes() for array in as_tuple(stream.state)]

    def back() -> None:
        stream.state = start

    places = stream_places(judge, stream, B, start, back, watch)
    for _ in range(14):
        judge.place(pick(rng, places))
    rows: tuple[Any, ...] = (B, -B - 1, 2**63, 1.5, "0", [0, B], np.ones(B + 1, bool), {}, object(), np.array([0.5]))
    judge.each("reset", rows, stream.reset, "either", watch=watch, also=(IndexError,))
    back()
    wrong = (-1, layer.input_size, 2**62, -(2**63))
    judge.each("index", wrong, lambda value: stream.step(np.full(B, value)), watch=watch)
    judge.meet("a pickle of a stream", lambda: pickle.dumps(stream), verdict="either", watch=watch)
    for name in ("batch", "layer", "nonsense"):
        refused = {"verdict": "wrong", "watch": watch, "also": (AttributeError,)}
        judge.meet(f"another {name} of a stream", lambda name=name: setattr(stream, name, 7), **refused)
    overlaps(judge, stream, B, back, watch)
    if layer.dtype == np.float32:
        with_weights_not_finite(judge, stream, stored)
        layer.compress("float32")
    judge.still_works()


def stream_places(
    judge: Judge, stream: Any, B: int, start: Any, back: Callable[[], None], watch: Callable[[], Any]
) -> list[Place]:
    rng, layer = judge.rng, judge.layer
    T = int(rng.integers(1, 4))
    call = random_call(rng, layer, T=T, B=B, one_hot=False, unbatched=False, ragged=False, reset=False)
    x, active = np.ascontiguousarray(call.x), rng.random(call.x.shape[:2]) < 0.7
    x_t, active_t = (array[:, 0].copy() if layer.batch_first else array[0] for array in (x, active))
    width = layer.spec.output_size
    y, y_t = (np.zeros((*array.shape[:-1], width), layer.dtype) for array in (x, x_t))

    def run(*arguments: Any, **keywords: Any) -> tuple[Any, ...]:
        return flat((stream.run(*arguments, **keywords), stream.state))

    def step(*arguments: Any, **keywords: Any) -> tuple[Any, ...]:
        return flat((stream.step(*arguments, **keywords), stream.state))

    def set_state(value: Any) -> tuple[Any, ...]:
        stream.state = value
        return flat(stream.state)

    how = {"undo": back, "watch": watch}
    states = state_places("a stream's state", start, set_state)
    return [
        Place("x of a run", x, run, 3, **how), Place("x of a step", x_t, step, 2, **how),
        Place("active of a run", active, lambda value: run(x, active=value), 2, True, **how),
        Place("active of a step", active_t, lambda value: step(x_t, active=value), 1, True, **how),
        Place("out of a run", y, lambda value: run(x, out=value), 3, True, is_output=True, **how),
        Place("out of a step", y_t, lambda value: step(x_t, out=value), 2, True, is_output=True, **how),
        *(Place(state.what, state.good, state.call, 3, True, **how) for state in states),
    ]  # fmt: skip


def overlaps(judge: Judge, stream: Any, B: int, back: Callable[[], None], watch: Callable[[], Any]) -> None:
    """out in the memory of x or of the mask: right or refused."""
    layer, rng, width = judge.layer, judge.rng, judge.layer.spec.output_size
    axes = (B, 3) if layer.batch_first else (3, B)
    values, active = rng.standard_normal((*axes, layer.input_size)).astype(layer.dtype), rng.random(axes) < 0.5
    memory, shift = np.zeros(values.size + 3 * B * width + 8, layer.dtype), int(rng.integers(0, 8))
    x = memory[: values.size].reshape(values.shape)
    mask = memory.view(np.bool_)[: active.size].reshape(axes)
    out = memory[shift : shift + 3 * B * width].reshape(*axes, width)
    for what, array, content in (("x", x, values), ("the mask", mask, active)):
        back()
        masked = {} if array is x else {"active": active}
        expected = stream.run(values, **masked)
        back()
        array[...] = content
        arguments = (x, None, None) if array is x else (values, None, mask)
        found = judge.meet(
            f"out {shift} elements behind the start of {what} of a run",
            lambda arguments=arguments: stream.run(arguments[0], out, arguments[2]), verdict="either", watch=watch,
        )  # fmt: skip
        if found is not None and not np.array_equal(found, expected, equal_nan=True):
            judge.log.fail(f"another result where out overlaps {what}, in {judge.log.at}")
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


SCENARIOS: tuple[Callable[[Judge], None], ...] = (
    arrays_of_calls, arrays_of_calls, states_of_other_kinds, nonfinite, tapes, streams, streams,
)  # fmt: skip

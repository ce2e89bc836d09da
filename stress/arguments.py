"""Hostile arguments of all else: options, parameters, output layer, losses, optimisers, initial values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import fastrnn
import numpy as np
from fastrnn import optim

from .judge import Judge, Place, flat, shown
from .layers import KINDS, chance, pick
from .values import HUGE

NAN, INF = float("nan"), float("inf")

# what is wrong for an argument of each kind
SIZES = (0, -1, -(2**63), 1.5, "3", None, True, [3], np.float32(3), np.array([3]), NAN, INF, 1j, object())
NUMBERS = (-0.1, NAN, INF, "0.5", None, [0.5], 1j, object(), np.array([0.1, 0.2]), -(10**400), 10**400)
FLAGS = (1, 0, "yes", None, [], np.array([True, False]), 1.0, object())
NAMES = ("CONCAT", "", None, 5, [], object(), b"concat", ("concat",))
DTYPES = (
    "float16", ">f4", ">f8", "int32", "O", "complex64", "nonsense", "", 5, object(), [("a", "f4")], "f4,f4", "(", 1.5,
    "longdouble",
)  # fmt: skip
ACTIVATION = (
    "nonsense", "", None, 5, [], (), ("tanh", 1.0), ("elu", "a"), ("elu", 1.0, 2.0), ("elu", NAN), ("elu", INF),
    ("elu", 10**400), ("elu", None), b"tanh", ("hard_sigmoid", [1.0]), [["tanh"]], object(),
)  # fmt: skip
RNGS = ("abc", -1, 1.5, object(), [-1], [1.5], {}, b"a", "")

SMALL = {"input_size": 2, "hidden_size": 3}
WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("input_size", "hidden_size", "num_layers"), SIZES),
    **dict.fromkeys(("dropout", "weight_dropout", "input_dropout", "recurrent_dropout"), (*NUMBERS, 1.1, True)),
    "zoneout": (*NUMBERS, 1.1, True),
    **dict.fromkeys(("clip", "grad_clip"), (0, 0.0, True, *(value for value in NUMBERS if value is not None))),
    **dict.fromkeys(("bias", "batch_first", "bidirectional", "reverse", "layer_norm"), FLAGS),
    "merge": NAMES,
    "dtype": DTYPES,
    "rng": RNGS,
    "nonsense": (1,),
}
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
OF_LINEAR = {**dict.fromkeys(("in_features", "out_features"), SIZES), "bias": FLAGS, "dtype": DTYPES, "rng": RNGS}
OF_OPTIMISERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "SGD": {"momentum": NUMBERS, "dampening": NUMBERS, "nesterov": FLAGS},
    "Adam": {
        "betas": (0.9, (0.9,), (1.0, 0.9), (-0.1, 0.9), ("a", 0.9), None, (NAN, 0.9), "ab", (0.9, 10**400)),
        "eps": (True, *NUMBERS),
    },
    "RMSprop": {
        "alpha": (1.0, -0.1, "a", None, 10**400, NAN), "eps": (0, *NUMBERS), "momentum": NUMBERS, "centered": FLAGS,
    },
}  # fmt: skip
OF_OPTIMISERS["AdamW"] = OF_OPTIMISERS["Adam"]
GROUPS = (5, "ab", [1], {"*": 5}, {"*": {"nonsense": 1}}, {"none such": {}}, {5: {}}, {"*": {"lr": -1}}, {"[": {}})


# ------------------------------------------------------------ layers


def constructors(judge: Judge) -> None:
    """Wrong arguments of every kind, and sizes beyond all memory."""
    rng = judge.rng
    kind = pick(rng, KINDS)
    table = WRONG | OF_CELLS[kind.__name__]
    for _ in range(14):
        name = pick(rng, tuple(table))
        value = pick(rng, table[name])
        if name == "activations" and chance(rng, 0.5):  # the last, or the last two, of them
            value = ("sigmoid", *(pick(rng, ACTIVATION),) * (1 if kind is fastrnn.GRU else 2))
        if kind is fastrnn.RNN and name == "activations":
            value = ("tanh",)
        judge.each(f"{kind.__name__} with {name}", (value,), partial(made_with, kind, SMALL, name))
    name = pick(rng, ("input_size", "hidden_size", "num_layers"))
    huge = pick(rng, HUGE)
    make = partial(made_with, kind, SMALL, name)
    judge.each(f"{kind.__name__} with {name}", (huge,), make, "either", is_huge=True)
    for _ in range(4):
        name = pick(rng, tuple(OF_LINEAR))
        make = partial(made_with, fastrnn.Linear, {"in_features": 2, "out_features": 3}, name)
        judge.each(f"Linear with {name}", (pick(rng, OF_LINEAR[name]),), make)
    name = pick(rng, ("in_features", "out_features"))
    make = partial(made_with, fastrnn.Linear, {"in_features": 2, "out_features": 3}, name)
    judge.each(f"Linear with {name}", (huge,), make, "either", is_huge=True)
    judge.still_works()


def made_with(kind: Any, usual: dict[str, Any], name: str, value: Any) -> Any:
    return kind(**{**usual, name: value})


def writable_options(judge: Judge) -> None:
    """Options of a layer that exists: refused, or they count."""
    rng, subject = judge.rng, judge.subject
    layer = copy.deepcopy(subject.layer)
    name, value = pick(rng, other_options(rng, layer))
    x = rng.standard_normal((3, 2, layer.input_size)).astype(layer.dtype)
    if layer.batch_first:
        x = x.swapaxes(0, 1)
    before, option = layer(x)[0], f"{name} = {value!r}"
    taken = judge.meet(option, lambda: (setattr(layer, name, value), 1), verdict="either", also=(AttributeError,))

    def run() -> np.ndarray:
        y, _, tape = layer.forward(x)
        layer.backward(tape, np.ones_like(y))
        return layer(x)[0]

    found = judge.meet(f"a call after {option}", run, verdict="either" if taken else "right")
    if found is None:
        return
    if taken is not None:  # what a layer gives that was made so
        made = type(layer)(**{**subject.options, name: value}, rng=0)
        made.load_state_dict(layer.state_dict())
        before = made(x)[0]
    if not np.array_equal(found, before, equal_nan=True):
        judge.log.fail(f"another result, in {judge.log.at}")


def other_options(rng: np.random.Generator, layer: Any) -> list[tuple[str, Any]]:
    """Names of options, and values that they do not have."""
    found: dict[str, Any] = {
        "hidden_size": pick(rng, (1, 4, 71)), "input_size": pick(rng, (1, 4, 71)), "num_layers": 4,
        "bias": not layer.bias, "batch_first": not layer.batch_first, "bidirectional": not layer.bidirectional,
        "reverse": not layer.reverse, "clip": 0.2, "layer_norm": not layer.layer_norm, "dtype": np.dtype("float64"),
        "zoneout": 0.7, "grad_clip": 0.1,
    }  # fmt: skip
    if layer.bidirectional:
        found["merge"] = "sum"
    if layer.cell == "lstm":
        found |= {"proj_size": 1, "peephole": not layer.peephole, "coupled": not layer.coupled}
        found["activations"] = ("tanh",) * 3
    elif layer.cell == "gru":
        found |= {"reset_after": not layer.reset_after, "activations": ("tanh",) * 2}
    else:
        found["nonlinearity"] = "relu"
    return [(name, value) for name, value in found.items() if getattr(layer, name) != value]


def arguments_of_training(judge: Judge) -> None:
    """checkpoint and memory_limit; names that there are not; numbers of threads."""
    rng, layer = judge.rng, judge.layer
    x = rng.standard_normal((3, 2, layer.input_size)).astype(layer.dtype)
    if layer.batch_first:
        x = x.swapaxes(0, 1)

    def forward(name: str, value: Any) -> Any:
        drawn = layer._rng.bit_generator.state
        layer.forward(x, **{name: value})
        layer._rng.bit_generator.state = drawn
        return 1

    for name in ("checkpoint", "memory_limit"):
        wrong = (0, -1, 1.5, "all", b"auto", True, [2], NAN, np.float32(2), object(), 1j)
        judge.each(name, wrong, partial(forward, name))
        judge.each(name, [value for value in HUGE if value < 2**63], partial(forward, name), "right")
        further = (*[value for value in HUGE if value >= 2**63], np.int64(2), np.uint8(3))
        judge.each(name, further, partial(forward, name), "either")
    both = {"checkpoint": 2, "memory_limit": 10**9}
    judge.meet("checkpoint and memory_limit", lambda: layer.forward(x, **both), verdict="wrong")
    judge.each("an argument", ("state_dict", "states", "mask"), lambda name: layer.forward(x, **{name: None}))
    judge.each("set_num_threads", (0, -1, 1.5, "2", None, True), fastrnn.set_num_threads)
    judge.still_works()


def parameters(judge: Judge) -> None:
    """Values in the place of parameters, names that there are not, state dicts that do not fit."""
    rng, layer = judge.rng, judge.layer
    name, saved = pick(rng, tuple(layer.params)), layer.state_dict()

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
    wrong = ({}, partly, saved | {"more": saved[name]}, None, 5, "abc", [1], list(saved.items()), object())
    judge.each("load_state_dict", wrong, layer.load_state_dict, also=(KeyError,))
    names = ("weight", "", 5, None, ("weight_ih_l0",))
    judge.each("params", names, lambda key: layer.params.__setitem__(key, saved[name]), also=(KeyError,))
    methods = ("pop", "clear", "update", "setdefault", "popitem", "__delitem__", "__ior__")
    judge.each("params.", methods, lambda method: getattr(layer.params, method)())
    judge.each("another", ("params", "grads"), lambda which: setattr(layer, which, {}), also=(AttributeError,))
    restore()
    judge.still_works()


def initial_values(judge: Judge) -> None:
    rng, initialize = judge.rng, partial(fastrnn.initialize, judge.layer)
    for name in ("weight_ih", "weight_hh", "bias"):
        values = (pick(rng, ("nonsense", None, 5, [], object(), b"zeros")),)
        judge.each(f"initialize with {name}", values, lambda value, name=name: initialize(**{name: value}))
    wrong = ("a", [1.0, 2.0], object(), NAN, INF, 1j, 10**400, np.array([1.0, 2.0]))
    judge.each("initialize with forget_bias", wrong, lambda value: initialize(forget_bias=value))
    judge.each("initialize with rng", (pick(rng, RNGS),), lambda value: initialize(rng=value))
    judge.each("initialize", (None, 5, fastrnn.Linear(2, 3), "layer"), fastrnn.initialize)
    judge.still_works()


# ------------------------------------------------------------ what goes with a layer


def heads(judge: Judge) -> None:
    """Arguments of Linear and of the losses."""
    rng, dtype = judge.rng, pick(judge.rng, ("float32", "float64"))
    head = fastrnn.Linear(4, 3, dtype=dtype, rng=0)
    h, o = (rng.standard_normal((2, 5, n)).astype(dtype) for n in (4, 3))
    targets, mask = rng.integers(0, 3, (2, 5)), np.ones((2, 5), bool)

    def watch() -> Any:
        return head.flat_params.tobytes(), head.flat_grads.tobytes()

    loss, fused, how = fastrnn.softmax_cross_entropy, head.cross_entropy, {"undo": head.zero_grad, "watch": watch}
    places = [
        Place("h of Linear", h, lambda v: flat(head.forward(v)[0]), 64, **how),
        Place("the tape of Linear", h, lambda v: flat(head.backward(v, o)), 64, True, **how),
        Place("do of Linear", o, lambda v: flat(head.backward(h, v)), 64, True, **how),
        Place("h of cross_entropy", h, lambda v: flat(fused(v, targets)), 64, True, **how),
        Place("targets of cross_entropy", targets, lambda v: flat(fused(h, v)), 64, True, **how),
        Place("mask of cross_entropy", mask, lambda v: flat(fused(h, targets, mask=v)), 64, True, **how),
        Place("logits", o, lambda v: flat(loss(v, targets)), 64, any_dtype=True),
        Place("targets", targets, lambda v: flat(loss(o, v)), 64, True),
        Place("mask", mask, lambda v: flat(loss(o, targets, mask=v)), 64, True),
    ]
    for _ in range(10):
        judge.place(pick(rng, places))
    for value in (-1, 3, 2**31, 2**62, -(2**63)):
        wrong = targets.copy()
        wrong.flat[int(rng.integers(wrong.size))] = value
        judge.each(f"targets with {value}", (wrong,), partial(fused, h), watch=watch)
        judge.each(f"targets with {value}", (wrong,), partial(loss, o))
    judge.meet("a mask of nothing", lambda: loss(o, targets, mask=~mask), verdict="wrong")
    judge.still_works()


def padding(judge: Judge) -> None:
    """Arguments of pad_sequence and unpad_sequence."""
    rng, pad, unpad = judge.rng, fastrnn.pad_sequence, fastrnn.unpad_sequence
    x, lengths = pad([np.ones((3, 2)), np.ones((5, 2))])
    places = [
        Place("y of unpad_sequence", x, lambda v: flat(unpad(v, lengths)), 64, any_dtype=True),
        Place("lengths of unpad_sequence", lengths, lambda v: flat(unpad(x, v)), 1, True),
        Place("a sequence", np.ones((3, 2)), lambda v: flat(pad([np.ones((5, 2)), v])), 64),
    ]
    for _ in range(8):
        judge.place(pick(rng, places))
    judge.each("pad_sequence", (None, 5, "ab", {}, np.float64(1), iter([])), pad)
    judge.each("pad_sequence", ([], [1, 2], [[]], [np.ones(2), None]), pad, "either")
    wrong = ("a", None, [1, 2], object(), 1j, 2**70, 10**400)
    judge.each("padding_value", wrong, lambda value: pad([np.ones(2)], padding_value=value))
    judge.still_works()


def optimisers(judge: Judge) -> None:
    """Modules, options and groups that there are not; then `steps_of_optimisers`, and schedules."""
    rng, layer = judge.rng, judge.layer
    kind = pick(rng, (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop))
    modules = (layer, [], None, [layer, layer], [layer, None], "ab", 5, [5], {})
    judge.each(f"{kind.__name__} of", modules, kind)
    judge.each("clip_grad_norm of", modules, lambda value: optim.clip_grad_norm(value, 1.0))
    numbers = (True, *NUMBERS)
    options: dict[str, tuple[Any, ...]] = {"lr": numbers, "weight_decay": numbers, "nonsense": (1,), "groups": GROUPS}
    options |= OF_OPTIMISERS[kind.__name__]
    for _ in range(10):
        name = pick(rng, tuple(options))
        make = partial(made_with, kind, {"modules": [layer]}, name)
        judge.each(f"{kind.__name__} with {name}", (pick(rng, options[name]),), make)
    steps_of_optimisers(judge, kind([layer], lr=0.0))
    make = pick(rng, (optim.Cosine, optim.StepDecay))
    judge.each("a schedule of", NUMBERS, lambda value: make(value, 3))
    judge.each("a schedule to", NUMBERS, lambda value: make(0.1, 3, value))
    judge.each("a schedule with steps", SIZES, lambda value: make(0.1, value))
    judge.each("a warm-up of steps", SIZES, lambda value: optim.WarmUp(0.1, value))
    judge.still_works()


def steps_of_optimisers(judge: Judge, optimiser: Any) -> None:
    """Scales, norms, rates and states that there are not."""
    layer = judge.layer

    def watch() -> Any:
        return [array.tobytes() for array in optimiser.state_dict().values()]

    norms = (0, -1.0, NAN, "1", [1.0], object(), 1j, np.array([1.0, 2.0]))
    judge.each("max_norm", norms, lambda value: optimiser.step(max_norm=value), watch=watch)
    judge.each("clip_grad_norm to", norms, lambda value: optim.clip_grad_norm([layer], value))
    wrong = (-1.0, NAN, INF, "1", None, 1j, [1], 10**400)
    judge.each("scale", wrong, lambda value: optimiser.step(scale=value), watch=watch)
    judge.each("lr", wrong, lambda value: setattr(optimiser, "lr", value), watch=watch)
    for value in (None, "a", NAN, -1.0, 10**400):
        optimiser.lr = lambda step, value=value: value
        judge.meet(f"a schedule that gives {shown(value)}", optimiser.step, verdict="wrong", watch=watch)
    optimiser.lr = 0.0
    saved = optimiser.state_dict()
    name = pick(judge.rng, tuple(saved))
    others = [saved | {"more": 1}, saved | {name: "a"}, saved | {name: np.zeros((1,) * 5)}]
    others += [saved | {"steps": value} for value in (np.array(-1), 2.0, np.array(2**63, "u8"))]
    judge.each(
        "state of an optimiser", ({}, None, 5, *others), optimiser.load_state_dict, watch=watch, also=(KeyError,)
    )


SCENARIOS: tuple[Callable[[Judge], None], ...] = (
    arguments_of_training, parameters, writable_options, constructors, heads, padding, optimisers, initial_values,
)  # fmt: skip

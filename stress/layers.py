"""Random layers over all options, and random calls of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import fastrnn
import numpy as np
from fastrnn.nn.activations import ACTIVATIONS

KINDS: tuple[Any, ...] = (fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM)
FLOATS = ("float32", "float64")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
NOT_NORMED = ("clip", "activations", "nonlinearity", "reset_after", "proj_size", "peephole", "coupled")
SMOOTH = {"tanh", "sigmoid", "affine", "scaled_tanh", "softsign", "softplus", "identity"}  # slopes without a jump


def chance(rng: np.random.Generator, p: float) -> bool:
    return bool(rng.random() < p)


def pick(rng: np.random.Generator, things: Any) -> Any:
    return things[int(rng.integers(len(things)))]


def size(rng: np.random.Generator) -> int:
    """From 1 to 70, mostly small."""
    return int(rng.integers(1, pick(rng, (6, 6, 6, 10, 18, 71))))


def random_activation(rng: np.random.Generator) -> Any:
    """A name, or a name with some of its parameters."""
    name = pick(rng, tuple(ACTIVATIONS))
    count = int(rng.integers(0, len(ACTIVATIONS[name]) + 1))
    parameters = tuple(pick(rng, (0, 0.0, 0.5, 1, 1.0, 1.4, -0.3, 0.2)) for _ in range(count))
    return (name, *parameters) if parameters or chance(rng, 0.2) else name


def random_options(rng: np.random.Generator, kind: Any) -> dict[str, Any]:
    """Sizes and options of a layer; each option is as by default more often than not."""
    options: dict[str, Any] = {"input_size": size(rng), "hidden_size": size(rng)}
    options["num_layers"] = pick(rng, (1, 1, 1, 2, 2, 3, 5))
    options["dtype"] = pick(rng, FLOATS)
    some: dict[str, Any] = {
        "bias": False,
        "batch_first": True,
        "clip": pick(rng, (0.3, 1.0, 50)),
        "grad_clip": pick(rng, (1e-3, 0.1, 10)),
        "layer_norm": True,
    }
    some |= {pick(rng, ("bidirectional", "reverse")): True, "merge": pick(rng, ("sum", "mul", "ave"))}
    for name in ("dropout", "weight_dropout", "input_dropout", "recurrent_dropout", "zoneout"):
        some[name] = pick(rng, (0.1, 0.5, 0.9, 0, 1))
    if kind is fastrnn.RNN:
        some["nonlinearity"] = random_activation(rng)
    if kind is fastrnn.GRU:
        some |= {"reset_after": False, "activations": tuple(random_activation(rng) for _ in range(2))}
    if kind is fastrnn.LSTM:
        some |= {"peephole": True, "coupled": True, "zoneout_cell": pick(rng, (0.1, 0.5, 1))}
        some["activations"] = tuple(random_activation(rng) for _ in range(3))
        if options["hidden_size"] > 1:
            some["proj_size"] = int(rng.integers(1, options["hidden_size"]))
    p = pick(rng, (0.0, 0.15, 0.15, 0.4))
    options |= {name: value for name, value in some.items() if chance(rng, p)}
    if "layer_norm" in options:
        options = {name: value for name, value in options.items() if name not in NOT_NORMED}
    return options


def with_numbers_of_numpy(options: dict[str, Any]) -> dict[str, Any]:
    """The same options, with numbers and truth values of other types."""
    types = {bool: np.bool_, int: np.int16, float: np.float32}
    return {name: types.get(type(value), lambda same: same)(value) for name, value in options.items()}


@dataclass
class Subject:
    """A layer and how it was made."""

    layer: Any
    options: dict[str, Any]
    is_zero: bool = False  # all parameters are zero, and so is what activations see: just where many have a kink

    @classmethod
    def random(cls, rng: np.random.Generator) -> Subject:
        kind = pick(rng, KINDS)
        options = random_options(rng, kind)
        given = with_numbers_of_numpy(options) if chance(rng, 0.2) else options
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            subject = cls(kind(**given, rng=int(rng.integers(2**31))), given)
        if chance(rng, 0.05 if subject.is_smooth else 0.4):
            subject.is_zero = True
            params = subject.layer.params
            subject.layer.load_state_dict({name: np.zeros_like(array) for name, array in params.items()})
        return subject

    def __str__(self) -> str:
        sizes = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{type(self.layer).__name__}({sizes})"

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of those that the layer uses."""
        layer = self.layer
        specs = (layer.nonlinearity,) if layer.cell == "rnn" else layer.activations
        return tuple(spec if isinstance(spec, str) else spec[0] for spec in specs)

    @property
    def is_smooth(self) -> bool:
        """Whether gradients are continuous functions of what goes in, or of what is exact."""
        return self.is_zero or (self.layer.clip is None and set(self.activations) <= SMOOTH)

    @property
    def is_continuous(self) -> bool:
        return self.is_zero or "thresholded_relu" not in self.activations

    @property
    def drops(self) -> bool:
        """Whether training draws anything at random."""
        layer = self.layer
        return bool(layer.dropout or layer.weight_dropout or layer.input_dropout or layer.recurrent_dropout
                    or layer.zoneout or getattr(layer, "zoneout_cell", 0))  # fmt: skip


@dataclass
class Call:
    """Arguments of a call."""

    T: int
    B: int
    x: np.ndarray
    state: Any = None
    keywords: dict[str, Any] = field(default_factory=dict)
    unbatched: bool = False

    def __str__(self) -> str:
        ragged = self.keywords.get("lengths")
        more = "" if ragged is None else f", lengths={ragged.tolist()}"
        more += ", reset" if "reset" in self.keywords else ""
        more += "" if self.state is None else ", state"
        return f"(x {self.x.dtype} {self.x.shape} strides {self.x.strides}{more})"


def random_call(rng: np.random.Generator, layer: Any, **given: Any) -> Call:
    """A call of the layer. given: T, B, one_hot, unbatched, ragged, reset, state: what is not left to chance."""
    T = given.get("T", int(pick(rng, (0, 1, 1, 2, 3, 5, 8, 13, int(rng.integers(1, 30))))))
    unbatched = given.get("unbatched", "B" not in given and chance(rng, 0.15))
    B = 1 if unbatched else given.get("B", int(pick(rng, (0, 1, 1, 2, 3, 5, 9, int(rng.integers(1, 40))))))
    one_hot = given.get("one_hot", chance(rng, 0.2))
    axes = (T,) if unbatched else (B, T) if layer.batch_first else (T, B)
    if one_hot:
        x = rng.integers(0, layer.input_size, axes).astype(pick(rng, INTEGERS))
    else:
        x = pick(rng, (1, 1, 1, 1, 0, 30)) * rng.standard_normal((*axes, layer.input_size)).astype(layer.dtype)
    call = Call(T, B, laid_out(rng, x), unbatched=unbatched)
    if given.get("state", chance(rng, 0.5)):
        call.state = random_state(rng, layer, *(() if unbatched else (B,)))
    if given.get("ragged", chance(rng, 0.3)):
        call.keywords["lengths"] = rng.integers(0, T + 1, B).astype(pick(rng, INTEGERS))
    if given.get("reset", chance(rng, 0.2)):
        call.keywords["reset"] = laid_out(rng, rng.random(axes) < 0.3)
    return call


def random_state(rng: np.random.Generator, layer: Any, *batch: int) -> Any:
    """h, or (h, c) of an LSTM, with a batch axis or without."""
    rows, P = layer.num_layers * (2 if layer.bidirectional else 1), getattr(layer, "proj_size", 0) or layer.hidden_size
    widths = (P, layer.hidden_size) if layer.cell == "lstm" else (P,)
    state = tuple(laid_out(rng, rng.standard_normal((rows, *batch, width)).astype(layer.dtype)) for width in widths)
    return state if len(state) == 2 else state[0]


def laid_out(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """An equal array that lies in memory in some other way, three times in ten."""
    if array.ndim == 0 or not chance(rng, 0.3):
        return array
    return pick(rng, LAYOUTS)(array)


def fortran(array: np.ndarray) -> np.ndarray:
    return np.asfortranarray(array)


def backwards(array: np.ndarray) -> np.ndarray:
    """With negative strides."""
    return array[(slice(None, None, -1),) * array.ndim].copy()[(slice(None, None, -1),) * array.ndim]


def with_gaps(array: np.ndarray) -> np.ndarray:
    """Every second element of each axis of a larger one."""
    larger = np.zeros([2 * n for n in array.shape], array.dtype)
    view = larger[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


def misaligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def within_records(array: np.ndarray) -> np.ndarray:
    """With strides that are no multiples of the size of an element."""
    records = np.zeros(array.shape, [("before", "u1"), ("array", array.dtype), ("behind", "u2")])
    records["array"] = array
    return records["array"]


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS = (fortran, backwards, with_gaps, misaligned, within_records, read_only)


def as_tuple(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)

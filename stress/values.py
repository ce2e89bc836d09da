"""Values for hostile calls: what can be made of a good argument, and what is no argument at all.

Each comes with a verdict: "wrong" must be refused, "right" must be taken as the good argument is, "either" may be both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .layers import INTEGERS, LAYOUTS, chance, pick

FOREIGN = {  # dtypes that are none of ours, by the kind of those that are
    "f": (">f4", ">f8", "f2", "g", "c8", "c16", "O", "?", "U3", "S2", "M8[s]", "m8[ns]", "V4", "f4,f4"),
    "i": ("f2", "f4", "f8", "c8", "O", "?", "U3", "S2", "M8[s]", "m8[ns]", "V4", "i4,i4"),
    "b": ("i1", "u1", "i8", "f4", "f8", "O", "U3", "S2", "M8[s]", "V1", "?,?"),
}
HUGE = (2**31 - 1, 2**31, 2**40, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, 10**400)


class Subclass(np.ndarray):
    """An array that is not quite one."""


class Touchy(np.ndarray):
    """One that fails whenever a ufunc or a function of NumPy meets it."""

    def __array_ufunc__(self, *args: Any, **kwargs: Any) -> Any:
        raise OwnError("__array_ufunc__")

    def __array_function__(self, *args: Any, **kwargs: Any) -> Any:
        raise OwnError("__array_function__")


class OwnError(Exception):
    """What an argument raises itself: it may come through."""


class Raises:
    """Not an array, and says so."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise OwnError("__array__")


class Pretends:
    """Promises an array and gives a string."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return "no array"


class Holds:
    """Something that can be turned into the array that it holds."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array.astype(dtype or self.array.dtype)


class NoSize:
    """A sequence that lies about how long it is."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


def itself() -> list[Any]:
    """A list that is its own element."""
    found: list[Any] = []
    found.append(found)
    return found


def deep(levels: int) -> list[Any]:
    found: list[Any] = [1.0]
    for _ in range(levels):
        found = [found]
    return found


def no_argument(rng: np.random.Generator) -> Any:
    """What is neither an array nor can become a useful one; not None, which often is the default."""
    return pick(
        rng,
        ("abc", b"abc", 5, -1, 1.5, float("nan"), {}, {"a": 1}, set(), object(), (n for n in range(3)), int, Ellipsis,
         [[1.0], [1.0, 2.0]], itself(), deep(100), Raises(), Pretends(), NoSize(), slice(3), NotImplemented, 1j, True,
         np.float32(1), np.int64(-3), np.str_("a"), np.datetime64("2020"), np.void(b"ab"), range(4),
         memoryview(b"abcd"), bytearray(8), [None], [object()], ["a", 1.0], [2**70], [float("inf")]),
    )  # fmt: skip


@dataclass
class Value:
    """An argument, whether it must be refused, and whether it may be too much for the memory."""

    what: str
    value: Any
    verdict: str
    is_huge: bool = False


def value_like(rng: np.random.Generator, good: np.ndarray, most_axes: int, is_shape_fixed: bool) -> Value:
    """A hostile value in the place of an array. most_axes: more are wrong; is_shape_fixed: any other shape is."""
    makers = (
        foreign_dtype, foreign_dtype, other_rank, other_rank, other_shape, other_layout, other_class, as_list, junk,
        broadcast,
    )  # fmt: skip
    value = pick(rng, makers)(rng, good)
    shape = value.value.shape if isinstance(value.value, np.ndarray) else good.shape
    if len(shape) > most_axes or (is_shape_fixed and shape != good.shape):
        value.verdict = "wrong"
    return value


def foreign_dtype(rng: np.random.Generator, good: np.ndarray) -> Value:
    kind = "i" if good.dtype.kind in "iu" else good.dtype.kind
    if kind == "i" and chance(rng, 0.3):
        integers = np.dtype(pick(rng, INTEGERS)).newbyteorder(">")
        fits = good.size == 0 or np.array_equal(good.astype(integers), good)
        return Value(f"dtype {integers}", good.astype(integers), "right" if fits else "either")
    dtype = np.dtype(pick(rng, FOREIGN[kind]))
    if dtype == good.dtype:
        return Value("itself", good, "right")
    if kind == "f" and chance(rng, 0.2):
        dtype = np.dtype("f4" if good.dtype == np.float64 else "f8")
    return Value(f"dtype {dtype}", np.zeros(good.shape, dtype), "wrong")


def other_rank(rng: np.random.Generator, good: np.ndarray) -> Value:
    more = int(rng.integers(-good.ndim, 41))
    if more < 0:
        value = good[(0,) * min(-more, good.ndim)] if good.size else good.reshape(-1)
    else:
        axes = list(good.shape)
        for _ in range(min(more, 64 - good.ndim)):
            axes.insert(int(rng.integers(len(axes) + 1)), 1)
        value = good.reshape(axes)
    return Value(f"shape {np.shape(value)}", np.asarray(value), "either")


def other_shape(rng: np.random.Generator, good: np.ndarray) -> Value:
    shape = list(good.shape) or [1]
    axis = int(rng.integers(len(shape)))
    shape[axis] = pick(rng, (0, shape[axis] + 1, max(0, shape[axis] - 1), 2 * shape[axis] + 1, 71))
    return Value(f"shape {tuple(shape)}", np.zeros(shape, good.dtype), "either")


def other_layout(rng: np.random.Generator, good: np.ndarray) -> Value:
    layout = pick(rng, LAYOUTS)
    return Value(f"laid out {layout.__name__}", layout(good), "right")


def other_class(rng: np.random.Generator, good: np.ndarray) -> Value:
    kind = int(rng.integers(5))
    if kind == 0:
        return Value("a masked array", np.ma.MaskedArray(good, good == good), "either")
    if kind == 1:
        return Value("something with __array__", Holds(good), "right")
    if kind == 2:
        return Value("a buffer", memoryview(np.ascontiguousarray(good)) if good.size else good, "either")
    return Value("a subclass", good.view(pick(rng, (Subclass, Touchy))), "right")


def as_list(rng: np.random.Generator, good: np.ndarray) -> Value:
    return Value("lists", good.tolist(), "either")


def junk(rng: np.random.Generator, good: np.ndarray) -> Value:
    value = no_argument(rng)
    return Value(f"{type(value).__name__} {str(value)[:40]}", value, "either")


def broadcast(rng: np.random.Generator, good: np.ndarray) -> Value:
    """Of steps of zero bytes, sometimes so many that no memory holds them."""
    if good.ndim == 0 or good.size == 0:
        return Value("itself", good, "right")
    if chance(rng, 0.7):
        one = good[(slice(0, 1),) * good.ndim]
        return Value("broadcast", np.broadcast_to(one, good.shape), "either")
    shape = list(good.shape)
    shape[int(rng.integers(good.ndim))] = pick(rng, (2**31, 2**33, 2**40, 2**53))
    try:
        value = np.broadcast_to(good.reshape(-1)[:1].reshape((1,) * good.ndim), shape)
    except ValueError:  # beyond what NumPy can count
        return Value("itself", good, "right")
    return Value(f"broadcast to {tuple(shape)}", value, "either", is_huge=True)

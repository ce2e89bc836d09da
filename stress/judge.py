"""What judges a hostile call: it raises TypeError or ValueError, or is right, and nothing else has changed.

Place       where an array goes: what is good there, the call, what must not change
Judge       a layer; meets values in places, and each of a list of values in a call
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .child import Log
from .layers import Subject
from .values import OwnError, Value, value_like

REFUSALS = (TypeError, ValueError)


def nothing() -> None:
    pass


@dataclass
class Place:
    """Where an array goes.

    what: its name.   good: what is right there.   call: gives it in, and returns what came as arrays.
    most_axes: more are wrong.   is_shape_fixed: any other shape is wrong.   undo: after a call that went well.
    watch: what an error must not change, beyond the layer.   is_output: whether it is written to.
    any_dtype: all are right, or more than the layer's.   is_read_whole: which takes long where it is huge, though it
    may lie in no memory.
    """

    what: str
    good: np.ndarray
    call: Callable[[Any], tuple[Any, ...]]
    most_axes: int = 3
    is_shape_fixed: bool = False
    undo: Callable[[], None] = nothing
    watch: Callable[[], Any] = nothing
    is_output: bool = False
    any_dtype: bool = False
    is_read_whole: bool = False


class Judge:
    """A layer that hostile calls meet, and what must be the same after each of them."""

    def __init__(self, rng: np.random.Generator, subject: Subject, log: Log) -> None:
        self.rng, self.subject, self.log, self.layer = rng, subject, log, subject.layer
        self.x = rng.standard_normal((2, 1, subject.layer.input_size)).astype(subject.layer.dtype)
        self.expected = self._usual()

    def meet(
        self,
        what: str,
        call: Callable[[], Any],
        *,
        verdict: str,
        is_huge: bool = False,
        watch: Callable[[], Any] = nothing,
        also: tuple[type[Exception], ...] = (),
    ) -> Any:
        """What the call returned; None if it raised. Judges the error, and that nothing has changed.

        verdict: of `values`.   is_huge: MemoryError is fine.   also: further errors that are.
        """
        self.log.begin(f"{what} of {self.subject}")
        self.log.seen["hostile calls"] += 1
        before = self._watched(), watch()
        try:
            with np.errstate(all="ignore"):
                found = call()
        except Exception as error:
            self._judge(error, verdict, (*REFUSALS, *also, OwnError, *[MemoryError] * is_huge))
            if (self._watched(), watch()) != before:
                self.log.fail(f"something has changed after {type(error).__name__}, in {self.log.at}")
            return None
        self.log.seen["taken"] += 1
        if verdict == "wrong":
            self.log.fail(f"taken, in {self.log.at}")
        return found

    def _judge(self, error: Exception, verdict: str, allowed: tuple[type[Exception], ...]) -> None:
        name = type(error).__name__
        self.log.seen[name] += 1
        if not isinstance(error, allowed):
            self.log.fail(f"{name}: {str(error)[:200]}, in {self.log.at}")
        elif verdict == "right":
            self.log.fail(f"refused: {error}, in {self.log.at}")

    def each(
        self, what: str, values: Iterable[Any], call: Callable[[Any], Any], verdict: str = "wrong", **how: Any
    ) -> None:
        """Meet a call of each value."""
        for value in values:
            self.meet(f"{what} {shown(value)}", lambda value=value: call(value), verdict=verdict, **how)

    def place(self, place: Place) -> None:
        """Meet a hostile value in a place."""
        value = value_like(self.rng, place.good, place.most_axes, place.is_shape_fixed)
        if value.is_huge and place.is_read_whole:
            value = Value("itself", place.good, "right")
        if place.is_output and value.verdict == "right":
            fits = isinstance(value.value, np.ndarray) and value.value.flags.carray
            value.verdict = "right" if fits else "wrong"
        if place.any_dtype and value.verdict == "wrong":
            value.verdict = "either"
        given = value.value
        is_plain = isinstance(given, np.ndarray) and not value.is_huge and not given.dtype.hasobject
        before = given.tobytes() if is_plain else None
        found = self.meet(
            f"{value.what} as {place.what}", lambda: place.call(given),
            verdict=value.verdict, is_huge=value.is_huge, watch=place.watch,
        )  # fmt: skip
        if is_plain and not (found is not None and place.is_output) and given.tobytes() != before:
            self.log.fail(f"the argument was changed, in {self.log.at}")
        if found is not None:
            place.undo()
            if value.verdict == "right":
                self._compare(place, found)
        self.still_works()

    def _compare(self, place: Place, found: tuple[Any, ...]) -> None:
        """Whether what came is what the good value gives, within what sums in another order may differ."""
        expected = place.call(place.good)
        place.undo()
        for ours, theirs in zip(found, expected, strict=True):
            scale = np.abs(theirs).max(initial=1)
            tolerance = 1e-3 if theirs.dtype == np.float32 else 1e-8
            if scale < 100 and not np.allclose(ours, theirs, rtol=0, atol=tolerance * scale):
                self.log.fail(f"the result is not that of {place.what} itself, in {self.log.at}")

    def still_works(self) -> None:
        """Whether the layer gives the bits that it gave before."""
        self.log.begin(f"a call after {self.log.at}")
        found = self._usual()
        if found != self.expected:
            self.log.fail(f"another result in {self.log.at}")
            self.expected = found

    def _usual(self) -> bytes:
        return self.layer(self.x)[0].tobytes()

    def _watched(self) -> tuple[Any, ...]:
        layer = self.layer
        return layer.flat_params.tobytes(), layer.flat_grads.tobytes(), repr(layer._rng.bit_generator.state)


def shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]}"


def flat(found: Any) -> tuple[Any, ...]:
    """Arrays within tuples, one after the other."""
    if isinstance(found, (tuple, list)):
        return tuple(array for each in found for array in flat(each))
    return () if found is None else (np.array(found),)

"""`gradcheck`: whether a module's backward pass gives the gradients of its forward pass.

The loss is a random weighted sum of all that `forward` returns, so that its gradients by these are the weights:

    loss = sum y r + sum state s        dy = r, dstate = s

It is evaluated at theta + eps v and theta - eps v, where v is one element of an array or, for arrays of many elements,
also a direction in which all of them change: the derivative along it is wrong where any element is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..util.checks import as_array, finite_float, positive_float, positive_int
from .module import Module

__all__ = ["GradientError", "gradcheck"]


class GradientError(AssertionError):
    """A backward pass that does not fit its forward pass, as `gradcheck` found it.

    name: of the array whose gradient is furthest off: that of a parameter, "x", or "state" with what follows.
    index: the place in it, a tuple; None where the gradient as a whole is missing or of another shape.
    gradient, difference: what the backward pass gives there, and what finite differences give; None without an index.
    """

    def __init__(
        self,
        message: str,
        name: str,
        index: tuple[int, ...] | None = None,
        gradient: float | None = None,
        difference: float | None = None,
    ) -> None:
        super().__init__(message)
        self.name, self.index, self.gradient, self.difference = name, index, gradient, difference

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.name, self.index, self.gradient, self.difference)


def gradcheck(
    module: Module,
    x: Any,
    *,
    state: Any = None,
    samples: int = 64,
    eps: float = 1e-5,
    atol: float = 1e-7,
    rtol: float = 1e-5,
    rng: Any = 0,
    **options: Any,
) -> bool:
    """Compare the gradients that a module's `backward` gives with central finite differences of a random loss.

    >>> import numpy as np, fastrnn
    >>> x = np.random.default_rng(0).normal(size=(5, 2, 3))
    >>> fastrnn.gradcheck(fastrnn.GRU(3, 4, dtype="float64", rng=0), x, lengths=[5, 2])
    True
    >>> class Wrong(fastrnn.Linear):
    ...     def backward(self, tape, do):
    ...         return 2 * super().backward(tape, do)
    >>> try:
    ...     fastrnn.gradcheck(Wrong(3, 4, dtype="float64", rng=0), x)
    ... except fastrnn.GradientError as error:
    ...     print(error.name, round(error.gradient / error.difference, 6))
    x 2.0

    module: a `Module` whose parameters, if it has any, are float64.  Either ``forward(x) -> (y, tape)`` and
    ``backward(tape, dy) -> dx``; or, as a recurrent layer, ``forward(x, state) -> (y, state, tape)`` and
    ``backward(tape, dy, dstate) -> (dx, dstate)``, whose gradient by the initial state is compared too.
    x: float64, of any shape that `forward` takes; or integers, by which there is no gradient.
    state: the initial state of a recurrent layer; None draws one.
    samples: how many elements of each array, drawn at random, are compared one by one; all, if there are no more.
    If there are more, a random direction through all elements is compared too, and if that shows an error, it is found
    by halving the elements.  Each comparison takes two forward passes.
    eps: how far to each side.  The differences are exact to some eps^2 + 1e-15/eps, times the scale of y.
    atol, rtol: a gradient g and a difference d fit together where |g - d| <= atol + rtol max(|g|, |d|).
    rng: an int or a numpy Generator, for the loss, the elements and directions; None: different ones each time.
    options: further arguments of `forward`, such as lengths, reset and checkpoint.

    `backward` has to add into ``grads``: what it adds is compared, not what stands there.  What the module draws, as
    for dropout, is drawn again in each pass, the same, from `Module.generators`.  Afterwards parameters, gradients and
    these generators are as before.  Returns True.

    Not every mismatch is an error: within eps of a kink, such as relu's, a difference lies between two slopes; and
    grad_clip changes gradients on purpose.

    Raises GradientError, an AssertionError, that names the array and the index where the two differ the most, and both
    numbers.  Raises TypeError for what is no module, for float32, whose rounding would hide what is looked for, and for
    a `forward` that returns something else; ValueError or TypeError for other arguments out of range.
    Source: central differences, as torch.autograd.gradcheck takes them.
    """
    if not isinstance(module, Module):
        raise TypeError(f"expected a module, such as a layer, got {type(module).__name__}")
    if module.params and module.dtype != np.float64:
        raise TypeError(f"expected a module of dtype float64, got {module.dtype}: its rounding hides small errors")
    positive_int("samples", samples), positive_float("eps", eps), finite_float("atol", atol), finite_float("rtol", rtol)
    generator = np.random.default_rng(rng)
    x = _copied("x", x)
    parameters, gradients = module.flat_params.copy(), module.flat_grads.copy()
    drawn = [each.bit_generator.state for each in module.generators]
    try:
        passes = _Passes(module, x, state, options, drawn, generator)
        found = _Comparison(passes, samples, eps, atol, rtol, generator)
        for name, array, gradient in passes.gradients():
            found.compare(name, array, gradient)
    finally:
        module.flat_params[...], module.flat_grads[...] = parameters, gradients
        _put_back(module, drawn)
    found.require_none()
    return True


def _copied(name: str, value: Any) -> np.ndarray:
    """A copy of x or of a state, to be changed: float64, or integers for x."""
    array = as_array(name, value)
    if array.dtype != np.float64 and not (name == "x" and array.dtype.kind in "iu"):
        or_integers = ", or of an integer dtype" if name == "x" else ""
        raise TypeError(f"expected {name} of dtype float64{or_integers}, got {array.dtype}")
    return array.copy()


def _put_back(module: Module, states: list[Any]) -> None:
    for each, state in zip(module.generators, states, strict=True):
        each.bit_generator.state = state


def _parts(state: Any) -> tuple[Any, ...]:
    """The arrays of a state or of its gradient: one, or a pair."""
    return tuple(state) if isinstance(state, tuple | list) else (state,)


class _Passes:
    """The passes of a module over arrays that may be changed, with the weights of the loss."""

    def __init__(
        self, module: Module, x: np.ndarray, state: Any, options: Any, drawn: list[Any], generator: np.random.Generator
    ) -> None:
        self.module, self.x, self.options, self.drawn = module, x, options, drawn
        self.state: tuple[np.ndarray, ...] = ()  # of a recurrent layer: the initial one
        self.in_pair = False
        results = self._forward() if state is None else self._forward(state)
        if len(results) == 3:
            final = results[1]
            self.in_pair = isinstance(final, tuple)
            if state is None:
                state = [generator.standard_normal(np.shape(part)) for part in _parts(final)]
            self.state = tuple(_copied("state", part) for part in _parts(state))
        self.weights = [generator.standard_normal(np.shape(output)) for output in self.outputs()]

    def _forward(self, *state: Any) -> tuple[Any, ...]:
        """What `forward` returns: y, perhaps a state, and the tape; with the same random numbers each time."""
        _put_back(self.module, self.drawn)
        module: Any = self.module
        results = module.forward(self.x, *state, **self.options)
        if not isinstance(results, tuple) or len(results) not in (2, 3):
            came = f"{len(results)} values" if isinstance(results, tuple) else type(results).__name__
            raise TypeError(f"expected forward to return (y, tape) or (y, state, tape), got {came}")
        return results

    def _run(self) -> tuple[Any, ...]:
        if not self.state:
            return self._forward()
        return self._forward(self.state if self.in_pair else self.state[0])

    def outputs(self) -> list[np.ndarray]:
        """Copies of y and of the arrays of the final state, if there is one."""
        y, *others = self._run()
        finals = _parts(others[0]) if len(others) == 2 else ()
        return [np.array(output, np.float64) for output in (y, *finals)]

    def gradients(self) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
        """(name, array, gradient) of each parameter, of x, and of the initial state; gradients as copies."""
        module: Any = self.module
        tape = self._run()[-1]
        module.flat_grads.fill(1)  # shows whether `backward` adds, or overwrites
        if self.state:
            dfinal = tuple(self.weights[1:]) if self.in_pair else self.weights[1]
            dx, dstate = module.backward(tape, self.weights[0].copy(), dfinal)
        else:
            dx, dstate = module.backward(tape, self.weights[0].copy()), ()
        found = [(name, module.params[name], grad - 1) for name, grad in module.grads.items()]
        if self.x.dtype.kind == "f":
            found.append(("x", self.x, dx))
        parts = _parts(dstate)
        if len(parts) != len(self.state):
            raise GradientError(f"expected gradients of {len(self.state)} states, got {len(parts)}", "state")
        names = ["state"] if len(parts) == 1 else [f"state {letter}" for letter in "hc"]
        found += [(name, *pair) for name, *pair in zip(names, self.state, parts, strict=False)]
        return [(name, array, None if grad is None else np.array(grad, np.float64)) for name, array, grad in found]


class _Found(NamedTuple):
    """A gradient and a difference that do not fit together."""

    excess: float  # the distance of the two in tolerances
    name: str
    place: tuple[int, ...]
    gradient: float
    difference: float


class _Comparison:
    """Gradients beside finite differences, and what was found on the way."""

    def __init__(
        self, passes: _Passes, samples: int, eps: float, atol: float, rtol: float, generator: np.random.Generator
    ) -> None:
        self.passes, self.samples, self.eps, self.generator = passes, samples, eps, generator
        self.atol, self.rtol = atol, rtol
        self.count = 0
        self.wrong: list[_Found] = []

    def compare(self, name: str, array: np.ndarray, gradient: np.ndarray | None) -> None:
        """Some elements of an array one by one and, where that is not all, all of them along a direction."""
        if gradient is None or gradient.shape != array.shape:
            came = "None" if gradient is None else f"the shape {gradient.shape}"
            raise GradientError(f"expected a gradient of {name} of shape {array.shape}, got {came}", name)
        if array.size <= self.samples:
            chosen = np.arange(array.size)
        else:
            chosen = self.generator.choice(array.size, self.samples, replace=False)
        before = len(self.wrong)
        for place in chosen:
            self._compare_element(name, array, gradient, int(place))
        if len(chosen) < array.size and len(self.wrong) == before:
            self._search(name, array, gradient)

    def _compare_element(self, name: str, array: np.ndarray, gradient: np.ndarray, place: int) -> None:
        index = tuple(int(i) for i in np.unravel_index(place, array.shape))
        value = array[index]

        def move(step: float) -> None:
            array[index] = value + step

        got, difference = float(gradient[index]), self._difference(move)
        self.count += 1
        excess = self._excess(got, difference)
        if excess > 1:
            self.wrong.append(_Found(excess, name, index, got, difference))

    def _search(self, name: str, array: np.ndarray, gradient: np.ndarray) -> None:
        """Compare along a direction of length one; if that is wrong, go on in the worse half, down to one element."""
        values, direction = array.copy(), self.generator.choice([-1.0, 1.0], array.shape)
        places = self.generator.permutation(array.size)

        def excess(some: np.ndarray) -> float:
            v = np.zeros(array.size)
            v[some] = direction.reshape(-1)[some] / math.sqrt(len(some))

            def move(step: float) -> None:
                array[...] = values + step * v.reshape(array.shape)

            return self._excess(float(gradient.reshape(-1) @ v), self._difference(move))

        if excess(places) <= 1:
            return
        while len(places) > 1:
            halves = np.array_split(places, 2)
            places = max(halves, key=excess)
        self._compare_element(name, array, gradient, int(places[0]))

    def _difference(self, move: Callable[[float], None]) -> float:
        """(loss(eps) - loss(-eps)) / 2 eps, where move(step) goes so far along a direction."""
        move(self.eps)
        above = self.passes.outputs()
        move(-self.eps)
        below = self.passes.outputs()
        move(0.0)
        # The differences of each output by itself, so that the sum of all is not rounded first
        parts = zip(above, below, self.passes.weights, strict=True)
        return math.fsum(float(((a - b) * weight).sum()) for a, b, weight in parts) / (2 * self.eps)

    def _excess(self, gradient: float, difference: float) -> float:
        """How many tolerances lie between the two; infinity where one is not a number."""
        distance = abs(gradient - difference)
        if not math.isfinite(distance):
            return math.inf
        tolerance = self.atol + self.rtol * max(abs(gradient), abs(difference))
        if tolerance == 0:
            return math.inf if distance else 0.0
        return distance / tolerance

    def require_none(self) -> None:
        """Raise GradientError for the worst of what was found."""
        if not self.wrong:
            return
        _, name, index, gradient, difference = max(self.wrong, key=lambda found: found.excess)
        message = (
            f"the gradient of {name} at {index}: backward gives {gradient:.9g}, finite differences {difference:.9g}"
        )
        message += f" ({len(self.wrong)} of {self.count} elements that were compared are wrong)"
        if name in self.passes.module.params and self._excess(gradient + 1, difference) <= 1:
            message += "; backward has to add into grads, not to overwrite what stands there"
        raise GradientError(message, name, index, gradient, difference)

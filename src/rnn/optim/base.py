"""What the optimisers share: groups of parameters, clipping of the gradient, tasks for the threads, state.

The flat arrays of all modules are cut into tasks of limited size. The cuts depend on the parameters alone, so results
are the same bits for any number of threads.  The arithmetic for one element is in kernels/math/elementwise.hpp.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar, overload

import numpy as np

from .. import _core
from ..engine import parallel, tuning
from ..nn.module import Module
from ..util.checks import checked_arrays, finite_float
from .schedules import Schedule, lr_at

__all__ = ["Optimizer", "clip_grad_norm"]

_MOST_STEPS = 1 << 53  # beyond this, a schedule that computes in float64 could not tell one step from the next

Options = dict[str, Any]
Groups = Mapping[str, Mapping[str, Any]]  # options by pattern
Piece = tuple[int, slice, int]  # index of the module, elements of its flat arrays, index of their options


class Optimizer:
    """What SGD, Adam, AdamW and RMSprop share; their arguments and defaults are torch's.

    >>> from fastrnn import GRU, Linear
    >>> from fastrnn.optim import AdamW, Cosine, WarmUp
    >>> layer, head = GRU(8, 32, rng=0), Linear(32, 4, rng=0)
    >>> schedule = WarmUp(Cosine(1e-2, steps=900), steps=100)
    >>> adam = AdamW([layer, head], lr=schedule, groups={"bias*": {"weight_decay": 0}, "1.*": {"lr": 1e-3}})
    >>> norm = adam.step(max_norm=1.0)  # once the gradients are there

    modules: a list of modules, whose gradients `step` reads and whose parameters change in place.
    lr: learning rate: a number, or a schedule, which is a function of the number of steps done.
    groups: other options for some parameters, by patterns (of `fnmatch`) for their names, plain or preceded by the
    index of their module, as in "1.weight".  If several patterns match, the last one that gives an option counts.

    ``lr`` may be assigned; ``steps`` counts the updates made.

    Raises TypeError or ValueError for other modules and options, and for a pattern that matches no parameter.
    """

    _checks: ClassVar[dict[str, Callable[[str, Any], Any]]] = {}  # the check of each option

    def __init__(self, modules: Sequence[Module], groups: Groups | None, **options: Any) -> None:
        self.modules = _checked_modules(modules)
        self.steps = 0
        self._options = self._checked(options)
        self._group_options: list[Options] = []  # what differs from `_options`; a Piece holds an index into this list
        self._tasks = _cut(self._ranges({} if groups is None else groups), tuning.UPDATED)
        self._groups = {pattern: dict(given) for pattern, given in (groups or {}).items()}  # for repr
        self._norm_tasks = _cut(_whole(self.modules), tuning.SUMMED)
        self._state = {
            name: [np.zeros_like(module.flat_params) for module in self.modules] for name in self._state_names()
        }

    @property
    def lr(self) -> float | Schedule:
        """The learning rate of parameters to which no group gives another one: a number or a schedule."""
        return self._options["lr"]

    @lr.setter
    def lr(self, lr: float | Schedule) -> None:
        self._options |= self._checked({"lr": lr})

    @overload
    def step(self, *, max_norm: float, scale: float = 1.0) -> float: ...
    @overload
    def step(self, *, max_norm: None = None, scale: float = 1.0) -> None: ...
    def step(self, *, max_norm: float | None = None, scale: float = 1.0) -> float | None:
        """Update the parameters by the gradients, which stay as they are.

        scale: a factor for the gradients, as in ``step(scale=1/4)`` for the mean over four backward passes.
        max_norm: the largest norm of the gradient of all parameters together; a larger gradient counts as if
        `clip_grad_norm` had scaled it.

        Returns the norm before clipping; None without max_norm.  If the norm is not finite, nothing is changed.
        Ctrl-C takes effect before a step or after it, never in the middle.
        Raises ValueError or TypeError for a wrong scale, max_norm or value of a schedule; nothing is changed then.
        """
        factor, norm = finite_float("scale", scale), None
        options = [self._at_this_step(self._options | group) for group in self._group_options]
        if max_norm is not None:
            norm = factor * _norm(self.modules, self._norm_tasks)
            factor *= _clipping(norm, max_norm)
            if not math.isfinite(norm):
                return norm
        step = self.steps + 1
        tasks = [self._updates(pieces, options, factor, step) for pieces in self._tasks or [[]]]
        # Tasks consist of compiled functions only, in which no interrupt is raised: all of a step is done, or nothing
        tasks[0].append(partial(setattr, self, "steps", step))
        parallel.run([partial(_core.in_turn, updates) for updates in tasks])
        return norm

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all that `step` keeps between updates: "steps", and arrays with torch's names behind a parameter's.

        >>> from fastrnn import Linear
        >>> from fastrnn.optim import Adam
        >>> list(Adam([Linear(3, 2, bias=False)]).state_dict())
        ['steps', '0.weight.exp_avg', '0.weight.exp_avg_sq']
        """
        arrays = {name: array.copy() for name, array in self._named_state().items()}
        return {"steps": np.array(self.steps, np.int64), **arrays}

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, from an optimiser with the same modules and options.

        Raises KeyError, TypeError or ValueError if names, dtypes or shapes differ; nothing is changed then.
        """
        _core.in_turn(self._loading(self._checked_state(mapping)))  # no interrupt comes between

    def _loading(self, checked: Mapping[str, np.ndarray]) -> list[Callable[[], Any]]:
        """Compiled functions that put a checked state in place."""
        pairs = [(array, checked[name]) for name, array in self._named_state().items()]
        return [partial(setattr, self, "steps", int(checked["steps"])), partial(_core.copy_all, pairs)]

    def _checked_state(self, mapping: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of `mapping`, if they are a state of this optimiser; raises errors as `load_state_dict` does."""
        checked = checked_arrays(mapping, {"steps": np.array(self.steps, np.int64), **self._named_state()})
        if not 0 <= checked["steps"] < _MOST_STEPS:
            raise ValueError(f"expected steps from 0 to 2**53 - 1, got {checked['steps']}")
        return checked

    def _named_state(self) -> dict[str, np.ndarray]:
        """Views of the parts of the state, by the names that they have in `state_dict`."""
        return {
            f"{index}.{name}.{part}": array
            for index, module in enumerate(self.modules)
            for part, flats in self._state.items()
            for name, array in module.named(flats[index]).items()
        }

    def __repr__(self) -> str:
        """The modules, the learning rate, and what is not as by default."""
        shown = [repr(self.modules)]
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = self._groups or None if name == "groups" else self._options.get(name)
            if name == "lr" or (name != "modules" and value != parameter.default):
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    # ------------------------------------------------------------ options

    def _checked(self, options: Mapping[str, Any]) -> Options:
        """The options, each as its check returns it; raises TypeError for an unknown one."""
        unknown = [name for name in options if name not in self._checks]
        if unknown:
            raise TypeError(f"expected options among {', '.join(self._checks)}, got {unknown[0]!r}")
        return {name: self._checks[name](name, value) for name, value in options.items()}

    def _ranges(self, groups: Groups) -> Iterable[Piece]:
        """The elements of all modules, as runs with the same options; fills `_group_options`."""
        if not isinstance(groups, Mapping) or not all(isinstance(options, Mapping) for options in groups.values()):
            raise TypeError(f"expected groups like {{'bias*': {{'weight_decay': 0}}}}, got {groups!r}")
        checked = {pattern: self._checked(options) for pattern, options in groups.items()}
        unmatched = set(checked)
        ranges: list[Piece] = []
        for index, module in enumerate(self.modules):
            for name, where in module.param_ranges.items():
                matching = [p for p in checked if fnmatchcase(name, p) or fnmatchcase(f"{index}.{name}", p)]
                unmatched -= set(matching)
                which = self._index_of({key: value for p in matching for key, value in checked[p].items()})
                if ranges and (ranges[-1][0], ranges[-1][2]) == (index, which):
                    where = slice(ranges.pop()[1].start, where.stop)
                ranges.append((index, where, which))
        if unmatched:
            names = [f"{index}.{name}" for index, module in enumerate(self.modules) for name in module.params]
            raise ValueError(f"expected patterns that match a parameter ({', '.join(names)}), got {min(unmatched)!r}")
        return ranges

    def _index_of(self, options: Options) -> int:
        if options not in self._group_options:
            self._check_together(self._options | options)
            self._group_options.append(options)
        return self._group_options.index(options)

    def _at_this_step(self, options: Options) -> Options:
        return options | {"lr": lr_at(options["lr"], self.steps)}

    def _any(self, option: str) -> bool:
        """Whether this option is set for any parameter."""
        return any((self._options | group)[option] for group in self._group_options)

    # ------------------------------------------------------------ what each optimiser defines

    def _check_together(self, options: Options) -> None:
        """Raise ValueError for options that are valid one by one, but not together."""

    def _state_names(self) -> list[str]:
        """The names, as in torch, of the arrays that are kept for each parameter."""
        raise NotImplementedError

    def _update(
        self, options: Options, scale: float, step: int, param: np.ndarray, grad: np.ndarray, state: Any
    ) -> Callable[[], Any]:
        """A function of `_core` that does one step, counted from 1, for a piece of the flat arrays."""
        raise NotImplementedError

    def _updates(self, pieces: list[Piece], options: list[Options], scale: float, step: int) -> list[Any]:
        updates = []
        for index, where, which in pieces:
            module = self.modules[index]
            state = {name: flats[index][where] for name, flats in self._state.items()}
            param, grad = module.flat_params[where], module.flat_grads[where]
            updates.append(self._update(options[which], scale, step, param, grad, state))
        return updates


def clip_grad_norm(modules: Sequence[Module], max_norm: float) -> float:
    """Scale the gradients so that their joint 2-norm is at most `max_norm`; returns the norm before that.

    >>> from fastrnn import Linear
    >>> from fastrnn.optim import clip_grad_norm
    >>> head = Linear(3, 2, bias=False)
    >>> head.grads["weight"][...] = 2
    >>> round(clip_grad_norm([head], 1.0), 3)
    4.899
    >>> round(clip_grad_norm([head], 1.0), 3)
    1.0

    The factor is torch's, max_norm / (norm + 1e-6) if that is below 1.  A norm that is not finite is returned as it is,
    and the gradients are unchanged then, so that the caller can stop.  ``step(max_norm=...)`` of an optimiser does the
    same without writing to the gradients.

    Raises TypeError or ValueError unless modules is a list of modules and max_norm is positive.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013,
    arXiv:1211.5063.
    """
    modules = _checked_modules(modules)
    norm = _norm(modules, _cut(_whole(modules), tuning.SUMMED))
    factor = _clipping(norm, max_norm)
    if factor < 1:
        for module in modules:
            module.flat_grads *= factor
    return norm


def _norm(modules: Sequence[Module], tasks: list[list[Piece]]) -> float:
    """The joint 2-norm of the gradients, computed in float64."""

    def sum_of_squares(pieces: list[Piece]) -> float:
        return sum(_core.sum_of_squares(modules[index].flat_grads[where]) for index, where, _ in pieces)

    return math.sqrt(sum(parallel.run([partial(sum_of_squares, pieces) for pieces in tasks])))


def _whole(modules: Sequence[Module]) -> list[Piece]:
    """Every module as one piece, without options."""
    return [(index, slice(0, module.flat_grads.size), 0) for index, module in enumerate(modules)]


def _clipping(norm: float, max_norm: float) -> float:
    """The factor that brings a gradient of this norm down to `max_norm`; 1 if the norm is smaller or not finite."""
    if isinstance(max_norm, bool) or not isinstance(max_norm, int | float | np.integer | np.floating):
        raise TypeError(f"expected max_norm to be a number, got {max_norm!r}")
    if not max_norm > 0:
        raise ValueError(f"expected max_norm > 0, got {max_norm}")
    return min(1.0, max_norm / (norm + 1e-6)) if math.isfinite(norm) else 1.0


def _cut(ranges: Iterable[Piece], size: int) -> list[list[Piece]]:
    """Cut the ranges into pieces, and gather these into tasks of at most `size` elements."""
    tasks: list[list[Piece]] = []
    room = 0
    for index, where, which in ranges:
        for start in range(where.start, where.stop, size):
            piece = slice(start, min(start + size, where.stop))
            if piece.stop - start > room:
                tasks.append([])
                room = size
            tasks[-1].append((index, piece, which))
            room -= piece.stop - start
    return tasks


def _checked_modules(modules: Sequence[Module]) -> list[Module]:
    if not isinstance(modules, (list, tuple)) or not all(isinstance(module, Module) for module in modules):
        raise TypeError(f"expected a list of modules, such as [layer, head], got {_in_short(modules)}")
    if not modules or len({id(module) for module in modules}) != len(modules):
        raise ValueError(f"expected a list of modules, each once and at least one, got {modules!r}")
    return list(modules)


def _in_short(value: Any) -> str:
    """What came in the place of a list of modules, in a few words: of arrays, for one, none of the numbers."""
    if isinstance(value, Module):
        return f"{value!r} by itself"
    if not isinstance(value, (list, tuple)):
        return f"a {type(value).__name__}"
    kinds = dict.fromkeys(type(part).__name__ for part in value)  # each once, in their order
    return f"a {type(value).__name__} of {', '.join(kinds)}"

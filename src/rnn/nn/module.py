"""Parameters and their gradients, under torch's names: what a layer, a head and an optimiser share.

All parameters of a module lie in one flat array, all gradients in another; ``params`` and ``grads`` are dicts of
views into them.  An optimiser can therefore go once through one contiguous array, and a user who writes into
``module.params[name]`` writes into the weights that the kernels read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NoReturn, Self

import numpy as np

from .. import _core
from ..util.checks import checked_array, checked_arrays, checked_shapes, float_dtype, non_negative_int

__all__ = ["FixedOptions", "Module", "ParameterDict"]

_ALIGN = 16  # elements: every array starts on a cache line of float32
_ADDRESSABLE = 1 << 47  # bytes that a process can have on the usual processors

Shapes = Mapping[str, tuple[int, ...]] | Iterable[tuple[str, tuple[int, ...]]]  # by name


class ParameterDict(dict[str, np.ndarray]):
    """A dict of views whose entries are fixed; assigning to a name copies the values into its array.

    A deep copy, and what is pickled, has copies of the arrays; `copy.copy` and the dict itself share them.
    """

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self:
            raise KeyError(f"no parameter named {name!r}; the names are {', '.join(self)}")
        self[name][...] = checked_array(name, value, self[name].shape, self[name].dtype)

    def _fixed(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("the set of parameters is fixed; assign to a name to change its values")

    def __reduce__(self) -> tuple[type, tuple[dict[str, np.ndarray]]]:
        return type(self), (dict(self),)

    __delitem__ = pop = popitem = clear = update = setdefault = __ior__ = _fixed


class FixedOptions:
    """What an object is, is decided when it is made: the attributes that `_fixed` names can be set once."""

    _fixed: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._fixed and name in self.__dict__:
            owner = f"{name} of a {type(self).__name__}"
            raise AttributeError(f"{owner} is fixed when it is made, as {self.__dict__[name]!r}; make another one")
        super().__setattr__(name, value)


class Module(FixedOptions):
    """Base of the layers, and of those that you write: parameters by name, their gradients, state dicts.

    shapes: the shape of each parameter by name, as a dict or as pairs; a module may have none.
    dtype: float32 or float64, of the parameters.

    A module of one's own says in its constructor which parameters it has, all zero at first, and brings the two passes:
    `forward` returns its output and a tape, whatever `backward` needs; `backward` adds into `grads` and returns the
    gradient of its input.  Optimisers, checkpoints and `clip_grad_norm` take it beside the others, and `gradcheck`
    finds out whether the passes fit together.

    >>> import numpy as np, fastrnn
    >>> class Scale(fastrnn.Module):
    ...     def __init__(self, size, dtype="float32"):
    ...         super().__init__({"gain": (size,)}, dtype)
    ...         self.params["gain"] = np.ones(size, dtype)
    ...     def forward(self, x):                                # (..., N) -> (..., N)
    ...         return x * self.params["gain"], x
    ...     def backward(self, tape, dy):
    ...         self.grads["gain"] += (dy * tape).reshape(-1, dy.shape[-1]).sum(axis=0)
    ...         return dy * self.params["gain"]
    >>> fastrnn.gradcheck(Scale(3, "float64"), np.random.default_rng(0).normal(size=(5, 3)))
    True
    >>> scale = Scale(3)
    >>> y, tape = scale.forward(np.ones((5, 3), np.float32))
    >>> dx = scale.backward(tape, y)                             # of the loss sum(y**2) / 2
    >>> fastrnn.optim.SGD([scale], lr=0.1).step()
    >>> scale.state_dict()
    {'gain': array([0.5, 0.5, 0.5], dtype=float32)}

    params, grads              arrays by name; views, which may be written into
    zero_grad()                sets all gradients to zero
    state_dict(), load_state_dict(mapping)    copies of the parameters, and the way back
    flat_params, flat_grads    the one-dimensional arrays that all parameters, and all gradients, lie in
    param_ranges               the slice of each parameter in these by name, with the padding behind it
    generators                 a property: the random generators that `forward` draws from, none here.  A module that
                               draws returns them in a list: checkpoints keep, and `gradcheck` puts back, their states

    Copies and pickles are without the gradients, which a copy, or what is unpickled, has anew: zero.
    Raises TypeError for another dtype, and for shapes that are not names with tuples of integers; ValueError for
    negative sizes and for more than any memory holds.
    """

    _fixed = frozenset({"dtype"})
    flat_params: np.ndarray
    flat_grads: np.ndarray
    param_ranges: dict[str, slice]
    _params: ParameterDict
    _grads: ParameterDict
    _given: Mapping[str, Any] | None = None  # what `_with_parameters` gives to a module that is being made
    # what `_allocate` sets
    _views: tuple[str, ...] = ("flat_params", "flat_grads", "param_ranges", "_params", "_grads")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._views:
            super().__setattr__(name, value)
        elif name not in self.__dict__ or value is not self.__dict__[name]:  # it is what it was after `flat_grads *= 2`
            raise AttributeError(f"{name} of a {type(self).__name__} is made with it and stays; write into its arrays")

    def __init__(self, shapes: Shapes = (), dtype: Any = "float32") -> None:
        self.dtype = float_dtype(dtype)
        pairs = shapes.items() if isinstance(shapes, Mapping) else shapes
        self._shapes = _own_shapes(pairs) if self._given is None else checked_shapes(self._given, pairs, self.dtype)
        self._allocate()

    @classmethod
    def _with_parameters(cls, params: Mapping[str, Any], *args: Any, **options: Any) -> Self:
        """The module that these arguments make, with these parameters.

        They are compared before memory is taken: what does not fit costs no more than `params` is large, whatever
        sizes the arguments claim.  Raises as `load_state_dict` and the constructor do.
        """
        module = cls.__new__(cls)
        module._given = params
        cls.__init__(module, *args, **options)
        del module._given
        module.load_state_dict(params)
        return module

    def _allocate(self) -> None:
        sizes = [-(-math.prod(shape) // _ALIGN) * _ALIGN for shape in self._shapes.values()]
        if sum(sizes) * self.dtype.itemsize > _ADDRESSABLE:
            raise ValueError(f"expected parameters of at most {_ADDRESSABLE} bytes, got {sum(sizes)} of {self.dtype}")
        ends = np.cumsum(sizes).tolist()
        self.__dict__.update(
            flat_params=_core.new_array((sum(sizes),), self.dtype, zero=True),
            flat_grads=_core.new_array((sum(sizes),), self.dtype, zero=True),
            param_ranges={  # of each parameter in the flat arrays, the padding behind it included
                name: slice(end - size, end) for name, size, end in zip(self._shapes, sizes, ends, strict=True)
            },
        )
        self.__dict__.update(_params=self.named(self.flat_params), _grads=self.named(self.flat_grads))

    def named(self, flat: np.ndarray) -> ParameterDict:
        """Views of the parts of an array like `flat_params`, by the names of the parameters."""
        named = ParameterDict()
        for name, shape in self._shapes.items():
            start = self.param_ranges[name].start
            dict.__setitem__(named, name, flat[start : start + math.prod(shape)].reshape(shape))
        return named

    @property
    def generators(self) -> list[np.random.Generator]:
        """The random generators that the module draws from, whose state is part of a checkpoint."""
        return []

    @property
    def params(self) -> ParameterDict:
        """Parameters by name: views, updated in place."""
        return self._params

    @property
    def grads(self) -> ParameterDict:
        """Gradients by name, the shapes of ``params``: `backward` adds into them, `zero_grad` clears them."""
        return self._grads

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        self.flat_grads.fill(0)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters under torch's names."""
        return {name: array.copy() for name, array in self._params.items()}

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Copy `mapping` into the parameters.

        Raises KeyError when a name is missing or unknown, TypeError for another dtype, ValueError for another shape;
        nothing is changed then.
        """
        checked = checked_arrays(mapping, self._params)
        _core.copy_all([(array, checked[name]) for name, array in self._params.items()])

    def __repr__(self) -> str:
        """The class and the shape of each parameter; the modules of the package show their arguments, as torch does."""
        return self._shown(**self._shapes)

    def _shown(self, *arguments: Any, **named: Any) -> str:
        """The class with these arguments, and with the dtype where it is not the usual one."""
        if self.dtype != np.float32:
            named["dtype"] = self.dtype
        shown = [*map(str, arguments), *(f"{name}={value}" for name, value in named.items())]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key not in self._views}
        return {**state, "params": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        params = state.pop("params")
        self.__dict__.update(state)
        self._allocate()
        self.load_state_dict(params)


def _own_shapes(pairs: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    """The shapes by name, if they are names and shapes; raises TypeError or ValueError otherwise."""
    own: dict[str, tuple[int, ...]] = {}
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], tuple)):
            raise TypeError(f"expected shapes by name, as in {{'weight': (2, 3)}}, got {pair!r}")
        name, shape = pair
        if name in own:
            raise ValueError(f"expected each name once in the shapes, got {name!r} again")
        own[name] = tuple([non_negative_int(f"sizes of {name}", size) for size in shape])
    return own

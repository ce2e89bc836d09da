"""Whole models: `accelerate` changes the class of their recurrent modules, `restore` changes it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn.utils.parametrize import is_parametrized

from .modules import GRU, LSTM, NOT_COPIED, REASON, RNN, Accelerated, GRUCell, LSTMCell, RNNCell
from .plain import NotHere, check_plain, plain_arrays

__all__ = ["Report", "accelerate", "report", "restore"]

_HERE = {kind._plain: kind for kind in (RNN, GRU, LSTM, RNNCell, GRUCell, LSTMCell)}

Model = TypeVar("Model", bound=torch.nn.Module)


def accelerate(model: Model) -> Model:
    """Let every RNN, GRU, LSTM and their cells in a model run here, and return the model, which is changed in place.

    >>> import torch, fastrnn.torch
    >>> model = fastrnn.torch.accelerate(torch.nn.LSTM(8, 16))
    >>> type(model)
    <class 'fastrnn.torch.modules.LSTM'>
    >>> isinstance(model, torch.nn.LSTM)
    True

    Parameters, buffers, hooks, optimisers and state dicts are not touched: only the class of the modules changes, also
    of those whose class derives from torch's, which keeps what it overrides.  Calls that cannot run here run as ever,
    see `report`.
    """
    for module in model.modules():
        if isinstance(module, tuple(_HERE)) and not isinstance(module, Accelerated):
            _change_class(module, lambda kind: _HERE.get(kind) or _derived(kind))
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`, and return the model: its modules are of the classes that they had.

    A module that was made as one of `fastrnn.torch` becomes torch's, too.
    """
    for module in model.modules():
        if isinstance(module, Accelerated):
            for name in NOT_COPIED:
                module.__dict__.pop(name, None)
            _change_class(module, lambda kind: kind.__dict__.get("_plain", kind))
    return model


def _change_class(module: Any, change: Callable[[type], type]) -> None:
    """Give a module another class; to a parametrised one, whose class torch has made for it alone, another base."""
    kind = type(module)
    if is_parametrized(module):
        own = {name: value for name, value in kind.__dict__.items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, (change(kind.__bases__[0]),), own)
    else:
        module.__class__ = change(kind)


@cache
def _derived(kind: type) -> type:
    """A class whose methods are those of `kind`, for which `super().forward` is the one here."""
    here = next(own for plain, own in _HERE.items() if issubclass(kind, plain))
    attributes = {
        "_plain": kind,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind, here), attributes | {"__reduce_ex__": _reduce})


def _reduce(module: Any, protocol: int) -> Any:
    return _remade, (module._plain,), module.__getstate__()


def _remade(kind: type) -> Any:
    derived: Any = _derived(kind)
    return derived.__new__(derived)


class Row(NamedTuple):
    """A recurrent module of a model."""

    name: str  # in the model; empty for the model itself
    module: str  # as it shows itself
    runs_here: bool
    why: str | None  # why not; or why torch ran its last call that torch ran


@dataclass(frozen=True)
class Report:
    """What `report` found."""

    rows: list[Row]

    def __str__(self) -> str:
        lines = []
        for name, module, runs_here, why in self.rows:
            line = f"{name}: {module}" if name else module
            line += " runs here" if runs_here else " does not run here"
            lines.append(line if why is None else f"{line}{'; torch ran a call, since ' if runs_here else ': '}{why}")
        return "\n".join(lines) or "there is no recurrent module of torch"


def report(model: torch.nn.Module) -> Report:
    """For every recurrent module in a model, whether it runs here and, if not, why.

    >>> import torch, fastrnn.torch
    >>> model = torch.nn.Sequential(torch.nn.GRU(8, 16), torch.nn.LSTM(16, 8))
    >>> _ = fastrnn.torch.accelerate(model[0])
    >>> print(fastrnn.torch.report(model))
    0: GRU(8, 16) runs here
    1: LSTM(16, 8) does not run here: it is torch's; accelerate(model) changes that

    A module that runs here may have left single calls to torch, as under autocast or with a wrong input: then the
    report has the reason of the last one.
    """
    rows = []
    for name, module in model.named_modules():
        if isinstance(module, Accelerated):
            why = _why_never(module)
            rows.append(Row(name, repr(module), why is None, why or module.__dict__.get(REASON)))
        elif isinstance(module, tuple(_HERE)):
            rows.append(Row(name, repr(module), False, "it is torch's; accelerate(model) changes that"))
    return Report(rows)


def _why_never(module: Accelerated) -> str | None:
    """Why a module never runs here, whatever its input."""
    try:
        weights = module._own_weights()
        check_plain(weights)
        plain_arrays(weights)
    except NotHere as why:
        return str(why)
    return None

"""Checkpoints: all that a training run needs to resume as if it had never stopped, in one file.

The file is safetensors: the parameters of the optimiser's modules, the state of the optimiser, further arrays, and JSON
in its metadata.  A schedule needs no state, since it is a function of the number of updates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..optim.base import Optimizer
from ..util.checks import checked_arrays
from ..util.storage import load_arrays, load_json, reason, require_shallow, save_arrays

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "fastrnn.checkpoint"  # the one key in the metadata of a file

Path = str | os.PathLike[str]


def save_checkpoint(
    path: Path,
    optimizer: Optimizer,
    *,
    generators: Sequence[np.random.Generator] = (),
    settings: Mapping[str, Any] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    info: Any = None,
) -> None:
    """Write a checkpoint, from which a training run resumes bitwise identically to an uninterrupted one.

    >>> import numpy as np
    >>> from fastrnn import GRU
    >>> from fastrnn.optim import Adam
    >>> from fastrnn.training import load_checkpoint, save_checkpoint
    >>> layer, shuffling = GRU(3, 8, rng=0), np.random.default_rng(0)
    >>> adam = Adam([layer])
    >>> save_checkpoint("run.checkpoint", adam, generators=[shuffling], info={"epoch": 4})
    >>> arrays, info = load_checkpoint("run.checkpoint", adam, generators=[shuffling])  # in another process, say
    >>> info
    {'epoch': 4}

    A checkpoint always holds the parameters of the optimiser's modules, the state of the optimiser, and the state of
    the modules' random generators (dropout).  The caller may add:

    generators: further random generators whose state is to be saved, such as the one that shuffles the data.
    settings: text and numbers by name that must be the same on resuming; `load_checkpoint` compares them.
    arrays: arrays by name, such as a recurrent state that is carried from batch to batch.
    info: anything that JSON can hold, such as the position in the data.

    An existing file of that name is replaced as a whole or, if anything goes wrong, not at all.
    Raises OSError if the file cannot be written, TypeError for settings or info that JSON cannot hold, ValueError for
    info with more than 100 levels of nested lists or dicts.
    """
    named = {f"modules.{name}": array for name, array in _parameters(optimizer).items()}
    named |= {f"optimizer.{name}": array for name, array in optimizer.state_dict().items()}
    named |= {f"arrays.{name}": array for name, array in (arrays or {}).items()}
    content = {
        "settings": {"optimizer": type(optimizer).__name__, **(settings or {})},
        "generators": [generator.bit_generator.state for generator in _generators(optimizer, generators)],
        "info": info,
    }
    require_shallow(content)
    save_arrays(path, named, {_FORMAT: json.dumps(content, default=_plain)})


def load_checkpoint(
    path: Path,
    optimizer: Optimizer,
    *,
    generators: Sequence[np.random.Generator] = (),
    settings: Mapping[str, Any] | None = None,
) -> tuple[dict[str, np.ndarray], Any]:
    """Restore the optimiser, its modules and the generators from a checkpoint; returns (arrays, info).

    optimizer, generators, settings: made in the same way as for `save_checkpoint`. The file does not say what kind of
    layers there are, nor which options the optimiser has.  A file from an untrusted source is safe to load, as with
    `interchange.load_safetensors`; states in which a generator would not work are refused too.

    Raises OSError if the file cannot be read, ValueError if it is cut short, is no checkpoint, or belongs to other
    modules, another optimiser, other generators or settings; nothing is changed then.
    """
    checkpoint = read_checkpoint(path, optimizer, generators=generators, settings=settings)
    checkpoint.apply()
    return checkpoint.arrays, checkpoint.info


class Checkpoint(NamedTuple):
    """The content of a file, already checked; `apply`, which cannot fail, restores everything from it."""

    arrays: dict[str, np.ndarray]
    info: Any
    steps: int  # of the optimiser
    apply: Callable[[], None]


def read_checkpoint(
    path: Path,
    optimizer: Optimizer,
    *,
    generators: Sequence[np.random.Generator] = (),
    settings: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Read and check a checkpoint without restoring it, for callers with more to check; raises as `load_checkpoint`."""
    named, metadata = load_arrays(path)
    if _FORMAT not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not a {_FORMAT}")
    own, own_parameters = _generators(optimizer, generators), _parameters(optimizer)
    try:
        content = load_json(metadata[_FORMAT])
        info = content["info"]
        _require_equal({"optimizer": type(optimizer).__name__, **(settings or {})}, content["settings"])
        states = _checked_states(own, content["generators"])
        parameters = checked_arrays(_below("modules.", named), own_parameters)
        kept = optimizer._checked_state(_below("optimizer.", named))
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise unfit(path, error) from None

    def apply() -> None:
        pairs = [(array, parameters[name]) for name, array in own_parameters.items()]
        bits = [(generator.bit_generator, state) for generator, state in zip(own, states, strict=True)]
        _core.in_turn(  # no interrupt comes between
            [
                *optimizer._loading(kept),
                partial(_core.copy_all, pairs),
                *(partial(setattr, generator, "state", state) for generator, state in bits),
            ]
        )

    return Checkpoint(_below("arrays.", named), info, int(kept["steps"]), apply)


def unfit(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a checkpoint of this training: {reason(error)}")


def _plain(value: Any) -> Any:
    """Convert arrays and numbers of NumPy for JSON; the state of some bit generators holds them."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"expected what JSON can hold, got {value!r}")


def _below(prefix: str, named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in named.items() if name.startswith(prefix)}


def _parameters(optimizer: Optimizer) -> dict[str, np.ndarray]:
    """The parameters of all modules; names begin with the index of the module, as in "0.weight_ih_l0"."""
    return {
        f"{index}.{name}": array
        for index, module in enumerate(optimizer.modules)
        for name, array in module.params.items()
    }


def _generators(optimizer: Optimizer, further: Sequence[np.random.Generator]) -> list[np.random.Generator]:
    """The random generators of the modules, and further ones."""
    return [generator for module in optimizer.modules for generator in module.generators] + list(further)


def _require_equal(expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Raise ValueError for the first setting that differs."""
    for name in [*expected, *(got.keys() - expected.keys())]:
        if expected.get(name) != got.get(name):
            raise ValueError(f"it was made with {name}={got.get(name)!r}, not {expected.get(name)!r}")


def _checked_states(generators: Sequence[np.random.Generator], states: Sequence[Any]) -> Sequence[Any]:
    """The states, if there is one for each generator and it fits; raises ValueError otherwise."""
    if len(states) != len(generators):
        raise ValueError(f"it has the states of {len(states)} random generators, not {len(generators)}")
    for generator, state in zip(generators, states, strict=True):
        _require_state(generator.bit_generator, state)
    return states


def _require_state(of: np.random.BitGenerator, state: Any) -> None:
    """Raise an error unless a bit generator of this kind can have this state."""
    probe = type(of)()
    probe.state = state  # ValueError for the state of another kind
    taken = json.loads(json.dumps(probe.state, default=_plain))  # NumPy cuts it to the numbers and bits that it has
    if taken != state or not _can_go_on(of, taken):
        raise ValueError(f"expected the state of a {type(of).__name__} generator, got {state!r}")


def _can_go_on(of: np.random.BitGenerator, state: Any) -> bool:
    """Whether numbers can be drawn from this state.

    NumPy also accepts states with positions beyond its buffers, where it would read foreign memory, and states that
    only ever give zeros, with which some of its methods would loop forever.
    """
    if isinstance(of, np.random.MT19937):
        first, *others = state["state"]["key"]
        return 0 <= state["state"]["pos"] <= len(others) + 1 and bool(first >> 31 or any(others))
    if isinstance(of, np.random.Philox):
        return 0 <= state["buffer_pos"] <= len(state["buffer"])
    if isinstance(of, (np.random.PCG64, np.random.PCG64DXSM)):
        return state["state"]["inc"] % 2 == 1
    return True

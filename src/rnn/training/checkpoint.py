"""Checkpoints: what a training needs to go on as if it had never stopped, in one file that is replaced whole.

The file is safetensors: the parameters of the optimiser's modules, the state of the optimiser, further arrays, and JSON
in its metadata.  A schedule needs no state, for it is a function of the optimiser's steps.
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
    """Write all that `load_checkpoint` needs to make a training go on with the same bits.

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

    Always in it are the parameters of the optimiser's modules, what the optimiser keeps, and the random state of the
    modules (dropout).  The rest is the caller's:

    generators: further random generators, whose state is kept, such as the one that shuffles the data.
    settings: text and numbers by name that must be the same when the training goes on; `load_checkpoint` compares them.
    arrays: arrays by name, such as a recurrent state that is carried on.
    info: anything that JSON can hold, such as the position in the data.

    A file of that name is replaced whole or, when anything goes wrong, not at all.
    Raises OSError when the file cannot be written, TypeError for settings or info that JSON cannot hold, ValueError for
    info of more than 100 lists or dicts within each other.
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
    """Put the optimiser, its modules and the generators where `save_checkpoint` found them; returns (arrays, info).

    optimizer, generators, settings: made as they were for `save_checkpoint`, which does not write down what kind of
    layers there are, nor the options of the optimiser.  For files of strangers, see `interchange.load_safetensors`;
    states that a generator cannot go on from are refused too.

    Raises OSError when the file cannot be read, ValueError when it is cut short, no checkpoint, or one of other
    modules, another optimiser, other generators or settings; nothing is changed then.
    """
    checkpoint = read_checkpoint(path, optimizer, generators=generators, settings=settings)
    checkpoint.apply()
    return checkpoint.arrays, checkpoint.info


class Checkpoint(NamedTuple):
    """What a file holds, found to fit: `apply`, which does not fail, puts everything where the file says."""

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
    """What `load_checkpoint` would put where, for callers with more to check; raises as it does, changes nothing."""
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
    """Arrays and numbers of NumPy for JSON: the state of some bit generators has them."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"expected what JSON can hold, got {value!r}")


def _below(prefix: str, named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in named.items() if name.startswith(prefix)}


def _parameters(optimizer: Optimizer) -> dict[str, np.ndarray]:
    """Those of all modules, by their names behind the place of their module, as in "0.weight_ih_l0"."""
    return {
        f"{index}.{name}": array
        for index, module in enumerate(optimizer.modules)
        for name, array in module.params.items()
    }


def _generators(optimizer: Optimizer, further: Sequence[np.random.Generator]) -> list[np.random.Generator]:
    """The random generators of the modules that have one, and further ones."""
    return [generator for module in optimizer.modules for generator in module.generators] + list(further)


def _require_equal(expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """ValueError for the first setting that differs."""
    for name in [*expected, *(got.keys() - expected.keys())]:
        if expected.get(name) != got.get(name):
            raise ValueError(f"it was made with {name}={got.get(name)!r}, not {expected.get(name)!r}")


def _checked_states(generators: Sequence[np.random.Generator], states: Sequence[Any]) -> Sequence[Any]:
    """The states, if there are as many as generators and each fits its own."""
    if len(states) != len(generators):
        raise ValueError(f"it has the states of {len(states)} random generators, not {len(generators)}")
    for generator, state in zip(generators, states, strict=True):
        _require_state(generator.bit_generator, state)
    return states


def _require_state(of: np.random.BitGenerator, state: Any) -> None:
    """An error unless `state` is one that a bit generator of this kind can be in."""
    probe = type(of)()
    probe.state = state  # of another kind: ValueError
    taken = json.loads(json.dumps(probe.state, default=_plain))  # cut to as many numbers and bits as there are
    if taken != state or not _can_go_on(of, taken):
        raise ValueError(f"expected the state of a {type(of).__name__} generator, got {state!r}")


def _can_go_on(of: np.random.BitGenerator, state: Any) -> bool:
    """Whether numbers can be drawn. NumPy takes other states too: with places beyond its buffers, from where it reads
    what is not its own; and those that only ever give zeros, for which it draws again and again.
    """
    if isinstance(of, np.random.MT19937):
        first, *others = state["state"]["key"]
        return 0 <= state["state"]["pos"] <= len(others) + 1 and bool(first >> 31 or any(others))
    if isinstance(of, np.random.Philox):
        return 0 <= state["buffer_pos"] <= len(state["buffer"])
    if isinstance(of, (np.random.PCG64, np.random.PCG64DXSM)):
        return state["state"]["inc"] % 2 == 1
    return True

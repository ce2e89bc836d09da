"""Checks of plain arguments and of arrays. All errors have one wording: what was expected, and what came."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_LARGEST_INT = 2**63 - 1  # the largest number that NumPy and the kernels can count to


def positive_int(name: str, value: Any) -> int:
    """`value` as an int >= 1; raises TypeError or ValueError otherwise."""
    return _bounded_int(name, value, 1)


def non_negative_int(name: str, value: Any) -> int:
    """`value` as an int >= 0; raises TypeError or ValueError otherwise."""
    return _bounded_int(name, value, 0)


def _bounded_int(name: str, value: Any, least: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"expected {name} to be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")
    if value > _LARGEST_INT:
        raise ValueError(f"expected {name} < 2**63, got {value}")
    return int(value)


def boolean(name: str, value: Any) -> bool:
    """`value` as a bool; raises TypeError for anything else, as torch does."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"expected {name} to be True or False, got {value!r}")
    return bool(value)


def finite_float(name: str, value: Any, *, least: float = 0.0) -> float:
    """`value` as a finite float >= `least`; raises TypeError or ValueError otherwise."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"expected {name} to be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an integer larger than any float
        number = math.inf
    if not least <= number < math.inf:
        raise ValueError(f"expected a finite {name} >= {least:g}, got {value}")
    return number


def positive_float(name: str, value: Any) -> float:
    """`value` as a finite float > 0; raises TypeError or ValueError otherwise."""
    if finite_float(name, value) == 0:
        raise ValueError(f"expected {name} > 0, got {value}")
    return float(value)


def probability(name: str, value: Any) -> float:
    """`value` as a float from 0 to 1; raises TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"expected {name} to be a number, got {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"expected {name} from 0 to 1, got {value}")
    return float(value)


def float_dtype(dtype: Any) -> np.dtype:
    """`dtype` as float32 or float64 of this machine; raises TypeError for any other."""
    if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"expected dtype float32 or float64, got {np.dtype(dtype)}")
    return np.dtype(dtype)


def as_array(name: str, value: Any) -> np.ndarray:
    """`value` as an array; raises TypeError for a list of arrays of different shapes, of which NumPy can make none."""
    try:
        return np.asarray(value)
    except ValueError:
        if not isinstance(value, list | tuple):
            raise
        what = f"a {type(value).__name__} of arrays of different shapes"
        raise TypeError(f"expected {name} as one array, got {what}") from None


def cast_hint(value: Any, dtype: np.dtype) -> str:
    """Behind an error about `value`: how numbers of another dtype become those of a floating-point `dtype`."""
    if dtype.kind != "f" or np.asarray(value).dtype.kind not in "fiu":
        return ""
    call = ".astype(" if isinstance(value, np.ndarray) else "np.asarray(..., "
    return f"; {call}{dtype.name!r}) converts it"


def integers(name: str, value: Any) -> np.ndarray:
    """`value` as an array of an integer dtype; raises TypeError otherwise."""
    array = as_array(name, value)
    if array.dtype.kind not in "iu":
        hint = "; .astype(int) converts it" if array.dtype.kind == "f" and isinstance(value, np.ndarray) else ""
        raise TypeError(f"expected {name} of an integer dtype, got {array.dtype}{hint}")
    return array


def floats(name: str, value: Any) -> np.ndarray:
    """`value` as an array of float32 or float64; raises TypeError otherwise."""
    array = as_array(name, value)
    if array.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        hint = cast_hint(value, np.dtype(np.float32))
        raise TypeError(f"expected {name} of dtype float32 or float64, got {array.dtype}{hint}")
    return array


def checked_array(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype, *, hint: bool = True) -> np.ndarray:
    """`value` as an array, if it has just this shape and dtype; else an error that says what was expected.

    hint: whether that also says how the dtype is converted, for whoever has the array in hand.
    """
    array = as_array(name, value)
    if array.dtype != dtype:
        how = cast_hint(value, dtype) if hint else ""
        raise TypeError(f"expected {name} of dtype {dtype}, got {array.dtype}{how}")
    if array.shape != shape:
        raise ValueError(f"expected {name} of shape {shape}, got {array.shape}")
    return array


def checked_arrays(mapping: Mapping[str, Any], own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of `mapping`, if they have exactly the names, shapes and dtypes of `own`.

    Raises KeyError if a name is missing or unknown, TypeError for another dtype or if `mapping` is no mapping,
    ValueError for another shape.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"expected arrays by name, as a state dict has them, got {type(mapping).__name__}")
    missing, unknown = own.keys() - mapping.keys(), mapping.keys() - own.keys()
    if missing or unknown:
        raise KeyError(f"state dict does not fit: missing {sorted(missing)}, unknown {sorted(unknown)}")
    return {
        name: checked_array(name, mapping[name], array.shape, array.dtype, hint=False) for name, array in own.items()
    }


def checked_shapes(
    mapping: Mapping[str, Any], shapes: Iterable[tuple[str, tuple[int, ...]]], dtype: np.dtype
) -> dict[str, tuple[int, ...]]:
    """The shapes by name, if the arrays of `mapping` have exactly these names and shapes, and this dtype.

    The check stops at the first difference, so its time is bounded by the size of `mapping`, however many shapes there
    are.  Raises errors as `checked_arrays` does.
    """
    own: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes:
        if name not in mapping:
            raise KeyError(f"state dict does not fit: missing {[name]}")
        checked_array(name, mapping[name], shape, dtype, hint=False)
        own[name] = shape
    if len(own) < len(mapping):
        raise KeyError(f"state dict does not fit: unknown {sorted(mapping.keys() - own.keys())}")
    return own

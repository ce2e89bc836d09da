"""A layer in a safetensors file: its parameters with torch's names, its options as JSON in the metadata."""

from __future__ import annotations

import json
import os
from typing import Any

from ..nn.recurrent import Recurrent
from ..util.storage import load_arrays, load_json, reason, save_arrays, shortened
from .common import LAYERS, build, checked_layer, options_of

__all__ = ["load_safetensors", "save_safetensors"]

_FORMAT = "fastrnn.layer"  # the one key in the metadata
_VERSION = 1
_LONGEST = 1 << 16  # most characters of the metadata, which needs a few hundred
_DTYPES = ("float32", "float64")


def save_safetensors(path: str | os.PathLike[str], layer: Recurrent) -> None:
    """Write a layer to `path`; an existing file is replaced as a whole or not at all.

    >>> import fastrnn
    >>> from fastrnn.interchange import load_safetensors, save_safetensors
    >>> layer = fastrnn.GRU(8, 16, bidirectional=True, rng=0)
    >>> save_safetensors("layer.safetensors", layer)
    >>> copy = load_safetensors("layer.safetensors")
    >>> copy.bidirectional, bool((copy.params["bias_hh_l0"] == layer.params["bias_hh_l0"]).all())
    (True, True)

    The tensors have torch's names: torch reads the file with safetensors.torch.load_file.  Gradients and the state of
    the random generator for dropout are not written.

    Raises TypeError if `layer` is not a recurrent layer of this package, OSError if the file cannot be written.
    """
    checked_layer(layer)
    options = options_of(layer) | {"dtype": layer.dtype.name}
    header = {"version": _VERSION, "cell": layer.cell, "options": options}
    save_arrays(path, layer.params, {_FORMAT: json.dumps(header, default=_plain)})


def load_safetensors(path: str | os.PathLike[str]) -> Any:
    """The layer in a file that `save_safetensors` wrote.

    A file from an untrusted source is safe to load: it cannot run code, and its options are compared with the arrays in
    it before memory is allocated.

    Raises OSError if the file cannot be read, ValueError if it is no safetensors file or does not hold a layer. Tensors
    alone, such as a state dict of torch, do not say which layer they belong to: make that layer, and call
    ``layer.load_state_dict(safetensors.numpy.load_file(path))``.
    """
    arrays, metadata = load_arrays(path)
    if _FORMAT not in metadata:
        raise ValueError(
            f"{path} holds no fastrnn layer: no {_FORMAT!r} in its metadata; if it holds the parameters of a layer, "
            "make the layer and call layer.load_state_dict(safetensors.numpy.load_file(path))"
        )
    cell, options = _parsed(path, metadata[_FORMAT])
    try:
        return build(cell, options, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no valid fastrnn layer: {reason(error)}") from None


def _parsed(path: str | os.PathLike[str], text: str) -> tuple[str, dict[str, Any]]:
    """(cell, options) from the metadata; the layer itself checks the options."""
    if len(text) > _LONGEST:
        raise ValueError(
            f"{path} holds no valid fastrnn layer: expected options in {_LONGEST} characters, got {len(text)}"
        )
    try:
        header = load_json(text)
        version, cell, options = header["version"], header["cell"], dict(header["options"])
    except (ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {reason(error)}"
        raise ValueError(f"{path} holds no valid fastrnn layer: its metadata cannot be read: {what}") from None
    if version != _VERSION:
        raise ValueError(f"expected version {_VERSION} of a layer's file in {path}, got {shortened(repr(version))}")
    if cell not in tuple(LAYERS):  # a tuple, since the cell of a file may be unhashable
        raise ValueError(f"expected the cell in {path} to be one of {', '.join(LAYERS)}, got {shortened(repr(cell))}")
    if options.get("dtype", _DTYPES[0]) not in _DTYPES:  # NumPy would accept other spellings
        raise ValueError(
            f"expected the dtype in {path} to be float32 or float64, got {shortened(repr(options['dtype']))}"
        )
    return cell, {name: _tuples(value) for name, value in options.items()}


def _tuples(value: Any) -> Any:
    """Turn lists into tuples: JSON has no tuples, so activations come back as lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Convert a NumPy scalar, which an option of a layer may be, for JSON."""
    return value.item()

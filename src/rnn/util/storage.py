"""Arrays and text in one safetensors file, written atomically: a file of that name is either the old or the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

DEEPEST = 100  # levels of nested lists and objects in the JSON of a file
LONGEST = 500  # characters of a reason: a file from an untrusted source may hold names and values of any length


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write named arrays and a dict of strings to `path` as safetensors, atomically.

    >>> import numpy as np
    >>> from fastrnn.util.storage import load_arrays, save_arrays
    >>> save_arrays("weights.safetensors", {"weight": np.zeros((3, 2))}, {"note": "all zero"})
    >>> load_arrays("weights.safetensors")[1]
    {'note': 'all zero'}

    An existing file is replaced as a whole or not at all.  Raises OSError if the file cannot be written.
    """
    from safetensors.numpy import save

    # safetensors writes the memory of an array as if it were contiguous, whatever the strides are.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomically(path, save(contiguous, metadata=dict(metadata)))


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The named arrays and the dict of strings in the safetensors file `path`.

    Raises OSError if the file cannot be read, ValueError if it is not a complete safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # a missing file or a directory raises Python's own error, which names the path
        pass
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            names = file.keys()  # a safe_open cannot be iterated itself
            arrays, metadata = {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        # Not only SafetensorError: a file may have dtypes and shapes that NumPy does not support.
        raise ValueError(f"{path} is not a whole safetensors file: {reason(error)}") from None
    for name, array in arrays.items():
        if array.dtype.kind == "V":  # bfloat16 and the like, which other packages may have added to NumPy
            raise ValueError(f"{path} is not a whole safetensors file: {name} is of dtype {array.dtype}")
    return arrays, metadata


def load_json(text: str) -> Any:
    """The value of a JSON text; raises ValueError if it is no JSON, or nested deeper than `require_shallow` allows."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"expected JSON at most {DEEPEST} levels deep, got more") from None
    require_shallow(value)
    return value


def require_shallow(value: Any) -> None:
    """Raise ValueError for lists and dicts nested deeper than DEEPEST, so that other code may recurse into the rest."""
    level: list[Any] = [[value]]
    for _ in range(DEEPEST + 1):
        level = [
            part
            for whole in level
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, (list, dict, tuple))
        ]
        if not level:
            return
    raise ValueError(f"expected JSON at most {DEEPEST} levels deep, got more")


def reason(error: Exception) -> str:
    """The message of an error, shortened if it repeats too much of a file."""
    return shortened(str(error.args[0]) if isinstance(error, KeyError) else str(error) or type(error).__name__)


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, force it to the disk, and only then give it the name `path`.

    A full disk or a kill on the way leaves the old file as it was.  After a failure the temporary file is removed; a
    kill leaves it behind, hidden, as ``.name.xxxxxxxx.tmp``.  A symbolic link is followed, not replaced.

    Raises OSError if the file cannot be written.
    """
    import secrets  # imported here, since that takes longer than importing the package

    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(f"cannot write {path}: it exists and is not a regular file")
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            os.chmod(temporary, os.stat(target).st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    _sync_directory(folder)


def _sync_directory(directory: str) -> None:
    """Write the directory to the disk, so that the new name survives a loss of power; Windows cannot, and need not."""
    if os.name != "nt":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Ragged batches from and to lists of arrays, under the names of torch.nn.utils.rnn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["pad_sequence", "unpad_sequence"]


def pad_sequence(
    sequences: Sequence[np.ndarray], *, batch_first: bool = False, padding_value: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of different lengths as one array and their lengths, as a layer takes them.

    >>> import numpy as np, fastrnn
    >>> x, lengths = fastrnn.pad_sequence([np.ones((3, 2)), np.ones((5, 2))])
    >>> x.shape, lengths.tolist()
    ((5, 2, 2), [3, 5])

    sequences: B arrays (T_b, ...), alike but for their lengths.  Returns x (T, B, ...) with T the longest length, or
    (B, T, ...) with batch_first, and lengths (B,) int64.
    Raises ValueError for no sequence or shapes that do not fit, TypeError for different dtypes and for a padding_value
    that is no number.
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    if not arrays or arrays[0].ndim == 0:
        raise ValueError("expected at least one sequence, each of at least one axis")
    first = arrays[0]
    for index, array in enumerate(arrays):
        if array.dtype != first.dtype:
            raise TypeError(
                f"expected sequences of one dtype, {first.dtype} as the first, got {array.dtype} at {index}"
            )
        if array.ndim != first.ndim or array.shape[1:] != first.shape[1:]:
            raise ValueError(f"expected sequences of shape (T_b, *{first.shape[1:]}), got {array.shape} at {index}")
    padding = np.asarray(padding_value)
    if padding.ndim or padding.dtype.kind not in ("b", "i", "u", "f", first.dtype.kind):
        raise TypeError(f"expected padding_value to be a number, got {padding_value!r}")
    lengths = np.array([len(array) for array in arrays], np.int64)
    x = np.full((len(arrays), int(lengths.max()), *first.shape[1:]), padding, first.dtype)
    for row, array in zip(x, arrays, strict=True):
        row[: len(array)] = array
    return (x if batch_first else np.ascontiguousarray(x.swapaxes(0, 1))), lengths


def unpad_sequence(y: np.ndarray, lengths: np.ndarray, *, batch_first: bool = False) -> list[np.ndarray]:
    """The inverse of `pad_sequence`: B views (T_b, ...) of y (T, B, ...), or (B, T, ...) with batch_first.

    >>> import numpy as np, fastrnn
    >>> [part.shape for part in fastrnn.unpad_sequence(np.zeros((5, 2, 8)), np.array([3, 5]))]
    [(3, 8), (5, 8)]

    Raises ValueError for lengths that do not fit y, TypeError for lengths of no integer dtype.
    """
    y, lengths = np.asarray(y), np.asarray(lengths)
    if y.ndim < 2:
        raise ValueError(f"expected y of at least two axes, got {y.shape}")
    rows = y if batch_first else y.swapaxes(0, 1)
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"expected lengths of an integer dtype, got {lengths.dtype}")
    if lengths.shape != rows.shape[:1]:
        raise ValueError(f"expected lengths of shape {rows.shape[:1]}, got {lengths.shape}")
    if lengths.size and not (lengths.min() >= 0 and lengths.max() <= rows.shape[1]):
        raise ValueError(f"expected lengths from 0 to T = {rows.shape[1]}, got {lengths.min()} to {lengths.max()}")
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]

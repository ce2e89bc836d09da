"""Streams in pieces, and the weights that compressed ones stand for."""

from __future__ import annotations

import numpy as np

PIECES = (1, 3, 0, 7, 1, 1, 4, 3)  # of a block of 20 steps
STEPS = sum(PIECES)
COMPRESSED = ("bfloat16", "int8")


def in_pieces(stream, x, active=None):
    """y of all steps: pieces of one step by `step`, others by `run`."""
    found, at = [], 0
    for size in PIECES:
        part = slice(at, at + size)
        at += size
        mask = None if active is None else active[part]
        if size == 1:
            found.append(stream.step(x[part][0], active=None if mask is None else mask[0])[None])
        else:
            found.append(stream.run(x[part], active=mask))
    return np.concatenate(found)


def half_before(lower, magnitude, least):
    """The 16 bits that, with these lower ones behind them, come nearest to the bits of a float without sign."""
    below, rest = (magnitude - lower) >> 16, (magnitude - lower) & 0xFFFF
    return np.clip(below + ((rest > 0x8000) | ((rest == 0x8000) & (below % 2 == 1))), least, 0x7F7F)


def as_bfloat16(array):
    """Of each pair of a row the first rounded to its upper half, the second to a float that ends with that half."""
    even = np.pad(array, ((0, 0), (0, array.shape[1] % 2)))
    bits = even.view(np.uint32).astype(np.int64)
    sign, magnitude = bits & 0x80000000, bits & 0x7FFFFFFF
    first = half_before(0, magnitude[:, ::2], 0) | sign[:, ::2] >> 16
    second = half_before(first, magnitude[:, 1::2], 0x80) << 16 | sign[:, 1::2] | first
    found = np.stack([first << 16, second], axis=-1).reshape(bits.shape)
    return found.astype(np.uint32).view(np.float32)[:, : array.shape[1]]


def as_int8(array):
    scale = np.abs(array).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(array / np.where(scale == 0, 1, scale).astype(np.float32)) * scale


def stored_weights(layer, name):
    """What a compressed stream of the layer holds of a weight"""
    return (as_int8 if layer.stream_weights == "int8" else as_bfloat16)(layer.params[name])


def with_stored_weights(layer, kind, options):
    """The layer that a compressed stream stands for."""
    other = kind(layer.input_size, layer.hidden_size, layer.num_layers, **options)
    for name, array in layer.params.items():
        other.params[name] = stored_weights(layer, name) if name.startswith(("weight_ih", "weight_hh")) else array
        if name.startswith("weight_hh") and not options.get("reset_after", True):  # W_hn has a product of its own
            H = layer.hidden_size
            other.params[name][2 * H :] = array[2 * H :]
    return other

"""Files as a stranger may send them: bytes flipped, cut and spliced, and JSON and arrays that claim the absurd.

    mutated(rng, data, other)                any file, as bytes alone
    mutated_safetensors(rng, data, other)    also the header, the JSON in its metadata, and the arrays

`other` is a second file of the format, of which parts may come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator

DEPTHS = (20, 99, 101, 150, 900, 1100, 5000, 60_000)
HOSTILE: list[Any] = [
    *(0, 1, 2, 3, 7, 16, -1, -2, 255, 624, 625, 10**6, 10**9, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**62, 2**63 - 1),
    *(2**63, 2**64 - 1, 2**64, 2**70, -(2**31), -(2**63), -(2**70), 10**400, 2**128 - 1, 2**128),
    *(0.5, -0.5, 1.5, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *(None, True, False, "", "x", "\ud800", "\0", "y" * 5000, "ä\n", "__metadata__", "rng", "self"),
    *("float64", "float32", "f4,f4", "(2,f4", "V1000000000", "rnn", "gru", "lstm", "tanh", "elu", "mul", "PCG64"),
    *([], {}, [[]], [None], ["elu", 10**400], ["affine", math.nan], [0] * 3000, {"x": 1}, [["tanh"]] * 3),
]
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}  # NumPy has
OTHER_DTYPES = ("BF16", "F8_E4M3", "F8_E5M2", "F4", "C64", "U64", "F33", "", "f32")


def mutated(rng: Rng, data: bytes, other: bytes) -> bytes:
    """The file with one to three changes to its bytes."""
    for _ in range(rng.integers(1, 4)):
        data = _pick(rng, [_flipped, _flipped, _replaced, _cut, _longer, _moved, _spliced])(rng, data, other)
    return data


def mutated_safetensors(rng: Rng, data: bytes, other: bytes) -> bytes:
    """The file with a change to its bytes, its header, the JSON in its metadata, or its arrays; at times with two."""
    changes: list[Callable[[Rng, bytes, bytes], bytes]]
    changes = [mutated, _other_length, _edited_header, _edited_metadata, _edited_metadata, _edited_arrays]
    for _ in range(1 + (rng.random() < 0.2)):
        try:
            data = _pick(rng, changes)(rng, data, other)
        except Exception:  # after a first change, what there is can no longer be edited
            data = mutated(rng, data, other)
    return data


def _pick(rng: Rng, among: Any) -> Any:
    return among[rng.integers(len(among))]


# ------------------------------------------------------------ bytes


def _flipped(rng: Rng, data: bytes, _: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9) if data else 0):
        changed[_place(rng, data)] ^= 1 << rng.integers(8)
    return bytes(changed)


def _replaced(rng: Rng, data: bytes, _: bytes) -> bytes:
    start, run = _place(rng, data), rng.integers(1, 9)
    return data[:start] + rng.bytes(run) + data[start + run :]


def _cut(rng: Rng, data: bytes, _: bytes) -> bytes:
    return data[: _place(rng, data)]


def _longer(rng: Rng, data: bytes, _: bytes) -> bytes:
    return data + rng.bytes(rng.integers(1, 100))


def _moved(rng: Rng, data: bytes, _: bytes) -> bytes:
    """A piece is left out, or put in at another place."""
    start, size, to = _place(rng, data), rng.integers(1, 64), _place(rng, data)
    piece = data[start : start + size]
    return data[:start] + data[start + size :] if rng.random() < 0.5 else data[:to] + piece + data[to:]


def _spliced(rng: Rng, data: bytes, other: bytes) -> bytes:
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def _place(rng: Rng, data: bytes) -> int:
    """Anywhere, more often near the start, where the structure is."""
    return int(len(data) * rng.random() ** _pick(rng, (1, 3)))


# ------------------------------------------------------------ safetensors: 8 bytes of length, JSON, the arrays


def _parted(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _joined(text: str, payload: bytes) -> bytes:
    header = text.encode("utf-8", "surrogatepass")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + payload


def _other_length(rng: Rng, data: bytes, other: bytes) -> bytes:
    """Another length of the header, or the header of one file on the arrays of another."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3:
        return data[: 8 + length] + _parted(other)[1]
    claimed = _pick(rng, [length + int(rng.integers(-16, 17)), 0, 1, len(data), 10**8, 2 ** int(rng.integers(64))])
    return (max(claimed, 0) % 2**64).to_bytes(8, "little") + data[8:]


def _edited_header(rng: Rng, data: bytes, _: bytes) -> bytes:
    """Names, dtypes, shapes and offsets that are others, too large, doubled, or missing."""
    header, payload = _parted(data)
    names = [name for name in header if name != "__metadata__"]
    entry, how = header[_pick(rng, names)], rng.integers(6)
    if how == 0:
        entry["dtype"] = _pick(rng, (*DTYPES, *OTHER_DTYPES))
    elif how == 1:
        entry["shape"] = _pick(rng, [[], [0], entry["shape"][::-1], [*entry["shape"], 1], [2**40, 2**40], [0, 2**63],
                                     [2**62, 4], [1] * 70, [-1], [2**64], [0, 2**62], [0] * 40])  # fmt: skip
    elif how == 2:
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = _pick(rng, [[begin, end + 4], [begin - 4, end], [end, begin], [0, end], [0, 2**63],
                                            [-1, end], header[_pick(rng, names)]["data_offsets"]])  # fmt: skip
    elif how == 3:  # one name twice, which JSON lets be
        text = json.dumps(header)
        return _joined(text[:-1] + f", {json.dumps(_pick(rng, names))}: {json.dumps(entry)}}}", payload)
    else:
        return _joined(_dumped(_edited(rng, header)), payload)
    return _joined(json.dumps(header), payload)


def _edited_metadata(rng: Rng, data: bytes, other: bytes) -> bytes:
    """The JSON in the metadata says something else."""
    header, payload = _parted(data)
    metadata = header["__metadata__"]
    key = next(iter(metadata))
    if rng.random() < 0.1:
        metadata[key] = _pick(rng, ["", "{", "null", "[]", '"x"', "NaN", metadata[key][:-1], metadata[key] * 2,
                                    next(iter(_parted(other)[0]["__metadata__"].values()))])  # fmt: skip
    else:
        content = json.loads(metadata[key])
        for _ in range(rng.integers(1, 3)):
            content = _edited(rng, content)
        metadata[key] = _dumped(content)
    return _joined(json.dumps(header), payload)


def _edited_arrays(rng: Rng, data: bytes, other: bytes) -> bytes:
    """A file that is whole, but for arrays that are missing, further ones, or of other shapes and dtypes."""
    header, payload = _parted(data)
    metadata = header.pop("__metadata__", {})
    arrays = {
        name: np.frombuffer(payload[slice(*entry["data_offsets"])], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }
    name, how = _pick(rng, list(arrays)), rng.integers(7)
    if how == 0:
        del arrays[name]
    elif how == 1:
        arrays[_pick(rng, [name + "_reverse", "", "x" * 1000, name.replace("0", "1")])] = arrays[name]
    elif how == 2:
        arrays[name] = _pick(rng, [arrays[name].T, arrays[name].ravel(), arrays[name][None], arrays[name][:0]])
    elif how == 3:
        arrays[name] = np.resize(arrays[name], arrays[name].shape).astype(_pick(rng, list(DTYPES.values())))
    elif how == 4:
        values = np.array([0, -1, 2**31, 2**53, 2**63 - 1, np.nan, np.inf, 1e308, 1e-320])
        with np.errstate(all="ignore"):
            arrays[name] = np.full(arrays[name].shape, _pick(rng, values)).astype(arrays[name].dtype)
    elif how == 5:  # many tiny ones, under the names of layers that the configuration may claim
        layers = int(_pick(rng, [1, 3, 100]))
        extra = [name.replace("l0", f"l{k}") for k in range(1, layers + 1)]
        arrays |= {new: np.zeros(_pick(rng, [0, 1]), arrays[name].dtype) for new in extra}
        for key, text in metadata.items():
            metadata[key] = text.replace('"num_layers": 1', f'"num_layers": {layers + 1}')
    else:
        arrays = dict(zip(arrays, rng.permutation(np.array([*arrays.values(), None], object))[:-1], strict=True))
        arrays = {name: array for name, array in arrays.items() if array is not None}
    return _saved(arrays, metadata)


def _saved(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    codes, parts, end = {np.dtype(code): name for name, code in DTYPES.items()}, [], 0
    for name, array in arrays.items():
        parts.append(array.tobytes())
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    return _joined(json.dumps(header), b"".join(parts))


# ------------------------------------------------------------ JSON


def _edited(rng: Rng, content: Any) -> Any:
    """The value with one place in it changed: to something hostile, to another number, to another place's; or gone."""
    if not isinstance(content, (dict, list)) or not content:
        return _hostile(rng)
    within, key = content, _key(rng, content)
    while isinstance(within[key], (dict, list)) and within[key] and rng.random() < 0.8:
        within = within[key]
        key = _key(rng, within)
    how, value = rng.random(), within[key]
    if how < 0.15:
        del within[key]
    elif how < 0.25 and isinstance(within, dict):
        within[_pick(rng, ["x", "", "rng", "self", "params", "dtype", str(key) + "0"])] = value
    elif how < 0.45 and isinstance(value, int):
        within[key] = _pick(rng, [value + 1, value - 1, value * 2, -value, float(value) if value < 2**53 else 0.0])
    elif how < 0.55 and isinstance(value, str) and value:
        at = int(rng.integers(len(value)))
        within[key] = _pick(rng, [value[:at], value + value, value[:at] + "é" + value[at:], value[::-1]])
    else:
        within[key] = _hostile(rng)
    return content


def _key(rng: Rng, content: Any) -> Any:
    return _pick(rng, list(content) if isinstance(content, dict) else range(len(content)))


def _hostile(rng: Rng) -> Any:
    return f"@{_pick(rng, 'lo')}{_pick(rng, DEPTHS)}@" if rng.random() < 0.1 else _pick(rng, HOSTILE)


def _dumped(content: Any) -> str:
    """JSON text, with lists (@l...@) and objects (@o...@) that are too deep for json.dumps."""
    text = json.dumps(content)
    for depth in DEPTHS:
        text = text.replace(f'"@l{depth}@"', "[" * depth + "]" * depth)
        text = text.replace(f'"@o{depth}@"', '{"x":' * depth + "1" + "}" * depth)
    return text

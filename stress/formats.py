"""The formats that the package reads: files of each, what loads them, what that may change, how the loaded is used.

A `Format` has `files`, each whole. `load(path, index)` reads a file in place of `files[index]`, `state(index)` is all
that a load that fails must leave as it was, and `use(loaded, index)` calls what has been loaded.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import fastrnn
import numpy as np
from fastrnn import cli
from fastrnn.interchange import from_onnx, load_safetensors, save_safetensors, to_onnx
from fastrnn.optim import SGD, Adam, AdamW, RMSprop
from fastrnn.text.language_model import LanguageModel
from fastrnn.training import load_checkpoint, save_checkpoint, trainer

from .mutations import Rng, mutated, mutated_safetensors

PROVERB = "a rolling stone gathers no moss. "


class Format:
    name: str
    files: list[bytes]
    refusals: tuple[type[Exception], ...] = (ValueError, OSError)

    def mutated(self, rng: Rng, data: bytes, other: bytes) -> bytes:
        return mutated_safetensors(rng, data, other)

    def load(self, path: Path, index: int) -> Any:
        raise NotImplementedError

    def state(self, index: int) -> Any:
        """Nothing, where a load makes something new."""

    def use(self, loaded: Any, index: int) -> None:
        raise NotImplementedError


class Layers(Format):
    """`load_safetensors`, of each cell and each option."""

    name = "layers"

    def __init__(self, folder: Path) -> None:
        common: list[dict[str, Any]] = [
            {}, {"num_layers": 3}, {"bias": False, "num_layers": 2}, {"bidirectional": True, "merge": "sum"},
            {"dtype": "float64", "reverse": True, "clip": 1.5}, {"layer_norm": True, "grad_clip": 2.0},
            {"dropout": 0.5, "weight_dropout": 0.25, "input_dropout": 0.5, "recurrent_dropout": 0.5, "zoneout": 0.1},
        ]  # fmt: skip
        own: dict[type, list[dict[str, Any]]] = {
            fastrnn.RNN: [{"nonlinearity": "relu"}, {"nonlinearity": ("leaky_relu", 0.25)}],
            fastrnn.GRU: [{"reset_after": False}, {"activations": (("hard_sigmoid", 0.2, 0.5), "softsign")}],
            fastrnn.LSTM: [{"proj_size": 1, "bidirectional": True, "num_layers": 2}, {"peephole": True},
                           {"coupled": True, "zoneout_cell": 0.5}, {"activations": ("sigmoid", "elu", "tanh")}],
        }  # fmt: skip
        layers = [kind(2, 3, **options, rng=0) for kind, further in own.items() for options in common + further]
        self.files = [_written(folder, lambda path, layer=layer: save_safetensors(path, layer)) for layer in layers]

    def load(self, path: Path, index: int) -> Any:
        return load_safetensors(path)

    def use(self, layer: Any, index: int) -> None:
        shape = (1, 2, layer.input_size) if layer.batch_first else (2, 1, layer.input_size)
        x = np.ones(shape, layer.dtype)
        layer(x)
        y, _, tape = layer.forward(x)
        layer.backward(tape, np.ones_like(y))


class Models(Format):
    """`LanguageModel.load`."""

    name = "models"

    def __init__(self, folder: Path) -> None:
        self.files = []
        for cell, layers in (("rnn", 1), ("gru", 1), ("lstm", 2)):
            model = LanguageModel(cell, 3, layers, rng=0)
            _fit(model)
            self.files.append(_written(folder, model.save))

    def load(self, path: Path, index: int) -> Any:
        return LanguageModel.load(path)

    def use(self, model: Any, index: int) -> None:
        text = model.vocabulary[:3] * 2
        model.bits_per_character(text)
        model.generate(text, 3, temperature=0)


class Checkpoints(Format):
    """`load_checkpoint`, of each optimiser and each bit generator."""

    name = "checkpoints"

    def __init__(self, folder: Path) -> None:
        kinds = [(SGD, {"momentum": 0.9}), (Adam, {}), (AdamW, {"groups": {"bias*": {"lr": 0.1}}}),
                 (RMSprop, {"centered": True, "momentum": 0.5})]  # fmt: skip
        random = np.random
        bits = [random.PCG64, random.PCG64DXSM, random.MT19937, random.Philox, random.SFC64]
        self.targets = [self._target(*kinds[k % len(kinds)], bits[k % len(bits)]) for k in range(len(bits) + 1)]
        self.files = []
        for index, (optimizer, generators) in enumerate(self.targets):
            self.use(None, index)
            save = {"generators": generators, "settings": {"epochs": 3}, "arrays": {"h": np.ones(2)}, "info": [1, None]}
            self.files.append(_written(folder, lambda path, o=optimizer, save=save: save_checkpoint(path, o, **save)))
        self.original = folder / "original"

    @staticmethod
    def _target(kind: Any, options: dict[str, Any], bits: Any) -> tuple[Any, list[np.random.Generator]]:
        layer = fastrnn.GRU(2, 3, 2, dropout=0.5, rng=np.random.Generator(bits(1)))
        return kind([layer, fastrnn.Linear(3, 2, rng=0)], **options), [np.random.Generator(bits(2))]

    def load(self, path: Path, index: int) -> Any:
        optimizer, generators = self.targets[index]
        return load_checkpoint(path, optimizer, generators=generators, settings={"epochs": 3})

    def state(self, index: int) -> Any:
        optimizer, generators = self.targets[index]
        states = [str(generator.bit_generator.state) for generator in [optimizer.modules[0]._rng, *generators]]
        flats = [module.flat_params.tobytes() for module in optimizer.modules]
        return states, flats, {name: array.tobytes() for name, array in optimizer.state_dict().items()}

    def use(self, loaded: Any, index: int) -> None:
        optimizer, generators = self.targets[index]
        layer = optimizer.modules[0]
        y, _, tape = layer.forward(np.ones((2, 1, 2), np.float32))
        layer.backward(tape, np.ones_like(y))
        optimizer.step(max_norm=1.0)
        generators[0].normal(size=700)
        generators[0].permutation(10)
        if loaded is not None:  # back to what there was
            self.original.write_bytes(self.files[index])
            self.load(self.original, index)


class Trainings(Format):
    """`LanguageModel.fit(resume=True)`, of a new model and of one that has learned."""

    name = "trainings"

    def __init__(self, folder: Path) -> None:
        self.files = []
        for cell in ("rnn", "lstm"):
            written: list[bytes] = []

            def save(path: Path, *arguments: Any, written: list[bytes] = written, **options: Any) -> None:
                save_checkpoint(path, *arguments, **options)
                written.append(Path(path).read_bytes())

            with mock.patch.object(trainer, "save_checkpoint", save):
                _fit(LanguageModel(cell, 3, rng=0), checkpoint=folder / "checkpoint")
            self.files += written[1:]
        self.models: list[LanguageModel] = []
        for index in range(len(self.files)):
            self.models.append(LanguageModel(self._cell(index), 3, rng=1))
            if index % 2:
                _fit(self.models[-1])

    def _cell(self, index: int) -> str:
        return "rnn" if index < len(self.files) // 2 else "lstm"

    def load(self, path: Path, index: int) -> Any:
        try:
            return _fit(self.models[index], checkpoint=path, resume=True)
        except FloatingPointError as error:  # weights or losses that the file made infinite
            return error

    def state(self, index: int) -> Any:
        model = self.models[index]
        weights = [] if model.layer is None else [model.layer.flat_params.tobytes(), model.head.flat_params.tobytes()]
        return model.vocabulary, weights, str(model._rng.bit_generator.state)

    def use(self, loaded: Any, index: int) -> None:
        if not isinstance(loaded, FloatingPointError):
            self.models[index].generate("a", 3)
        self.models[index] = LanguageModel(self._cell(index), 3, rng=1)
        if index % 2:
            _fit(self.models[index])


class OnnxModels(Format):
    """`from_onnx`, of what protobuf takes for a model."""

    name = "onnx models"
    refusals = (TypeError, ValueError, OSError)

    def __init__(self, folder: Path) -> None:
        layers = [
            fastrnn.RNN(2, 3, nonlinearity=("leaky_relu", 0.25), rng=0),
            fastrnn.GRU(2, 3, bidirectional=True, clip=1.5, rng=0),
            fastrnn.LSTM(2, 3, peephole=True, batch_first=True, dtype="float64", rng=0),
        ]
        self.files = [to_onnx(layer, lengths=True).SerializeToString() for layer in layers]

    def mutated(self, rng: Rng, data: bytes, other: bytes) -> bytes:
        import onnx

        if rng.random() < 0.3:
            return mutated(rng, data, other)
        model = onnx.ModelProto.FromString(data)
        for _ in range(rng.integers(1, 4)):
            _edit_message(rng, model.graph)
        return model.SerializeToString()

    def load(self, path: Path, index: int) -> Any:
        import onnx
        from google.protobuf.message import DecodeError

        try:
            model = onnx.ModelProto.FromString(path.read_bytes())
        except DecodeError as error:
            raise ValueError("not a protobuf") from error
        return from_onnx(model)

    def use(self, layer: Any, index: int) -> None:
        layer(np.ones((2, 2, layer.input_size), layer.dtype))


class Texts(Format):
    """`fastrnn train FILE`, which writes to stderr what is wrong and returns 1."""

    name = "texts"

    def __init__(self, folder: Path) -> None:
        self.files = [(PROVERB * 4).encode(), "größer als 日本 😀\r\n".encode() * 6]
        self.saved = folder / "trained"

    def mutated(self, rng: Rng, data: bytes, other: bytes) -> bytes:
        return mutated(rng, data, other)

    def load(self, path: Path, index: int) -> Any:
        options = ["--steps", 1, "--hidden", 2, "--batch-size", 1, "--seq-len", 4, "--save", self.saved]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(["train", str(path), *map(str, options)])
        if code:
            raise ValueError(err.getvalue())
        return self.saved

    def use(self, saved: Path, index: int) -> None:
        LanguageModel.load(saved).stream()


def formats(folder: Path) -> list[Format]:
    """All whose packages are installed."""
    kinds: list[type[Format]] = [Layers, Models, Checkpoints, Trainings, Texts]
    with contextlib.suppress(ImportError):
        import onnx  # noqa: F401

        kinds.append(OnnxModels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of protobuf
        return [kind(folder) for kind in kinds]  # type: ignore[call-arg]


def _fit(model: LanguageModel, **options: Any) -> Any:
    text = PROVERB * 3
    return model.fit(text, steps=3, batch_size=2, seq_len=8, validation=0.1, progress=False, **options)


def _written(folder: Path, write: Any) -> bytes:
    path = folder / "original"
    write(path)
    return path.read_bytes()


def _edit_message(rng: Rng, message: Any) -> None:
    """Another value in one field of a protobuf message, or of a message within it; or one less, or twice the same."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = fields[rng.integers(len(fields))]
    parts = list(value) if field.is_repeated else [value]
    part = parts[rng.integers(len(parts))]
    if field.type == field.TYPE_MESSAGE and rng.random() < 0.85:
        _edit_message(rng, part)
    elif rng.random() < 0.3:
        message.ClearField(field.name)
    elif field.is_repeated and (field.type == field.TYPE_MESSAGE or rng.random() < 0.3):
        kept = [p for p in parts if p is not part] if rng.random() < 0.5 else [*parts, part]
        message.ClearField(field.name)
        getattr(message, field.name).extend(kept)
    elif field.type != field.TYPE_MESSAGE:
        new = _other_scalar(rng, part)
        if field.is_repeated:
            value[rng.integers(len(value))] = new
        else:
            with contextlib.suppress(ValueError):  # a number that an enumeration has not
                setattr(message, field.name, new)


def _other_scalar(rng: Rng, value: Any) -> Any:
    among: list[Any]
    if isinstance(value, int):
        among = [0, 1, -1, 2, 3, 7, 11, 2**31 - 1, -(2**31), value ^ 1]
    elif isinstance(value, float):
        among = [0.0, -1.0, float("nan"), float("inf")]
    else:
        among = [type(value)(), value + value, value[:-1], value[1:]]
    return among[rng.integers(len(among))]

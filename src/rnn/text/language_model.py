"""A character-level language model: the recurrent layer reads a character, the head predicts the next."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import numpy as np

from .. import _core
from ..nn import layers
from ..nn.linear import Linear
from ..nn.module import FixedOptions
from ..optim.schedules import Schedule, checked_lr
from ..training.history import History
from ..training.trainer import Trainer, bits_per_character
from ..util.checks import checked_array, finite_float, non_negative_int, positive_int
from ..util.storage import load_arrays, load_json, reason, save_arrays

__all__ = ["CharacterStream", "LanguageModel"]

_LAYERS = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}
_FORMAT = "fastrnn.LanguageModel"  # the one key in the metadata of a file


class LanguageModel(FixedOptions):
    """A recurrent network that learns to predict the next character of a text, and can then write text.

    >>> from fastrnn import LanguageModel
    >>> model = LanguageModel("rnn", hidden_size=32, rng=0)
    >>> history = model.fit("to be or not to be, that is the question. " * 100, steps=100, lr=1e-2)
    >>> model.generate("or not", 20, temperature=0)
    ' to be, that is the '

    cell: "rnn" (tanh), "gru" or "lstm".  hidden_size (H), num_layers (L): sizes of the recurrent layer.
    rng: None, an int or a numpy Generator, for the initial weights; the same rng and text give the same bits.

    Attributes: ``vocabulary``, the K characters of the text of the first `fit`, sorted, as one string; ``layer`` and
    ``head``, the recurrent layer (one-hot input of size K) and the `Linear` head (K classes).  Before the first `fit`
    the vocabulary is empty and the other two are None.

    Raises TypeError or ValueError for another cell or sizes that are not positive integers.

    Source: the equations are those of a vanilla recurrent network (Elman, "Finding structure in time", 1990); training
    is truncated back-propagation through time (Williams and Peng, 1990).
    """

    _fixed = frozenset({"cell", "hidden_size", "num_layers"})

    def __init__(self, cell: str = "rnn", hidden_size: int = 256, num_layers: int = 1, *, rng: Any = None) -> None:
        if cell not in _LAYERS:
            raise ValueError(f"expected cell to be one of {', '.join(map(repr, _LAYERS))}, got {cell!r}")
        self.cell = cell
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.num_layers = positive_int("num_layers", num_layers)
        self.vocabulary = ""
        self.layer: Any = None
        self.head: Any = None
        self._rng = np.random.default_rng(rng)

    def fit(
        self,
        text: str,
        *,
        steps: int,
        batch_size: int = 32,
        seq_len: int = 64,
        lr: float | Schedule = 2e-3,
        validation: float = 0.1,
        accumulate: int = 1,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> History:
        """Learn from a text, and keep the weights that predict its held-out end best.

        steps: updates of the weights, each on seq_len (T) characters at batch_size (B) places in the text.
        lr: learning rate of Adam at the first step; it falls along a cosine to nearly zero at the last. Or a schedule
        of `fastrnn.optim`.
        validation: fraction of the text, at its end, that is held out; with 0, the last weights are kept.
        accumulate: batches that a step takes one after the other, adding up their gradients: this gives the gradient of
        a batch of accumulate * batch_size in the memory of a batch of batch_size.
        checkpoint: a file from which to resume, written at each of ten evaluations, every minute and on Ctrl-C.
        resume: continue from that file; the result is bitwise identical to an uninterrupted run. All other arguments
        must be as they were then.
        progress: whether to show a bar on stderr, if that is a terminal.

        Returns the `History`.  Another call of `fit` starts from the weights of the one before, with a new schedule;
        the vocabulary stays that of the first.  Ctrl-C ends the training as if all steps were done, and
        `History.interrupted` says so.

        Raises TypeError or ValueError for bad arguments, for characters that are not in the vocabulary and for a text
        too short for batch_size and seq_len, OSError or ValueError for a checkpoint that is missing, cut short or of
        another run; the model is unchanged then.  Raises FloatingPointError (its subclass `DivergedError`) if a loss or
        gradient is not finite; the model then holds the best weights so far.
        """
        steps, batch_size = positive_int("steps", steps), positive_int("batch_size", batch_size)
        seq_len, accumulate = positive_int("seq_len", seq_len), positive_int("accumulate", accumulate)
        lr = checked_lr("lr", lr)
        if resume and checkpoint is None:
            raise ValueError("expected a checkpoint to resume from, got None")
        if not finite_float("validation", validation) < 1:
            raise ValueError(f"expected validation in [0, 1), got {validation}")
        vocabulary = self.vocabulary or "".join(sorted(set(_checked_text("text", text))))
        ids = _encode("text", text, vocabulary)
        train, held_out = _split(ids, validation, batch_size, seq_len, accumulate)
        before, is_new = self._rng.bit_generator.state, self.layer is None
        if is_new:
            self._build(vocabulary)
        trainer = Trainer(
            self.layer,
            self.head,
            train,
            held_out,
            steps=steps,
            batch_size=batch_size,
            seq_len=seq_len,
            lr=lr,
            accumulate=accumulate,
            checkpoint=checkpoint,
        )
        try:
            if resume:
                trainer.resume()
        except BaseException:
            if is_new:
                self.vocabulary, self.layer, self.head = "", None, None
                self._rng.bit_generator.state = before
            raise
        return trainer.run(progress=progress)

    def generate(self, prompt: str, length: int, *, temperature: float = 1.0, rng: Any = None) -> str:
        """Write `length` characters after `prompt`; the prompt itself is not in the result.

        temperature: divides the logits before the softmax; 1 follows the model, less is more cautious, and 0 always
        takes the likeliest character.  rng: None, an int or a numpy Generator; the same rng gives the same text.

        Raises TypeError or ValueError for bad arguments, an empty prompt and characters outside the vocabulary,
        RuntimeError before the first `fit`.
        """
        self._require_fitted()
        _encode("prompt", prompt, self.vocabulary)
        length, temperature = non_negative_int("length", length), finite_float("temperature", temperature)
        if not prompt:
            raise ValueError("expected a prompt of at least one character, got none")
        stream = self.stream()
        stream.feed(prompt)
        return stream.write(length, temperature=temperature, rng=rng)

    def stream(self) -> CharacterStream:
        """A stream that reads a text character by character, and gives the probabilities of the next one each time.

        >>> from fastrnn import LanguageModel
        >>> model = LanguageModel("gru", hidden_size=32, rng=0)
        >>> history = model.fit("to be or not to be, that is the question. " * 100, steps=100, lr=1e-2)
        >>> stream = model.stream()
        >>> p = stream.step("q")
        >>> p.shape, model.vocabulary[p.argmax()]
        ((15,), 'u')

        The weights are copied: a later `fit` has no effect on it.  Raises RuntimeError before the first `fit`.
        """
        self._require_fitted()
        head = self.head.params
        predictor = _core.TokenSampler(self.layer.stream(), head["weight"], head["bias"])
        return CharacterStream(self.vocabulary, predictor)

    def bits_per_character(self, text: str) -> float:
        """Mean of -log2 p(next character) over the len(text) - 1 predictions in a text, read from start to end.

        Apart from a few bytes for each character, memory does not grow with the text.

        Raises TypeError or ValueError for a text of less than two characters or with characters outside the
        vocabulary, RuntimeError before the first `fit`.
        """
        self._require_fitted()
        ids = _encode("text", text, self.vocabulary)
        if len(ids) < 2:
            raise ValueError(f"expected a text of at least 2 characters, got {len(ids)}")
        return bits_per_character(self.layer, self.head, ids[:, None])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a safetensors file, with its configuration and vocabulary as JSON in the metadata.

        An existing file of that name is replaced as a whole or, if anything goes wrong, not at all.

        Raises OSError if the file cannot be written, RuntimeError before the first `fit`.
        """
        self._require_fitted()
        config = {
            "cell": self.cell,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "vocabulary": self.vocabulary,
        }
        arrays = {f"layer.{name}": array for name, array in self.layer.params.items()}
        arrays |= {f"head.{name}": array for name, array in self.head.params.items()}
        save_arrays(path, arrays, {_FORMAT: json.dumps(config)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LanguageModel:
        """The model that `save` wrote to `path`. A file from an untrusted source is safe to load, as with
        `interchange.load_safetensors`.

        Raises OSError if the file cannot be read, ValueError if it is cut short, no safetensors file, or not that of a
        LanguageModel.
        """
        arrays, metadata = load_arrays(path)
        if _FORMAT not in metadata:
            raise ValueError(f"{path} is a safetensors file, but not one of a {_FORMAT}")
        try:
            return cls._from_arrays(arrays, load_json(metadata[_FORMAT]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a whole {_FORMAT}: {reason(error)}") from None

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray], config: dict[str, Any]) -> LanguageModel:
        model = cls(config["cell"], config["hidden_size"], config["num_layers"])
        vocabulary = config["vocabulary"]
        if not isinstance(vocabulary, str) or not vocabulary or vocabulary != "".join(sorted(set(vocabulary))):
            raise ValueError(f"expected a vocabulary of sorted characters, got {vocabulary!r}")
        parts: dict[str, dict[str, np.ndarray]] = {"layer": {}, "head": {}}
        for name, array in arrays.items():
            part, _, parameter = name.partition(".")
            if part not in parts:
                raise ValueError(f"expected the parameters of layer and head, got {name!r}")
            parts[part][parameter] = array
        kind = getattr(layers, _LAYERS[model.cell])
        model._build(
            vocabulary, partial(kind._with_parameters, parts["layer"]), partial(Linear._with_parameters, parts["head"])
        )
        return model

    def _build(self, vocabulary: str, make_layer: Any = None, make_head: Any = Linear) -> None:
        make_layer = make_layer or getattr(layers, _LAYERS[self.cell])
        layer = make_layer(len(vocabulary), self.hidden_size, self.num_layers, rng=self._rng)
        head = make_head(self.hidden_size, len(vocabulary), rng=self._rng)
        self.vocabulary, self.layer, self.head = vocabulary, layer, head

    def _require_fitted(self) -> None:
        if self.layer is None:
            raise RuntimeError("this model has no vocabulary yet: call fit first, or LanguageModel.load")


class CharacterStream:
    """A character model that keeps its state from one character to the next; `LanguageModel.stream()` makes it.

    Like `generate`, it starts with a state of zeros.  Letters: K characters in the vocabulary.
    """

    def __init__(self, vocabulary: str, predictor: _core.TokenSampler) -> None:
        self.vocabulary = vocabulary
        self._index = {character: np.array([index]) for index, character in enumerate(vocabulary)}
        self._predictor = predictor

    def step(self, character: str, out: np.ndarray | None = None) -> np.ndarray:
        """Read one character; return the probabilities (K,), float32, of the next one, in the vocabulary's order.

        out: an array for the result, float32 (K,), which is then returned.

        Raises TypeError or ValueError for another number of characters, for a character that is not in the vocabulary
        and for an out that does not fit; the state is unchanged then.
        """
        index = self._index.get(character)
        if index is None:
            index = _encode("character", character, self.vocabulary).astype(np.int64)
            raise ValueError(f"expected one character, got {len(index)}")
        out = self._checked_out(out, (len(self.vocabulary),))
        self._predictor.feed(index, out)
        return out

    def run(self, text: str, out: np.ndarray | None = None) -> np.ndarray:
        """Read a text; return the probabilities (len(text), K) after each character, to the bit those of `step`.

        Raises as `step` does.
        """
        ids = _encode("text", text, self.vocabulary).astype(np.int64)
        out = self._checked_out(out, (len(ids), len(self.vocabulary)))
        self._predictor.feed(ids, out)
        return out

    def feed(self, text: str) -> None:
        """Read a text without computing probabilities, which is faster than `run`.  Raises as `step` does."""
        self._predictor.feed(_encode("text", text, self.vocabulary).astype(np.int64), None)

    def write(self, length: int, *, temperature: float = 1.0, rng: Any = None) -> str:
        """Write the next `length` characters, reading each one in turn; arguments as in `LanguageModel.generate`."""
        length, temperature = non_negative_int("length", length), finite_float("temperature", temperature)
        generator = np.random.default_rng(rng)
        uniform = generator.random(length) if temperature > 0 else np.zeros(length)
        return "".join(self.vocabulary[index] for index in self._predictor.write(uniform, temperature))

    @property
    def state(self) -> Any:
        """The layer's state, see `Stream.state`; may be set."""
        return self._predictor.stream.state

    @state.setter
    def state(self, state: Any) -> None:
        self._predictor.stream.state = state

    def reset(self) -> None:
        """Set the state to zeros, as before the first character."""
        self._predictor.stream.reset()

    def copy(self) -> CharacterStream:
        """A second stream with the same weights and a copy of the state, to try several continuations."""
        return CharacterStream(self.vocabulary, self._predictor.copy())

    def _checked_out(self, out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
        if out is None:
            return np.empty(shape, np.float32)
        array = checked_array("out", out, shape, np.dtype(np.float32))
        if array is not out or not (array.flags.carray or array.size == 0):
            raise ValueError("expected out to be an array, C-contiguous, aligned and writeable, got one that is not")
        return array


def _checked_text(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"expected {name} to be a str, got {type(text).__name__}")
    return text


def _encode(name: str, text: str, vocabulary: str) -> np.ndarray:
    """The index of each character of `text` in the vocabulary, int32; raises ValueError that names unknown ones."""
    unknown = set(_checked_text(name, text)).difference(vocabulary)
    if unknown:
        shown = ", ".join(repr(character) for character in sorted(unknown)[:10])
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise ValueError(f"expected {name} of characters that the model knows; it has not learned {shown}{more}")
    return np.searchsorted(_code_points(vocabulary), _code_points(text)).astype(np.int32)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4") if text else np.empty(0, "<u4")


def _split(
    ids: np.ndarray, validation: float, batch_size: int, seq_len: int, accumulate: int
) -> tuple[np.ndarray, np.ndarray]:
    """The characters to train on and those held out; raises ValueError that says what would fit if they are too few."""
    held_out = int(len(ids) * validation)
    if validation > 0 and held_out < 2:
        raise ValueError(
            f"expected a text of which validation={validation} is at least 2 characters, got one of {len(ids)}; "
            "validation=0 holds out none"
        )
    train, needed = len(ids) - held_out, accumulate * batch_size * seq_len + 1
    if train < needed:
        room, times = (train - 1) // accumulate, f" {accumulate} times" if accumulate > 1 else ""
        fitting = {"batch_size": room // seq_len, "seq_len": room // batch_size}
        advice = " or ".join(f"{name}={size}" for name, size in fitting.items() if size >= 1)
        raise ValueError(
            f"expected a longer text:{times} batch_size={batch_size} streams of seq_len={seq_len} need {needed} "
            f"characters to train on, got {train} ({held_out} more are held out); "
            f"{advice or 'smaller values of both'} would fit"
        )
    return ids[:train], ids[train:]

"""Every kind of call, for `memory`: made once, then called again and again, always with the same result."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
from fastrnn import interchange, optim, training

from .layers import KINDS, pick


@dataclass
class Use:
    """call: what it returned, as bytes, the same each time.   watch: bytes of what an error must leave as it was."""

    call: Callable[[], Any]
    watch: Callable[[], Any] = lambda: None


def layer_of(rng: np.random.Generator, **options: Any) -> Any:
    kind = pick(rng, KINDS)
    sizes = {"input_size": int(rng.integers(1, 9)), "hidden_size": int(rng.integers(1, 40))}
    return kind(**sizes, num_layers=int(rng.integers(1, 3)), dtype=pick(rng, ("float32", "float64")), rng=0, **options)


def input_of(rng: np.random.Generator, layer: Any, T: int, B: int) -> np.ndarray:
    return rng.standard_normal((T, B, layer.input_size)).astype(layer.dtype)


def of_layer(layer: Any) -> Callable[[], bytes]:
    return lambda: layer.flat_params.tobytes()


def bits(found: Any) -> Any:
    if isinstance(found, (tuple, list)):
        return [bits(each) for each in found]
    return found.tobytes() if isinstance(found, np.ndarray) else found


def short_call(rng: np.random.Generator) -> Use:
    layer = layer_of(rng)
    x = input_of(rng, layer, 2, 1)
    return Use(lambda: bits(layer(x)), of_layer(layer))


def call(rng: np.random.Generator) -> Use:
    layer = layer_of(rng, bidirectional=True)
    x = input_of(rng, layer, 9, 5)
    return Use(lambda: bits(layer(x)), of_layer(layer))


def ragged(rng: np.random.Generator) -> Use:
    layer = layer_of(rng)
    x, lengths = input_of(rng, layer, 9, 5), np.array([3, 9, 0, 1, 8])
    return Use(lambda: bits(layer(x, lengths=lengths)), of_layer(layer))


def trained(layer: Any, x: np.ndarray, **keywords: Any) -> Use:
    """Forward and backward, with the same dropout each time."""
    state = layer._rng.bit_generator.state

    def run() -> Any:
        layer._rng.bit_generator.state = state
        layer.zero_grad()
        y, final, tape = layer.forward(x, **keywords)
        return bits([y, final, *layer.backward(tape, np.ones(y.shape, y.dtype)), layer.flat_grads])

    return Use(run, of_layer(layer))


def training_step(rng: np.random.Generator) -> Use:
    layer = layer_of(rng, bidirectional=True)
    return trained(layer, input_of(rng, layer, 9, 5))


def training_of_indices(rng: np.random.Generator) -> Use:
    layer = layer_of(rng)
    return trained(layer, rng.integers(0, layer.input_size, (9, 5)))


def training_with_dropout(rng: np.random.Generator) -> Use:
    names = ("dropout", "weight_dropout", "input_dropout", "recurrent_dropout", "zoneout")
    layer = layer_of(rng, **dict.fromkeys(names, 0.3))
    return trained(layer, input_of(rng, layer, 9, 5))


def training_with_norms(rng: np.random.Generator) -> Use:
    layer = layer_of(rng, layer_norm=True)
    return trained(layer, input_of(rng, layer, 9, 5), lengths=np.array([3, 9, 0, 1, 8]))


def checkpointed(rng: np.random.Generator) -> Use:
    layer = layer_of(rng, bidirectional=bool(rng.integers(2)))
    return trained(layer, input_of(rng, layer, 40, 5), checkpoint=4)


def on_two_threads(rng: np.random.Generator) -> Use:
    """A batch that is divided, large enough for memory that is kept."""
    layer = pick(rng, KINDS)(40, 64, 2, rng=0)
    use = trained(layer, input_of(rng, layer, 40, 64))

    def run() -> Any:
        fastrnn.set_num_threads(2)
        try:
            return use.call()
        finally:
            fastrnn.set_num_threads(1)

    return Use(run, use.watch)


def gates(rng: np.random.Generator) -> Use:
    layer = layer_of(rng)
    _, _, tape = layer.forward(input_of(rng, layer, 9, 5))
    return Use(lambda: [bits(array) for array in tape.gates().values()], of_layer(layer))


def stream_of(rng: np.random.Generator) -> tuple[Any, Any]:
    layer = layer_of(rng)
    if layer.dtype == np.float32:
        layer.compress(pick(rng, ("float32", "bfloat16", "int8")))
    return layer, layer.stream(3)


def advance(rng: np.random.Generator, advance: Callable[[Any, np.ndarray], Any], *axes: int) -> Use:
    layer, stream = stream_of(rng)
    x, start = rng.standard_normal((*axes, layer.input_size)).astype(layer.dtype), stream.state

    def run() -> Any:
        stream.state = start
        return bits(advance(stream, x))

    return Use(run, of_layer(layer))


def stream_step(rng: np.random.Generator) -> Use:
    return advance(rng, lambda stream, x: [stream.step(x), stream.state], 3)


def stream_run(rng: np.random.Generator) -> Use:
    active = rng.random((7, 3)) < 0.5
    return advance(rng, lambda stream, x: [stream.run(x, active=active), stream.state], 7, 3)


def stream_made(rng: np.random.Generator) -> Use:
    layer, _ = stream_of(rng)
    x = np.ones((2, 3, layer.input_size), layer.dtype)
    return Use(lambda: bits(layer.stream(3).run(x)), of_layer(layer))


def stream_copied(rng: np.random.Generator) -> Use:
    layer, stream = stream_of(rng)
    x = np.ones((2, 3, layer.input_size), layer.dtype)
    stream.run(x)
    return Use(lambda: bits(stream.copy().run(x)), lambda: bits(stream.state))


def stream_refreshed(rng: np.random.Generator) -> Use:
    layer, stream = stream_of(rng)
    x = np.ones((2, 3, layer.input_size), layer.dtype)
    start = stream.state

    def run() -> Any:
        stream.state = start
        stream.refresh()
        return bits(stream.run(x))

    return Use(run, of_layer(layer))


def optimiser_step(rng: np.random.Generator) -> Use:
    """What it keeps goes back after each step."""
    layer = layer_of(rng)
    optimiser = pick(rng, (optim.SGD, optim.Adam, optim.RMSprop))([layer])
    for g in layer.grads.values():
        g.fill(0.25)
    kept, params = optimiser.state_dict(), layer.state_dict()

    def run() -> Any:
        layer.load_state_dict(params)
        optimiser.load_state_dict(kept)
        norm = optimiser.step(max_norm=0.5)
        return bits([*layer.params.values(), norm])

    return Use(run)


def clipping(rng: np.random.Generator) -> Use:
    layer = layer_of(rng)

    def run() -> Any:
        layer.flat_grads.fill(0.25)
        return bits([optim.clip_grad_norm([layer], 0.5), layer.flat_grads])

    return Use(run, of_layer(layer))


def output_layer(rng: np.random.Generator) -> Use:
    head = fastrnn.Linear(7, 5, rng=0)
    h, targets = rng.standard_normal((4, 6, 7), dtype=np.float32), rng.integers(0, 5, (4, 6))

    def run() -> Any:
        head.zero_grad()
        o, tape = head.forward(h)
        loss, do = fastrnn.softmax_cross_entropy(o, targets)
        return bits([loss, head.backward(tape, do), head.cross_entropy(h, targets), head.flat_grads])

    return Use(run, of_layer(head))


def padding(rng: np.random.Generator) -> Use:
    sequences = [rng.standard_normal((n, 3)) for n in (4, 0, 7)]
    return Use(lambda: bits(fastrnn.unpad_sequence(*fastrnn.pad_sequence(sequences))))


def layer_made(rng: np.random.Generator) -> Use:
    kind = pick(rng, KINDS)
    return Use(lambda: bits(kind(5, 30, 2, bidirectional=True, rng=3).flat_params))


def layer_copied(rng: np.random.Generator) -> Use:
    layer = layer_of(rng)
    other = copy.deepcopy(layer)

    def run() -> Any:
        other.load_state_dict(layer.state_dict())
        return bits([copy.deepcopy(layer).flat_params, pickle.loads(pickle.dumps(layer)).flat_params])

    return Use(run, of_layer(layer))


def errors(rng: np.random.Generator) -> Use:
    """Calls that are refused, one after the other."""
    layer = layer_of(rng)
    stream = layer.stream(2)
    x = input_of(rng, layer, 3, 2)
    _, _, tape = layer.forward(x)
    wrong: tuple[Callable[[], Any], ...] = (
        lambda: layer(x[0, 0]),
        lambda: layer(x.astype("f2")),
        lambda: layer(x, lengths=[5, 5]),
        lambda: layer(x, reset=x),
        lambda: layer(x, x),
        lambda: layer.forward(x, checkpoint=0),
        lambda: layer.backward(tape, x[:1]),
        lambda: layer.stream(0),
        lambda: stream.step(x),
        lambda: stream.run(x[0]),
        lambda: stream.step(x[0], out=x),
    )

    def run() -> Any:
        for each in wrong:
            with suppress(TypeError, ValueError):
                each()
        return bits(layer(x))

    return Use(run, of_layer(layer))


def files(rng: np.random.Generator) -> Use:
    layer, folder = layer_of(rng), tempfile.TemporaryDirectory()
    path, adam = Path(folder.name, "layer.safetensors"), optim.Adam([layer])

    def run() -> Any:
        assert folder
        interchange.save_safetensors(path, layer)
        loaded = interchange.load_safetensors(path)
        training.save_checkpoint(path, adam)
        training.load_checkpoint(path, adam)
        return bits(loaded.flat_params)

    return Use(run, of_layer(layer))


def writing(rng: np.random.Generator) -> Use:
    """Text by a language model that has hardly learnt."""
    model = fastrnn.LanguageModel("gru", 12, rng=0)
    model.fit("the cat sat on the mat " * 40, steps=2, batch_size=2, seq_len=8, progress=False)
    return Use(lambda: model.generate("the", 30, rng=1))


USES: tuple[Callable[[np.random.Generator], Use], ...] = (
    short_call, call, ragged, training_step, training_of_indices, training_with_dropout, training_with_norms,
    checkpointed, on_two_threads, gates, stream_step, stream_run, stream_made, stream_copied, stream_refreshed,
    optimiser_step, clipping, output_layer, padding, layer_made, layer_copied, errors, files, writing,
)  # fmt: skip
SLOW = (on_two_threads, files, writing)  # called a tenth as often

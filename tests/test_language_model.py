"""The character model: how the text is read, what training keeps, what it writes, and its files."""

import io
import itertools
import json
import math
import pickle
import re
import sys

import numpy as np
import pytest
from fastrnn import _core
from fastrnn.nn.layers import RNN
from fastrnn.nn.linear import Linear
from fastrnn.optim import Adam, StepDecay, WarmUp
from fastrnn.text.language_model import LanguageModel
from fastrnn.training import trainer
from fastrnn.util import storage

PROVERB = "a rolling stone gathers no moss. "


@pytest.fixture(scope="module")
def proverb():
    """A model that knows its one sentence by heart; tests leave it unchanged."""
    model = LanguageModel("rnn", hidden_size=32, rng=0)
    model.fit(PROVERB * 60, steps=150, batch_size=8, seq_len=32, lr=1e-2, progress=False)
    return model


def small_model():
    return LanguageModel("rnn", hidden_size=8, rng=0)


def fit_small(model, **options):
    """Ten steps on a text that leaves 297 of 330 characters to train on."""
    return model.fit(PROVERB * 10, **{"steps": 10, "batch_size": 4, "seq_len": 16, "progress": False} | options)


def weights(model):
    return np.concatenate([model.layer.flat_params, model.head.flat_params])


# How the text is read


@pytest.mark.parametrize(("length", "streams"), [(2, 1), (13, 4), (17, 4), (100, 7)])
def test_streams_are_contiguous_pieces_of_the_text_in_order(length, streams):
    grid = trainer.cut_streams(np.arange(length), streams)
    assert grid.shape == ((length - 1) // streams + 1, streams)
    np.testing.assert_array_equal(np.diff(grid, axis=0), 1)
    np.testing.assert_array_equal(grid[0, 1:], grid[-1, :-1])
    assert grid[0, 0] == 0
    assert length - 1 - grid[-1, -1] < streams


@pytest.mark.parametrize("seq_len", [1, 3, 4, 8, 12])
def test_batches_follow_each_other_and_cover_the_text_in_two_passes(seq_len):
    grid = trainer.cut_streams(np.arange(37), 3)  # 12 inputs a stream
    per_pass = 12 // seq_len
    seen, expected_next = set(), None
    for number, (x, targets, anew) in enumerate(itertools.islice(trainer.batches(grid, seq_len), 2 * per_pass)):
        assert x.shape == targets.shape == (seq_len, 3)
        np.testing.assert_array_equal(targets, x + 1)
        assert anew == (number % per_pass == 0)
        if not anew:
            np.testing.assert_array_equal(x[0], expected_next)
        expected_next = targets[-1]
        seen |= set(x[:, 0])
    assert seen == set(range(12))


def test_state_is_carried_from_batch_to_batch_and_reset_when_the_text_begins_anew():
    model = small_model()
    history = fit_small(model, steps=8, batch_size=2, seq_len=16, lr=0.0, validation=0.0)  # 148 inputs: 9 batches of 16
    fit_small(model, steps=1, lr=0.0)  # no step changes the weights
    ids = np.array([model.vocabulary.index(character) for character in PROVERB * 10])
    grid = trainer.cut_streams(ids, 2)[: 8 * 16 + 1]
    whole = trainer.bits_per_character(model.layer, model.head, grid)
    assert np.mean(history.train_bits) == pytest.approx(whole, rel=1e-5)
    again = fit_small(model, steps=22, batch_size=2, seq_len=16, lr=0.0, validation=0.0)
    assert again.train_bits[:8] == history.train_bits
    assert again.train_bits[20] == again.train_bits[0]  # third pass, 10 batches each


def test_bits_per_character_are_the_mean_over_one_uncut_reading(proverb, monkeypatch):
    text = PROVERB * 3 + "moss" * 20
    ids = np.array([proverb.vocabulary.index(character) for character in text])
    logits = proverb.head(proverb.layer(ids[:-1, None])[0])[:, 0].astype(float)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -np.mean(log_p[np.arange(len(ids) - 1), ids[1:]]) / math.log(2)
    assert proverb.bits_per_character(text) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(trainer, "POSITIONS", 7)
    assert proverb.bits_per_character(text) == pytest.approx(expected, rel=1e-5)


def test_held_out_bits_of_several_streams_are_nearly_those_of_one(proverb):
    text = PROVERB * 130 + "moss" * 100  # 4,690 characters: four streams
    ids = np.array([proverb.vocabulary.index(character) for character in text])
    several = trainer.held_out_bits(proverb.layer, proverb.head, ids)
    assert several == pytest.approx(proverb.bits_per_character(text), abs=0.02)


# What training does


def test_training_learns_a_sentence_by_heart(proverb):
    assert proverb.bits_per_character(PROVERB * 4) < 0.2
    assert proverb.generate(PROVERB, len(PROVERB), temperature=0) == PROVERB


def test_history_has_an_entry_a_step(proverb):
    model = small_model()
    history = fit_small(model, steps=25, lr=1e-2)
    assert history.steps == len(history.train_bits) == len(history.lr) == len(history.grad_norm) == 25
    assert history.train_bits[0] == pytest.approx(math.log2(len(model.vocabulary)), rel=0.2)
    assert history.train_bits[-1] < history.train_bits[0]
    assert history.lr == [1e-2 * 0.5 * (1 + math.cos(math.pi * step / 25)) for step in range(25)]
    assert [step for step, _ in history.held_out] == [*range(2, 25, 2), 25]
    assert history.held_out_bits == min(bits for _, bits in history.held_out)
    assert (history.best_step, history.held_out_bits) in history.held_out
    assert history.seconds > 0
    assert not history.interrupted


def test_gradients_are_clipped_to_norm_one(monkeypatch):
    seen, step = [], Adam.step

    def spy(adam, **options):
        seen.append(options)
        return step(adam, **options)

    monkeypatch.setattr(Adam, "step", spy)
    fit_small(small_model())
    assert seen == [{"max_norm": 1.0, "scale": 1.0}] * 10


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_batches_are_one_larger_batch(accumulate):
    together, apart = small_model(), small_model()
    expected = fit_small(together, batch_size=4, seq_len=8, lr=1e-2)
    history = fit_small(apart, batch_size=4 // accumulate, accumulate=accumulate, seq_len=8, lr=1e-2)
    for name in ("train_bits", "grad_norm", "lr"):
        np.testing.assert_allclose(getattr(history, name), getattr(expected, name), rtol=1e-4)
    np.testing.assert_allclose(weights(apart), weights(together), atol=1e-4)
    assert np.abs(weights(together)).max() > 0.1


def test_accumulated_batches_need_a_longer_text():
    with pytest.raises(
        ValueError, match=r"3 times batch_size=4 .* need 769 .* got 297 .*; batch_size=1 or seq_len=24 "
    ):
        fit_small(small_model(), seq_len=64, accumulate=3)
    fit_small(small_model(), steps=1, seq_len=24, accumulate=3)
    fit_small(small_model(), steps=1, seq_len=64, batch_size=1, accumulate=3)


def test_lr_may_be_a_schedule():
    history = fit_small(small_model(), lr=WarmUp(StepDecay(1e-2, every=4), steps=3))
    np.testing.assert_allclose(history.lr, [0.0025, 0.005, 0.0075, *[0.01] * 4, *[0.001] * 3])


def test_same_seed_gives_the_same_bits():
    first, second = small_model(), small_model()
    histories = [fit_small(model) for model in (first, second)]
    assert weights(first).tobytes() == weights(second).tobytes()
    assert histories[0].train_bits == histories[1].train_bits
    generator = LanguageModel("rnn", hidden_size=8, rng=np.random.default_rng(0))
    fit_small(generator)
    assert weights(generator).tobytes() == weights(first).tobytes()


def test_another_seed_gives_other_weights_to_layer_and_head():
    first, other = small_model(), LanguageModel("rnn", hidden_size=8, rng=1)
    for model in (first, other):
        fit_small(model, steps=1, lr=0.0)
    assert first.layer.flat_params.tobytes() != other.layer.flat_params.tobytes()
    assert first.head.flat_params.tobytes() != other.head.flat_params.tobytes()


def scripted_held_out(monkeypatch, bits):
    """Make the evaluations give these numbers, and keep a copy of the weights at each."""
    snapshots, remaining = [], iter(bits)

    def evaluate(layer, head, ids):
        snapshots.append(np.concatenate([layer.flat_params, head.flat_params]))
        return next(remaining)

    monkeypatch.setattr(trainer, "held_out_bits", evaluate)
    return snapshots


def test_weights_with_the_best_held_out_bits_are_kept(monkeypatch):
    snapshots = scripted_held_out(monkeypatch, [5, 4, 3, 2, 6, 2.5, 7, 8, 9, 10])
    model = small_model()
    history = fit_small(model)
    np.testing.assert_array_equal(weights(model), snapshots[3])
    assert not np.array_equal(snapshots[3], snapshots[9])
    assert (history.best_step, history.held_out_bits) == (4, 2)


def test_without_validation_the_last_weights_are_kept():
    model = small_model()
    history = fit_small(model, validation=0.0)
    assert history.held_out == []
    assert math.isnan(history.held_out_bits)
    assert history.best_step == 10
    again = fit_small(model, validation=0.0, lr=0.0)
    assert again.train_bits[0] < history.train_bits[0]


def test_long_held_out_text_is_evaluated_in_part_and_at_the_end_as_a_whole(monkeypatch):
    monkeypatch.setattr(trainer, "EVALUATED_CHARACTERS", 20)
    lengths = []
    real = trainer.held_out_bits

    def spy(layer, head, ids):
        lengths.append(len(ids))
        return real(layer, head, ids)

    monkeypatch.setattr(trainer, "held_out_bits", spy)
    history = fit_small(small_model())
    assert lengths == [20] * 10 + [33]
    assert history.held_out_bits not in [bits for _, bits in history.held_out]


def interrupt_at(monkeypatch, call):
    """Ctrl-C during that call of Adam.step, counted from 1."""
    calls = itertools.count(1)
    step = Adam.step

    def interrupted(adam, **options):
        if next(calls) == call:
            raise KeyboardInterrupt
        return step(adam, **options)

    monkeypatch.setattr(Adam, "step", interrupted)


@pytest.mark.parametrize("call", [1, 2, 57])
def test_interrupt_ends_training_with_the_best_weights(monkeypatch, call):
    with monkeypatch.context() as patch:
        interrupt_at(patch, call)
        model = small_model()
        history = fit_small(model, steps=100, lr=1e-2)
    assert history.interrupted
    assert history.steps == len(history.train_bits) == call - 1
    assert history.held_out[-1][0] == call - 1
    assert history.held_out_bits == min(bits for _, bits in history.held_out)
    held_out = np.array([model.vocabulary.index(character) for character in (PROVERB * 10)[-33:]])
    assert trainer.held_out_bits(model.layer, model.head, held_out) == history.held_out_bits


def diverge_at(monkeypatch, what, call):
    """Let the loss or the gradient's norm come out as nan in that call, counted from 1."""
    owner, name = {
        "the loss": (trainer.Linear, "cross_entropy"),
        "the norm of the gradient": (Adam, "step"),
    }[what]
    real, calls = getattr(owner, name), itertools.count(1)

    def wild(*arguments, **options):
        result = real(*arguments, **options)
        if next(calls) < call:
            return result
        return (math.nan, result[1]) if isinstance(result, tuple) else math.inf

    monkeypatch.setattr(owner, name, wild)


@pytest.mark.parametrize("what", ["the loss", "the norm of the gradient"])
def test_value_that_is_not_finite_stops_training_with_the_best_weights(monkeypatch, what):
    snapshots = scripted_held_out(monkeypatch, [5, 3, 4])
    diverge_at(monkeypatch, what, 8)
    model = small_model()
    with pytest.raises(
        FloatingPointError, match=f"{what} is not finite at step 7; the weights of step 4 .* 0.5"
    ) as error:
        fit_small(model, steps=20, lr=0.5)
    np.testing.assert_array_equal(weights(model), snapshots[1])
    assert (error.value.what, error.value.step) == (what, 7)
    assert error.value.history.best_step == 4


def test_absurd_learning_rate_is_an_error_and_keeps_the_first_weights():
    model, untouched = small_model(), small_model()
    fit_small(untouched, lr=0.0)
    with pytest.raises(FloatingPointError, match="Try a learning rate below 1e"):
        fit_small(model, lr=1e38)
    np.testing.assert_array_equal(weights(model), weights(untouched))


def test_second_fit_goes_on_from_the_first():
    model = small_model()
    first = fit_small(model, steps=60, lr=1e-2)
    second = fit_small(model, steps=10, lr=1e-2)
    assert second.train_bits[0] < first.train_bits[0] - 0.5


def test_progress_is_silent_where_stderr_is_no_terminal(capsys):
    fit_small(small_model(), progress=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [True, False])
def test_progress_shows_bits_per_character_on_a_terminal(monkeypatch, progress):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    fit_small(small_model(), progress=progress)
    shown = re.search(r"10/10 .* \d\.\d{3} bits/char, held out \d\.\d{3}", terminal.getvalue())
    assert bool(shown) is progress


# What training refuses


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "expected steps >= 1, got 0"),
        ({"steps": 1.5}, TypeError, "expected steps to be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"seq_len": -1}, ValueError, "seq_len"),
        ({"lr": -1.0}, ValueError, "expected a finite lr >= 0"),
        ({"lr": math.nan}, ValueError, "lr"),
        ({"accumulate": 0}, ValueError, "expected accumulate >= 1, got 0"),
        ({"resume": True}, ValueError, "expected a checkpoint to resume from, got None"),
        ({"validation": 1.0}, ValueError, r"expected validation in \[0, 1\), got 1.0"),
        ({"validation": -0.1}, ValueError, "validation"),
        ({"validation": 1e-3}, ValueError, "is at least 2 characters, got one of 330"),
        ({"batch_size": 100}, ValueError, "expected a longer text"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_the_model_new(options, error, message):
    model = small_model()
    with pytest.raises(error, match=message):
        fit_small(model, **options)
    assert (model.vocabulary, model.layer, model.head) == ("", None, None)


@pytest.mark.parametrize("text", [b"bytes", None, ["a", "list"]])
def test_text_that_is_no_str_is_refused(proverb, text):
    for use in (
        proverb.bits_per_character,
        lambda text: proverb.generate(text, 1),
        lambda text: proverb.fit(text, steps=1),
    ):
        with pytest.raises(TypeError, match="to be a str"):
            use(text)


@pytest.mark.parametrize(
    ("length", "fitting"), [(40, ["seq_len"]), (100, ["batch_size", "seq_len"]), (2275, ["batch_size", "seq_len"])]
)
def test_text_too_short_is_refused_with_sizes_that_just_fit(length, fitting):
    text = ("abcdefghij" * 300)[:length]
    with pytest.raises(ValueError, match=r"expected a longer text: .* would fit") as error:
        small_model().fit(text, steps=1, progress=False)
    sizes = re.findall(r"(batch_size|seq_len)=(\d+)(?= or | would fit)", str(error.value))
    assert [name for name, _ in sizes] == fitting
    for name, size in sizes:
        small_model().fit(text, steps=1, progress=False, **{name: int(size)})
        with pytest.raises(ValueError, match="expected a longer text"):
            small_model().fit(text, steps=1, progress=False, **{name: int(size) + 1})


@pytest.mark.parametrize("length", [0, 1, 2, 19, 20])
def test_text_of_next_to_nothing_is_refused(length):
    for validation in (0.0, 0.1):
        with pytest.raises(ValueError, match=r"expected a (longer )?text"):
            small_model().fit("a" * length, steps=1, validation=validation)


def test_characters_that_the_model_does_not_know_are_named(proverb):
    before, vocabulary = weights(proverb), proverb.vocabulary
    for use in (
        lambda text: proverb.generate(text, 5),
        proverb.bits_per_character,
        lambda text: proverb.fit(text * 1000, steps=1),
    ):
        with pytest.raises(ValueError, match=r"not learned 'X', 'Z', 'é'$"):
            use("a stone Z éX")
    with pytest.raises(ValueError, match=r"'9' and 16 more$"):
        proverb.generate("".join(map(chr, range(48, 74))), 5)
    np.testing.assert_array_equal(weights(proverb), before)
    assert proverb.vocabulary == vocabulary


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("elman",), ValueError, "expected cell to be one of 'rnn', 'gru', 'lstm', got 'elman'"),
        (("rnn", 0), ValueError, "hidden_size"),
        (("rnn", 8, 0), ValueError, "num_layers"),
        (("rnn", 8.0), TypeError, "hidden_size"),
    ],
)
def test_wrong_configurations_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        LanguageModel(*arguments)


def test_model_without_a_vocabulary_says_so(tmp_path):
    model = small_model()
    for use in (
        lambda: model.generate("a", 1),
        lambda: model.bits_per_character("ab"),
        lambda: model.save(tmp_path / "m"),
    ):
        with pytest.raises(RuntimeError, match="call fit first"):
            use()
    assert list(tmp_path.iterdir()) == []


# What it writes


def test_generating_is_feeding_back_one_character_after_the_other(proverb):
    text = "a ro"
    for _ in range(20):
        ids = np.array([proverb.vocabulary.index(character) for character in text])
        text += proverb.vocabulary[int(proverb.head(proverb.layer(ids[:, None])[0])[-1, 0].argmax())]
    assert proverb.generate("a ro", 20, temperature=0) == text[4:]


def test_same_rng_generates_the_same_text(proverb):
    texts = [proverb.generate("a", 80, temperature=3, rng=rng) for rng in (0, 0, np.random.default_rng(0), 1)]
    assert texts[0] == texts[1] == texts[2] != texts[3]
    assert all(len(text) == 80 and set(text) <= set(proverb.vocabulary) for text in texts)
    assert proverb.generate("a", 80, temperature=3) != proverb.generate("a", 80, temperature=3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_characters_are_drawn_from_the_softmax_of_the_logits_over_temperature(proverb, temperature):
    ids = np.array([proverb.vocabulary.index(character) for character in "ro"])
    logits = proverb.head(proverb.layer(ids[:, None])[0])[-1, 0].astype(float)
    logits /= 8  # less sure of itself
    model = small_model()
    fit_small(model, steps=1)
    model.head.params["weight"][...] = 0
    model.head.params["bias"][...] = logits
    p = np.exp(logits / temperature)
    p /= p.sum()
    draws, generator = 4000, np.random.default_rng(0)
    text = model.generate("r", draws, temperature=temperature, rng=generator)
    counts = np.array([text.count(character) for character in model.vocabulary])
    assert np.all(np.abs(counts - draws * p) < 5 * np.sqrt(draws * p * (1 - p)) + 1)


def test_a_tiny_temperature_is_as_good_as_zero(proverb):
    assert proverb.generate("a ro", 20, temperature=1e-300, rng=0) == proverb.generate("a ro", 20, temperature=0)


def test_length_zero_writes_nothing(proverb):
    assert proverb.generate("a", 0) == ""


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("", 5), {}, ValueError, "expected a prompt of at least one character"),
        (("a", -1), {}, ValueError, "expected length >= 0, got -1"),
        (("a", 1.0), {}, TypeError, "length"),
        (("a", 1), {"temperature": -1}, ValueError, "expected a finite temperature >= 0"),
        (("a", 1), {"temperature": math.inf}, ValueError, "temperature"),
        (("a", 1), {"temperature": math.nan}, ValueError, "temperature"),
    ],
)
def test_wrong_requests_are_refused(proverb, arguments, options, error, message):
    with pytest.raises(error, match=message):
        proverb.generate(*arguments, **options)


@pytest.mark.parametrize("text", ["", "a"])
def test_text_without_a_prediction_is_refused(proverb, text):
    with pytest.raises(ValueError, match=f"at least 2 characters, got {len(text)}"):
        proverb.bits_per_character(text)


def test_every_unicode_character_can_be_learned():
    text = "é😀\ud800\x00ß\n日本" * 40
    model = small_model()
    model.fit(text, steps=2, batch_size=2, seq_len=8, progress=False)
    assert model.vocabulary == "".join(sorted(set(text)))
    assert len(model.generate("😀\ud800", 10)) == 10


# Its files


def test_loaded_model_is_the_saved_one(proverb, tmp_path):
    path = tmp_path / "model.safetensors"
    proverb.save(path)
    loaded = LanguageModel.load(path)
    assert (loaded.cell, loaded.hidden_size, loaded.num_layers) == ("rnn", 32, 1)
    assert loaded.vocabulary == proverb.vocabulary
    assert weights(loaded).tobytes() == weights(proverb).tobytes()
    assert loaded.generate("a", 50, rng=0) == proverb.generate("a", 50, rng=0)
    assert loaded.bits_per_character(PROVERB) == proverb.bits_per_character(PROVERB)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_every_cell_learns_writes_and_is_loaded_again(tmp_path, cell, num_layers):
    model = LanguageModel(cell, 8, num_layers, rng=0)
    history = fit_small(model, steps=100, lr=3e-2)
    assert history.held_out_bits < history.train_bits[0] / 2
    model.save(tmp_path / "model")
    loaded = LanguageModel.load(tmp_path / "model")
    assert (loaded.layer.cell, loaded.layer.num_layers) == (cell, num_layers)
    assert weights(loaded).tobytes() == weights(model).tobytes()
    assert loaded.generate("a", 20, rng=0) == model.generate("a", 20, rng=0)


def test_training_goes_on_the_same_from_a_file(tmp_path):
    model = small_model()
    fit_small(model)
    model.save(tmp_path / "model")
    loaded = LanguageModel.load(str(tmp_path / "model"))
    assert fit_small(loaded).train_bits == fit_small(model).train_bits
    assert weights(loaded).tobytes() == weights(model).tobytes()


def test_saving_twice_gives_the_same_bytes(proverb, tmp_path):
    for name in ("first", "second"):
        proverb.save(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_failed_save_leaves_the_old_model(proverb, tmp_path, monkeypatch):
    path = tmp_path / "model"
    model = small_model()
    fit_small(model)
    model.save(path)

    def fail(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            proverb.save(path)
    assert weights(LanguageModel.load(path)).tobytes() == weights(model).tobytes()


def test_truncated_and_foreign_files_are_refused(proverb, tmp_path):
    path = tmp_path / "model"
    proverb.save(path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:100], b"", PROVERB.encode(), pickle.dumps(proverb.head.state_dict())):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="model is not a whole safetensors file"):
            LanguageModel.load(path)
    storage.save_arrays(path, proverb.layer.params, {"format": "pt"})
    with pytest.raises(ValueError, match=r"model is a safetensors file, but not one of a fastrnn.LanguageModel"):
        LanguageModel.load(path)
    with pytest.raises(FileNotFoundError):
        LanguageModel.load(tmp_path / "missing")


def change(**changes):
    return lambda config, arrays: config.update(changes)


def resize(config, arrays):
    arrays["layer.weight_hh_l0"] = arrays["layer.weight_hh_l0"].reshape(16, 64)


def rename(config, arrays):
    arrays["layer.weight_hh"] = arrays.pop("layer.weight_hh_l0")


def gather(config, arrays):
    """All numbers that a thousand layers have, in a single array."""
    config["num_layers"], count = 1000, sum(array.size for array in arrays.values())
    arrays.clear()
    arrays["layer.weight_ih_l0"] = np.zeros(count + 999 * 32 * (2 * 32 + 2), np.float32)


def add(config, arrays):
    arrays["foot.bias"] = np.zeros(3, np.float32)


def widen(config, arrays):
    arrays["head.bias"] = arrays["head.bias"].astype(np.float64)


@pytest.mark.parametrize(
    "damage",
    [
        resize,
        rename,
        gather,
        add,
        widen,
        change(hidden_size=31),
        change(hidden_size=10**9),
        change(num_layers=10**9),
        change(hidden_size=2**70),
        change(num_layers=10**4000),
        change(hidden_size=-32),
        change(hidden_size="32"),
        change(cell="gru"),
        change(cell="elman"),
        change(cell=["rnn"]),
        change(vocabulary=""),
        change(vocabulary="abc"),
        change(vocabulary=PROVERB[:17]),
        change(vocabulary=None),
        change(vocabulary=["a", "b"]),
        lambda config, arrays: config.clear(),
        lambda config, arrays: arrays.pop("head.bias"),
        lambda config, arrays: arrays.clear(),
    ],
)
def test_file_that_does_not_fit_its_configuration_is_refused(proverb, tmp_path, damage):
    path = tmp_path / "model"
    proverb.save(path)
    arrays, metadata = storage.load_arrays(path)
    config = json.loads(metadata["fastrnn.LanguageModel"])
    damage(config, arrays)
    storage.save_arrays(path, arrays, {"fastrnn.LanguageModel": json.dumps(config)})
    with pytest.raises(ValueError, match=r"model does not hold a whole fastrnn.LanguageModel"):
        LanguageModel.load(path)


def test_sizes_that_the_arrays_do_not_have_take_no_memory(proverb, tmp_path, monkeypatch):
    path = tmp_path / "model"
    proverb.save(path)
    arrays, metadata = storage.load_arrays(path)
    config = json.loads(metadata["fastrnn.LanguageModel"])
    gather(config, arrays)
    storage.save_arrays(path, arrays, {"fastrnn.LanguageModel": json.dumps(config)})
    monkeypatch.setattr(_core, "new_array", lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(ValueError, match="expected weight_ih_l0 of shape"):
        LanguageModel.load(path)


def test_errors_repeat_no_more_than_the_start_of_a_vocabulary(proverb, tmp_path):
    path = tmp_path / "model"
    config = {"cell": "rnn", "hidden_size": 1, "num_layers": 1, "vocabulary": "ba" * 10**5}
    storage.save_arrays(path, proverb.layer.params, {"fastrnn.LanguageModel": json.dumps(config)})
    with pytest.raises(ValueError, match="a vocabulary of sorted characters") as caught:
        LanguageModel.load(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["not json", "[]", "null", "3", "[" * 500 + "]" * 500, '{"cell":' * 10**5])
def test_file_whose_configuration_is_no_object_is_refused(proverb, tmp_path, text):
    path = tmp_path / "model"
    storage.save_arrays(path, proverb.layer.params, {"fastrnn.LanguageModel": text})
    with pytest.raises(ValueError, match=r"model does not hold a whole fastrnn.LanguageModel"):
        LanguageModel.load(path)


def test_layer_and_head_are_those_of_the_library(proverb):
    assert isinstance(proverb.layer, RNN)
    assert isinstance(proverb.head, Linear)
    assert proverb.layer.input_size == proverb.head.out_features == len(proverb.vocabulary)


def test_a_bar_that_is_not_shown_takes_no_lock_of_other_processes(monkeypatch):
    """tqdm shares one with them: where a process was killed that held it, a training would wait for ever."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for progress in (False, True):  # the tests' stderr is no terminal
        LanguageModel("rnn", 4, rng=0).fit("to be or not " * 20, steps=2, batch_size=2, seq_len=4, progress=progress)

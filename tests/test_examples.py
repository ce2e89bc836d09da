"""The examples run, and reach what they promise."""

import importlib.util
import statistics
import sys
import tracemalloc
from pathlib import Path

import fastrnn
import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vowels():
    yield load_example("japanese_vowels")
    del sys.modules["japanese_vowels"]


@pytest.fixture(scope="module")
def live_prediction():
    yield load_example("live_prediction")
    del sys.modules["live_prediction"]


@pytest.fixture(scope="module")
def made_up(vowels):
    """A batch of nine easy speakers: each has a mean of its own."""
    rng = np.random.default_rng(0)
    speaker = np.arange(45) % 9
    means = 2 * rng.standard_normal((9, 12))
    frames = [(means[who] + rng.standard_normal((rng.integers(7, 30), 12))).astype(np.float32) for who in speaker]
    x, lengths = fastrnn.pad_sequence(frames)
    return vowels.Utterances(x, lengths, speaker)


def test_an_epoch_visits_each_utterance_once(vowels, made_up):
    visited = [batch.data for batch in vowels.batches(made_up, np.random.default_rng(0), epochs=1)]
    assert sorted(np.concatenate([data.lengths for data in visited])) == sorted(made_up.lengths)
    assert all(len(data.x) == data.lengths.max() for data in visited)


def test_recogniser_learns_speakers_that_are_easy_to_tell_apart(vowels, made_up):
    model = vowels.Recogniser(np.random.default_rng(0))
    vowels.train(model, made_up, seed=0, epochs=15)
    assert vowels.accuracy(model, made_up) == 1


def test_recogniser_and_its_twin_in_torch_take_the_same_steps(vowels, made_up):
    pytest.importorskip("torch", reason="torch is not installed")
    model = vowels.Recogniser(np.random.default_rng(0))
    twin = vowels.TorchRecogniser(model)
    ours = [model.train_step(made_up, 5e-3) for _ in range(5)]
    theirs = [twin.train_step(made_up, 5e-3) for _ in range(5)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[-1] < ours[0] - 0.1


def test_speakers_of_japanese_vowels_are_recognised(vowels):
    pytest.importorskip("aeon", reason="the utterances ship in aeon, which is not installed")
    train, test = vowels.load()
    assert train.x.shape == (26, 270, 12)
    assert test.x.shape == (29, 370, 12)
    found = []
    for seed in range(5):
        model = vowels.Recogniser(np.random.default_rng(seed))
        vowels.train(model, train, seed)
        found.append(vowels.accuracy(model, test))
    assert statistics.median(found) >= 0.96


def test_long_stream_is_learned_in_the_memory_of_a_block():
    example = load_example("million_steps")
    model = example.Echo()
    tracemalloc.start()
    accuracy = example.train(model, steps=150_000, report_every=20_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert accuracy > 0.99
    assert peak < 2**20


def test_live_predictor_is_better_than_the_last_value_and_looks_ahead_without_moving(live_prediction):
    rng = np.random.default_rng(0)
    predictor = live_prediction.Predictor(rng)
    predictor.fit(live_prediction.measurements(5000, rng), rng, steps=150)
    live, values = live_prediction.Live(predictor), live_prediction.measurements(2000, rng)
    error, naive, times = live_prediction.follow(live, values)
    assert error < naive / 3
    assert len(times) == 1999
    before = live.stream.state
    guesses = live.ahead(live.see(values[-1]), 5)
    assert len(guesses) == 5
    assert not np.array_equal(live.stream.state[0], before[0])
    seen = live.stream.state
    live.ahead(0.0, 5)
    np.testing.assert_array_equal(live.stream.state, seen)

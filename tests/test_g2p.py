"""The network of g2p-en, written in NumPy by others, says the same when its GRUs run on fastrnn: examples/g2p.py."""

import importlib.util
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "g2p.py"

# not importorskip: the import alone would begin downloads, which the example holds off
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("g2p_en") is None, reason="g2p-en is not installed: pip install g2p-en==2.1.0"
)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("g2p_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def both(example):
    return example.load()


def weights(g2p, name):
    return [getattr(g2p, f"{name}_{own}") for own in ("w_ih", "w_hh", "b_ih", "b_hh")]


@pytest.mark.parametrize("name", ["enc", "dec"])
@pytest.mark.parametrize("B", [1, 3])
def test_gru_and_grucell_give_the_states_that_numpy_gives(both, name, B):
    theirs, ours = both
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, 12, 256), dtype=np.float32)
    h = rng.uniform(-1, 1, (B, 256)).astype(np.float32)
    for h0 in (None, h):
        expected = theirs.gru(x, 10, *weights(theirs, name), h0=h0)
        found = ours.gru(x, 10, *weights(ours, name), h0=h0)
        assert found.dtype == expected.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    expected = theirs.grucell(x[:, 0], h, *weights(theirs, name))
    np.testing.assert_allclose(ours.grucell(x[:, 0], h, *weights(ours, name)), expected, rtol=0, atol=1e-5)


def test_prediction_leaves_no_step_to_numpy(both):
    theirs, ours = both
    with mock.patch.object(type(theirs), "sigmoid", side_effect=AssertionError("NumPy's cell was called")):
        assert ours.predict("hello") == ["HH", "EH1", "L", "OW0"]
        with pytest.raises(AssertionError, match="NumPy's cell"):
            theirs.predict("hello")


def test_two_thousand_words_have_the_same_phonemes(example, both):
    words = example.words()
    assert len(words) == len(set(words)) == 2000
    assert words == example.words()
    (expected, _), (found, _) = (example.say(g2p, words) for g2p in both)
    assert sum(len(phonemes) for phonemes in expected) > 10_000
    assert {word: ours for word, ours, theirs in zip(words, found, expected, strict=True) if ours != theirs} == {}

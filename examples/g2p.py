"""How is it said?  The pronouncing network of g2p-en, run by fastrnn in place of NumPy: python examples/g2p.py

g2p-en (Park and Kim 2018) spells a word that its dictionary lacks in phonemes.  Two GRUs of 256 units do it, written
out in NumPy, one step at a time: an encoder reads the letters, a decoder writes the phonemes.  Their weights ship in
the package: pip install g2p-en==2.1.0

    letters (1, T)   embedded (1, T, 256)  ->  G2p.gru       the encoder, all T steps in one call
    last h (1, 256)  phoneme  (1, 256)     ->  G2p.grucell   the decoder, a call a step: the next phoneme needs the last

`FastG2p` replaces these two methods and nothing else.  Both then say the same 2,000 words, taking turns.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
import warnings
from types import SimpleNamespace
from typing import Any
from unittest import mock

import fastrnn
import numpy as np
from fastrnn.text.corpus import builtin_text

NAMES = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}

Phonemes = list[list[str]]  # of each word


def load() -> tuple[Any, Any]:
    """g2p-en's own G2p, and one on fastrnn.

    Only its network is wanted: what it would download for the rest, a dictionary and a tagger, is left out.
    """
    try:
        with warnings.catch_warnings(), mock.patch("nltk.download"):
            warnings.simplefilter("ignore")  # its sources are older than what Python now warns of
            from g2p_en import g2p as package
    except ModuleNotFoundError:
        raise SystemExit("the network ships in the package g2p-en: pip install g2p-en==2.1.0") from None

    class FastG2p(package.G2p):
        """The same network, its gates in torch's order r, z, n: the weights carry over as they are."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = {}  # by the weights that G2p passes to each call
            for name in ("enc", "dec"):
                weights = {torch_name: getattr(self, f"{name}_{own}") for torch_name, own in NAMES.items()}
                w_ih = weights["weight_ih_l0"]  # (3H, I)
                layer = fastrnn.GRU(w_ih.shape[1], w_ih.shape[0] // 3, batch_first=True)
                layer.load_state_dict(weights)
                self.layers[id(w_ih)] = layer

        def gru(self, x, steps, w_ih, w_hh, b_ih, b_hh, h0=None):
            """h at all steps (B, T, H), from x (B, T, I) and h0 (B, H)."""
            y, _ = self.layers[id(w_ih)](x[:, :steps], None if h0 is None else h0[None])
            return y

        def grucell(self, x, h, w_ih, w_hh, b_ih, b_hh):
            """h after one step (B, H), from x (B, I) and h (B, H)."""
            _, h = self.layers[id(w_ih)](x[:, None], h[None])
            return h[0]

    with warnings.catch_warnings(), mock.patch.object(package, "cmudict", SimpleNamespace(dict=dict)):
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the closing of a file to Python
        return package.G2p(), FastG2p()


def words(count: int = 2000) -> list[str]:
    """Three quarters English words, evenly from an alphabetical list, the rest letters at random; no word twice."""
    english = sorted(set(re.findall(r"[a-z]{2,}", builtin_text().lower())))
    known = count * 3 // 4
    found = dict.fromkeys(english[i * len(english) // known] for i in range(known))
    rng = np.random.default_rng(0)
    while len(found) < count:
        # the apostrophe is a letter that the network does not know
        found["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz'"), rng.integers(3, 16)))] = None
    return list(found)


def say(g2p: Any, words: list[str]) -> tuple[Phonemes, float]:
    """The phonemes of each word, and the seconds that it took."""
    started = time.perf_counter()
    phonemes = [g2p.predict(word) for word in words]
    return phonemes, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often all words are said (default 5)")
    options = parser.parse_args()
    numpy_g2p, fast_g2p = load()
    spoken = words()
    seconds: dict[str, list[float]] = {"NumPy": [], "fastrnn": []}
    differing: set[str] = set()
    for g2p in (numpy_g2p, fast_g2p):
        say(g2p, spoken[:50])  # what happens only once is not timed
    for _ in range(options.rounds):
        theirs, took = say(numpy_g2p, spoken)
        seconds["NumPy"].append(took)
        ours, took = say(fast_g2p, spoken)
        seconds["fastrnn"].append(took)
        differing |= {word for word, a, b in zip(spoken, theirs, ours, strict=True) if a != b}

    for word in ("activationist", "pronounceable"):
        print(f"{word}: {' '.join(fast_g2p.predict(word))}")
    print(f"{len(spoken) - len(differing)} of {len(spoken)} words have the same phonemes", *sorted(differing))
    for name, each in seconds.items():
        print(f"{name:8} {statistics.median(each):.3f} s for all words, median of {options.rounds} rounds")
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    print(f"NumPy takes {ratio:.1f} times as long as fastrnn")
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

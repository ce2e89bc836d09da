"""The dropout masks of a training pass, drawn before any shard runs, so that threads and repeated backward passes do
not change them.

For a mask that differs from step to step only a seed is drawn, of which the mask is a function: `StepMask`.

dropout                behind a layer, a mask for each step        N. Srivastava et al., JMLR 15 (2014)
weight_dropout         of W_hh, one mask for a call                L. Wan et al., ICML 2013 (DropConnect);
                                                                   S. Merity et al., ICLR 2018 (AWD-LSTM)
input_dropout          of x(t), one mask for all steps             Y. Gal and Z. Ghahramani, NIPS 2016
recurrent_dropout      of h(t-1), one mask for all steps           the same
zoneout, zoneout_cell  which units of h, c stay as they were,      D. Krueger et al., ICLR 2017
                       for each step

The random function is SplitMix64: G. Steele, D. Lea and C. Flood, Fast splittable pseudorandom number generators,
OOPSLA 2014.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .spec import LayerSpec

_BLOCK = 1 << 14  # words that are mixed at a time, few enough to stay in the second-level cache


class StepMask(NamedTuple):
    """Bernoulli(p) mask over n units, per step and sequence.

    It is a function of seed and place alone: any part of it can be made at any time, and again, with the same result.
    p is rounded to a multiple of 2^-16 or, with 32 bits a unit, 2^-32.
    """

    seed: int
    p: float
    B: int
    n: int
    bits: int  # 16 or 32: how many random bits decide about a unit

    def at(self, steps: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """1 with probability p, uint8 (M, N, n): at time steps (M, 1) or (M, N), in batch rows (N,)."""
        words = -(-self.n * self.bits // 64)  # random words of 64 bits for one row
        happens = np.empty((len(steps), len(rows), self.n), np.uint8)
        size = max(1, _BLOCK // max(1, len(rows) * words))
        for i in range(0, len(steps), size):
            row = (steps[i : i + size] * self.B + rows).astype(np.uint64)[..., None]
            places = row * np.uint64(words) + np.arange(words, dtype=np.uint64)
            units = _mixed(places, self.seed).view(f"u{self.bits // 8}")[..., : self.n]
            np.less(units, round(self.p * 2**self.bits), out=happens[i : i + size].view(bool))
        return happens

    def whole(self, T: int) -> np.ndarray:
        """The mask of all steps and sequences, uint8 (T, B, n)."""
        return self.at(np.arange(T)[:, None], np.arange(self.B))


def _mixed(words: np.ndarray, seed: int) -> np.ndarray:
    """SplitMix64: the numbers at these places of the sequence that starts with the seed; overwrites `words`."""
    words *= np.uint64(0x9E3779B97F4A7C15)
    words += np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    words ^= words >> np.uint64(31)
    return words


class DropoutMasks(NamedTuple):
    """The masks of one layer and direction, in the order of time and of the caller's batch; None: nothing is dropped.

    A dropout mask holds 0 or 1 / (1 - p). A zoneout mask holds 1 where a unit keeps its old value. `draw` gives zoneout
    masks as a `StepMask`, and `at_all_steps` makes arrays of them.
    """

    x: np.ndarray | None = None  # (B, I)      for x(t), the same for both directions
    weight_hh: np.ndarray | None = None  # (G*H, P)    for W_hh
    h: np.ndarray | None = None  # (B, P)      for h(t-1) where it enters a product
    zoneout_h: Any = None  # (T, B, P)   uint8, or a StepMask
    zoneout_c: Any = None  # (T, B, H)   uint8, or a StepMask

    def at_all_steps(self, T: int) -> DropoutMasks:
        """These masks, with the zoneout masks as arrays of all steps."""
        h, c = (None if mask is None else mask.whole(T) for mask in (self.zoneout_h, self.zoneout_c))
        return self._replace(zoneout_h=h, zoneout_c=c)


NO_MASKS = DropoutMasks()


# What a pass drops: within each layer and direction, and of y behind each layer but the last
Drawn = tuple[list[list[DropoutMasks]], list[StepMask | None]]


def draw(spec: LayerSpec, B: int, rng: np.random.Generator | None) -> Drawn:
    """Draw the masks of a training pass; without a generator, as in inference, nothing is dropped."""
    L, nothing = spec.num_layers, [NO_MASKS] * spec.num_directions
    if rng is None:
        return [nothing] * L, [None] * (L - 1)
    masks = [_draw_within(spec, k, B, rng) if spec.has_dropout else nothing for k in range(L)]
    return masks, [_step_mask(spec.dropout, B, spec.merged_size, 32, rng) for _ in range(L - 1)]


def _draw_within(spec: LayerSpec, k: int, B: int, rng: np.random.Generator) -> list[DropoutMasks]:
    """Draw the masks of layer k, for each direction."""
    H, P, I = spec.hidden_size, spec.output_size, spec.layer_input_size(k)
    p_h, p_c = spec.zoneout
    x = _dropout_mask(spec, spec.input_dropout, (B, I), rng)
    return [
        DropoutMasks(
            x=x,
            weight_hh=_dropout_mask(spec, spec.weight_dropout, (spec.gates * H, P), rng),
            h=_dropout_mask(spec, spec.recurrent_dropout, (B, P), rng),
            zoneout_h=_step_mask(p_h, B, P, 16, rng),
            zoneout_c=_step_mask(p_c, B, H, 16, rng),
        )
        for _ in range(spec.num_directions)
    ]


def _step_mask(p: float, B: int, n: int, bits: int, rng: np.random.Generator) -> StepMask | None:
    return None if p == 0 else StepMask(int(rng.integers(1 << 63)), p, B, n, bits)


def scaled(dropped: np.ndarray, p: float, dtype: np.dtype, out: np.ndarray | None = None) -> np.ndarray:
    """The dropout mask that holds 0 where `dropped` (uint8) is 1, and 1 / (1 - p) elsewhere."""
    mask: np.ndarray = np.multiply(1 - dropped, dtype.type(0 if p == 1 else 1 / (1 - p)), out=out, dtype=dtype)
    return mask


def _dropout_mask(spec: LayerSpec, p: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray | None:
    """Draw a mask that is 0 with probability p, else 1 / (1 - p); None if p is zero."""
    if p == 0:
        return None
    dropped = rng.random(shape, dtype=np.float32) < p
    return scaled(dropped.view(np.uint8), p, spec.dtype)


def masked(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """array * mask; without a mask, the array itself."""
    return array if mask is None else array * mask

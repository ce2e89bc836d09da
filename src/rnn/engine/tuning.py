"""Where to cut work: numbers that were found by measurement, and affect nothing but speed and memory.

What they decide depends on the sizes of a problem alone, so results are the same bits for any number of threads.
"""

from __future__ import annotations

from .._core import WORTH_CUTTING as WORTH_CUTTING  # multiply-adds from which work is divided, see core/tasks.pxi

# One-hot input: below this size of W_ih, copying all of it is cheaper than finding the used columns
WORTH_COMPACTING = 1 << 16
# One-hot input: inference of at most so many rows reads the columns of W_ih in place
FEW_INDICES = 64

# Elements in one task of an optimiser's update, and of the norm of the gradient: some 100 µs of work, twice what it
# costs to hand a task to another thread
UPDATED = 1 << 18
SUMMED = 1 << 20

# `Linear.cross_entropy` holds so many logits at a time, few enough for a cache, or those of LEAST_ROWS_AT_ONCE rows if
# that is more, which keeps the products fast when there are many classes
LOGITS_AT_ONCE = 1 << 18
LEAST_ROWS_AT_ONCE = 512

# Packed rows whose saved activations `Tape.saved_activations` yields at a time
INSPECTED_ROWS = 1 << 12

_FULL_TILES = 12  # rows: a shard of so many fills the tiles
_LARGE_WEIGHTS = 1 << 18  # numbers: weights that are larger are better read for more rows at once
_HUGE_WEIGHTS, _MANY_TILES = 1 << 22, 64  # weights that are larger yet, and rows of a shard that repay to read them
# Steps times sequences of a shard: fewer do not repay that each shard adds up gradients alone, in arrays that are then
# added to the layer's, and is handed out.  Up to eight shards may have few; with more, these sums take up to a tenth of
# the time.
_LEAST_ROWS, _MANY_ROWS, _SOME_SHARDS = 256, 2048, 8


def shard_count(step_work: int, T: int, B: int) -> int:
    """The number of shards that a batch is divided into. step_work: multiply-adds of one step of one sequence."""
    if T * B * step_work < WORTH_CUTTING:
        return 1
    count = B // _FULL_TILES
    if step_work > _LARGE_WEIGHTS:
        count = max(min(2, count), B // (2 * _FULL_TILES))
    if step_work > _HUGE_WEIGHTS:
        count = B // _MANY_TILES
    count = min(count, max(min(_SOME_SHARDS, T * B // _LEAST_ROWS), T * B // _MANY_ROWS))
    return count - count % 2 if count > 1 else 1  # even, so that two threads get the same

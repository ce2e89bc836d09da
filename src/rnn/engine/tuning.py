"""Where to cut: numbers that were measured to be fast, and decide nothing but speed and memory.

They depend on the sizes of a problem alone, never on the number of threads: so the results are the same bits for any.
"""

from __future__ import annotations

from .._core import WORTH_CUTTING as WORTH_CUTTING  # multiply-adds from which work is divided, see core/tasks.pxi

# One-hot input: where all of W_ih is fewer numbers than this, copying it is cheaper than finding the used columns;
WORTH_COMPACTING = 1 << 16
# and an inference of so few rows takes the columns from where they are
FEW_INDICES = 64

# Elements of an optimiser's task: some 100 µs of work, twice what it costs to hand a task to another thread
UPDATED = 1 << 18
SUMMED = 1 << 20

# Logits that `Linear.cross_entropy` holds at once, few enough for a cache; or, with many classes, those of rows enough
# to keep the products fast
LOGITS_AT_ONCE = 1 << 18
LEAST_ROWS_AT_ONCE = 512

# Rows whose saved activations are looked at together
INSPECTED_ROWS = 1 << 12

_FULL_TILES = 16  # rows of a shard that fill the tiles
_LARGE_WEIGHTS = 1 << 18  # numbers: better read for more rows at once
_MOST_SHARDS = 8


def shard_count(step_work: int, T: int, B: int) -> int:
    """How many shards a batch is divided into. step_work: multiply-adds of a step of one sequence."""
    if T * B * step_work < WORTH_CUTTING:
        return 1
    count = B // _FULL_TILES
    if step_work > _LARGE_WEIGHTS:
        count = max(min(2, count), B // (2 * _FULL_TILES))
    return max(1, min(_MOST_SHARDS, count))

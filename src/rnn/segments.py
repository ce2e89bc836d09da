"""How much of a forward pass is kept for its backward pass: all, or so little that backward runs forward again.

    checkpoint=None      the tape of every step: four arrays of y's size for a GRU, five for an LSTM, none for an RNN
    checkpoint=n         the states at the borders of n segments of steps; backward makes the tape of one at a time
    checkpoint="auto"    as many segments as cost little time and little memory
    memory_limit=bytes   no more segments than it takes to stay below

h(t) is in y, which the caller holds anyway, so that c of an LSTM is all that is kept at a border.  The gradients are
the same bits each way: see (E) at the head of `_core.pyx`.

Source: A. Gruslys et al., Memory-efficient backpropagation through time, NIPS 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .checks import positive_int


@dataclass(frozen=True, slots=True)
class Kept:
    """What the caller asked for, checked."""

    count: int | None  # of segments: 0, one tape of all steps; None: "auto"
    limit: int | None  # bytes of all scans together, which then decides in place of the count

    @classmethod
    def checked(cls, checkpoint: Any, memory_limit: Any) -> Kept:
        """Raises TypeError or ValueError for anything but the arguments of `forward`."""
        if isinstance(checkpoint, str) and checkpoint != "auto":
            raise ValueError(f"expected checkpoint to be a number of segments, 'auto' or None, got {checkpoint!r}")
        count = 0 if checkpoint is None else None if checkpoint == "auto" else positive_int("checkpoint", checkpoint)
        if memory_limit is None:
            return cls(count, None)
        if count:
            raise ValueError(f"expected checkpoint or memory_limit, got both: {checkpoint} and {memory_limit}")
        return cls(count, positive_int("memory_limit", memory_limit))

    def segments(self, scan: Any, scans: int) -> int:
        """For one of so many scans that divide the limit between them: its number of segments, 0 for a whole tape."""
        if self.limit is None:
            count: int = scan.usual_count if self.count is None else self.count
            return count
        count, tried = 0, []
        while (needed := scan.memory(count)) * scans > self.limit:
            tried.append(needed)
            if count >= scan.total:
                raise ValueError(f"expected memory_limit of at least {min(tried) * scans} bytes, got {self.limit}")
            count = max(2, 2 * count)
        return count

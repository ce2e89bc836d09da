"""The forward pass through all layers and directions: `Forward`.

    each layer through all steps, then the next           each direction and shard is a `_core.LayerPass`
      or pipelined, each layer a step behind the one below    for a batch too small to be divided, on several threads
    all layers through one segment of steps at a time     `CheckpointedStack`, if checkpoints were asked for

Shards, directions and layers run on the threads of `parallel`. What happens between layers is done here: directions are
merged (`merging`) and dropout is applied (`dropout`). A training pass fills a `Tape` for `backward_pass`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from . import parallel, tuning
from .checkpointing import CheckpointedStack, CheckpointPolicy
from .dropout import NO_MASKS, DropoutMasks, draw, masked, scaled
from .inputs import Batch, checked_state, user_state
from .merging import merged, views
from .spec import Arrays, DirectionArrays, LayerSpec, State
from .stack_weights import stack_weights
from .tape import Tape


class Forward:
    """One forward pass: `run` takes all layers, directions and shards through it.

    tape: filled for the backward pass; None: inference.  rng: what dropout is drawn from; None: nothing is dropped.
    packed: the weights, packed before, for inference.
    """

    def __init__(
        self,
        spec: LayerSpec,
        weights: Arrays,
        batch: Batch,
        state: State,
        tape: Tape | None = None,
        rng: np.random.Generator | None = None,
        packed: _core.StackWeights | None = None,
    ) -> None:
        self.spec, self.batch, self.tape, self.packed = spec, batch, tape, packed
        self.initial = checked_state(spec, state, batch.B, batch.unbatched)
        self.final = tuple([np.empty_like(array) for array in self.initial])
        if batch.one_hot and packed is None and (tape is not None or batch.x.size > tuning.FEW_INDICES):
            batch.compact_indices(spec.input_size, spec.gates * spec.hidden_size)
        self.masks, self.between = draw(spec, batch.B, rng)
        self.weights = _masked_weights(weights, self.masks) if spec.weight_dropout and rng is not None else weights
        self.pipelined = is_pipelined(spec, batch, rng is not None)
        self.packed_once: dict[int, _core.StackWeights] = {}  # by layer and direction
        self.waiting: list[Any] = []  # layer passes and stacks of a pipeline, which start together

    def run(self) -> tuple[np.ndarray, State]:
        """Return y and the final states in the caller's layout."""
        y = self._through_stacks() if self._keeps_little() else self._by_layers()
        return self.batch.user_layout(self.spec, y), user_state(self.final, self.batch.unbatched)

    # ------------------------------------------------------------ each layer through all steps

    def _by_layers(self) -> np.ndarray:
        """Run one layer after the other, or all as a pipeline; return y of the last."""
        if self.tape is not None:
            self.tape.is_pipelined = self.pipelined
        y = self.batch.x
        for k in range(self.spec.num_layers):
            y = self._through(k, y)
        return y

    def _through(self, k: int, x: np.ndarray) -> np.ndarray:
        """Take x through layer k; return what the layer above reads."""
        spec, tape, masks = self.spec, self.tape, self._masks_at_all_steps(k)
        is_last = k == spec.num_layers - 1
        x, y = masked(x, masks[0].x), self._new_output(is_last)
        outputs = views(y, spec.num_directions)
        passes = [
            self._layer_pass(shard, k, d, x, y, masks[d]) for d, y in enumerate(outputs) for shard in self.batch.shards
        ]
        stacks = [] if tape is None else self._saved(x, passes, tape.policy)
        self._start(passes, stacks, is_last)
        y = merged(y, outputs, spec.merge)
        mask = None if is_last else self._mask_behind(k)
        if tape is not None:
            tape.layer_passes.append(passes)
            tape.stacks.append(stacks)
            tape.inputs.append(x)
            tape.outputs.append(outputs if spec.merge == "mul" else [])
            tape.between.append(mask)
            tape.masks.append(masks)
        return masked(y, mask)

    def _masks_at_all_steps(self, k: int) -> list[DropoutMasks]:
        masks = self.masks[k]
        return masks if masks[0] is NO_MASKS else [each.at_all_steps(self.batch.T) for each in masks]

    def _mask_behind(self, k: int) -> np.ndarray | None:
        mask = self.between[k]
        return None if mask is None else scaled(self.batch.rows_of(mask), mask.p, self.spec.dtype)

    def _saved(
        self, x: np.ndarray, passes: list[_core.LayerPass], policy: CheckpointPolicy
    ) -> list[CheckpointedStack | None]:
        """For each layer pass its checkpointed stack, or None: then it has been told to save all activations."""
        stacks: list[CheckpointedStack | None] = [None] * len(passes)
        if not policy.keeps_all and self.spec.num_directions == 2:
            stacks = [_stack_of_one(each, x, policy, len(passes) * self.spec.num_layers) for each in passes]
        for layer_pass, stack in zip(passes, stacks, strict=True):
            if stack is None:
                layer_pass.save()
        return stacks

    def _start(self, passes: list[_core.LayerPass], stacks: list[CheckpointedStack | None], is_last: bool) -> None:
        """Run the layer passes, or stacks, of one layer; in a pipeline they wait until the last layer starts all."""
        if self.waiting:
            passes[0].follow(self.waiting[-1])
        self.waiting += [stack or each for each, stack in zip(passes, stacks, strict=True)] if stacks else passes
        if is_last or not self.pipelined:
            parallel.run_passes([each.forward for each in self.waiting], self.waiting[0], "forward")
            self.waiting = []

    # ------------------------------------------------------------ all layers a segment of steps at a time

    def _keeps_little(self) -> bool:
        """Whether all layers may go through segments together: in training with checkpoints, in one direction."""
        return self.tape is not None and not self.tape.policy.keeps_all and self.spec.num_directions == 1

    def _through_stacks(self) -> np.ndarray:
        """Run a checkpointed stack for each shard, or `_by_layers` if none needs segments; return y of the last."""
        tape, y = self.tape, self._new_output(True)
        assert tape is not None
        stacks = [self._stack(shard, y) for shard in self.batch.shards]
        counts = [tape.policy.segments(stack, len(stacks)) for stack in stacks]
        if not any(counts):
            return self._by_layers()
        for stack, count in zip(stacks, counts, strict=True):
            stack.divide(count or 2)
        parallel.run([stack.forward for stack in stacks])
        L = self.spec.num_layers
        tape.is_stacked, tape.masks, tape.inputs = True, self.masks, [self.batch.x]
        tape.layer_passes = [[stack.layer_passes[k] for stack in stacks] for k in range(L)]
        tape.stacks, tape.between, tape.outputs = [list(stacks)] * L, [None] * L, [[]] * L
        return y

    def _stack(self, shard: _core.PackedBatch, y: np.ndarray) -> CheckpointedStack:
        """The checkpointed stack of one shard through all layers: the first reads x, the last writes y."""
        x, last, masks = self.batch.x, self.spec.num_layers - 1, [each for (each,) in self.masks]
        passes = [
            self._layer_pass(
                shard, k, 0, None if k else x, y if k == last else None, each._replace(zoneout_h=None, zoneout_c=None)
            )
            for k, each in enumerate(masks)
        ]
        return CheckpointedStack(passes, x, masks, self.between, alone=len(self.batch.shards) == 1)

    # ------------------------------------------------------------ what both ways share

    def _new_output(self, is_last: bool) -> np.ndarray:
        """A new y (T, B, D*P), or (N, D*P), of a layer; for the last layer a view of memory in the caller's layout."""
        spec, T, B = self.spec, self.batch.T, self.batch.B
        width = spec.num_directions * spec.output_size
        if self.batch.batch_sizes is not None:
            return _core.new_array((len(self.batch.x), width), spec.dtype)
        if is_last and spec.batch_first:
            return _core.new_array((B, T, width), spec.dtype).swapaxes(0, 1)
        return _core.new_array((T, B, width), spec.dtype)

    def _layer_pass(
        self, shard: _core.PackedBatch, k: int, d: int, x: np.ndarray | None, y: np.ndarray | None, masks: DropoutMasks
    ) -> _core.LayerPass:
        """The pass of a shard through layer k in direction d."""
        spec, at = self.spec, k * self.spec.num_directions + d
        return _core.LayerPass(
            spec.cell.number, spec.is_double, self.weights[at], spec.kernel_options, shard, at, spec.runs_backwards(d),
            x, y, self.initial, self.final, self.batch.reset, masks, *self._packed_weights(at),
        )  # fmt: skip

    def _packed_weights(self, at: int) -> tuple[_core.StackWeights | None, int]:
        """Those of layer and direction `at`, and their number in them: what the caller gave, or, where several shards
        read them, packed here once for all. None: each layer pass packs its own, or reads them as they are."""
        if self.packed is not None:
            return self.packed, at
        if len(self.batch.shards) == 1 or self.batch.one_hot:
            return None, 0
        if at not in self.packed_once:
            self.packed_once[at] = stack_weights(self.spec, [self.weights[at]], self.spec.dtype.name)
        return self.packed_once[at], 0


def is_pipelined(spec: LayerSpec, batch: Batch, training: bool) -> bool:
    """Whether the layers run at the same time, each a step behind the one below.

    They do if the batch is too small to be divided, the work is large enough, and each step needs only the steps before
    it. They do not in training with dropout: a mask between layers is applied to all steps at once, and with zoneout a
    recomputed y differs from its final value for a moment.
    """
    if spec.num_layers == 1 or spec.num_directions == 2 or len(batch.shards) > 1:
        return False
    if training and (spec.dropout or spec.has_dropout):
        return False
    return batch.T * batch.B * spec.step_work >= tuning.WORTH_CUTTING


def _stack_of_one(
    layer_pass: _core.LayerPass, x: np.ndarray, policy: CheckpointPolicy, stacks: int
) -> CheckpointedStack | None:
    """The checkpointed stack of a single layer pass, divided into segments; None if all its activations are saved.

    stacks: how many stacks share the limit of the policy.
    """
    stack = CheckpointedStack([layer_pass], x, [NO_MASKS], [], alone=False)
    count = policy.segments(stack, stacks)
    if count == 0:
        return None
    stack.divide(count)
    return stack


def _masked_weights(weights: Arrays, masks: list[list[DropoutMasks]]) -> list[DirectionArrays]:
    """The weights of all layers and directions, with W_hh masked."""
    drawn = [each.weight_hh for directions in masks for each in directions]
    return [
        (ih, hh if hh is None else masked(hh, mask), *rest)
        for (ih, hh, *rest), mask in zip(weights, drawn, strict=True)
    ]

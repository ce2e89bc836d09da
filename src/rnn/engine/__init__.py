"""How a call of a recurrent layer runs: through its layers, its directions and the shards of its batch.

passes                infer, forward, backward: over arrays, for a LayerSpec (spec)
stack_weights         weights as the kernels take them, packed once if they are to be kept; small calls on these alone
  |
forward_pass ------ tape ------ backward_pass       through all layers; nonfinite searches along a tape
  |   |   |                       |   |   |
  |   |   checkpointing: CheckpointedStack, which saves one segment at a time and recomputes it in backward
  |   parallel: shards, directions and layers on several threads, cut where tuning says
  |
inputs: checks and layouts      merging: of two directions      dropout: masks, drawn before a pass
  |
_core: PackedBatch, LayerPass: the loops over time steps

docs/architecture.md follows one training step through all of these, and explains the words.
"""

from .passes import backward, forward, infer
from .spec import ARRAYS, Arrays, DirectionArrays, LayerSpec, State
from .stack_weights import small_inference, stack_weights
from .tape import Tape

__all__ = [
    "ARRAYS",
    "Arrays",
    "DirectionArrays",
    "LayerSpec",
    "State",
    "Tape",
    "backward",
    "forward",
    "infer",
    "small_inference",
    "stack_weights",
]

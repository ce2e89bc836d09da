"""Training: loops, checkpoints from which a run resumes bitwise identically, a search for values that are not finite.

trainer       Trainer: what `LanguageModel.fit` runs; DivergedError
  |  |
  |  checkpoint    save_checkpoint, load_checkpoint: one file, replaced as a whole or not at all
  history          History: losses, rates and norms of a run, as lists, CSV and a picture
truncated     tbptt: truncated BPTT, a loop for networks of your own

first_nonfinite   where the first NaN or infinity of a pass arose
"""

from ..engine.nonfinite import NonFinite, first_nonfinite
from .checkpoint import load_checkpoint, save_checkpoint
from .history import History
from .trainer import DivergedError, Trainer
from .truncated import Update, tbptt

__all__ = [
    "DivergedError",
    "History",
    "NonFinite",
    "Trainer",
    "Update",
    "first_nonfinite",
    "load_checkpoint",
    "save_checkpoint",
    "tbptt",
]

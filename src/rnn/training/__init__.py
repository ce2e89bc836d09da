"""Training: loops, checkpoints that a training resumes from with the same bits, and the search for what went wrong.

trainer       Trainer: what `LanguageModel.fit` runs; DivergedError
  |  |
  |  checkpoint    save_checkpoint, load_checkpoint: one file, replaced as a whole
  history          History: what happened, as lists, CSV and a picture
truncated     tbptt: truncated BPTT for networks of one's own

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

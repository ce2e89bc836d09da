"""Optimisers with torch's formulas, names and defaults; schedules of the learning rate; clipping of the gradient.

adam = Adam([layer, head], lr=WarmUp(Cosine(1e-2, steps=900), steps=100))
norm = adam.step(max_norm=1.0)      updates all parameters, by the clipped gradient

algorithms    SGD, Adam, AdamW, RMSprop: their options, and the update of one piece of the flat arrays
    |
base          Optimizer: groups, steps, state; clip_grad_norm
    |
schedules     Cosine, StepDecay, WarmUp: the learning rate as a function of the number of steps
"""

from .algorithms import SGD, Adam, AdamW, RMSprop
from .base import Optimizer, clip_grad_norm
from .schedules import Cosine, Schedule, StepDecay, WarmUp

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Cosine",
    "Optimizer",
    "RMSprop",
    "Schedule",
    "StepDecay",
    "WarmUp",
    "clip_grad_norm",
]

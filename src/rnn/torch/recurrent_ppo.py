"""`accelerate_recurrent_ppo`: policies of sb3-contrib's RecurrentPPO whose sequences run here, each in one call.

Where an episode starts anywhere in a batch, the policy's own `_process_sequence` walks through the time steps in
Python, with a call of the LSTM and two products with its states for each.  sb3-contrib's buffers cut sequences where
episodes start, so that nearly every batch of an update has such a start, and all starts are at first steps; sequences
of any other source may have them anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .modules import LSTM
from .swap import accelerate

__all__ = ["accelerate_recurrent_ppo"]

Model = TypeVar("Model")


def accelerate_recurrent_ppo(model: Model) -> Model:
    """Let the LSTMs of a RecurrentPPO, or of its policy, run here, and return it; its policy is changed in place.

    >>> from sb3_contrib import RecurrentPPO
    >>> from fastrnn.torch import accelerate_recurrent_ppo
    >>> model = accelerate_recurrent_ppo(RecurrentPPO("MlpLstmPolicy", "CartPole-v1", device="cpu"))
    >>> type(model.policy.lstm_actor)
    <class 'fastrnn.torch.modules.LSTM'>

    Beside what `accelerate` does to the policy, its `_process_sequence` makes one call where sb3-contrib's makes one
    for each time step.  The results are the same but for rounding, and for which elements are dropped between layers
    of an LSTM with dropout.  Parameters, the optimiser and the class of the policy are not touched, nor is
    sb3_contrib: other policies run as ever.  What cannot run here, as under autocast or on another device, torch's
    LSTM computes, in sb3-contrib's loop where need be.

    What `model.save` writes is the same as without fastrnn, and loads without it.  `RecurrentPPO.load` makes a new
    policy, for which this is to be called again; after `set_parameters` it is not.  A deepcopy or a pickle of the
    policy runs here like the policy; the pickle needs fastrnn.  After `restore(model.policy)` sb3-contrib's loop
    runs again.

    Raises TypeError for anything else, also for a policy that has a `_process_sequence` of its own; ImportError where
    sb3_contrib is not installed.
    """
    policy, theirs = _policy(model), _their_process_sequence()
    if policy._process_sequence not in (theirs, process_sequence):
        raise TypeError(
            f"expected a policy with the _process_sequence of sb3_contrib, got {type(policy).__name__} with another; "
            "accelerate(policy) lets its LSTMs alone run here"
        )
    accelerate(policy)
    policy._process_sequence = process_sequence  # of this object; found before the static method of its class
    return model


def process_sequence(
    features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Any
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What `_process_sequence` of sb3_contrib returns: (y (B·T, H), (h, c)), sequence after sequence.

    features: (B·T, I).   lstm_states: (h, c), each (L, B, H).   episode_starts: (B·T,), of ones and zeros.
    """
    if not _runs_in_one(lstm):
        return _their_process_sequence()(features, lstm_states, episode_starts, lstm)
    B = lstm_states[0].shape[1]
    x = features.reshape(B, -1, lstm.input_size).swapaxes(0, 1)  # (T, B, I)
    starts = episode_starts.reshape(B, -1).swapaxes(0, 1)  # (T, B)
    state, reset = lstm_states, None
    if starts.any():
        keep = 1.0 - starts[0].to(state[0].dtype).view(1, B, 1)
        state = keep * state[0], keep * state[1]
        if starts[1:].any():
            reset = starts.bool()
            if not torch.equal(starts, reset.to(starts.dtype)):  # a state is to be scaled
                return _their_process_sequence()(features, lstm_states, episode_starts, lstm)
    try:
        y, final = lstm(x, state, reset=reset)
    except (NotImplementedError, TypeError, ValueError):  # it raises sb3-contrib's own error, or runs
        return _their_process_sequence()(features, lstm_states, episode_starts, lstm)
    return y.swapaxes(0, 1).flatten(0, 1), final


def _runs_in_one(lstm: Any) -> bool:
    """Whether steps of this LSTM, one by one, are the same as one call, and that takes a reset."""
    forward = getattr(lstm.forward, "__func__", None)
    return forward is LSTM.forward and not lstm.bidirectional and not lstm.batch_first


def _policy(model: Any) -> Any:
    """The policy of a RecurrentPPO, or the argument if it is one; raises TypeError."""
    sb3_contrib, kind = _sb3_contrib()
    policy = getattr(model, "policy", None) if isinstance(model, sb3_contrib.RecurrentPPO) else model
    if not isinstance(policy, kind):
        got = type(model).__name__ if policy is model else f"one whose policy is a {type(policy).__name__}"
        raise TypeError(f"expected a RecurrentPPO of sb3_contrib or its policy, a {kind.__name__}, got {got}")
    return policy


def _their_process_sequence() -> Callable[..., Any]:
    return _sb3_contrib()[1]._process_sequence


def _sb3_contrib() -> tuple[Any, Any]:
    """The package, and its class of recurrent policies: imported when they are needed, not with fastrnn.torch."""
    try:
        import sb3_contrib
        from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    except ImportError as error:
        raise ImportError(f"expected sb3_contrib to be installed (pip install sb3-contrib), got: {error}") from error
    return sb3_contrib, RecurrentActorCriticPolicy

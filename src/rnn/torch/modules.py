"""RNN, GRU, LSTM and their cells: torch's modules whose calls run here where they can and as torch's do elsewhere.

A module is torch's in all but `forward`.  It owns torch's Parameters and looks them up at each call, so whatever
replaces them is seen; errors for wrong input are torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .autograd import evaluated, one_or_pair
from .call import Call
from .compiled import can_be_compiled, described, never_traced, recurrence
from .plain import NotHere, check_autocast, check_input, check_plain, check_surroundings
from .weights import KNOWN, known_weights, torch_spec

__all__ = ["GRU", "LSTM", "NOT_COPIED", "REASON", "RNN", "Accelerated", "GRUCell", "LSTMCell", "RNNCell"]

# Attributes of a module that are not copied with it: its `Weights`, and why torch ran the last call that it ran
REASON = "_fastrnn_reason"
NOT_COPIED = (KNOWN, REASON)


def checked_states(hx: Any, two: bool) -> Sequence[Any]:
    """The states that hx holds; raises NotHere for another number of them."""
    if hx is None:
        return ()
    several = isinstance(hx, tuple | list)
    if several != two or (several and len(hx) != 2):
        raise NotHere(f"the states are a {type(hx).__name__}")
    return hx if several else (hx,)


class Accelerated:
    """What the modules here add to torch's."""

    _plain: type  # torch's class
    _is_fastrnn = True  # for `compiled`

    def _weight_names(self) -> Sequence[str]:
        raise NotImplementedError

    def _own_weights(self: Any) -> list[Tensor]:
        """The parameters, or what stands in their place, as they are now."""
        get, found = self._parameters.get, []
        for name in self._weight_names():
            weight = get(name)
            found.append(getattr(self, name) if weight is None else weight)
        return found

    def _torch_runs(self: Any, why: Exception, input: Any, hx: Any) -> Any:
        """What torch's own `forward` returns, or the error that it raises."""
        self.__dict__[REASON] = str(why)
        return super().forward(input, hx)  # type: ignore[misc]

    def _apply(self: Any, *args: Any, **options: Any) -> Any:
        """As torch's, which moves and converts parameters; arrays of the old ones are not kept."""
        self.__dict__.pop(KNOWN, None)
        return super()._apply(*args, **options)  # type: ignore[misc]

    def __getstate__(self: Any) -> Any:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]  # RNNBase has one of its own
        return {name: value for name, value in state.items() if name not in NOT_COPIED}

    def __prepare_scriptable__(self: Any) -> Any:
        """For torch.jit.script: the same as a module of torch's class."""
        plain = self._plain.__new__(self._plain)
        plain.__dict__.update(self.__getstate__() | {"_flat_weight_refs": self.__dict__.get("_flat_weight_refs")})
        return plain


class _Layer(Accelerated):
    """`forward` of RNN, GRU and LSTM."""

    def _weight_names(self: Any) -> Any:
        return self._flat_weights_names

    def forward(self: Any, input: Any, hx: Any = None, *, reset: Tensor | None = None) -> Any:
        """As the module of torch does.

        reset: bool, of the input's first two axes, (T,) for unbatched input: where True, the states of that sequence
        are set to zero before that step, as between the episodes of a reinforcement-learning rollout; of two
        directions, before that step in the order in which the direction runs.
        Raises what torch's module raises; TypeError or ValueError for a wrong reset, NotImplementedError for one
        beside a packed input or where torch's own operators would have to run.
        """
        if torch.compiler.is_compiling():
            return self._compiled(input, hx, reset)
        return self._eager(input, hx, reset)

    @never_traced
    def _eager(self: Any, input: Any, hx: Any, reset: Any) -> Any:
        try:
            check_surroundings()
            check_autocast()
            packed = isinstance(input, PackedSequence)
            x, batch_sizes, order, back = input if packed else (input, None, None, None)
            states = checked_states(hx, self.mode == "LSTM")
            check_input(x)
            if order is not None:
                check_plain(states)
                states = [state.index_select(1, order) for state in states]
            y, *finals = self._outputs(x, states, batch_sizes, reset)
        except (NotHere, TypeError, ValueError) as why:
            if reset is None:
                return self._torch_runs(why, input, hx)
            if isinstance(why, NotHere):
                self.__dict__[REASON] = str(why)
                raise NotImplementedError(f"expected a call that can run here beside reset=, but {why}") from None
            raise
        if packed:
            y = PackedSequence(y, batch_sizes, order, back)
            finals = finals if back is None else [final.index_select(1, back) for final in finals]
        return y, one_or_pair(finals)

    def _outputs(self: Any, x: Tensor, states: Sequence[Tensor], batch_sizes: Tensor | None, reset: Any) -> Any:
        """(y, *final states) of padded or packed x; raises NotHere."""
        L, D, bias = self.num_layers, 2 if self.bidirectional else 1, self.bias
        drops = self.training and self.dropout > 0 and L > 1
        spec, layout = torch_spec(
            self.mode, self.input_size, self.hidden_size, L, D, self.proj_size, bias, x.dtype,
            self.dropout if drops else 0.0,
        )  # fmt: skip
        weights = self._own_weights()
        known = known_weights(self, spec, layout, weights)
        batch_first = self.batch_first and batch_sizes is None and x.dim() == 3
        call = Call(
            spec, layout, "batch first" if batch_first else "engine", self.mode.lower(), bias, len(states),
            batch_sizes, None, None if reset is None else _reset_array(reset, x, batch_sizes, batch_first),
            int(torch.randint(1 << 62, (), device="cpu")) if drops else None,
        )  # fmt: skip
        return evaluated(call, known, (x, *states), weights)

    def _compiled(self: Any, input: Any, hx: Any, reset: Any) -> Any:
        """The call as a graph holds it: as one operator, or as torch's where that cannot be."""
        states = [] if hx is None else [*hx] if isinstance(hx, tuple | list) else [hx]
        if not can_be_compiled(input, states, self.weight_ih_l0, self.mode == "LSTM"):
            if not torch.compiler.is_exporting():
                return self._eager(input, hx, reset)
            if reset is not None:
                raise NotImplementedError("expected no reset= where torch's own operator is exported or compiled")
            return super().forward(input, hx)  # type: ignore[misc]
        drops = self.training and self.dropout > 0 and self.num_layers > 1
        form = "batch first" if self.batch_first and input.dim() == 3 else "engine"
        weights = [getattr(self, name) for name in self._flat_weights_names]
        seed = torch.randint(1 << 62, (), device="cpu") if drops else None
        what = described(self.mode, self.bidirectional, self.bias, self.proj_size > 0, form)
        y, h, c, _ = recurrence(input, states, weights, reset, seed, self.dropout if drops else 0.0, what)
        return y, (h, c) if self.mode == "LSTM" else h


def _reset_array(reset: Any, x: Tensor, batch_sizes: Tensor | None, batch_first: bool) -> np.ndarray:
    """reset as the engine takes it."""
    if batch_sizes is not None:
        raise NotImplementedError("expected a padded input beside reset=, got a PackedSequence")
    if not isinstance(reset, Tensor) or reset.dtype is not torch.bool:
        came = reset.dtype if isinstance(reset, Tensor) else f"a {type(reset).__name__}"
        hint = "; reset.bool() converts it" if isinstance(reset, Tensor) else ""
        raise TypeError(f"expected reset as a tensor of torch.bool, got {came}{hint}")
    if reset.shape != x.shape[:-1]:
        raise ValueError(f"expected reset of shape {tuple(x.shape[:-1])}, got {tuple(reset.shape)}")
    array: np.ndarray = reset.cpu().numpy().copy()  # the caller may use the mask again before backward
    return array.swapaxes(0, 1) if batch_first else array


class RNN(_Layer, torch.nn.RNN):
    """torch.nn.RNN on fastrnn's kernels."""

    _plain = torch.nn.RNN


class GRU(_Layer, torch.nn.GRU):
    """torch.nn.GRU on fastrnn's kernels."""

    _plain = torch.nn.GRU


class LSTM(_Layer, torch.nn.LSTM):
    """torch.nn.LSTM on fastrnn's kernels."""

    _plain = torch.nn.LSTM


class _Cell(Accelerated):
    """`forward` of RNNCell, GRUCell and LSTMCell: one step of one layer."""

    def _weight_names(self: Any) -> tuple[str, ...]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return names if self.bias else names[:2]

    @property
    def _mode(self) -> str:
        raise NotImplementedError

    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        """As the module of torch does."""
        if torch.compiler.is_compiling():
            return self._compiled(input, hx)
        return self._eager(input, hx)

    @never_traced
    def _eager(self: Any, input: Any, hx: Any) -> Any:
        try:
            check_surroundings()
            check_autocast()
            states = checked_states(hx, self._mode == "LSTM")
            check_input(input)
            mode, bias, weights = self._mode, self.bias, self._own_weights()
            spec, layout = torch_spec(mode, self.input_size, self.hidden_size, 1, 1, 0, bias, input.dtype, 0.0)
            known = known_weights(self, spec, layout, weights)
            call = Call(spec, layout, "cell", mode.lower(), bias, len(states))
            return one_or_pair(evaluated(call, known, (input, *states), weights))
        except (NotHere, TypeError, ValueError) as why:
            return self._torch_runs(why, input, hx)

    def _compiled(self: Any, input: Any, hx: Any) -> Any:
        """The call as a graph holds it: as one operator, or as torch's where that cannot be."""
        states = [] if hx is None else [*hx] if isinstance(hx, tuple | list) else [hx]
        if not can_be_compiled(input, states, self.weight_ih, self._mode == "LSTM"):
            if not torch.compiler.is_exporting():
                return self._eager(input, hx)
            return super().forward(input, hx)  # type: ignore[misc]
        weights = [getattr(self, name) for name in self._weight_names()]
        what = described(self._mode, False, self.bias, False, "cell")
        _, h, c, _ = recurrence(input, states, weights, None, None, 0.0, what)
        return (h, c) if self._mode == "LSTM" else h


class RNNCell(_Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell on fastrnn's kernels."""

    _plain = torch.nn.RNNCell

    @property
    def _mode(self) -> str:
        return f"RNN_{self.nonlinearity.upper()}"


class GRUCell(_Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell on fastrnn's kernels."""

    _plain = torch.nn.GRUCell
    _mode = "GRU"


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell on fastrnn's kernels."""

    _plain = torch.nn.LSTMCell
    _mode = "LSTM"

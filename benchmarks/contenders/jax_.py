"""JAX: jitted lax.scan with the input product hoisted out of it; weights are constants of the inference function.

Training is the jitted vjp with dy given; ragged training masks the steps beyond a length, for JAX packs nothing.
Weights are kept as (inputs, gates), which is how JAX's own libraries keep them.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contenders import Entry, Unsupported
from shapes import Problem

State = tuple[Any, ...]
Params = dict[str, Any]


class Contender:
    version = jax.__version__

    def __init__(self, threads: int) -> None:
        # XLA sizes its thread pool by NPROC; its flag takes the threads away from single products.
        os.environ["NPROC"] = str(threads)
        if threads == 1:
            os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)  # all arrays here have explicit dtypes
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # no hand-over to another thread: lower latency

    def entries(self, problem: Problem) -> list[Entry]:
        if problem.directions == 2:
            raise Unsupported("JAX is compared in one direction")
        return [_training(problem) if problem.training else _inference(problem)]


def _rnn(params: Params, projected: Any, state: State) -> State:
    return (jnp.tanh(projected + state[0] @ params["weight_hh_l0"]),)


def _gru(params: Params, projected: Any, state: State) -> State:
    (h,) = state
    xr, xz, xn = jnp.split(projected, 3, axis=-1)
    hr, hz, hn = jnp.split(h @ params["weight_hh_l0"] + params["bias_hh_l0"], 3, axis=-1)
    r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    n = jnp.tanh(xn + r * hn)
    return (n + z * (h - n),)


def _lstm(params: Params, projected: Any, state: State) -> State:
    h, c = state
    i, f, g, o = jnp.split(projected + h @ params["weight_hh_l0"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


_STEPS = {"rnn": _rnn, "gru": _gru, "lstm": _lstm}


def _forward(cell: str, params: Params, x: Any, state: State, mask: Any | None = None) -> tuple[Any, State]:
    """x (T,B,I), state (B,H) each, mask (T,B,1) -> y (T,B,H), final state."""
    bias = params["bias_ih_l0"] + (0 if cell == "gru" else params["bias_hh_l0"])
    projected = x @ params["weight_ih_l0"] + bias

    def step(state: State, given: Any) -> tuple[State, Any]:
        projected, inside = given
        new = _STEPS[cell](params, projected, state)
        if inside is None:
            return new, new[0]
        new = tuple(jnp.where(inside, after, before) for after, before in zip(new, state, strict=True))
        return new, jnp.where(inside, new[0], 0)

    if x.shape[0] == 1 and mask is None:
        state, y = step(state, (projected[0], None))
        return y[None], state
    state, y = jax.lax.scan(step, state, (projected, mask))
    return y, state


def _params(problem: Problem) -> Params:
    return {name: jnp.asarray(np.ascontiguousarray(array.T)) for name, array in problem.params.items()}


def _zeros(problem: Problem) -> State:
    return tuple(jnp.zeros((problem.shape.B, problem.shape.H), problem.dtype) for _ in problem.states)


def _named(problem: Problem, y: Any, state: State) -> dict[str, np.ndarray]:
    final = {name: np.asarray(s).reshape(1, *s.shape[-2:]) for name, s in zip(problem.states, state, strict=True)}
    return {"y": np.asarray(y), **final}


def _inference(problem: Problem) -> Entry:
    params = _params(problem)

    def outputs(result: Any) -> dict[str, np.ndarray]:
        return _named(problem, *result)

    if problem.state is not None:

        @jax.jit
        def step(x: Any, state: State) -> Any:
            y, final = _forward(problem.cell, params, x, tuple(s[0] for s in state))
            return y, tuple(s[None] for s in final)

        x, state = problem.x, tuple(problem.state.values())
        return Entry(lambda: jax.tree.map(np.asarray, step(x, state)), outputs)

    zeros, given = _zeros(problem), jnp.asarray(problem.x)
    function = jax.jit(lambda x: _forward(problem.cell, params, x, zeros))
    return Entry(lambda: jax.block_until_ready(function(given)), outputs)


def _training(problem: Problem) -> Entry:
    ragged = problem.kind == "ragged"
    mask = jnp.asarray(problem.mask[:, :, None]) if ragged else None

    @jax.jit
    def function(params: Params, x: Any, mask: Any, dy: Any) -> Any:
        zeros = _zeros(problem)
        y, vjp, state = jax.vjp(lambda p, x: _forward(problem.cell, p, x, zeros, mask), params, x, has_aux=True)
        return y, state, *vjp(dy)

    params, x, dy = _params(problem), jnp.asarray(problem.x), jnp.asarray(problem.dy)

    def outputs(result: Any) -> dict[str, np.ndarray]:
        y, state, dparams, dx = result
        grads = {name: np.asarray(grad).T for name, grad in dparams.items()}
        return _named(problem, y, state) | {"dx": np.asarray(dx)} | grads

    column = "masked" if ragged else ""
    return Entry(lambda: jax.block_until_ready(function(params, x, mask, dy)), outputs, column=column)

"""Denormal numbers count as zero while a call computes, on each of its threads; then the caller's mode is back."""

import ctypes
import platform
import signal
import sys

import fastrnn
import numpy as np
import pytest
from fastrnn import _core

from states import as_tuple

TINY = np.finfo(np.float32).tiny
CELLS = ["RNN", "GRU", "LSTM"]


def denormals(*arrays):
    return sum(int(((np.abs(a) < np.finfo(a.dtype).tiny) & (a != 0)).sum()) for a in arrays)


def keeps_denormals():
    """Whether the calling thread computes with them."""
    return np.array([TINY], np.float32) * np.float32(0.5) != 0 and np.array([TINY / 4], np.float32) + np.float32(0) != 0


def decaying(cell, H=48, **options):
    """A layer whose state halves, or so, at each step that sees zeros, and x of zeros."""
    layer = getattr(fastrnn, cell)(8, H, bias=False, rng=0, **options)
    for name, array in layer.params.items():
        if name.startswith("weight_hh"):
            array *= 0.5
    rng = np.random.default_rng(0)
    h = rng.standard_normal((1, 2, H)).astype(layer.dtype)
    return layer, np.zeros((2000, 2, 8), layer.dtype), (h, h.copy()) if cell == "LSTM" else h


@pytest.mark.parametrize("cell", CELLS)
def test_a_state_that_decays_becomes_zero(cell, instructions):
    layer, x, state = decaying(cell)
    y, final = layer(x, state)
    assert denormals(y, *as_tuple(final)) == 0
    assert (y[-1] == 0).all()
    y, final, _ = layer.forward(x, state, checkpoint=5)
    assert denormals(y, *as_tuple(final)) == 0


@pytest.mark.parametrize("cell", CELLS)
def test_the_state_of_a_stream_that_decays_becomes_zero(cell):
    layer, x, state = decaying(cell)
    stream = layer.stream(2)
    stream.state = state
    assert denormals(stream.run(x[:1900]), *(stream.step(x_t).copy() for x_t in x[1900:])) == 0
    assert denormals(*as_tuple(stream.state)) == 0


@pytest.mark.parametrize("cell", CELLS)
def test_a_gradient_that_vanishes_becomes_zero(cell):
    layer, x, state = decaying(cell)
    y, _, tape = layer.forward(x, state)
    dy = np.zeros_like(y)
    dy[-1] = 1
    dx, dstate = layer.backward(tape, dy)
    assert (dx[-1] != 0).any()
    assert denormals(dx, *as_tuple(dstate), *layer.grads.values()) == 0


def test_the_moments_of_an_optimiser_become_zero():
    head = fastrnn.Linear(64, 8, rng=0)
    adam = fastrnn.optim.Adam([head], betas=(0.5, 0.5))
    head.grads["weight"][...] = 1e-20
    for _ in range(200):
        adam.step()
        head.zero_grad()
    assert denormals(*(a for name, a in adam.state_dict().items() if name != "steps")) == 0


@pytest.mark.parametrize("cell", CELLS)
def test_denormals_are_no_exception_to_the_same_bits_on_any_number_of_threads(cell, restore_threads):
    layer, x, state = decaying(cell, H=200)
    results = []
    _core.gather_workers(True)
    try:
        for count in (1, 2, 3):
            fastrnn.set_num_threads(count)
            layer.zero_grad()
            y, final, tape = layer.forward(x[:, :1], tuple(a[:, :1] for a in state) if cell == "LSTM" else state[:, :1])
            dy = np.zeros_like(y)
            dy[-1] = 1
            dx, dstate = layer.backward(tape, dy)
            results.append([y, *as_tuple(final), dx, *as_tuple(dstate), *(g.copy() for g in layer.grads.values())])
    finally:
        _core.gather_workers(False)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def long_calls():
    layer = fastrnn.LSTM(64, 256, rng=0)
    for _ in range(100):
        layer(np.zeros((20_000, 4, 64), np.float32))


def calls():
    layer, x, state = decaying("GRU")
    y, _, tape = layer.forward(x, state)
    layer.backward(tape, y)
    layer(x[:1, :1])
    stream = layer.stream(2)
    stream.step(x[0]), stream.run(x[:50])
    head = fastrnn.Linear(48, 3, rng=0)
    head.cross_entropy(y, np.zeros(y.shape[:2], int))
    fastrnn.optim.AdamW([layer, head]).step(max_norm=1.0)


def test_the_mode_is_restored_after_every_call():
    assert keeps_denormals()
    calls()
    assert keeps_denormals()


def test_the_mode_is_restored_after_errors():
    stream = fastrnn.GRU(8, 16, rng=0).stream()
    with pytest.raises(ValueError, match="expected x"):
        stream.run(np.zeros((5, 3), np.float32))
    assert keeps_denormals()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
@pytest.mark.parametrize("count", [1, 2])
def test_a_handler_of_a_signal_finds_the_mode_of_the_caller_and_so_does_what_comes_after_an_interrupt(
    count, restore_threads
):
    fastrnn.set_num_threads(count)
    found = []

    def handle(*_):
        found.append(keeps_denormals())
        if len(found) == 2:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            long_calls()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert found[:2] == [True, True]
    assert keeps_denormals()


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="sets the mode by glibc's fesetenv"
)
def test_a_caller_that_flushes_denormals_goes_on_to_do_so():
    libm = ctypes.CDLL("libm.so.6")
    mode, flushing = ((ctypes.c_uint32 * 8)() for _ in range(2))
    libm.fegetenv(mode)
    flushing[:] = mode[:]
    flushing[7] |= 0x8040  # mxcsr is the last of fenv_t
    try:
        libm.fesetenv(flushing)
        calls()
        kept = keeps_denormals()
    finally:
        libm.fesetenv(mode)
    assert not kept
    assert keeps_denormals()

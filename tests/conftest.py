"""Shared by all tests: frameworks that serve as oracles run on one thread, set before the first of them is imported;
fastrnn on all cores, or as many as FASTRNN_NUM_THREADS says.

Ctrl-C interrupts the tests and what they start, also where the runner ignores it (nohup, a job in the background).
"""

import os
import signal

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("FASTRNN_NUM_THREADS", str(os.cpu_count()))

signal.signal(signal.SIGINT, signal.default_int_handler)

import fastrnn  # noqa: E402
from fastrnn import _core  # noqa: E402


@pytest.fixture(params=_core.instruction_sets())
def instructions(request):
    """Each instruction set that this machine has, in use for the test."""
    used = _core.instruction_set()
    _core.use_instruction_set(request.param)
    yield request.param
    _core.use_instruction_set(used)


@pytest.fixture
def restore_threads():
    """After the test, as many threads as before."""
    count = fastrnn.get_num_threads()
    yield
    fastrnn.set_num_threads(count)

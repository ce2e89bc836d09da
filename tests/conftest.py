"""Shared by all tests: frameworks that serve as oracles run on one thread, set before the first of them is imported.

Ctrl-C interrupts the tests and what they start, also where the runner ignores it (nohup, a job in the background).
"""

import os
import signal

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

signal.signal(signal.SIGINT, signal.default_int_handler)

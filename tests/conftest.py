"""Shared by all tests: frameworks that serve as oracles run on one thread, set before the first of them is imported."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

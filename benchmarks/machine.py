"""What the numbers were measured on: processor, versions, threads, and how busy the machine was."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "FASTRNN_NUM_THREADS",
)
BUSY = 0.5  # load average above which other work is likely to disturb


def limit_threads(threads: int) -> None:
    """Set what the BLAS and OpenMP libraries read when they are loaded: call before NumPy is imported.

    OpenBLAS's threads are to sleep at once when they have nothing to do: for a while after a product they would take
    the second core from the contender that comes next.
    """
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)), OPENBLAS_THREAD_TIMEOUT="4")


def describe(versions: Mapping[str, str], threads: int, dtype: str) -> dict[str, Any]:
    """Everything of the machine that the figures depend on."""
    import numpy as np

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "instruction_set": _instruction_set(),
        "threads": threads,
        "dtype": dtype,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "versions": {
            "Python": platform.python_version(),
            "NumPy": np.__version__,
            "NumPy's BLAS": f"{blas['name']} {blas['version']}",
            **versions,
        },
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _instruction_set() -> str:
    try:
        from fastrnn import _core
    except ImportError:
        return "unknown: fastrnn is not installed"
    return str(_core.instruction_set())

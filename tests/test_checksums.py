"""The same bits as ever: against stored checksums, for each instruction set and any number of threads."""

import json

import fastrnn
import pytest
from fastrnn import _core

from checksums import STORED, build, checksums

KNOWN = json.loads(STORED.read_text()).get(build(), {})


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_are_the_stored_ones(instructions, threads, restore_threads):
    if instructions not in KNOWN:
        pytest.skip(f"no checksums are stored for {instructions} by {build()}; python tests/checksums.py stores them")
    fastrnn.set_num_threads(threads)
    _core.gather_workers(threads > 1)
    try:
        assert checksums() == KNOWN[instructions]
    finally:
        _core.gather_workers(False)

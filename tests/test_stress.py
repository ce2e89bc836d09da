"""Each campaign of stress/ for a few seconds. Longer runs are by hand: see docs/reliability.md."""

import importlib
import mmap
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stress import memory, uses
from stress.campaign import Cases
from stress.child import Child, Died

CAMPAIGNS: dict[str, float] = {  # name -> seconds
    "calls": 5, "files": 5, "kills": 5, "signals": 12, "threads": 5, "memory": 5,
}  # fmt: skip


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_campaign_finds_nothing(name):
    cases = Cases(seed=1, seconds=CAMPAIGNS[name])
    importlib.import_module(f"stress.{name}").run(cases)
    assert cases.failures == []
    assert cases.seen["cases"]


def test_a_leak_is_seen_and_what_is_given_back_is_none():
    """Of what the campaign `memory` measures with."""
    kept = []

    def leak():
        kept.append(mmap.mmap(-1, 1 << 14))  # new to the process, whatever other tests have given back
        kept[-1].write(bytes(1 << 14))

    leaking = memory.growths(leak, 1000)
    assert len(leaking) == 3
    assert all(grown > memory.BOUND for grown in leaking)
    assert len(memory.growths(lambda: bytes(10_000), 1000)) == 1


@pytest.mark.skipif(shutil.which("cc") is None or not sys.platform.startswith("linux"), reason="needs cc and glibc")
def test_an_allocation_that_fails_is_seen():
    """Of the allocator that the campaign `memory` fails with."""
    cases = Cases(seed=1, only=2 * uses.USES.index(uses.training_step) + 1)
    memory.run(cases)
    assert cases.failures == []
    assert cases.seen["calls where memory failed"] > 10


def test_a_child_that_crashes_or_hangs_is_named_by_its_case():
    child = Child(dies, seed=1, patience=2.0)
    assert child.run(0)[0] == {"done": 1}
    with pytest.raises(Died, match="killed by SIGSEGV in a crash"):
        child.run(1)
    child = Child(dies, seed=1, patience=2.0)
    with pytest.raises(Died, match="nothing for 2 s in a sleep"):
        child.run(2)


def dies(number, rng, log):
    log.seen["done"] += 1
    if number == 1:
        log.begin("a crash")
        signal.raise_signal(signal.SIGSEGV)
    if number == 2:
        log.begin("a sleep")
        time.sleep(60)

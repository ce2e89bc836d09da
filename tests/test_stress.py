"""Each campaign of stress/ for a few seconds. Longer runs are by hand: see docs/reliability.md."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stress.campaign import Cases

CAMPAIGNS: dict[str, float] = {"files": 5, "kills": 5, "signals": 12, "threads": 5}  # name -> seconds


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_campaign_finds_nothing(name):
    cases = Cases(seed=1, seconds=CAMPAIGNS[name])
    importlib.import_module(f"stress.{name}").run(cases)
    assert cases.failures == []
    assert cases.seen["cases"] > 1

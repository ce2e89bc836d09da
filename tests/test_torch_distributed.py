"""fastrnn.torch under DistributedDataParallel: two processes train as one does on the whole batch."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is the oracle here and is not installed")

RANK = """
import sys
import fastrnn.torch, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)
        self.cell, self.out = torch.nn.GRUCell(8, 5), torch.nn.Linear(5, 1)

    def forward(self, x):
        y, _ = self.rnn(x)
        h = None
        for t in range(2):
            h = self.cell(y[:, t], h)
        return self.out(h)


def trained(wrap, x):
    torch.manual_seed(0)
    model = fastrnn.torch.accelerate(Model().double())
    wrapped, optimizer = wrap(model), torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(x).sin().mean().backward()
        optimizer.step()
    assert all(row.runs_here and row.why is None for row in fastrnn.torch.report(model).rows)
    return list(model.parameters())


torch.manual_seed(1)
x = torch.randn(8, 6, 3, dtype=torch.float64)
expected = trained(lambda model: model, x)
for options in ({}, {"static_graph": True}, {"gradient_as_bucket_view": True}):
    found = trained(lambda model: DistributedDataParallel(model, **options), x[rank * 4 : rank * 4 + 4])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    print(rank, options, "equal")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_train_as_one_does_on_the_whole_batch(tmp_path):
    commands = [[sys.executable, "-W", "ignore", "-c", RANK, str(rank), str(tmp_path / "store")] for rank in range(2)]
    ranks = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    results = [rank.communicate(timeout=120) for rank in ranks]
    for rank, (out, errors) in zip(ranks, results, strict=True):
        assert rank.returncode == 0, errors
        assert out.count("equal") == 3

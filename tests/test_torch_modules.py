"""fastrnn.torch against torch: outputs, states and every gradient, however the module is made and called."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch", reason="torch is the oracle here and is not installed")

from torch.nn.utils.rnn import PackedSequence, pack_sequence  # noqa: E402

from torch_modules import as_tuple, assert_close, both, why  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

KINDS = ["RNN", "GRU", "LSTM"]


def random_module(draw):
    kind, dtype = draw.choice(KINDS), draw.choice([torch.float32, torch.float64])
    options = {
        "num_layers": draw.randint(1, 3),
        "bias": draw.random() < 0.7,
        "batch_first": draw.random() < 0.5,
        "bidirectional": draw.random() < 0.5,
    }
    H = draw.randint(2, 30)
    if kind == "LSTM" and draw.random() < 0.3:
        options["proj_size"] = draw.randint(1, H - 1)
    if kind == "RNN" and draw.random() < 0.5:
        options["nonlinearity"] = "relu"
    return getattr(torch.nn, kind)(draw.randint(1, 20), H, dtype=dtype, **options)


def random_input(draw, module):
    """(tensors, how they become the input, shape of the batch)."""
    T, B, I, dtype = draw.randint(1, 12), draw.randint(1, 9), module.input_size, module.weight_ih_l0.dtype
    form = draw.choice(["padded", "unbatched", "packed", "packed in any order"])
    if form == "unbatched":
        return [torch.randn(T, I, dtype=dtype)], lambda x: x[0], ()
    if form == "padded":
        shape = (B, T, I) if module.batch_first else (T, B, I)
        return [torch.randn(shape, dtype=dtype)], lambda x: x[0], (B,)
    x = [torch.randn(draw.randint(1, T), I, dtype=dtype) for _ in range(B)]
    if form == "packed":
        return sorted(x, key=len, reverse=True), pack_sequence, (B,)
    return x, lambda x: pack_sequence(x, enforce_sorted=False), (B,)


def states_of(module, batch):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    widths = [module.proj_size or module.hidden_size, module.hidden_size][: 2 if module.mode == "LSTM" else 1]
    return [torch.randn(rows, *batch, width, dtype=module.weight_ih_l0.dtype) for width in widths]


def run(module, tensors, form, states, weigh):
    """y, the final states and, if weigh is not None, every gradient of the sum of them, weighed by it."""
    leaves = [tensor.clone().requires_grad_(weigh is not None) for tensor in (*tensors, *states)]
    hx = leaves[len(tensors) :]
    y, final = module(form(leaves[: len(tensors)]), None if not hx else hx[0] if len(hx) == 1 else tuple(hx))
    results = [y.data if isinstance(y, PackedSequence) else y, *as_tuple(final)]
    if weigh is None:
        return results
    sum((weigh(result) * result).sum() for result in results).backward()
    return [*results, *(leaf.grad for leaf in leaves), *(weight.grad for weight in module.parameters())]


@pytest.mark.parametrize("seed", range(20))
def test_any_module_called_in_any_way_gives_what_torch_gives(seed):
    for each in range(60):
        draw = random.Random(1000 * seed + each)
        torch.manual_seed(draw.randint(0, 1 << 30))
        module = random_module(draw)
        theirs, ours = both(module)
        tensors, form, batch = random_input(draw, module)
        states = states_of(module, batch) if draw.random() < 0.5 else []
        phase = draw.random()
        weigh = None if draw.random() < 0.3 else lambda result, phase=phase: (
            torch.arange(result.numel(), dtype=result.dtype).add(phase).sin().view(result.shape)
        )  # fmt: skip
        expected = run(theirs, tensors, form, states, weigh)
        found = run(ours, tensors, form, states, weigh)
        assert why(ours) is None
        for k, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, b, f"{module} {batch} {k}")
        assert found[0].stride() == expected[0].stride() or 1 in found[0].shape

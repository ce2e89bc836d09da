"""Layer normalisation in the cells: against torch's autograd, the reference, and all that a layer can be asked to do.

Finite differences, autograd of the reference, and both with dropout, resets and stacks: the cases "...-norm..." of
problems.py, in test_gradients.py and test_reference.py.
"""

import copy
import pickle

import fastrnn
import numpy as np
import pytest
from fastrnn import interchange, reference
from fastrnn.engine import tuning

from layer_cases import assert_same_as_reference, case
from same_bits import assert_same_bits_in_segments, assert_same_for_any_number_of_threads
from states import agree, as_state, as_tuple
from streams import COMPRESSED, stored_weights

CELLS = {
    "rnn tanh": (fastrnn.RNN, {}),
    "rnn relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
    "gru": (fastrnn.GRU, {}),
    "lstm": (fastrnn.LSTM, {}),
}
TOLERANCE = {"float32": 5e-5, "float64": 1e-12}  # where a row varies little, its norm magnifies the rounding
DROPOUTS = {"weight_dropout": 0.3, "input_dropout": 0.4, "recurrent_dropout": 0.3, "zoneout": 0.25}
every_cell = pytest.mark.parametrize("cell", CELLS)


def layer_of(cell, input_size, hidden_size, num_layers=1, *, rng, **options):
    """A layer whose gains and shifts differ from one and zero."""
    kind, own = CELLS[cell]
    layer = kind(input_size, hidden_size, num_layers, layer_norm=True, **own, **options, rng=rng)
    for name, array in layer.params.items():
        if name.startswith(("gain", "bias_c")):
            array += 0.5 * np.random.default_rng(1).standard_normal(array.shape).astype(array.dtype)
    return layer


# ---------------------------------------------------------------------------------------------------------------------
# What is computed
# ---------------------------------------------------------------------------------------------------------------------


def torch_module(torch, layer):
    """The layer as a module of torch, one direction, one layer, written from the equations."""
    nn = torch.nn

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            rows, H = layer._gates * layer.hidden_size, layer.hidden_size
            self.ih, self.hh = (nn.Linear(n, rows, bias=False) for n in (layer.input_size, H))
            self.norm_ih, self.norm_hh = nn.LayerNorm(rows), nn.LayerNorm(rows)
            self.norm_c = nn.LayerNorm(H)

        def forward(self, x, h, c):
            ys = []
            for x_t in x:
                a_x, a_h = self.norm_ih(self.ih(x_t)), self.norm_hh(self.hh(h))
                if layer.cell == "rnn":
                    h = getattr(torch, layer.nonlinearity)(a_x + a_h)
                elif layer.cell == "gru":
                    (x_r, x_z, x_n), (h_r, h_z, h_n) = a_x.chunk(3, 1), a_h.chunk(3, 1)
                    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
                    h = (1 - z) * torch.tanh(x_n + r * h_n) + z * h
                else:
                    i, f, g, o = (a_x + a_h).chunk(4, 1)
                    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                    h = torch.sigmoid(o) * torch.tanh(self.norm_c(c))
                ys.append(h)
            return torch.stack(ys), h, c

    names = {"weight_ih": "ih.weight", "weight_hh": "hh.weight"}
    for norm in ("ih", "hh", "c"):
        names |= {f"gain_{norm}": f"norm_{norm}.weight", f"bias_{norm}": f"norm_{norm}.bias"}
    module = Normed().to(getattr(torch, layer.dtype.name))
    parameters = {name.removesuffix("_l0"): array for name, array in layer.params.items()}
    module.load_state_dict({names[n]: torch.from_numpy(a.copy()) for n, a in parameters.items()}, strict=False)
    return module, {f"{name}_l0": dict(module.named_parameters())[names[name]] for name in parameters}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_cell
def test_a_layer_and_its_gradients_are_those_of_a_torch_module_with_layer_norm(cell, dtype):
    torch = pytest.importorskip("torch", reason="torch is the oracle here and is not installed")
    rng = np.random.default_rng(2)
    layer = layer_of(cell, 9, 37, dtype=dtype, rng=rng)
    x, state, _ = case(layer, rng, T=8, B=11)
    module, parameters = torch_module(torch, layer)
    x_t, *state_t = (torch.tensor(a, requires_grad=True) for a in (x, *(s[0] for s in as_tuple(state))))
    y_t, h_t, c_t = module(x_t, state_t[0], state_t[1] if layer.cell == "lstm" else None)

    y, final, tape = layer.forward(x, state)
    dy, *dfinal = (rng.normal(size=a.shape).astype(dtype) for a in (y, *as_tuple(final)))
    ends = [h_t, c_t][: len(dfinal)]
    loss = (y_t * torch.from_numpy(dy)).sum()
    sum([(s * torch.from_numpy(d[0])).sum() for s, d in zip(ends, dfinal, strict=True)], loss).backward()
    dx, dstate = layer.backward(tape, dy, as_state(dfinal))
    agree("y", y, y_t.detach().numpy(), TOLERANCE[dtype])
    agree("dx", dx, x_t.grad.numpy(), 4 * TOLERANCE[dtype])
    for ours, theirs in zip(as_tuple(dstate), state_t, strict=True):
        agree("dstate", ours[0], theirs.grad.numpy(), 4 * TOLERANCE[dtype])
    for name, parameter in parameters.items():
        agree(name, layer.grads[name], parameter.grad.numpy(), 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_cell
def test_a_layer_is_what_the_reference_is_in_every_instruction_set(cell, dtype, instructions):
    rng = np.random.default_rng(3)
    for H in (5, 17, 33, 64, 70):
        layer = layer_of(cell, 6, H, 2, bidirectional=H < 20, bias=H != 33, dtype=dtype, rng=rng)
        for B in (1, 4, 9, 20):
            assert_same_as_reference(layer, *case(layer, rng, T=6, B=B, ragged=B > 1, reset=B == 9), rng, TOLERANCE)
        assert_same_as_reference(layer, *case(layer, rng, T=6, B=9, ragged=True, one_hot=True), rng, TOLERANCE)


@every_cell
def test_it_is_right_in_batches_that_are_cut_and_over_many_chunks_of_input_products(cell):
    rng = np.random.default_rng(4)
    layer = layer_of(cell, 64, 64, dtype="float64", rng=rng)
    assert tuning.shard_count(layer.spec.step_work, 60, 70) > 1
    assert_same_as_reference(layer, *case(layer, rng, T=60, B=70, ragged=True), rng, TOLERANCE)
    assert_same_as_reference(layer, *case(layer, rng, T=900, B=1), rng, TOLERANCE)


@pytest.mark.parametrize("stack", [{}, {"bidirectional": True, "batch_first": True}, {"reverse": True}])
@every_cell
def test_dropout_goes_with_it(cell, stack):
    rng = np.random.default_rng(5)
    own = {"zoneout_cell": 0.3} if cell == "lstm" else {}
    layer = layer_of(cell, 6, 21, 2, **DROPOUTS, **own, **stack, dtype="float64", rng=rng)
    x, state, keywords = case(layer, rng, T=9, B=5, ragged=True)
    x = x.swapaxes(0, 1) if layer.batch_first else x
    y, _, tape = layer.forward(x, state, **keywords)
    y_ref, _, tape_ref = reference.forward(layer, x, state, noise=tape.masks, **keywords)
    dy = rng.normal(size=y.shape)
    dx, _ = layer.backward(tape, dy)
    dx_ref, _, grads = reference.backward(layer, tape_ref, dy)
    agree("y", y, y_ref, 1e-12)
    agree("dx", dx, dx_ref, 1e-11)
    for name, grad in grads.items():
        agree(name, layer.grads[name], grad, 1e-11)
    agree("inference", layer(x, state)[0], reference.forward(layer, x, state)[0], 1e-12)


@every_cell
def test_gradients_of_pre_activations_are_clipped_before_they_go_through_the_norms(cell):
    rng = np.random.default_rng(6)
    layer = layer_of(cell, 6, 21, grad_clip=0.1, dtype="float64", rng=rng)
    assert_same_as_reference(layer, *case(layer, rng, T=9, B=5, ragged=True), rng, TOLERANCE)


def test_gains_start_at_one_and_the_other_values_as_without_norms():
    plain, layer = (fastrnn.LSTM(6, 8, layer_norm=norm, rng=0) for norm in (False, True))
    for name, array in layer.params.items():
        if name in plain.params:
            np.testing.assert_array_equal(array, plain.params[name])
    for again in (False, True):
        assert all((layer.params[f"gain_{name}_l0"] == 1).all() for name in ("ih", "hh", "c"))
        assert not layer.params["bias_c_l0"].any()
        if not again:
            for array in layer.params.values():
                array[...] = 7
            fastrnn.initialize(layer, bias="uniform", forget_bias=1.0)


@every_cell
def test_the_scale_of_the_weights_does_not_matter(cell):
    layer = layer_of(cell, 6, 21, dtype="float64", rng=0)
    x = np.random.default_rng(1).standard_normal((9, 5, 6))
    y = layer(x)[0]
    for name in ("weight_ih_l0", "weight_hh_l0"):
        layer.params[name][...] *= 1e3
    np.testing.assert_allclose(layer(x)[0][:1], y[:1], atol=1e-3)  # but for epsilon


# ---------------------------------------------------------------------------------------------------------------------
# What it works with
# ---------------------------------------------------------------------------------------------------------------------


@every_cell
def test_segments_that_run_forward_again_give_the_same_bits(cell):
    rng = np.random.default_rng(7)
    for stack in ({"num_layers": 2}, {"bidirectional": True}):
        layer = layer_of(cell, 6, 21, **stack, rng=rng)
        for B in (1, 3, 19):
            x, state, ragged = case(layer, rng, T=30, B=B, ragged=True, reset=True)
            for count in (1, 4, 1000):
                assert_same_bits_in_segments(layer, x, state, ragged, checkpoint=count)


@every_cell
def test_the_same_bits_for_any_number_of_threads(cell, restore_threads):
    rng = np.random.default_rng(8)
    for T, B in ((20, 67), (500, 3)):  # in shards; pipelined
        layer = layer_of(cell, 64, 64, 2, rng=rng)
        assert_same_for_any_number_of_threads(layer, rng.standard_normal((T, B, 64), dtype=np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_cell
def test_streams_and_short_calls_give_what_a_long_call_does(cell, dtype):
    rng = np.random.default_rng(9)
    layer = layer_of(cell, 6, 21, 2, dtype=dtype, rng=rng)
    for B in (1, 5, 11):
        x, state, _ = case(layer, rng, T=40, B=B)
        y, final = layer(x, state)
        agree("y", y, reference.forward(layer, x, state)[0], TOLERANCE[dtype])
        stream = layer.stream(B)
        stream.state = state
        agree("stream", stream.run(x), y, TOLERANCE[dtype])
        agree("state", as_tuple(stream.state)[-1], as_tuple(final)[-1], TOLERANCE[dtype])
        step, before = layer(x[:1], state)
        agree("short", step[0], y[0], TOLERANCE[dtype])
        agree("short", layer(x[1:3], before)[0], y[1:3], TOLERANCE[dtype])


@pytest.mark.parametrize("weights", COMPRESSED)
@every_cell
def test_a_compressed_stream_is_the_layer_with_the_weights_that_it_holds(cell, weights):
    rng = np.random.default_rng(10)
    layer = layer_of(cell, 6, 37, rng=rng)
    layer.compress(weights)
    x = rng.standard_normal((20, 3, 6), dtype=np.float32)
    held = copy.deepcopy(layer)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        held.params[name][...] = stored_weights(layer, name)
    agree("y", layer.stream(3).run(x), held(x)[0], TOLERANCE["float32"])


@every_cell
def test_copies_and_saved_layers_have_their_norms(cell, tmp_path):
    layer = layer_of(cell, 6, 8, 2, bidirectional=True, rng=0)
    x = np.ones((7, 3, 6), np.float32)
    interchange.save_safetensors(tmp_path / "layer", layer)
    loaded = layer_of(cell, 6, 8, 2, bidirectional=True, rng=1)
    loaded.load_state_dict(layer.state_dict())
    others = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        interchange.load_safetensors(tmp_path / "layer"),
        loaded,
    ]
    for other in others:
        assert other.layer_norm
        np.testing.assert_array_equal(other(x)[0], layer(x)[0])


def test_gains_are_a_group_of_an_optimiser_by_name():
    layer = fastrnn.LSTM(6, 8, layer_norm=True, rng=0)
    sgd = fastrnn.optim.SGD([layer], lr=0.1, groups={"gain*": {"lr": 0}})
    y, _, tape = layer.forward(np.ones((7, 3, 6), np.float32))
    layer.backward(tape, y)
    before = layer.state_dict()
    sgd.step()
    for name, array in layer.params.items():
        assert np.array_equal(array, before[name]) == name.startswith("gain")


def test_a_network_with_norms_learns_to_remember():
    layer, head = fastrnn.GRU(2, 24, layer_norm=True, rng=0), fastrnn.Linear(24, 2, rng=0)
    adam = fastrnn.optim.Adam([layer, head], lr=1e-2)
    bits = np.random.default_rng(0).integers(0, 2, (30, 32))
    for _ in range(60):
        y, _, tape = layer.forward(bits)
        logits, head_tape = head.forward(y[2:])
        loss, dlogits = fastrnn.softmax_cross_entropy(logits, bits[:-2])
        layer.backward(tape, np.pad(head.backward(head_tape, dlogits), ((2, 0), (0, 0), (0, 0))))
        adam.step()
        layer.zero_grad(), head.zero_grad()
    assert loss < 0.1


@every_cell
def test_the_first_value_that_is_not_finite_is_found(cell):
    layer = layer_of(cell, 6, 21, 2, rng=0)
    x = np.ones((9, 5, 6), np.float32)
    y, _, tape = layer.forward(x)
    layer.backward(tape, y)
    before = [g.copy() for g in layer.grads.values()]
    assert fastrnn.training.first_nonfinite(tape, np.ones_like(y)) is None
    huge = np.zeros_like(y)
    huge[4, 2] = np.finfo(np.float32).max
    layer.params["gain_hh_l1"][...] = layer.params["gain_ih_l1"][...] = 1e30
    found = fastrnn.training.first_nonfinite(tape, huge)
    what = "the pre-activation" if cell.startswith("rnn") else "the gates"
    assert (found.what, found.layer, found.row) == (f"the gradient of {what}", 1, 2)
    assert found.step <= 4
    for g, was in zip(layer.grads.values(), before, strict=True):
        np.testing.assert_array_equal(g, was)


# ---------------------------------------------------------------------------------------------------------------------
# What there is none of
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (fastrnn.RNN, {"clip": 0.5}, r"expected clip=None beside layer_norm=True, got 0\.5"),
        (fastrnn.RNN, {"nonlinearity": "softsign"}, "expected a cell's usual activations .* got 'softsign'"),
        (fastrnn.GRU, {"reset_after": False}, "expected reset_after=True beside layer_norm=True, got False"),
        (fastrnn.GRU, {"activations": ("hard_sigmoid", "tanh")}, "expected a cell's usual activations"),
        (fastrnn.LSTM, {"proj_size": 3}, "expected proj_size=0 beside layer_norm=True, got 3"),
        (fastrnn.LSTM, {"peephole": True}, "expected peephole=False beside layer_norm=True, got True"),
        (fastrnn.LSTM, {"coupled": True}, "expected coupled=False beside layer_norm=True, got True"),
    ],
)
def test_what_has_no_normalised_cell_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(6, 8, layer_norm=True, **options)


def test_layer_norm_is_true_or_false():
    with pytest.raises(TypeError, match="layer_norm"):
        fastrnn.GRU(6, 8, layer_norm="yes")


@pytest.mark.parametrize(("package", "name"), [("torch", "torch"), ("onnx", "ONNX"), ("keras", "Keras")])
def test_other_packages_have_no_such_cell(package, name):
    pytest.importorskip(package, reason=f"{package} is what the layer is to go to, and is not installed")
    with pytest.raises(ValueError, match=f"{name} cannot express layer_norm=True of a GRU"):
        getattr(interchange, f"to_{package}")(fastrnn.GRU(6, 8, layer_norm=True, rng=0))

"""accelerate_recurrent_ppo against sb3-contrib's own RecurrentPPO: values, gradients, training, files and copies."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sb3_contrib", reason="sb3-contrib is the oracle here and is not installed")

import fastrnn.torch as ft  # noqa: E402
import gymnasium  # noqa: E402
from fastrnn.torch.recurrent_ppo import process_sequence  # noqa: E402
from sb3_contrib import RecurrentPPO  # noqa: E402
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy  # noqa: E402
from sb3_contrib.common.recurrent.type_aliases import RNNStates  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402

torch.set_num_threads(1)

KINDS = {
    "separate": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "critic without": {"enable_critic_lstm": False},
    "two layers": {"n_lstm_layers": 2},
    "two extractors": {"share_features_extractor": False},
}
WHERE = ["nowhere", "at first steps", "later", "anywhere"]
B, T, H = 5, 12, 16
theirs = RecurrentActorCriticPolicy._process_sequence


class Recall(gymnasium.Env):
    """One observation at the beginning of an episode has to be remembered; some episodes end, some are truncated."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bit, self.steps, self.end = self.np_random.integers(2), 0, self.np_random.integers(3, 12)
        return np.array([2 * self.bit - 1, 1], np.float32), {}

    def step(self, action):
        self.steps += 1
        over = self.steps >= self.end
        obs = np.array([0, self.np_random.uniform(-1, 1)], np.float32)
        return obs, float(action == self.bit), over and self.end % 2 == 0, over and self.end % 2 == 1, {}


def made(kind="separate", **options):
    """A RecurrentPPO; two calls give the same."""
    from stable_baselines3.common.env_util import make_vec_env

    options = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 1, "device": "cpu", **options}
    arguments = {"lstm_hidden_size": H, "net_arch": [8], **KINDS[kind]}
    return RecurrentPPO("MlpLstmPolicy", make_vec_env(Recall, 4, seed=1), policy_kwargs=arguments, **options)


def starts_of(where):
    """(B·T,): at first steps is where sb3-contrib's buffers have them."""
    starts = torch.zeros(B, T)
    if where in ("at first steps", "anywhere"):
        starts[::2, 0] = 1
    if where in ("later", "anywhere"):
        starts[:, 1:][torch.rand(B, T - 1) < 0.2] = 1
        starts[1, 3:6] = starts[3, T - 1] = 1
    return starts.flatten()


def states_of(lstm, batch=B, **options):
    shape = (lstm.num_layers * (2 if lstm.bidirectional else 1), batch, lstm.hidden_size)
    return torch.randn(shape, **options), torch.randn(shape, **options)


def calls_of(module):
    """A list to which each call of the module adds the shape of its input."""
    shapes = []
    module.register_forward_hook(lambda module, given, found: shapes.append(tuple(given[0].shape)))
    return shapes


def assert_close(found, expected, tolerance=2e-6):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    scale = max(expected.abs().max().item(), 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


def assert_same_parameters(one, other, tolerance=1e-6):
    names, expected = one.state_dict(), other.state_dict()
    assert list(names) == list(expected)
    for name in names:
        torch.testing.assert_close(names[name], expected[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", KINDS)
def test_evaluated_actions_and_all_gradients_are_those_of_sb3_contrib(kind, where):
    policy = made(kind).policy
    torch.manual_seed(7)
    for weight in policy.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))  # the last layer starts near zero, and so would gradients
    here = ft.accelerate_recurrent_ppo(copy.deepcopy(policy))
    states, starts = RNNStates(states_of(policy.lstm_actor), states_of(policy.lstm_actor)), starts_of(where)
    obs, actions = torch.randn(B * T, 2), torch.randint(2, (B * T,))
    shapes = calls_of(here.lstm_actor)
    weigh = [torch.randn(B * T) for _ in range(3)]
    results = []
    for each in (here, policy):
        values, log_prob, entropy = each.evaluate_actions(obs, actions, states, starts)
        outputs = [values.flatten(), log_prob, entropy]
        sum((output * weight).sum() for output, weight in zip(outputs, weigh, strict=True)).backward()
        results.append((outputs, {name: weight.grad for name, weight in each.named_parameters()}))
    (found, grads), (expected, expected_grads) = results
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    assert list(grads) == list(expected_grads)
    for name in grads:
        assert_close(grads[name], expected_grads[name])
        assert grads[name].abs().max() > 1e-3
    assert shapes == [(T, B, 2)]
    assert not any(row.why for row in ft.report(here).rows)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("where", WHERE)
def test_sequences_and_gradients_of_the_states_in_float64(where, layers):
    torch.manual_seed(3)
    lstm = torch.nn.LSTM(3, H, layers, dtype=torch.float64)
    here, starts = ft.accelerate(copy.deepcopy(lstm)), starts_of(where)
    features, states = torch.randn(B * T, 3, dtype=torch.float64), states_of(lstm, dtype=torch.float64)
    results = []
    for process, module in ((process_sequence, here), (theirs, lstm)):
        leaves = [tensor.clone().requires_grad_() for tensor in (features, *states)]
        y, final = process(leaves[0], tuple(leaves[1:]), starts, module)
        sum((output.sin() * output).sum() for output in (y, *final)).backward()
        results.append([y, *final, *(leaf.grad for leaf in leaves), *(weight.grad for weight in module.parameters())])
        with torch.no_grad():
            y, final = process(features, states, starts, module)
        results[-1] += [y, *final]
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, 1e-12)
    assert results[0][0].shape == (B * T, H)


@pytest.mark.parametrize("kind", ["separate", "shared", "critic without"])
def test_training_comes_to_the_same_parameters(kind):
    models = []
    for change in (ft.accelerate_recurrent_ppo, lambda model: model):
        model = change(made(kind))
        models.append(model.learn(3 * 128))
    found, expected = models
    assert_same_parameters(found.policy, expected.policy)
    untrained = made(kind).policy.state_dict()["lstm_actor.weight_hh_l0"]
    assert (found.policy.lstm_actor.weight_hh_l0 - untrained).abs().max() > 1e-3
    for a, b in zip(found._last_lstm_states.pi, expected._last_lstm_states.pi, strict=True):
        assert_close(a, b, 1e-5)
    assert found.rollout_buffer.episode_starts.sum() > 4
    assert np.array_equal(found.rollout_buffer.actions, expected.rollout_buffer.actions)
    assert not any(row.why for row in ft.report(found.policy).rows)


def test_updates_make_one_call_for_each_batch():
    model = ft.accelerate_recurrent_ppo(made()).learn(128)
    shapes = calls_of(model.policy.lstm_critic)
    model.train()
    assert len(shapes) == model.n_epochs * 128 // model.batch_size


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_sb3_contrib_and_carry_the_state(kind):
    model = made(kind)
    here = ft.accelerate_recurrent_ppo(copy.deepcopy(model.policy))
    ours, other = None, None
    for step in range(6):
        obs, start = np.random.default_rng(step).uniform(-1, 1, (3, 2)).astype(np.float32), np.array([step == 0] * 3)
        start[1] |= step == 3
        actions, ours = here.predict(obs, ours, start, deterministic=True)
        expected, other = model.policy.predict(obs, other, start, deterministic=True)
        assert np.array_equal(actions, expected)
        for a, b in zip(ours, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
    action, _ = here.predict(obs[0])
    assert action.shape == ()


def test_it_returns_what_it_is_given_and_changes_nothing_but_this_policy():
    model, other = made(), made()
    optimiser, kind = model.policy.optimizer, type(model.policy)
    weights = list(map(id, model.policy.parameters()))
    assert ft.accelerate_recurrent_ppo(model) is model
    assert ft.accelerate_recurrent_ppo(model.policy) is model.policy  # a second time
    assert (type(model.policy), model.policy.optimizer) == (kind, optimiser)
    assert list(map(id, model.policy.parameters())) == weights
    assert model.policy._process_sequence is process_sequence
    assert RecurrentActorCriticPolicy._process_sequence is theirs
    assert other.policy._process_sequence is theirs
    assert type(other.policy.lstm_actor) is torch.nn.LSTM


def test_a_saved_file_loads_without_fastrnn_and_can_be_trained_on_either_way(monkeypatch):
    model = ft.accelerate_recurrent_ppo(made()).learn(128)
    file = io.BytesIO()
    model.save(file)
    with monkeypatch.context() as without:
        for name in [name for name in sys.modules if name.partition(".")[0] == "fastrnn"]:
            without.setitem(sys.modules, name, None)
        loaded = RecurrentPPO.load(file, env=model.env, device="cpu")
    assert (type(loaded.policy.lstm_actor), loaded.policy._process_sequence) == (torch.nn.LSTM, theirs)
    assert_same_parameters(loaded.policy, model.policy, 0)
    again = ft.accelerate_recurrent_ppo(RecurrentPPO.load(file, env=model.env, device="cpu"))
    results = []
    for each in (again, loaded):
        each.set_random_seed(5)
        results.append(each.learn(128).policy)
    assert_same_parameters(*results)
    plain = made()
    plain.set_parameters(model.get_parameters())
    assert_same_parameters(plain.policy, model.policy, 0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_copies_and_pickles_of_a_policy_run_here_too(copied):
    policy = ft.accelerate_recurrent_ppo(made().policy)
    found = copied(policy)
    assert type(found.lstm_actor) is ft.LSTM
    shapes = calls_of(found.lstm_actor)
    states, obs, starts = RNNStates(*[states_of(policy.lstm_actor)] * 2), torch.randn(B * T, 2), starts_of("anywhere")
    given = obs, torch.zeros(B * T), states, starts
    for a, b in zip(found.evaluate_actions(*given), policy.evaluate_actions(*given), strict=True):
        assert torch.equal(a, b)
    assert shapes == [(T, B, 2)]


def test_after_restore_the_loop_of_sb3_contrib_runs():
    policy = ft.restore(ft.accelerate_recurrent_ppo(made().policy))
    shapes = calls_of(policy.lstm_actor)
    policy.get_distribution(torch.randn(B * T, 2), states_of(policy.lstm_actor), starts_of("anywhere"))
    assert shapes == [(1, B, 2)] * T


class Loud(torch.nn.LSTM):
    def forward(self, input, hx=None):
        y, state = super().forward(input, hx)
        return 2 * y, state


def lstm_of(kind):
    if kind == "two directions":
        return ft.LSTM(3, H, bidirectional=True)
    if kind == "a forward of its own":
        return ft.accelerate(Loud(3, H))
    if kind == "bfloat16":
        return ft.LSTM(3, H, dtype=torch.bfloat16)
    lstm = ft.LSTM(3, H)
    if kind == "forward replaced":
        lstm.forward = torch.nn.LSTM(3, H).forward
    return lstm


@pytest.mark.parametrize("where", [*WHERE, "partly"])
@pytest.mark.parametrize(
    "kind", ["two directions", "a forward of its own", "bfloat16", "forward replaced", "autocast", "none of them"]
)
def test_what_does_not_run_in_one_call_gives_what_sb3_contrib_gives(kind, where):
    torch.manual_seed(4)
    lstm = lstm_of(kind)
    plain = ft.restore(copy.deepcopy(lstm))
    if kind == "forward replaced":
        plain.forward = lstm.forward
    dtype = lstm.weight_ih_l0.dtype
    starts = (starts_of("anywhere") * 0.5 if where == "partly" else starts_of(where)).to(dtype)
    given = torch.randn(B * T, 3, dtype=dtype), states_of(lstm, dtype=dtype), starts
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        y, final = process_sequence(*given, lstm)
        expected, expected_final = theirs(*given, plain)
    # where starts are at first steps only, one call of torch's operators stands for T, which rounds otherwise
    tolerance = 2e-2 if kind in ("bfloat16", "autocast") else 2e-6
    for a, b in zip((y, *final), (expected, *expected_final), strict=True):
        assert_close(a, b, tolerance)


def test_a_batch_first_lstm_is_left_to_sb3_contrib():
    lstm, starts = ft.LSTM(3, H, batch_first=True), starts_of("later")
    plain = ft.restore(copy.deepcopy(lstm))
    one_row = torch.randn(T, 3), states_of(lstm, 1), starts[T : 2 * T]  # its axes can be exchanged at each step
    y, final = process_sequence(*one_row, lstm)
    expected, expected_final = theirs(*one_row, plain)
    for a, b in zip((y, *final), (expected, *expected_final), strict=True):
        assert_close(a, b)
    square = torch.randn(B * B, 3), states_of(lstm), starts[T : T + B * B]  # T = B: one call would see no fault
    for process, module in ((theirs, plain), (process_sequence, lstm)):
        with pytest.raises(RuntimeError, match="hidden"):
            process(*square, module)


def test_errors_for_wrong_input_are_those_of_sb3_contrib():
    lstm = ft.LSTM(3, H)
    wrong = torch.randn(B * T, 3), states_of(torch.nn.LSTM(3, H + 1)), starts_of("anywhere")
    with pytest.raises(RuntimeError) as expected:
        theirs(*wrong, ft.restore(copy.deepcopy(lstm)))
    with pytest.raises(RuntimeError) as found:
        process_sequence(*wrong, lstm)
    assert str(found.value) == str(expected.value)


class Own(RecurrentActorCriticPolicy):
    @staticmethod
    def _process_sequence(*given):
        return theirs(*given)


def test_anything_else_is_refused_with_what_was_expected():
    with pytest.raises(TypeError, match=r"^expected a RecurrentPPO of sb3_contrib or its policy, .*, got LSTM$"):
        ft.accelerate_recurrent_ppo(torch.nn.LSTM(2, 3))
    with pytest.raises(TypeError, match=r"got PPO$"):
        ft.accelerate_recurrent_ppo(PPO("MlpPolicy", Recall(), device="cpu"))
    with pytest.raises(TypeError, match=r"got one whose policy is a NoneType$"):
        ft.accelerate_recurrent_ppo(RecurrentPPO("MlpLstmPolicy", Recall(), device="cpu", _init_setup_model=False))
    policy = made().policy
    policy.__class__ = Own
    with pytest.raises(TypeError, match=r"got Own with another; accelerate\(policy\)"):
        ft.accelerate_recurrent_ppo(policy)
    assert type(policy.lstm_actor) is torch.nn.LSTM


def test_without_sb3_contrib_the_error_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ImportError, match=r"^expected sb3_contrib to be installed \(pip install sb3-contrib\), got: "):
        ft.accelerate_recurrent_ppo(torch.nn.LSTM(2, 3))


def test_fastrnn_torch_does_not_import_sb3_contrib():
    code = "import sys, fastrnn.torch; print({'sb3_contrib', 'stable_baselines3', 'gymnasium'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"

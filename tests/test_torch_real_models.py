"""Models that people use run on fastrnn.torch: open-unmix, Resemblyzer's voice encoder, GluonTS's DeepAR.

Each package is optional:

    pip install --no-deps openunmix==1.3.0 resemblyzer==0.1.4
    pip install gluonts==0.17.0 lightning scipy librosa webrtcvad "setuptools<81"

open-unmix imports torchaudio, too, in a build that fits torch's.  Weights are random, or those that a package ships.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is the oracle here and is not installed")

import fastrnn.torch as ft  # noqa: E402
from torch.nn import functional as F  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # the packages are older than what Python and torch now warn of

RECURRENT = (torch.nn.RNNBase, torch.nn.RNNCellBase)


def package(name):
    try:
        return pytest.importorskip(name)
    except OSError as error:  # of torchaudio, where it was built for another torch
        pytest.skip(f"could not import {name!r}: {error}")


def assert_same(found, expected, tolerance=2e-5):
    """Two dictionaries of tensors hold the same numbers, in relation to the largest of each tensor."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        error, scale = (found[name] - tensor).abs().max().item(), tensor.abs().max().item()
        assert scale > 0, name
        assert error <= tolerance * scale, f"{name}: {error / scale}"


def assert_torch_ran_nothing(model):
    rows = ft.report(model).rows
    assert len(rows) == sum(isinstance(module, RECURRENT) for module in model.modules()) > 0
    assert [(row.runs_here, row.why) for row in rows] == [(True, None)] * len(rows)


def assert_runs_here(model, run):
    """run(model) returns the same tensors by name before and after accelerate, which restore undoes."""
    kinds, names = [type(module) for module in model.modules()], list(model.state_dict())
    fast = ft.accelerate(copy.deepcopy(model))
    assert_same(run(fast), run(model))
    assert_torch_ran_nothing(fast)
    assert list(fast.state_dict()) == names
    ft.restore(fast)
    assert [type(module) for module in fast.modules()] == kinds


def gradients(model):
    return {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}


def sgd_step(model, loss):
    """The loss, all gradients, their norm, and the parameters after a step of SGD with clipping."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss.backward()
    found = {"loss": loss.detach(), **{name: grad.clone() for name, grad in gradients(model).items()}}
    found["norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return found | {name: parameter.detach() for name, parameter in model.named_parameters()}


# ---------------------------------------------------------------- open-unmix: a bidirectional LSTM between dense layers


@pytest.fixture
def unmix():
    """A model for spectrograms (samples, channels, bins, frames)."""
    torch.manual_seed(0)
    return package("openunmix.model").OpenUnmix(nb_bins=64, hidden_size=64)


def spectrogram():
    return torch.rand(4, 2, 64, 50, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("unidirectional", [False, True])
def test_open_unmix_separates(unidirectional):
    torch.manual_seed(0)
    model = package("openunmix.model").OpenUnmix(nb_bins=64, hidden_size=64, unidirectional=unidirectional).eval()

    def run(model):
        with torch.no_grad():
            return {"separated": model(spectrogram())}

    assert_runs_here(model, run)


def test_open_unmix_trains(unmix):
    unmix.lstm.dropout = 0.0  # torch draws other masks

    def run(model):
        found = sgd_step(model, F.mse_loss(model(spectrogram()), 0.5 * spectrogram()))
        # Batch normalisation takes out what input_mean adds: there are rounding errors only.
        assert found.pop("gradient of input_mean").abs().max() < 1e-5 * found["gradient of input_scale"].abs().max()
        assert found.pop("input_mean").abs().max() < 1e-6
        return found

    assert_runs_here(unmix, run)


def test_open_unmix_with_its_dropout_depends_on_the_seed_alone(unmix):
    def run(model, seed):
        torch.manual_seed(seed)
        model.zero_grad()
        F.mse_loss(model(spectrogram()), 0.5 * spectrogram()).backward()
        return {name: grad.clone() for name, grad in gradients(model).items()}

    ft.accelerate(unmix)
    first, again, other = run(unmix, 0), run(unmix, 0), run(unmix, 1)
    assert_torch_ran_nothing(unmix)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["gradient of fc1.weight"], other["gradient of fc1.weight"])


# ---------------------------------------------------------------- Resemblyzer: three layers of LSTM, trained weights


@pytest.fixture
def voice_encoder():
    """With the weights that the package ships."""
    return package("resemblyzer").VoiceEncoder("cpu", verbose=False)


def mels():
    """(utterances, frames, channels); most are small, as of speech."""
    return torch.rand(6, 160, 40, generator=torch.Generator().manual_seed(1)) ** 4


def test_voice_encoder_embeds(voice_encoder):
    def run(model):
        with torch.no_grad():
            return {"embeddings": model(mels()), "one": model(mels()[:1])}

    assert_runs_here(voice_encoder.eval(), run)


def test_voice_encoder_trains(voice_encoder):
    def run(model):
        embeddings = model(mels())
        similarity = 10 * embeddings @ embeddings.T - 5
        return {"embeddings": embeddings.detach(), **sgd_step(model, F.cross_entropy(similarity, torch.arange(6)))}

    assert_runs_here(voice_encoder, run)


# ---------------------------------------------------------------- GluonTS: DeepAR, an LSTM that samples step by step

STEPS = 6  # of a forecast


def deepar(**options):
    module = package("gluonts.torch.model.deepar.module")
    torch.manual_seed(0)
    return module.DeepARModel("D", context_length=14, prediction_length=STEPS, cardinality=[3], **options)


def normal():
    """Samples of a normal distribution: of Student's, rounding could change how many random numbers one takes."""
    return package("gluonts.torch.distributions").NormalOutput()


def series(model):
    """A batch of what DeepAR sees of five series."""
    torch.manual_seed(1)
    past = model._past_length
    return {
        "feat_static_cat": torch.arange(5)[:, None] % 3,
        "feat_static_real": torch.randn(5, 1),
        "past_time_feat": torch.randn(5, past, 1),
        "past_target": torch.rand(5, past) + 1,
        "past_observed_values": torch.ones(5, past),
        "future_time_feat": torch.randn(5, STEPS, 1),
    }


def future():
    """What came after, to learn from."""
    generator = torch.Generator().manual_seed(2)
    return {
        "future_target": torch.rand(5, STEPS, generator=generator) + 1,
        "future_observed_values": torch.ones(5, STEPS),
    }


@pytest.mark.parametrize("train", [False, True])
def test_deepar_trains(train):
    model = deepar(dropout_rate=0.0 if train else 0.1).train(train)  # torch draws other masks

    def run(model):
        return sgd_step(model, model.loss(**series(model), **future()).mean())

    assert_runs_here(model, run)


def test_deepar_samples_the_same_forecasts_from_the_same_seed():
    model = deepar(distr_output=normal()).eval()

    def run(model):
        batch = series(model)
        torch.manual_seed(2)
        with torch.no_grad():
            forecasts = model(**batch, num_parallel_samples=20)
        assert forecasts.shape == (5, 20, STEPS)
        return {"forecasts": forecasts, "next random numbers": torch.rand(3)}

    assert_runs_here(model, run)


def test_deepar_estimator_trains_and_predicts_the_same(tmp_path):
    estimators = package("gluonts.torch.model.deepar")
    package("lightning")
    from gluonts.dataset.common import ListDataset

    class FastEstimator(estimators.DeepAREstimator):
        def create_lightning_module(self):
            self.module = ft.accelerate(super().create_lightning_module())
            return self.module

    wave = np.sin(np.arange(120) / 5) + 3
    data = ListDataset([{"start": "2020-01-01", "target": wave + k} for k in range(4)], freq="D")

    def run(kind):
        """The trained network, its state and its forecasts."""
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  # GluonTS draws its windows from there
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        estimator = kind(
            "D", STEPS, dropout_rate=0.0, distr_output=normal(), batch_size=8, num_batches_per_epoch=4,
            num_parallel_samples=10, trainer_kwargs={"max_epochs": 2, "default_root_dir": tmp_path, **quiet},
        )  # fmt: skip
        predictor = estimator.train(data)
        torch.manual_seed(1)
        forecasts = np.stack([forecast.samples for forecast in predictor.predict(data)])
        state = {name: tensor.clone() for name, tensor in predictor.prediction_net.state_dict().items()}
        return estimator, {**state, "forecasts": torch.from_numpy(forecasts)}

    _, expected = run(estimators.DeepAREstimator)
    estimator, found = run(FastEstimator)
    assert_torch_ran_nothing(estimator.module)
    assert_same(found, expected, 1e-4)  # Adam divides by the size of the gradients, small or not

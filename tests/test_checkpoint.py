"""Checkpoints: a training that was stopped goes on to the bits of one that was not, and nothing else goes on at all."""

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading

import fastrnn
import numpy as np
import pytest
from fastrnn.optim import SGD, Adam, AdamW, Cosine, RMSprop, StepDecay
from fastrnn.text.language_model import LanguageModel
from fastrnn.training import Trainer, load_checkpoint, save_checkpoint, trainer
from fastrnn.util import storage

PROVERB = "a rolling stone gathers no moss. "
TEXT = np.random.default_rng(9).integers(0, 6, 900)
SETTINGS = {"steps": 23, "batch_size": 4, "seq_len": 9, "lr": 0.01}


def make_trainer(checkpoint=None, cell=fastrnn.LSTM, **changed):
    """Two layers with dropout, and a held-out text: all that a training can have."""
    layer = cell(6, 7, num_layers=2, dropout=0.3, rng=4)
    head = fastrnn.Linear(7, 6, rng=5)
    return Trainer(layer, head, TEXT[:800], TEXT[800:], checkpoint=checkpoint, **{**SETTINGS, **changed})


def outcome(trainer):
    """All that a training leaves behind, but for the time that it took."""
    history = {name: value for name, value in vars(trainer.history).items() if name not in ("seconds", "interrupted")}
    flats = [module.flat_params.tobytes() for module in trainer.modules] + [best.tobytes() for best in trainer.best]
    state = {name: array.tobytes() for name, array in trainer.adam.state_dict().items()}
    return history, flats, state, trainer.layer._rng.bit_generator.state


def stop_after(monkeypatch, trainer, steps):
    """Ctrl-C, which a process gets at any moment, in the middle of that step."""
    step = trainer.adam.step

    def signalled(**options):
        if trainer.history.steps == steps - 1:
            signal.raise_signal(signal.SIGINT)
        return step(**options)

    monkeypatch.setattr(trainer.adam, "step", signalled)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("stop", [1, 2, 4, 13, 22])  # at 2, 4 and 22 it evaluates
@pytest.mark.parametrize("cell", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_training_goes_on_to_the_bits_of_one_without_a_stop(monkeypatch, tmp_path, cell, stop, accumulate):
    path = tmp_path / "checkpoint"
    straight = make_trainer(cell=cell, accumulate=accumulate)
    straight.run(progress=False)
    stopped = make_trainer(path, cell, accumulate=accumulate)
    stop_after(monkeypatch, stopped, stop)
    history = stopped.run(progress=False)
    assert history.interrupted
    assert history.steps == stop
    resumed = make_trainer(path, cell, accumulate=accumulate)
    resumed.resume()
    assert resumed.history.steps == stop
    resumed.run(progress=False)
    assert outcome(resumed) == outcome(straight)
    assert resumed.history.seconds > history.seconds / 2
    assert not resumed.history.interrupted


def test_training_goes_on_in_another_process(tmp_path):
    text, path = PROVERB * 20, tmp_path / "checkpoint"
    options = {"steps": 30, "batch_size": 4, "seq_len": 16, "lr": 1e-2, "progress": False}
    straight = LanguageModel("lstm", 8, 2, rng=0)
    expected = straight.fit(text, **options)
    code = """
import json, os, signal, sys
from fastrnn import LanguageModel
from fastrnn.training import trainer
text, path, options = json.loads(sys.argv[1])
write = trainer.Trainer._write_checkpoint
def write_and_die(trainer):
    write(trainer)
    if trainer.history.steps >= 12:
        os.kill(os.getpid(), signal.SIGKILL)
trainer.Trainer._write_checkpoint = write_and_die
LanguageModel("lstm", 8, 2, rng=0).fit(text, checkpoint=path, **options)
"""
    arguments = json.dumps([text, str(path), options])
    killed = subprocess.run([sys.executable, "-c", code, arguments], timeout=60, check=False)
    assert killed.returncode != 0
    model = LanguageModel("lstm", 8, 2, rng=123)  # where the weights start does not matter any more
    history = model.fit(text, checkpoint=path, resume=True, **options)
    assert history.train_bits == expected.train_bits
    assert history.held_out == expected.held_out
    for mine, theirs in ((model.layer, straight.layer), (model.head, straight.head)):
        assert mine.flat_params.tobytes() == theirs.flat_params.tobytes()


def test_kill_while_a_checkpoint_is_written_leaves_the_one_before(monkeypatch, tmp_path):
    path = tmp_path / "checkpoint"
    trainer, written = make_trainer(path), []
    fsync, calls = os.fsync, itertools.count()

    def killed(descriptor):
        if next(calls) >= 6:  # two for each checkpoint: the file and its directory
            written.append(path.read_bytes())
            raise SystemExit
        fsync(descriptor)

    monkeypatch.setattr(storage.os, "fsync", killed)
    with pytest.raises(SystemExit):
        trainer.run(progress=False)
    monkeypatch.undo()
    assert path.read_bytes() == written[0]
    resumed, straight = make_trainer(path), make_trainer()
    resumed.resume()
    assert 0 < resumed.history.steps < 23
    resumed.run(progress=False)
    straight.run(progress=False)
    assert outcome(resumed) == outcome(straight)


def test_finished_training_has_nothing_more_to_do(tmp_path):
    path = tmp_path / "checkpoint"
    first, again = make_trainer(path), make_trainer(path)
    first.run(progress=False)
    again.resume()
    again.run(progress=False)
    assert outcome(again) == outcome(first)


def test_training_that_takes_long_writes_a_checkpoint_between_evaluations(monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trainer, "EVALUATIONS", 1)
    seen = []
    write = Trainer._write_checkpoint
    monkeypatch.setattr(Trainer, "_write_checkpoint", lambda self: (seen.append(self.history.steps), write(self)))
    make_trainer(tmp_path / "checkpoint").run(progress=False)
    assert seen == list(range(1, 24))


def test_second_interrupt_does_not_wait_for_the_step(monkeypatch):
    trainer, calls = make_trainer(), itertools.count()

    def endless(**options):
        while next(calls) < 1000:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trainer.adam, "step", endless)
    assert trainer.run(progress=False).interrupted
    assert next(calls) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handler_of_somebody_else_stays(monkeypatch):
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("theirs"))
    try:
        trainer = make_trainer()
        stop_after(monkeypatch, trainer, 3)
        assert not trainer.run(progress=False).interrupted
        assert seen == ["theirs"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_in_another_thread_is_possible(tmp_path):
    trainer, straight = make_trainer(tmp_path / "checkpoint"), make_trainer()
    thread = threading.Thread(target=trainer.run, kwargs={"progress": False})
    thread.start()
    thread.join()
    straight.run(progress=False)
    assert outcome(trainer) == outcome(straight)


# What does not go on


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 24}, "it was made with steps=23, not 24"),
        ({"batch_size": 5}, "it was made with batch_size=4, not 5"),
        ({"seq_len": 10}, "it was made with seq_len=9, not 10"),
        ({"accumulate": 2}, "it was made with accumulate=1, not 2"),
        ({"lr": 0.02}, "it was made with lr=0.01, not 0.02"),
        ({"lr": StepDecay(0.01, every=5)}, "it was made with schedule='.*', not '.*'"),
        ({"cell": fastrnn.GRU}, r"it was made with layer='LSTM\(6, 7, 2\)', not 'GRU\(6, 7, 2\)'"),
    ],
    ids=str,
)
def test_other_settings_are_refused_and_change_nothing(tmp_path, changed, message):
    path = tmp_path / "checkpoint"
    make_trainer(path).run(progress=False)
    other = make_trainer(path, **changed)
    before = outcome(other)
    with pytest.raises(ValueError, match=f"checkpoint is not a checkpoint of this training: {message}"):
        other.resume()
    assert outcome(other) == before


def fit(model, text=PROVERB * 10, **options):
    return model.fit(text, **{"steps": 5, "batch_size": 4, "seq_len": 16, "progress": False} | options)


@pytest.mark.parametrize("other", [{"text": PROVERB * 10 + "x"}, {"validation": 0.2}])
def test_another_text_is_refused_and_leaves_the_model_new(tmp_path, other):
    path = tmp_path / "checkpoint"
    fit(LanguageModel("rnn", 8, rng=0), checkpoint=path)
    model, untouched = LanguageModel("rnn", 8, rng=0), LanguageModel("rnn", 8, rng=0)
    with pytest.raises(ValueError, match=r"it was made with (text|layer)="):
        fit(model, checkpoint=path, resume=True, **other)
    assert (model.vocabulary, model.layer, model.head) == ("", None, None)
    assert fit(model).train_bits == fit(untouched).train_bits


def test_missing_checkpoint_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fit(LanguageModel("rnn", 8), checkpoint=tmp_path / "nowhere", resume=True)


def make_optimizer(kind=Adam, **options):
    return kind([fastrnn.GRU(3, 4, rng=0), fastrnn.Linear(4, 2, rng=1)], **options)


def test_checkpoint_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "checkpoint"
    save_checkpoint(path, make_optimizer())
    whole = path.read_bytes()
    for length in [*range(0, 64), *range(64, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="checkpoint is not a whole safetensors file"):
            load_checkpoint(path, make_optimizer())


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"To be, or not to be")
    with pytest.raises(ValueError, match="file is not a whole safetensors file"):
        load_checkpoint(path, make_optimizer())
    model = LanguageModel("rnn", 8)
    fit(model)
    model.save(path)
    with pytest.raises(ValueError, match=r"file is a safetensors file, but not a fastrnn\.checkpoint"):
        load_checkpoint(path, make_optimizer())
    for content in ("{}", "no JSON", "[]", '{"settings": null}'):
        storage.save_arrays(path, {}, {"fastrnn.checkpoint": content})
        with pytest.raises(ValueError, match="file is not a checkpoint of this training"):
            load_checkpoint(path, make_optimizer())


WRONG = {
    "other modules": (lambda: Adam([fastrnn.GRU(3, 4)]), {}, "does not fit: missing .*, unknown .*1.weight"),
    "another size": (lambda: Adam([fastrnn.GRU(3, 4), fastrnn.Linear(4, 3)]), {}, r"of shape \(3, 4\), got \(2, 4\)"),
    "another dtype": (
        lambda: Adam([fastrnn.GRU(3, 4, dtype="float64"), fastrnn.Linear(4, 2, dtype="float64")]),
        {},
        "of dtype float64, got float32",
    ),
    "another kind": (lambda: make_optimizer(AdamW), {}, "it was made with optimizer='Adam', not 'AdamW'"),
    "settings": (make_optimizer, {"settings": {"epochs": 3}}, "it was made with epochs=None, not 3"),
    "more generators": (
        make_optimizer,
        {"generators": [np.random.default_rng(0)]},
        "it has the states of 1 random generators, not 2",
    ),
    "another generator": (
        lambda: Adam(
            [fastrnn.GRU(3, 4, rng=np.random.Generator(np.random.MT19937(0))), fastrnn.Linear(4, 2, rng=1)],
        ),
        {},
        "state must be for a MT19937",
    ),
}


@pytest.mark.parametrize(("make", "options", "message"), WRONG.values(), ids=WRONG)
def test_checkpoint_that_does_not_fit_changes_nothing(tmp_path, make, options, message):
    path = tmp_path / "checkpoint"
    save_checkpoint(path, make_optimizer())
    optimizer = make()
    before = [module.flat_params.copy() for module in optimizer.modules]
    with pytest.raises(ValueError, match=f"not a checkpoint of this training: .*{message}"):
        load_checkpoint(path, optimizer, **options)
    for module, flat in zip(optimizer.modules, before, strict=True):
        np.testing.assert_array_equal(module.flat_params, flat)


def edited_checkpoint(path, edit):
    """Another text in the metadata of the file, and other arrays: `edit` changes both in place."""
    arrays, metadata = storage.load_arrays(path)
    content = json.loads(metadata["fastrnn.checkpoint"])
    edit(content, arrays)
    storage.save_arrays(path, arrays, {"fastrnn.checkpoint": json.dumps(content)})


def state_edit(*keys, to):
    def edit(content, arrays):
        *within, last = keys
        state = content["generators"][0]
        for key in within:
            state = state[key]
        state[last] = to(state[last]) if callable(to) else to

    return edit


IMPOSSIBLE = [
    (np.random.PCG64, state_edit("state", "state", to=2**200)),
    (np.random.PCG64, state_edit("state", "state", to=-1)),
    (np.random.PCG64, state_edit("state", "inc", to=lambda inc: inc - 1)),  # with state 0, zeros for ever
    (np.random.PCG64, state_edit("has_uint32", to=2**40)),
    (np.random.PCG64, state_edit("has_uint32", to=math.inf)),
    (np.random.PCG64, state_edit("uinteger", to=0.5)),
    (np.random.MT19937, state_edit("state", "pos", to=625)),
    (np.random.MT19937, state_edit("state", "pos", to=-1)),
    (np.random.MT19937, state_edit("state", "key", to=lambda key: key[:-1])),
    (np.random.MT19937, state_edit("state", "key", to=lambda key: [*key, 1])),
    (np.random.MT19937, state_edit("state", "key", to=[2**31 - 1] + [0] * 623)),  # from the second on, zeros for ever
    (np.random.Philox, state_edit("buffer_pos", to=5)),
    (np.random.Philox, state_edit("buffer_pos", to=-1)),
    (np.random.Philox, state_edit("buffer", to=[1, 2, 3])),
    (np.random.Philox, state_edit("state", "counter", to=[1])),
    (np.random.SFC64, state_edit("state", "state", to=[1, 2, 3])),
    (np.random.SFC64, state_edit("state", "state", to=3)),
]


@pytest.mark.parametrize(("bits", "edit"), IMPOSSIBLE)
def test_state_that_a_generator_cannot_be_in_is_refused_and_changes_nothing(tmp_path, bits, edit):
    path = tmp_path / "checkpoint"
    save_checkpoint(path, Adam([fastrnn.GRU(3, 4, rng=np.random.Generator(bits(0)))]))
    edited_checkpoint(path, edit)
    layer = fastrnn.GRU(3, 4, rng=np.random.Generator(bits(1)))
    before, state = layer.flat_params.copy(), str(layer._rng.bit_generator.state)
    with pytest.raises(ValueError, match="is not a checkpoint of this training"):
        load_checkpoint(path, Adam([layer]))
    np.testing.assert_array_equal(layer.flat_params, before)
    assert str(layer._rng.bit_generator.state) == state


@pytest.mark.parametrize("depth", [101, 900, 2000, 100_000])
@pytest.mark.parametrize("key", ["info", "settings", "generators"])
def test_checkpoint_of_json_too_deep_is_refused(tmp_path, key, depth):
    path = tmp_path / "checkpoint"
    save_checkpoint(path, make_optimizer())
    arrays, metadata = storage.load_arrays(path)
    content = json.loads(metadata["fastrnn.checkpoint"]) | {key: "deep"}
    text = json.dumps(content).replace('"deep"', "[" * depth + "]" * depth)
    storage.save_arrays(path, arrays, {"fastrnn.checkpoint": text})
    with pytest.raises(ValueError, match="expected JSON at most 100 levels deep, got more"):
        load_checkpoint(path, make_optimizer())


def test_info_too_deep_to_be_read_again_is_not_saved(tmp_path):
    path, info = tmp_path / "checkpoint", None
    for _ in range(99):
        info = (info,)
    save_checkpoint(path, make_optimizer(), info=info)
    load_checkpoint(path, make_optimizer())
    with pytest.raises(ValueError, match="at most 100 levels deep"):
        save_checkpoint(path, make_optimizer(), info={"deeper": info})


@pytest.mark.parametrize("steps", [-1, 2**53, 2**63 - 1])
def test_steps_that_no_optimiser_has_made_are_refused(tmp_path, steps):
    optimizer = make_optimizer()
    state = optimizer.state_dict() | {"steps": np.array(steps)}
    with pytest.raises(ValueError, match=f"expected steps from 0 to .*, got {steps}"):
        optimizer.load_state_dict(state)
    assert optimizer.steps == 0


def array_edit(name, to):
    return lambda content, arrays: arrays.update({name: to(arrays[name]) if callable(to) else to})


def info_edit(**changes):
    return lambda content, arrays: content["info"].update(changes)


def no_such_array(name):
    return lambda content, arrays: arrays.pop(name)


UNFIT = {
    "more steps than there are": array_edit("optimizer.steps", np.array(2**40)),
    "fewer steps than the history": array_edit("optimizer.steps", np.array(3)),
    "no steps": array_edit("optimizer.steps", np.array(-1)),
    "a history of more steps": array_edit("arrays.train_bits", lambda bits: np.append(bits, 1.0)),
    "no history": no_such_array("arrays.lr"),
    "a history of float32": array_edit("arrays.grad_norm", lambda norm: norm.astype(np.float32)),
    "a history of nan": array_edit("arrays.lr", lambda lr: lr * np.nan),
    "no evaluations": no_such_array("arrays.held_out"),
    "evaluations in one row": array_edit("arrays.held_out", np.zeros(2)),
    "an evaluation of no array": array_edit("arrays.held_out", np.array(1.0)),
    "an evaluation too late": array_edit("arrays.held_out", np.array([[24.0, 1.0]])),
    "an evaluation at no step": array_edit("arrays.held_out", np.array([[np.nan, 1.0]])),
    "no best weights": no_such_array("arrays.best.0.weight_hh_l0"),
    "best weights of another shape": array_edit("arrays.best.1.weight", lambda weight: weight[:1]),
    "best weights of another dtype": array_edit("arrays.best.1.bias", lambda bias: bias.astype(np.float64)),
    "no state": no_such_array("arrays.state.0.1"),
    "a state of another shape": array_edit("arrays.state.0.0", lambda state: state[:, :1]),
    "a further state": array_edit("arrays.state.1.0", np.zeros(1)),
    "no info": lambda content, arrays: content.update(info=None),
    "an info of another kind": lambda content, arrays: content.update(info=[1]),
    "best_bits of text": info_edit(best_bits="x"),
    "best_step below zero": info_edit(best_step=-1),
    "best_step of text": info_edit(best_step="x"),
    "best_step to come": info_edit(best_step=24),
    "seconds of nan": info_edit(seconds=math.nan),
    "seconds beyond a float": info_edit(seconds=10**400),
}


@pytest.mark.parametrize("edit", UNFIT.values(), ids=UNFIT)
def test_checkpoint_that_is_not_of_this_training_changes_nothing_at_all(tmp_path, edit):
    path = tmp_path / "checkpoint"
    make_trainer(path).run(progress=False)
    edited_checkpoint(path, edit)
    trainer = make_trainer(path)
    before = outcome(trainer)
    with pytest.raises(ValueError, match="is not a checkpoint of this training"):
        trainer.resume()
    assert outcome(trainer) == before
    assert trainer.states == [None]
    assert trainer.best_bits == math.inf


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_resuming_that_breaks_off_leaves_the_model_new(monkeypatch, tmp_path, error):
    def fail(_):
        raise error

    monkeypatch.setattr(Trainer, "resume", fail)
    model = LanguageModel("rnn", 8, rng=0)
    with pytest.raises(error):
        fit(model, checkpoint=tmp_path / "checkpoint", resume=True)
    assert (model.vocabulary, model.layer, model.head) == ("", None, None)


# Checkpoints of a loop of one's own


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SGD, {"momentum": 0.9, "lr": 0.1}),
        (Adam, {"lr": Cosine(0.1, steps=8)}),
        (AdamW, {"groups": {"bias*": {"weight_decay": 0}}}),
        (RMSprop, {"centered": True, "momentum": 0.5}),
    ],
    ids=str,
)
def test_own_loop_goes_on_to_the_same_bits(tmp_path, kind, options, bits):
    def train(steps, stop=None):
        """A loop that shuffles its data; at `stop`, all is made anew and read from a checkpoint."""
        path, data = tmp_path / "checkpoint", np.random.default_rng(1).normal(size=(5, 20, 3)).astype("f4")

        def make():
            layer = fastrnn.GRU(3, 4, num_layers=2, dropout=0.5, rng=np.random.Generator(bits(0)))
            return layer, kind([layer], **options), np.random.Generator(bits(7))

        layer, optimizer, shuffling = make()
        state = np.zeros((2, 4, 4), np.float32)
        for step in range(steps):
            if step == stop:
                save_checkpoint(path, optimizer, generators=[shuffling], arrays={"h": state}, info={"step": step})
                layer, optimizer, shuffling = make()
                arrays, info = load_checkpoint(path, optimizer, generators=[shuffling])
                state = arrays["h"]
                assert info == {"step": step}
            y, state, tape = layer.forward(data[:, shuffling.permutation(20)[:4]], state)
            layer.zero_grad()
            layer.backward(tape, np.asarray(y))
            optimizer.step(max_norm=1.0)
        return layer.flat_params.tobytes()

    assert train(8, stop=5) == train(8)


def test_checkpoint_is_safetensors_with_names_that_speak(tmp_path):
    path = tmp_path / "checkpoint"
    save_checkpoint(path, make_optimizer(), arrays={"h": np.zeros(3)}, info=[1, np.float64(2.5)])
    arrays, metadata = storage.load_arrays(path)
    assert {"modules.0.weight_ih_l0", "optimizer.1.bias.exp_avg_sq", "optimizer.steps", "arrays.h"} <= set(arrays)
    assert json.loads(metadata["fastrnn.checkpoint"])["info"] == [1, 2.5]


def test_info_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match=re.escape("expected what JSON can hold, got {1}")):
        save_checkpoint(tmp_path / "checkpoint", make_optimizer(), info={1})
    assert list(tmp_path.iterdir()) == []

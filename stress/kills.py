"""SIGKILL at random moments of every kind of save, disks that are full, calls that fail: the file is old or new, whole.

    python -m stress.kills --count 1500 --seed 7

Each case is a process that saves something over and over, every time other contents. Two of three are killed; the
others cannot write beyond a size, as on a full disk, or have a call of the operating system that fails. Then the file
must be one of those that were saved: the last that was finished, or the one that was on its way. A process that was not
killed must leave no temporary file behind.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import fastrnn
import numpy as np
from fastrnn.interchange import load_safetensors, save_safetensors
from fastrnn.optim import Adam
from fastrnn.text.language_model import LanguageModel
from fastrnn.training import History, load_checkpoint, save_checkpoint
from fastrnn.util import storage

from .campaign import Cases, main

PROVERB = "a rolling stone gathers no moss. " * 4
LONGEST = 0.012  # seconds until a kill

Rng = np.random.Generator


def run(cases: Cases) -> None:
    """Processes that save, killed or short of disk; what they leave is read again."""
    threads = fastrnn.get_num_threads()
    fastrnn.set_num_threads(1)
    try:
        for number, rng in cases:
            kind, end = KINDS[rng.integers(len(KINDS))], ENDS[rng.integers(len(ENDS))]
            with tempfile.TemporaryDirectory() as folder:
                what = end(kind, Path(folder), rng, cases)
            if what:
                cases.fail(number, f"{kind.__name__}, {end.__name__[1:]}: {what}")
    finally:
        fastrnn.set_num_threads(threads)


# ------------------------------------------------------------ what is saved: a value, which is read again


class Layer:
    """`save_safetensors`; some 100 KB, all of one value."""

    def __init__(self, path: Path) -> None:
        self.path, self.layer = path, fastrnn.LSTM(16, 64, rng=0)

    def save(self, value: int) -> None:
        self.layer.flat_params.fill(value)
        save_safetensors(self.path, self.layer)

    def read(self) -> int:
        return _only(load_safetensors(self.path).params.values())


class Model:
    """`LanguageModel.save`."""

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, LanguageModel("gru", 32, rng=0)
        self.model.fit(PROVERB, steps=1, batch_size=1, seq_len=4, progress=False)

    def save(self, value: int) -> None:
        for module in (self.model.layer, self.model.head):
            module.flat_params.fill(value)
        self.model.save(self.path)

    def read(self) -> int:
        model = LanguageModel.load(self.path)
        return _only([*model.layer.params.values(), *model.head.params.values()])


class Checkpoint:
    """`save_checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path, self.head = path, fastrnn.Linear(64, 64, rng=0)
        self.adam = Adam([self.head])

    def save(self, value: int) -> None:
        self.head.flat_params.fill(value)
        self.adam.steps = value
        save_checkpoint(self.path, self.adam, arrays={"h": np.full(1000, value)}, info=value)

    def read(self) -> int:
        arrays, info = load_checkpoint(self.path, self.adam)
        return _only([*self.head.params.values(), arrays["h"], np.array([info, self.adam.steps])])


class Training:
    """The checkpoint of `LanguageModel.fit`, one after each of ten steps, again and again; read by going on from it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, value: int) -> None:
        if value % 10 == 1:
            self._fit(resume=False)

    def read(self) -> int:
        assert self._fit(resume=True).steps == 10
        return -1  # any step of any training

    def _fit(self, resume: bool) -> History:
        model = LanguageModel("rnn", 8, rng=0)
        return model.fit(
            PROVERB, steps=10, batch_size=1, seq_len=4, checkpoint=self.path, resume=resume, progress=False
        )


class Csv:
    """`History.to_csv`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, value: int) -> None:
        values = [float(value)] * 2000
        History(steps=2000, train_bits=values, lr=values, grad_norm=values).to_csv(self.path)

    def read(self) -> int:
        return _only([np.loadtxt(self.path, delimiter=",", skiprows=1, usecols=(1, 2, 3)).reshape(2000, 3)])


KINDS: list[Callable[[Path], Any]] = [Layer, Model, Checkpoint, Training, Csv]


def _only(arrays: Any) -> int:
    """The one value that is everywhere in the arrays."""
    values = np.unique(np.concatenate([np.unique(array) for array in arrays]))
    assert len(values) == 1, f"the file is a mixture of {values[:5]}"
    return int(values[0])


# ------------------------------------------------------------ how a process ends


def _killed(kind: Any, folder: Path, rng: Rng, cases: Cases) -> str:
    saver, told = _start(kind, folder)
    pid = _forked(lambda: _save_on(saver, told))
    with open(told[0], "rb", buffering=0) as done:
        os.close(told[1])
        began = done.read(1)  # the second save is under way
        time.sleep(rng.uniform(0, LONGEST))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        last = len(began + done.read())
    cases.seen["kills"] += 1
    cases.seen["kills in the middle of a write"] += any(path.suffix == ".tmp" for path in folder.iterdir())
    if not os.WIFSIGNALED(status):
        return f"the process ended by itself, with status {status}"
    return _fault(saver, last)


def _short_of_disk(kind: Any, folder: Path, rng: Rng, cases: Cases) -> str:
    """Files cannot grow beyond a random part of what one save needs."""
    saver, told = _start(kind, folder)
    saver.save(1)
    size = saver.path.stat().st_size

    def save() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = int(rng.integers(size))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        _must_fail(lambda: saver.save(11))

    cases.seen["full disks"] += 1
    return _ended(save, told, saver, folder, {1})


def _failing(kind: Any, folder: Path, rng: Rng, cases: Cases) -> str:
    """One call of the operating system fails, once: the n-th of its kind."""
    saver, told = _start(kind, folder)
    saver.save(1)
    name = ["fsync", "replace", "chmod", "open", "close"][rng.integers(5)]
    real, left = getattr(os, name), rng.integers(1, 3)

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments, **options)

    def save() -> None:
        with mock.patch.object(storage.os, name, call), contextlib.suppress(OSError):
            saver.save(11)

    cases.seen["failing calls"] += 1
    return _ended(save, told, saver, folder, {1, 11})


ENDS = [_killed, _killed, _killed, _killed, _short_of_disk, _failing]


def _start(kind: Any, folder: Path) -> tuple[Any, tuple[int, int]]:
    return kind(folder / "saved"), os.pipe()


def _save_on(saver: Any, told: tuple[int, int]) -> None:
    """Save 1, 2, ..., and tell after each."""
    for value in itertools.count(1):
        saver.save(value)
        os.write(told[1], b".")


def _must_fail(save: Callable[[], None]) -> None:
    try:
        save()
    except OSError:
        return
    raise AssertionError("a save on a full disk did not fail")


def _ended(save: Callable[[], None], told: tuple[int, int], saver: Any, folder: Path, possible: set[int]) -> str:
    for end in told:
        os.close(end)
    status = os.waitpid(_forked(save), 0)[1]
    if status:
        return f"the process ended with status {status}"
    if [path.name for path in folder.iterdir()] != ["saved"]:
        return f"it left {[path.name for path in folder.iterdir()]}"
    return _fault(saver, None, possible)


def _forked(work: Callable[[], None]) -> int:
    """The id of a process that does this work and no more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which are none of this process' business
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(code)
    return pid


def _fault(saver: Any, last: int | None, possible: set[int] = frozenset()) -> str:
    """What is wrong with the file: nothing, if it is the last that was saved, or the next."""
    try:
        value = saver.read()
    except Exception as error:
        return f"it cannot be read: {error!r}"
    if last is not None:
        possible = {last, last + 1}
    return "" if value in possible or value == -1 else f"it holds {value}, not one of {possible}"


if __name__ == "__main__":
    sys.exit(main("kills", run))

"""onnxruntime: an ONNX node, inputs and outputs bound once, its fastest way; a step also by the plain `session.run`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from contenders import Entry, Unsupported, thread_counts
from contenders.onnx_model import make_inputs, make_model, make_outputs, named
from shapes import Problem


class Contender:
    version = ort.__version__

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def entries(self, problem: Problem) -> list[Entry]:
        if problem.training:
            raise Unsupported("onnxruntime does not train")
        if problem.dtype != np.float32:
            raise Unsupported("onnxruntime is compared in float32")
        sessions = {way: _session(problem, threads) for way, threads in thread_counts(self._threads).items()}
        entries = [_bound(problem, session, way) for way, session in sessions.items()]
        return [*entries, _plain(problem, sessions["one thread"])] if problem.kind == "step" else entries


def _session(problem: Problem, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return ort.InferenceSession(make_model(problem), options, providers=["CPUExecutionProvider"])


def _plain(problem: Problem, session: ort.InferenceSession) -> Entry:
    given, names = make_inputs(problem), list(make_outputs(problem))
    return Entry(lambda: dict(zip(names, session.run(names, given), strict=True)), named, way="session.run")


def _bound(problem: Problem, session: ort.InferenceSession, way: str) -> Entry:
    given, outputs = make_inputs(problem), make_outputs(problem)
    inputs = {name: array.copy() for name, array in given.items()}
    binding = session.io_binding()
    # An OrtValue made from a NumPy array refers to the array's own memory.
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))

    def run() -> Any:
        session.run_with_iobinding(binding)
        return outputs

    def step() -> Any:
        for name, array in given.items():
            np.copyto(inputs[name], array)
        return run()

    return Entry(step if problem.state else run, named, way=way, keep=inputs)

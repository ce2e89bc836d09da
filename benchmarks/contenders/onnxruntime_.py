"""onnxruntime: an ONNX node, with inputs and outputs bound once, which is its fastest way of being called."""

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
        model = make_model(problem)
        return [_entry(problem, model, way, threads) for way, threads in thread_counts(self._threads).items()]


def _entry(problem: Problem, model: bytes, way: str, threads: int) -> Entry:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
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

    return Entry(step if problem.kind == "step" else run, named, way=way, keep=inputs)

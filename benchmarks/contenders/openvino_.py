"""OpenVINO: the same ONNX node, compiled for latency, in float32 (its default may be bfloat16), tensors bound once."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov

from contenders import Entry, Unsupported, thread_counts
from contenders.onnx_model import make_inputs, make_model, make_outputs, named
from shapes import Problem


class Contender:
    version = ov.__version__

    def __init__(self, threads: int) -> None:
        self._core, self._threads = ov.Core(), threads

    def entries(self, problem: Problem) -> list[Entry]:
        if problem.training:
            raise Unsupported("OpenVINO does not train")
        if problem.dtype != np.float32:
            raise Unsupported("OpenVINO is compared in float32")
        model = self._core.read_model(make_model(problem))
        return [self._entry(problem, model, way, threads) for way, threads in thread_counts(self._threads).items()]

    def _entry(self, problem: Problem, model: ov.Model, way: str, threads: int) -> Entry:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = self._core.compile_model(model, "CPU", settings).create_infer_request()
        given, outputs = make_inputs(problem), make_outputs(problem)
        inputs = {name: array.copy() for name, array in given.items()}
        for name, array in (inputs | outputs).items():
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))

        def run() -> Any:
            request.infer(share_outputs=True)
            return outputs

        def step() -> Any:
            for name, array in given.items():
                np.copyto(inputs[name], array)
            return run()

        return Entry(step if problem.state else run, named, way=way, keep=inputs)

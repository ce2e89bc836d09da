"""The examples in the docstrings run and give what they show."""

import doctest
import importlib
import pkgutil

import fastrnn
import pytest

MODULES = [
    module.name
    for module in pkgutil.walk_packages(fastrnn.__path__, "fastrnn.")
    if not module.name.endswith("__main__")
]
NEEDS = {
    "fastrnn.interchange.onnx": "onnx",
    "fastrnn.interchange.torch": "torch",
    "fastrnn.torch": "torch",
    "fastrnn.torch.recurrent_ppo": "sb3_contrib",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason="the examples use it")
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0

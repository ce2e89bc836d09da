"""What pip installs: the package under test here, and a wheel built from an sdist in an environment of its own.

The two take minutes to build, so their tests run where CI=true or FASTRNN_TEST_WHEEL=1, and are skipped elsewhere.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import fastrnn
import pytest

ROOT = Path(__file__).resolve().parents[1]
WHEEL_TESTS = os.environ.get("CI") == "true" or os.environ.get("FASTRNN_TEST_WHEEL") == "1"
MEGABYTE = 1_000_000

TRAINING_STEP = """
import numpy as np, fastrnn
layer = fastrnn.RNN(3, 4, rng=0)
x = np.random.default_rng(0).standard_normal((5, 2, 3), dtype=np.float32)
y, state, tape = layer.forward(x)
dx, dstate = layer.backward(tape, np.ones_like(y))
p = layer.params
first = np.tanh(x[0] @ p["weight_ih_l0"].T + p["bias_ih_l0"] + p["bias_hh_l0"])
np.testing.assert_allclose(y[0], first, rtol=0, atol=1e-5)
assert dx.shape == x.shape and all(np.abs(g).max() > 0 for g in layer.grads.values())
"""

LOADED_FILES = """
import sys, fastrnn
files = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "fastrnn"]
try:
    files += [line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line and "numpy" not in line]
except FileNotFoundError:  # not Linux
    pass
print("\\n".join(sorted(set(files))))
"""


def run_python(python: str | Path, code: str, cwd: Path) -> str:
    """What `code` prints, run where no source tree is on sys.path and no compiler is on PATH."""
    command = [python, "-I", "-W", "error", "-c", code]
    process = subprocess.run(command, cwd=cwd, env={"PATH": ""}, text=True, capture_output=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def is_editable() -> bool:
    direct_url = importlib.metadata.distribution("fastrnn").read_text("direct_url.json")
    return json.loads(direct_url or "{}").get("dir_info", {}).get("editable", False)


def test_installed_package_runs_a_training_step(tmp_path):
    run_python(sys.executable, TRAINING_STEP, tmp_path)


def test_import_loads_no_optional_dependency(tmp_path):
    code = "import sys, fastrnn; print(*{name.split('.')[0] for name in sys.modules})"
    optional = {"jax", "keras", "matplotlib", "onnx", "onnxruntime", "safetensors", "scipy", "torch", "tqdm"}
    assert optional.isdisjoint(run_python(sys.executable, code, tmp_path).split())


@pytest.mark.skipif(is_editable(), reason="an editable install runs from the source tree by design")
def test_nothing_is_imported_from_the_source_tree(tmp_path):
    files = [Path(line).resolve() for line in run_python(sys.executable, LOADED_FILES, tmp_path).splitlines()]
    assert files
    assert not [file for file in files if file.is_relative_to(ROOT / "src")]


def test_every_python_file_of_the_source_tree_is_installed(tmp_path):
    installed = run_python(sys.executable, "import fastrnn; print(fastrnn.__path__[0])", tmp_path).strip()
    source = ROOT / "src" / "rnn"
    files = [file.relative_to(source) for pattern in ("*.py", "*.pyi") for file in source.rglob(pattern)]
    assert [str(file) for file in files if not (installed / file).exists()] == []


def test_metadata_names_version_run_time_dependencies_and_licences():
    metadata = importlib.metadata.metadata("fastrnn")
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {line.split(">")[0] for line in required} == {"numpy", "safetensors", "tqdm"}
    assert metadata["Version"] == fastrnn.__version__
    assert metadata.get_all("License-File") == ["LICENSE", "LICENSES/OpenBLAS.txt"]


def run(*command, cwd=None):
    process = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.returncode == 0, process.stdout


@pytest.fixture(scope="session")
def sdist(tmp_path_factory) -> Path:
    if not WHEEL_TESTS:
        pytest.skip("builds an sdist and a wheel, which takes minutes; set FASTRNN_TEST_WHEEL=1 to run it")
    folder = tmp_path_factory.mktemp("sdist")
    # A copy, so that nothing an earlier build left in the checkout is used, and nothing is left there.
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "*.dylib", "_core.cpp", "typings")
    shutil.copytree(ROOT, folder / "source", ignore=left_out)
    venv.create(folder / "tools", with_pip=True)
    python = folder / "tools" / "bin" / "python"
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    run(python, "-m", "pip", "install", *tools)
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    run(python, "-c", build, cwd=folder / "source")
    [path] = folder.glob("fastrnn-*.tar.gz")
    return path


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, sdist)
    [path] = folder.glob("fastrnn-*.whl")
    return path


@pytest.fixture(scope="session")
def clean_python(wheel, tmp_path_factory) -> Path:
    """The Python of a new environment that holds the wheel and its run-time dependencies only."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", wheel)
    return python


def test_documents_hold_in_the_unpacked_sdist(sdist, tmp_path):
    run("tar", "-xzf", sdist, "-C", tmp_path)
    [folder] = tmp_path.iterdir()
    run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_documents.py", cwd=folder)


def test_wheel_is_at_most_12_megabytes(wheel):
    assert wheel.stat().st_size <= 12 * MEGABYTE


def test_wheel_holds_package_library_and_licences_but_no_sources(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    installed = (".py", ".pyi", ".so", ".dylib", "/py.typed")
    assert [name for name in names if name.startswith("fastrnn/") and not name.endswith(installed)] == []
    assert {name.split("/")[0] for name in names} == {"fastrnn", f"fastrnn-{fastrnn.__version__}.dist-info"}
    endings = ["/licenses/LICENSE", "/licenses/LICENSES/OpenBLAS.txt", "/py.typed", "/cli.py"]
    assert [end for end in endings if not any(name.endswith(end) for name in names)] == []
    assert len([name for name in names if name.startswith("fastrnn/.libs/libscipy_openblas")]) == 1


def test_wheel_trains_in_a_clean_environment_on_its_own_openblas(clean_python, tmp_path):
    absent = "import importlib.util; print(importlib.util.find_spec('scipy_openblas32'))"
    assert run_python(clean_python, absent, tmp_path) == "None\n"
    run_python(clean_python, TRAINING_STEP, tmp_path)
    site_packages = clean_python.parents[1] / "lib"
    files = [Path(line) for line in run_python(clean_python, LOADED_FILES, tmp_path).splitlines()]
    assert files
    assert not [file for file in files if not file.is_relative_to(site_packages)]


def test_wheel_installs_the_command(clean_python, tmp_path):
    command = [clean_python.with_name("fastrnn"), "info"]
    process = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert process.returncode == 0, process.stderr
    assert fastrnn.__version__ in process.stdout

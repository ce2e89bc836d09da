"""tests/native/check_kernels.cpp, built with the compilers that are here, assertions on, and run for each kernel set.

The C++ compiler of the machine, and clang++ once more if it is another one; NEON by a cross-compiler, in an emulator.
Which packages these are is in CONTRIBUTING.md.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastrnn import _core

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "src" / "rnn" / "kernels"
FLAGS = ["-std=c++17", "-O2", "-UNDEBUG", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-pthread"]
FLAGS += ["-I", KERNELS, "-I", ROOT / "tests" / "native"]


def needs(*programs):
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")


def run(*command):
    process = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.returncode == 0, process.stdout
    return process.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles, side by side, and links what checks the kernels: once with each compiler."""
    built = {}

    def build(compiler, *flags):
        if compiler not in built:
            needs(compiler)
            folder = tmp_path_factory.mktemp(compiler)
            sources = [ROOT / "tests" / "native" / "check_kernels.cpp", *sorted(KERNELS.glob("*/*.cpp"))]
            objects = [folder / f"{source.stem}.o" for source in sources]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compiling = [
                    pool.submit(run, compiler, *FLAGS, "-c", source, "-o", to)
                    for source, to in zip(sources, objects, strict=True)
                ]
                for each in compiling:
                    each.result()
            run(compiler, "-pthread", *flags, *objects, "-o", folder / "check_kernels")
            built[compiler] = folder / "check_kernels"
        return built[compiler]

    return build


WRONG = """
#include "runtime/assert.hpp"
int main(int count, char**) { FASTRNN_ASSERT(count == 2); }
"""


def test_an_assertion_ends_the_process_unless_ndebug_is_defined(tmp_path):
    needs("g++")
    (tmp_path / "wrong.cpp").write_text(WRONG)
    command = ["g++", *FLAGS, tmp_path / "wrong.cpp", KERNELS / "runtime" / "assert.cpp", "-o", tmp_path / "wrong"]
    run(*command)
    ended = subprocess.run([tmp_path / "wrong"], text=True, capture_output=True)
    assert ended.returncode < 0
    assert "wrong.cpp:3: expected count == 2" in ended.stderr
    run(*command, "-DNDEBUG", "-Wno-unused-parameter")
    assert subprocess.run([tmp_path / "wrong"], text=True, capture_output=True).stderr == ""


def assert_passed(printed, tables):
    lines = printed.splitlines()
    assert lines[-1] == "passed"
    assert [table for table in tables if table not in lines] == []  # each was run


@pytest.mark.parametrize("table", _core.instruction_sets())
def test_kernels_agree_with_scalars(build, table):
    assert_passed(run(build("g++"), table), [table])


def test_kernels_agree_with_scalars_as_clang_compiles_them(build):
    assert_passed(run(build("clang++")), _core.instruction_sets())


def test_kernels_agree_with_scalars_on_emulated_neon(build):
    needs("qemu-aarch64")
    assert_passed(run("qemu-aarch64", build("aarch64-linux-gnu-g++", "-static"), "neon", "--few"), ["neon"])

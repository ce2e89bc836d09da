"""The build of the one extension, fastrnn._core; all else is said in pyproject.toml.

FASTRNN_BUILD chooses how it is compiled, release by default: see BUILDS, and CONTRIBUTING.md.

The package folder is src/rnn and the import name is fastrnn, so the package is listed by name in pyproject.toml, and
Cython, which would look for .pxd files in fastrnn/, is told to look in src/rnn.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from itertools import chain
from pathlib import Path

import numpy
import scipy_openblas32
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGE = "src/rnn"
FLAGS = ["-std=c++17", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi"]
# Not as in Python's own build: no sum of ours overflows, and which multiplications are fused with additions, so the
# last bits of results, would depend on it.
FLAGS += ["-fno-wrapv"]
ASSERTING = ["-UNDEBUG"]  # after the flags of Python's own build, which have -DNDEBUG
# The line numbers of a report are all that a sanitizer needs: more would take much longer to compile.
SANITIZING = ["-O1", "-g1", *ASSERTING, "-fno-omit-frame-pointer"]
BUILDS = {
    "release": ["-O3", "-g0", "-DNDEBUG"],
    "debug": ["-O0", "-g", *ASSERTING],
    "sanitize": [*SANITIZING, "-fsanitize=address,undefined"],
    "tsan": [*SANITIZING, "-fsanitize=thread"],
    "coverage": ["-O0", "-g", "-DNDEBUG", "--coverage", "-DCYTHON_TRACE_NOGIL=1"],
}
BUILD = os.environ.get("FASTRNN_BUILD", "release")
if BUILD not in BUILDS:
    sys.exit(f"expected FASTRNN_BUILD to be one of {', '.join(BUILDS)}, got {BUILD!r}")

# Directives given here override those at the head of the .pyx.
CHECKS = {"boundscheck": True, "initializedcheck": True}
DIRECTIVES = {"debug": CHECKS, "sanitize": CHECKS, "tsan": CHECKS, "coverage": {"linetrace": True}}

# Where the loader finds the OpenBLAS that `BuildExt` puts beside the extension.
ORIGIN = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
OPENBLAS = Path(scipy_openblas32.get_lib_dir(), scipy_openblas32.get_library(fullname=True))


class BuildExt(build_ext):
    """Compile with our Cython options, then copy OpenBLAS beside the extension.

    The copy is what is loaded: the one that is linked against lies in the build environment, which pip deletes.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # what an earlier build left may be of another FASTRNN_BUILD or another Cython
        self.cython_include_dirs = [PACKAGE]
        self.cython_directives = DIRECTIVES.get(BUILD, {})

    def build_extensions(self) -> None:
        compile_in_turn = self.compiler.compile

        def compile_side_by_side(sources: list[str], **options) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return list(chain(*pool.map(lambda source: compile_in_turn([source], **options), sources)))

        self.compiler.compile = compile_side_by_side
        super().build_extensions()

    def run(self) -> None:
        super().run()
        for target in [self._built, self._inplace] if self.inplace else [self._built]:
            self.mkpath(os.path.dirname(target))
            self.copy_file(str(OPENBLAS), target)

    @property
    def _built(self) -> str:
        return os.path.join(self.build_lib, "fastrnn", ".libs", OPENBLAS.name)

    @property
    def _inplace(self) -> str:
        return os.path.join(PACKAGE, ".libs", OPENBLAS.name)

    def get_outputs(self) -> list[str]:
        return sorted({*super().get_outputs(), self._built})

    def get_output_mapping(self) -> dict[str, str]:
        return super().get_output_mapping() | ({self._built: self._inplace} if self.inplace else {})


core = Extension(
    "fastrnn._core",
    sources=[f"{PACKAGE}/_core.pyx", *sorted(glob(f"{PACKAGE}/kernels/*/*.cpp"))],
    depends=sorted(
        glob(f"{PACKAGE}/**/*.px[di]", recursive=True) + glob(f"{PACKAGE}/kernels/**/*.[hi]*", recursive=True)
    ),
    language="c++",
    include_dirs=[f"{PACKAGE}/kernels", scipy_openblas32.get_include_dir(), numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    library_dirs=[scipy_openblas32.get_lib_dir()],
    libraries=[scipy_openblas32.get_library()],
    runtime_library_dirs=[f"{ORIGIN}/.libs"],
    extra_compile_args=[*FLAGS, *BUILDS[BUILD]],
    extra_link_args=[flag for flag in BUILDS[BUILD] if flag == "--coverage" or flag.startswith("-fsanitize")],
)

setup(ext_modules=[core], cmdclass={"build_ext": BuildExt})

"""The imports of the package run downwards only, and each sub-package says what it consists of."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "rnn"
# The parts of the package; "fastrnn" is its own __init__. Each may import what stands behind it.
ORDER = ("__main__", "cli", "fastrnn", "text", "training", "optim", "nn", "engine", "_core", "util")
# Three parts stand aside: only the first three of the order may import them.
ASIDE = {
    "interchange": {"nn", "engine", "_core", "util"},
    "reference": {"util"},
    "torch": {"nn", "engine", "_core", "util"},
}
MAY_IMPORT = ASIDE | {
    part: {*ORDER[place + 1 :], *(ASIDE if place <= ORDER.index("fastrnn") else ())} for place, part in enumerate(ORDER)
}
CYTHON_IMPORT = re.compile(r"^\s*(?:from|c?import)\s+((?:\.|fastrnn\b)\S*)(?:\s+c?import\s+(\w+))?", re.MULTILINE)

SOURCES = {path.relative_to(ROOT).with_suffix(""): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = {
    ".".join(("fastrnn", *(path.parent if path.name == "__init__" else path).parts)): SOURCES[path] for path in SOURCES
} | {"fastrnn._core": ROOT / "_core.pyi"}
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py" and name != "fastrnn"]


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imports_of(module: str, tree: ast.AST) -> Iterator[str]:
    """The modules of the package that a module imports, anywhere in it: also in a function, or for type checkers only.

    >>> list(imports_of("fastrnn.nn.linear", ast.parse("from .. import _core; from .losses import checked_targets")))
    ['fastrnn._core', 'fastrnn.nn.losses']
    """
    package = module if module in (*PACKAGES, "fastrnn") else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            names = [(".".join([*base, *filter(None, [node.module])]), alias.name) for alias in node.names]
        else:
            continue
        for source, name in names:
            if source.split(".")[0] == "fastrnn":
                found = f"{source}.{name}"
                yield found if found in MODULES else source


def python_imports(module: str) -> set[str]:
    return set(imports_of(module, ast.parse(MODULES[module].read_text(encoding="utf-8"))))


def upward_imports(module: str, imported: set[str]) -> list[str]:
    part = part_of(module)
    return [
        f"{module} imports {other} upwards: {part} may import {', '.join(sorted(MAY_IMPORT[part])) or 'nothing'}"
        for other in sorted(imported)
        if part_of(other) not in MAY_IMPORT[part] | {part}
    ]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards_only(module):
    assert part_of(module) in MAY_IMPORT, f"{module} has no place in the order of imports"
    assert upward_imports(module, python_imports(module)) == []


def test_compiled_sources_import_nothing_upwards():
    for path in (*ROOT.glob("*.p[yx][xd]"), *ROOT.glob("core/*.pxi")):
        lines = [match[0].strip().replace("cimport", "import") for match in CYTHON_IMPORT.finditer(path.read_text())]
        found = imports_of("fastrnn._core", ast.parse("\n".join(lines)))
        assert upward_imports("fastrnn._core", set(found)) == [], path.name


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_of_a_sub_package_import_each_other_in_no_circle(package):
    inside = [module for module in MODULES if module == package or module.startswith(f"{package}.")]
    graph = {module: python_imports(module).intersection(inside) for module in inside}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' imports '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_sub_package_says_what_its_modules_are(package):
    text = ast.get_docstring(ast.parse(MODULES[package].read_text(encoding="utf-8")))
    assert text, f"{package} has no docstring"
    modules = [module.rpartition(".")[2] for module in MODULES if module.startswith(f"{package}.")]
    assert [module for module in modules if not re.search(rf"\b{module}\b", text)] == []


@pytest.mark.parametrize(
    ("module", "text", "imported"),
    [
        ("fastrnn.engine.tape", "def f():\n    from ..nn.linear import Linear", "fastrnn.nn.linear"),
        ("fastrnn.util.checks", "if TYPE_CHECKING:\n    import fastrnn.engine.spec as spec", "fastrnn.engine.spec"),
        ("fastrnn.training", "from .. import interchange", "fastrnn.interchange"),
        ("fastrnn.nn.layers", "from fastrnn import RNN", "fastrnn"),
        ("fastrnn._core", "from .engine import tuning", "fastrnn.engine.tuning"),
    ],
)
def test_an_import_upwards_is_seen(module, text, imported):
    (message,) = upward_imports(module, set(imports_of(module, ast.parse(text))))
    assert message.startswith(f"{module} imports {imported} upwards")

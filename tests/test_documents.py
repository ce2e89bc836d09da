"""What the documents say is so: their examples run, their excerpts stand in the code, their links lead somewhere."""

import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/*.md", "benchmarks/*.md", "src/rnn/kernels/*.md")
    for path in sorted(ROOT.glob(pattern))
]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OPTIONAL = ("aeon", "keras", "onnx", "torch")


def blocks(document: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return re.findall(FENCED, (ROOT / document).read_text(encoding="utf-8"))


def excerpts(document: str) -> list[tuple[str, str]]:
    """Path and text of each block whose first line, a comment, is the path of a file of the source tree."""
    found = [re.fullmatch(r"(?:#|//) (src/\S+)\n(.*)", text, re.DOTALL) for _, text in blocks(document)]
    return [match.groups() for match in found if match]


def examples(document: str) -> list[str]:
    return [text for kind, text in blocks(document) if kind == "python" and not text.startswith("# src/")]


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if examples(document)])
def test_examples_run_and_print_what_they_show(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for example in examples(document):
        imported = set(re.findall(r"^(?:import|from) (\w+)", example, re.MULTILINE))
        if any(name in imported and importlib.util.find_spec(name) is None for name in OPTIONAL):
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example, document, "exec"), names)
        assert printed.getvalue().splitlines() == re.findall(r"^ *print\(.*\)  # (.*)$", example, re.MULTILINE)


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if excerpts(document)])
def test_excerpts_stand_in_the_code(document):
    for path, text in excerpts(document):
        code = [line.strip() for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]
        for part in re.split(r"^ *(?:#|//)? ?\.\.\.\n", text, flags=re.MULTILINE):
            lines = [line.strip() for line in part.strip().splitlines()]
            assert any(code[i : i + len(lines)] == lines for i in range(len(code))), f"not in {path}:\n{part}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_that_exist(document):
    text = re.sub(FENCED, "", (ROOT / document).read_text(encoding="utf-8"))
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not ((ROOT / document).parent / link).exists()] == []


def test_pictures_are_those_that_the_script_draws(tmp_path):
    script = tmp_path / "draw.py"
    script.write_text((ROOT / "docs" / "draw.py").read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, script], check=True)
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.svg")}


def test_figures_of_the_benchmarks_are_medians_with_a_line_for_each_row():
    text = (ROOT / "docs" / "speed.json").read_text(encoding="utf-8")
    lines = [json.loads(line.rstrip(",")) for line in text.splitlines() if line.startswith('  {"kind"')]
    assert lines == json.loads(text)["rows"]
    assert not any("samples" in row for row in lines)


def test_readme_has_the_two_commands_of_a_newcomer():
    commands = [text.strip() for kind, text in blocks("README.md") if kind == "bash"]
    assert [command for command in commands if command.startswith("python -m venv")] == [
        "python -m venv .venv && .venv/bin/pip install . && .venv/bin/fastrnn train",
        'python -m venv .venv && .venv/bin/pip install ".[test]" && .venv/bin/python -m pytest',
    ]

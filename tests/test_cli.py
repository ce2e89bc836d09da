"""The command line, run as a user runs it."""

import os
import re
import select
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from fastrnn.text.corpus import builtin_text
from fastrnn.text.language_model import LanguageModel

if os.name == "posix":
    import termios

PROVERB = "a rolling stone gathers no moss. "
SMALL = ("--hidden", "16", "--batch-size", "4", "--seq-len", "32", "--steps", "20", "--lr", "0.01")


def command(*arguments):
    return [sys.executable, "-W", "error", "-m", "fastrnn", *map(str, arguments)]


def run(*arguments, cwd):
    return subprocess.run(command(*arguments), capture_output=True, cwd=cwd, encoding="utf-8", timeout=120)


def assert_fails(result, code, message):
    """That exit code, and the message as the last line of stderr without a traceback."""
    assert result.returncode == code, result
    assert "Traceback" not in result.stderr
    assert re.search(message, result.stderr.splitlines()[-1])
    if code == 1:
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("fastrnn: error: ")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with text.txt, the model.safetensors that `train` made of it, and what `train` printed."""
    directory = tmp_path_factory.mktemp("trained")
    (directory / "text.txt").write_text(PROVERB * 60, encoding="utf-8")
    result = run("train", "text.txt", *SMALL, "--save", "model.safetensors", cwd=directory)
    return directory, result


def test_train_reports_bits_time_speed_a_sample_and_where_it_saved(trained):
    directory, result = trained
    assert (result.returncode, result.stderr) == (0, "")
    assert "text.txt: 1,980 characters, 14 distinct; 1 x 16 units, rnn\n" in result.stdout
    assert re.search(r"^held out: \d\.\d{3} bits per character$", result.stdout, re.MULTILINE)
    assert re.search(r"^20 steps in \d+\.\d s, [\d,]+ characters/s$", result.stdout, re.MULTILINE)
    assert "\nsaved to model.safetensors\n" in result.stdout
    sample, next_command = result.stdout.split("\n\n")[1:]
    assert len(sample) == 1 + 300  # a prompt of one character
    assert next_command == f"more of it: fastrnn sample model.safetensors --prompt {sample[0]!r}\n"
    assert sorted(path.name for path in directory.iterdir()) == ["model.safetensors", "text.txt"]


def test_train_saves_the_model_that_python_would_train(trained):
    directory, _ = trained
    model = LanguageModel("rnn", 16, rng=0)
    model.fit(PROVERB * 60, steps=20, batch_size=4, seq_len=32, lr=0.01)
    loaded = LanguageModel.load(directory / "model.safetensors")
    for name, array in model.layer.params.items():
        np.testing.assert_array_equal(loaded.layer.params[name], array, err_msg=name)


def test_sample_goes_on_from_the_prompt(trained):
    directory, _ = trained
    sample = ("sample", "model.safetensors", "--prompt", "a stone ", "--length", "40")
    first, again, other = (run(*sample, "--seed", seed, cwd=directory) for seed in (5, 5, 6))
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("a stone ")
    assert len(first.stdout) == len("a stone ") + 40 + 1
    assert first.stdout == again.stdout != other.stdout
    likeliest = run(*sample, "--temperature", "0", cwd=directory)
    model = LanguageModel.load(directory / "model.safetensors")
    assert likeliest.stdout == "a stone " + model.generate("a stone ", 40, temperature=0) + "\n"


def test_train_without_a_file_learns_from_the_built_in_text(tmp_path):
    result = run("train", "--hidden", "4", "--steps", "2", "--batch-size", "8", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"the built-in text: {len(builtin_text()):,} characters" in result.stdout
    assert "\nThe " in result.stdout
    assert "saved to fastrnn-model.safetensors" in result.stdout
    assert LanguageModel.load(tmp_path / "fastrnn-model.safetensors").vocabulary == "".join(sorted(set(builtin_text())))


def test_built_in_text_is_english_of_a_known_size_and_alphabet():
    text = builtin_text()
    assert 300_000 < len(text) < 1_000_000
    assert set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,\n") < set(text)
    assert len(set(text)) < 150
    assert set(text) - {"\n"} == {character for character in text if character.isprintable()}
    assert text.count(" the ") > 1000


def test_info_prints_version_instruction_set_blas_and_threads(tmp_path):
    result = run("info", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in result.stdout.splitlines())
    assert set(lines) >= {"fastrnn", "instruction set", "BLAS", "threads"}
    assert re.fullmatch(r"\d+\.\d+\.\w+", lines["fastrnn"])
    assert int(lines["threads"]) >= 1
    version = run("--version", cwd=tmp_path)
    assert version.stdout == f"fastrnn {lines['fastrnn']}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: COMMAND"),
        (("learn",), "invalid choice: 'learn'"),
        (("train", "--steps", "0"), "--steps: expected an integer of at least 1, got '0'"),
        (("train", "--hidden", "many"), "--hidden: expected an integer of at least 1, got 'many'"),
        (("train", "--lr", "nan"), "--lr: expected a number of at least 0, got 'nan'"),
        (("train", "--cell", "elman"), "--cell: invalid choice: 'elman'"),
        (("train", "--seed", "-1"), "--seed: expected an integer of at least 0"),
        (("sample", "model"), "required: --prompt"),
        (("sample", "--prompt", "a"), "required: MODEL"),
        (("sample", "model", "--prompt", "a", "--temperature", "-1"), "--temperature: expected a number of at least 0"),
    ],
)
def test_wrong_command_line_is_exit_code_2(tmp_path, arguments, message):
    assert_fails(run(*arguments, cwd=tmp_path), 2, message)
    assert list(tmp_path.iterdir()) == []


def test_errors_are_one_line_and_exit_code_1(trained, tmp_path):
    directory, _ = trained
    model = directory / "model.safetensors"
    (tmp_path / "short").write_text("too short", encoding="utf-8")
    (tmp_path / "latin").write_bytes("größer".encode("latin-1"))
    for arguments, message in (
        (("train", "missing"), "No such file or directory: 'missing'"),
        (("train", "."), "Is a directory|Permission denied"),
        (("train", "short"), "expected a text of which"),
        (("train", "latin"), "latin is not UTF-8 text: byte 0xf6 at 2"),
        (("train", "--save", "nowhere/model"), "there is no directory to save nowhere.model in"),
        (("train", "--resume"), "no stopped training to go on with: fastrnn-model.*.checkpoint does not exist"),
        (("sample", "missing", "--prompt", "a"), "No such file or directory: 'missing'"),
        (("sample", "latin", "--prompt", "a"), "latin is not a whole safetensors file"),
        (("sample", model, "--prompt", "a stone Z"), "it has not learned 'Z'"),
        (("sample", model, "--prompt", ""), "expected a prompt of at least one character"),
    ):
        assert_fails(run(*arguments, cwd=tmp_path), 1, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin", "short"]


def test_divergence_is_an_error_that_says_what_to_try_and_keeps_the_old_model(trained, tmp_path):
    directory, _ = trained
    (tmp_path / "model").write_bytes(b"old")
    result = run("train", directory / "text.txt", *SMALL, "--lr", "1e38", "--save", "model", cwd=tmp_path)
    assert_fails(result, 1, r"is not finite at step \d+; .* Try a learning rate below 1e\+38")
    assert (tmp_path / "model").read_bytes() == b"old"


def test_byte_order_mark_and_line_ends_of_windows_are_not_learned(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf" + b"one\r\ntwo\r\n" * 200)
    assert run("train", "text", *SMALL, cwd=tmp_path).returncode == 0
    assert LanguageModel.load(tmp_path / "fastrnn-model.safetensors").vocabulary == "\nenotw"


@pytest.mark.skipif(os.name != "posix", reason="pipes and signals of POSIX")
def test_reader_that_leaves_early_is_no_error_message(trained):
    directory, _ = trained
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        sample = command("sample", "model.safetensors", "--prompt", "a", "--length", "10")
        result = subprocess.run(sample, stdout=pipe, stderr=subprocess.PIPE, cwd=directory, timeout=120)
    assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.skipif(os.name != "posix", reason="pipes and signals of POSIX")
def test_interrupt_saves_the_best_model(trained, tmp_path):
    """A terminal as stderr shows the progress bar, by which the test knows that training is under way."""
    directory, _ = trained
    terminal, stderr = os.openpty()
    termios.tcsetwinsize(stderr, (24, 100))  # tqdm shows nothing where it has no room
    train = command("train", directory / "text.txt", *SMALL, "--steps", 10**7)
    with subprocess.Popen(train, stdout=subprocess.PIPE, stderr=stderr, cwd=tmp_path, encoding="utf-8") as process:
        os.close(stderr)
        try:
            shown = read_terminal(terminal, until=rb"\d\.\d{3} bits/char")
            process.send_signal(signal.SIGINT)
            shown += read_terminal(terminal)
            output = process.stdout.read()
        finally:
            process.kill()
            os.close(terminal)
    assert process.returncode == 130
    assert b"Traceback" not in shown
    assert re.search(r"^interrupted after \d+ steps$", output, re.MULTILINE)
    assert "saved to fastrnn-model.safetensors" in output
    assert run("sample", "fastrnn-model.safetensors", "--prompt", "a", cwd=tmp_path).returncode == 0


INTERRUPTED_AT_STEP_7 = """
import signal, sys
from fastrnn import cli, optim

step = optim.Adam.step

def interrupted(adam, **options):
    if adam.steps == 6:
        signal.raise_signal(signal.SIGINT)
    return step(adam, **options)

optim.Adam.step = interrupted
sys.exit(cli.main(sys.argv[1:]))
"""


def test_resume_goes_on_after_an_interrupt_to_the_model_of_an_unbroken_training(trained, tmp_path):
    directory, _ = trained
    train = ["train", str(directory / "text.txt"), *SMALL, "--save", "a model"]
    first = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_STEP_7, *train],
        capture_output=True,
        cwd=tmp_path,
        encoding="utf-8",
        timeout=120,
    )
    assert first.returncode == 130
    assert "interrupted after 7 steps\n" in first.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a model", "a model.checkpoint"]
    told = first.stdout.splitlines()[-1].removeprefix("to go on: ")
    assert shlex.split(told) == ["fastrnn", *train, "--resume"]
    assert_fails(run(*train, "--resume", "--hidden", "8", cwd=tmp_path), 1, r"made with layer='RNN\(14, 16, 1\)'")
    assert_fails(run(*train, "--resume", "--steps", "30", cwd=tmp_path), 1, "it was made with steps=20, not 30")
    second = run(*shlex.split(told)[1:], cwd=tmp_path)
    assert (second.returncode, second.stderr) == (0, "")
    assert re.search(r"^20 steps in ", second.stdout, re.MULTILINE)
    assert (tmp_path / "a model").read_bytes() == (directory / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a model"]


def test_plot_draws_the_training(trained, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    directory, _ = trained
    result = run("train", directory / "text.txt", *SMALL, "--plot", "training.svg", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "\ndrawn in training.svg\n" in result.stdout
    assert (tmp_path / "training.svg").read_bytes().startswith(b"<?xml")


def test_plot_without_matplotlib_is_an_error_before_the_training(trained, tmp_path):
    directory, _ = trained
    code = "import sys; sys.modules['matplotlib'] = None; from fastrnn import cli; sys.exit(cli.main(sys.argv[1:]))"
    train = ["train", directory / "text.txt", *SMALL, "--plot", "training.png"]
    result = subprocess.run(
        [sys.executable, "-c", code, *train], capture_output=True, cwd=tmp_path, encoding="utf-8", timeout=120
    )
    assert_fails(result, 1, "a plot needs matplotlib: pip install matplotlib")
    assert list(tmp_path.iterdir()) == []


def read_terminal(terminal, until=None):
    """What a process writes to its terminal until it matches, or to the end."""
    shown = b""
    while not (until and re.search(until, shown)):
        assert select.select([terminal], [], [], 60)[0], f"nothing more came after {shown[-200:]}"
        try:
            more = os.read(terminal, 4096)
        except OSError:  # so Linux says that nobody holds the other side any more
            more = b""
        if not more:
            assert until is None, f"the process ended after {shown[-200:]}"
            break
        shown += more
    return shown

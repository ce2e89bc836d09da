"""The command line: ``fastrnn train``, ``fastrnn sample`` and ``fastrnn info``.

Exit codes: 0 done, 1 an error, 2 a wrong command line, 130 interrupted by Ctrl-C (the model is saved if there is one).
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fastrnn
import numpy as np

from . import _core
from .text.corpus import builtin_text
from .text.language_model import LanguageModel
from .training import DivergedError, History
from .training.history import require_matplotlib

MODEL_FILE = "fastrnn-model.safetensors"
INTERRUPTED = 130  # exit code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default that of ``sys.argv``, and return its exit code; an error is one line on stderr."""
    options = _parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("fastrnn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has ended, as in `fastrnn sample ... | head`; nothing may be flushed any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, RuntimeError, FloatingPointError, MemoryError, ImportError) as error:
        print(f"fastrnn: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastrnn", description="Recurrent networks on the CPU.")
    parser.add_argument("--version", action="version", version=f"fastrnn {fastrnn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a character model on a text", formatter_class=_Formatter)
    train.add_argument("file", nargs="?", metavar="FILE", help="text in UTF-8; without it, Python's own help topics")
    train.add_argument("--cell", choices=("rnn", "gru", "lstm"), default="rnn", help="kind of recurrent layer")
    train.add_argument("--hidden", type=_positive_int, default=256, metavar="H", help="units of a layer")
    train.add_argument("--layers", type=_positive_int, default=1, metavar="L", help="recurrent layers")
    train.add_argument("--steps", type=_positive_int, default=2000, metavar="N", help="updates of the weights")
    train.add_argument("--batch-size", type=_positive_int, default=32, metavar="B", help="streams read side by side")
    train.add_argument("--seq-len", type=_positive_int, default=64, metavar="T", help="characters a step and stream")
    train.add_argument("--lr", type=_non_negative_float, default=2e-3, help="learning rate at the first step")
    train.add_argument("--seed", type=_non_negative_int, default=0, help="the same seed gives the same model")
    train.add_argument("--save", type=Path, default=Path(MODEL_FILE), metavar="PATH", help="model file to write")
    train.add_argument("--resume", action="store_true", help="go on with a training that was stopped, all else alike")
    train.add_argument("--plot", type=Path, metavar="PATH", help="picture of the training to draw (needs matplotlib)")
    train.set_defaults(run=_train)

    sample = commands.add_parser("sample", help="let a model write", formatter_class=_Formatter)
    sample.add_argument("model", metavar="MODEL", help="file that train has saved")
    sample.add_argument("--prompt", required=True, help="text to go on from")
    sample.add_argument("--length", type=_non_negative_int, default=500, metavar="N", help="characters to write")
    sample.add_argument("--temperature", type=_non_negative_float, default=1.0, help="0 takes the likeliest character")
    sample.add_argument("--seed", type=_non_negative_int, help="the same seed gives the same text")
    sample.set_defaults(run=_sample)

    info = commands.add_parser("info", help="print versions, instruction set, BLAS and threads")
    info.set_defaults(run=_info)
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each argument that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _number(kind: Callable[[str], float], least: float, expected: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


_positive_int = _number(int, 1, "an integer of at least 1")
_non_negative_int = _number(int, 0, "an integer of at least 0")
_non_negative_float = _number(float, 0, "a number of at least 0")


def _train(options: argparse.Namespace) -> int:
    text = builtin_text() if options.file is None else _read_text(options.file)
    if options.plot is not None:
        require_matplotlib()
    for path in (options.save, options.plot):
        if path is not None and not path.absolute().parent.is_dir():  # fail now rather than after the training
            raise FileNotFoundError(f"there is no directory to save {path} in")
    checkpoint = Path(f"{options.save}.checkpoint")
    if options.resume and not checkpoint.exists():
        raise FileNotFoundError(f"there is no stopped training to go on with: {checkpoint} does not exist")
    model = LanguageModel(options.cell, options.hidden, options.layers, rng=options.seed)
    print(
        f"{options.file or 'the built-in text'}: {len(text):,} characters, {len(set(text))} distinct; "
        f"{options.layers} x {options.hidden} units, {options.cell}",
        flush=True,
    )
    try:
        history = model.fit(
            text,
            steps=options.steps,
            batch_size=options.batch_size,
            seq_len=options.seq_len,
            lr=options.lr,
            checkpoint=checkpoint,
            resume=options.resume,
        )
    except DivergedError as error:
        checkpoint.unlink(missing_ok=True)  # resuming from it would diverge again
        if error.history.best_step:
            _save(model, options.save)
        raise
    if history.steps == 0:
        raise KeyboardInterrupt
    _save(model, options.save)
    _report(history, options.batch_size * options.seq_len)
    if options.plot is not None:
        history.plot(options.plot)
        print(f"drawn in {options.plot}")
    prompt = "The " if set("The ") <= set(model.vocabulary) else text[0]
    print(f"\n{prompt}{model.generate(prompt, 300, temperature=0.8, rng=options.seed)}")
    print(f"\nmore of it: fastrnn sample {options.save} --prompt {prompt!r}")
    if history.interrupted:
        again = [argument for argument in options.arguments if argument != "--resume"]
        print(f"to go on: {shlex.join(['fastrnn', *again, '--resume'])}")
        return INTERRUPTED
    checkpoint.unlink(missing_ok=True)
    return 0


def _save(model: LanguageModel, path: Path) -> None:
    model.save(path)
    print(f"saved to {path}")


def _report(history: History, characters_a_step: int) -> None:
    if history.interrupted:
        print(f"interrupted after {history.steps} steps")
    print(f"held out: {history.held_out_bits:.3f} bits per character")
    print(
        f"{history.steps} steps in {history.seconds:.1f} s, "
        f"{history.steps * characters_a_step / history.seconds:,.0f} characters/s"
    )


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at {error.start}") from None


def _sample(options: argparse.Namespace) -> int:
    model = LanguageModel.load(options.model)
    text = model.generate(options.prompt, options.length, temperature=options.temperature, rng=options.seed)
    print(options.prompt + text)
    return 0


def _info(options: argparse.Namespace) -> int:
    print(f"fastrnn          {fastrnn.__version__}")
    print(f"instruction set  {_core.instruction_set()}")
    print(f"BLAS             {_core.blas_info()}")
    print(f"threads          {fastrnn.get_num_threads()}")
    print(f"Python           {platform.python_version()}, NumPy {np.__version__}")
    print(f"machine          {platform.machine()}, {platform.system()}")
    return 0

"""Mutations of every format that is read: each is refused within a second and bounded memory, or loads and can be used.

    python -m stress.files --count 100000 --seed 7

Files are loaded in a child process that may take 256 MB beyond what it needs for its imports. A load that takes more
than a second of processor time, an error other than ValueError and OSError, a change in spite of an error, a crash and
a hang are failures; after the last two the child begins anew.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from .campaign import Cases, main

SECONDS = 1.0  # of a load
HANG = 30.0  # seconds after which the child is killed
MEMORY = 1 << 28  # bytes, for files of some kilobytes
RARELY = {"texts": 0.02, "trainings": 0.4}  # how often such a file, which takes longer, is taken when it is drawn


def run(cases: Cases) -> None:
    """Mutated files of every format, in a child process under a limit of memory."""
    child = Child(cases.seed)
    try:
        for number, _ in cases:
            answer = child.answer(number)
            cases.seen.update(answer["seen"])
            for what in answer["failures"]:
                cases.fail(number, what)
            if child.process.poll() is not None:
                child.close()
                child = Child(cases.seed)
    finally:
        child.close()


class Child:
    """A process that loads the files of the cases whose numbers it reads, and answers in lines of JSON."""

    def __init__(self, seed: int) -> None:
        root = str(Path(__file__).resolve().parents[1])
        command = [sys.executable, "-c", f"from stress.files import work; work({seed})"]
        environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def answer(self, number: int) -> dict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], HANG)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        if not ready:
            self.process.kill()
        code = self.process.wait()
        what = f"the child died with code {code}" if ready else f"no answer in {HANG:.0f} s"
        return {"seen": {}, "failures": [what]}

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()


# ------------------------------------------------------------ in the child


def work(seed: int) -> None:
    """Read numbers of cases from stdin until it ends."""
    import fastrnn

    from .formats import formats

    answers = os.dup(1)
    os.dup2(2, 1)  # what is printed on the way goes elsewhere
    fastrnn.set_num_threads(1)
    warnings.simplefilter("error")
    in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # where it takes no time to force a file to the disk
    with tempfile.TemporaryDirectory(dir=in_memory) as name:
        known = formats(Path(name))
        _limit_memory(MEMORY)
        for line in sys.stdin:
            seen, failures = one(known, Path(name), np.random.default_rng([seed, int(line)]))
            os.write(answers, json.dumps({"seen": seen, "failures": failures}).encode() + b"\n")


def _limit_memory(further: int) -> None:
    """Let this process have so many bytes more than it has; on Linux, which says how many these are."""
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        limit = int(sizes.read_text().split()[0]) * resource.getpagesize() + further
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def one(known: list, folder: Path, rng: np.random.Generator) -> tuple[Counter, list[str]]:
    """One file of one format: what was seen, and what went wrong."""
    format = known[rng.integers(len(known))]
    while rng.random() > RARELY.get(format.name, 1.0):
        format = known[rng.integers(len(known))]
    index, other = rng.integers(len(format.files), size=2)
    path = folder / "mutated"
    path.write_bytes(format.mutated(rng, format.files[index], format.files[other]))
    before, began, loaded, failures = format.state(index), time.process_time(), None, []
    try:
        loaded = format.load(path, index)
    except format.refusals as error:
        outcome = "refused"
        if format.state(index) != before:
            failures.append(f"{format.name}: refused and changed: {error!r}")
    except BaseException as error:
        outcome = "failed"
        failures.append(f"{format.name}: {_told(error)}")
    else:
        outcome = "loaded"
    seconds = time.process_time() - began
    if seconds > SECONDS:
        failures.append(f"{format.name}: {seconds:.1f} s until it was {outcome}")
    if outcome == "loaded":
        try:
            with np.errstate(all="ignore"):  # weights may be infinite now
                format.use(loaded, index)
        except BaseException as error:
            failures.append(f"{format.name}: loaded, but not to be used: {_told(error)}")
    return Counter({f"{format.name} {outcome}": 1}), failures


def _told(error: BaseException) -> str:
    """The error, and where it came from."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error!r:.300} in {place.name}, {Path(place.filename).name}:{place.lineno}"


if __name__ == "__main__":
    sys.exit(main("files", run))

"""Files: what was saved comes back, and nothing on the way to a new file harms the old one."""

import errno
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
from fastrnn.util import storage

posix = pytest.mark.skipif(os.name != "posix", reason="signals, modes and links of POSIX")


def files_in(directory):
    return sorted(path.name for path in directory.iterdir())


def run_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_arrays_and_metadata_come_back(tmp_path):
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {"f32": wide, "strided": wide.T[::2], "f64": np.array([1.5, np.nan]), "int": np.arange(3), "": np.ones(())}
    path = tmp_path / "model.safetensors"
    storage.save_arrays(
        path, arrays, {"note": "größer \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")}
    )
    loaded, metadata = storage.load_arrays(path)
    assert metadata == {"note": "größer 😀"}
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    assert files_in(tmp_path) == ["model.safetensors"]


def test_path_may_be_a_string_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.save_arrays("model", {"a": np.ones(2)}, {})
    assert storage.load_arrays("model")[1] == {}
    assert files_in(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch, name, error):
    path = tmp_path / "model"
    path.write_bytes(b"old")

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, name, fail)
        with pytest.raises(type(error)):
            storage.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert files_in(tmp_path) == ["model"]
    storage.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@posix
def test_write_that_breaks_off_half_way_leaves_the_old_file(tmp_path):
    """A limit on the size of files makes the system itself refuse the second half, as a full disk would."""
    path = tmp_path / "model"
    path.write_bytes(b"old")
    code = """
import resource, sys
from fastrnn.util.storage import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    write_atomically(sys.argv[1], bytes(2**21))
except OSError as error:
    print(error.strerror)
"""
    assert run_python(code, path).stdout == "File too large\n"
    assert path.read_bytes() == b"old"
    assert files_in(tmp_path) == ["model"]


@posix
def test_kill_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"old")
    code = """
import os, signal, sys
from fastrnn.util import storage
storage.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
storage.write_atomically(sys.argv[1], bytes(2**21))
"""
    assert run_python(code, path).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert [name for name in files_in(tmp_path) if name != "model"] == [
        name for name in files_in(tmp_path) if name.startswith(".model.") and name.endswith(".tmp")
    ]


@posix
def test_kill_at_any_time_leaves_a_whole_file(tmp_path):
    path = tmp_path / "model"
    code = """
import sys, numpy as np
from fastrnn.util.storage import save_arrays
while True:
    for value in (1, 2):
        save_arrays(sys.argv[1], {"a": np.full(2**18, value)}, {})
        print(value, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        for _ in range(10):
            process.stdout.readline()
        process.kill()
    array = storage.load_arrays(path)[0]["a"]
    assert array.size == 2**18
    assert array[0] in (1, 2)
    assert (array == array[0]).all()


@posix
def test_new_file_has_the_mode_that_the_umask_gives_and_an_old_one_keeps_its_own(tmp_path):
    path = tmp_path / "model"
    old = os.umask(0o027)
    try:
        storage.write_atomically(path, b"new")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    storage.write_atomically(path, b"newer")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@posix
def test_symbolic_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "model", tmp_path / "link"
    link.symlink_to(real)
    storage.write_atomically(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert files_in(tmp_path / "there") == ["model"]


@posix
def test_what_is_not_a_regular_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(OSError, match="not a regular file"):
            storage.write_atomically(path, b"new")
    assert files_in(tmp_path) == ["pipe"]


def test_missing_directory_and_missing_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        storage.write_atomically(tmp_path / "missing" / "model", b"new")
    with pytest.raises(FileNotFoundError, match="missing"):
        storage.load_arrays(tmp_path / "missing")


def test_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "model"
    storage.save_arrays(path, {"a": np.arange(10.0), "b": np.ones((2, 3), np.float32)}, {"note": "x"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            storage.load_arrays(path)


@pytest.mark.parametrize("content", [b"", b"To be, or not to be", b"\x80\x04N.", b"PK\x03\x04" + bytes(100), bytes(64)])
def test_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="model is not a whole safetensors file"):
        storage.load_arrays(path)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_dtype_that_numpy_has_not_is_refused(tmp_path, dtype):
    path = tmp_path / "model"
    size = {"BF16": 4, "F8_E4M3": 2}[dtype]
    header = f'{{"a":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{size}]}}}}'.encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        storage.load_arrays(path)


@pytest.mark.parametrize("shape", ["[0,9223372036854775808]", "[0,4611686018427387904,4]", str([1] * 65)])
def test_shape_that_numpy_has_not_is_refused(tmp_path, shape):
    path = tmp_path / "model"
    size = 0 if shape.startswith("[0") else 4
    header = f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{size}]}}}}'.encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        storage.load_arrays(path)

# Sourced by asan.sh and tsan.sh. Goes to a copy of this checkout in a temporary folder, with an environment of its own in
# .venv, and builds fastrnn there as `environment BUILD` says. The oracles of the tests come too, where they are to be had.

# Of the tests, all but one that limits the addresses of its process, of which a sanitizer takes terabytes for itself.
TESTS=(-m pytest --durations=20
    --deselect tests/test_stream.py::test_more_rows_than_fit_in_memory_are_a_memory_error)

environment() {
    local root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    tar -C "$root" -c --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./src/rnn/.libs --exclude='*.so' . |
        tar -C "$copy" -x
    cd "$copy"
    python3 -m venv .venv
    FASTRNN_BUILD=$1 .venv/bin/pip install --quiet ".[test]"
    for oracle in torch==2.13.0 onnx onnxruntime; do
        .venv/bin/pip install --quiet "$oracle" || echo "notice: no $oracle; the tests that compare with it are skipped"
    done
    export PYTHONMALLOC=malloc # each object in a block of its own, for the sanitizer to see
}

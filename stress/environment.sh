# Sourced by asan.sh and tsan.sh. Goes to a copy of this checkout in a temporary folder, with an environment of its own in
# .venv, and builds fastrnn there as `environment BUILD` says. The oracles of the tests come too, where they are to be had.

# The tests, but for those that limit the addresses of their process or of a child's: a sanitizer takes terabytes of
# addresses for itself, and ends a process that may not have them with "Failed to mmap".
CAMPAIGN=tests/test_stress.py::test_a_campaign_finds_nothing
TESTS=(-m pytest --durations=20
    --deselect tests/test_stream.py::test_more_rows_than_fit_in_memory_are_a_memory_error
    --deselect "${CAMPAIGN}[calls]" --deselect "${CAMPAIGN}[files]" --deselect "${CAMPAIGN}[memory]"
    --deselect tests/test_stress.py::test_an_allocation_that_fails_is_seen
    --deselect tests/test_stress.py::test_a_child_that_crashes_or_hangs_is_named_by_its_case)

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

#!/usr/bin/env bash
# What threads share, on a build with the thread sanitizer. The run fails in the end if there was a report.
#
#   stress/tsan.sh                                     the tests of threads, interrupts, streams, segments and memory,
#                                                      then the campaign stress.threads for two minutes
#   stress/tsan.sh -m pytest -x tests/test_threads.py  Python with these arguments
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment tsan

run() {
    # Addresses that are drawn from too wide a range are none that the sanitizer can map: setarch -R.
    time LD_PRELOAD=$(gcc -print-file-name=libtsan.so) FASTRNN_NUM_THREADS=2 \
        TSAN_OPTIONS="suppressions=$PWD/stress/tsan.supp history_size=5 die_after_fork=0 allocator_may_return_null=1" setarch -R .venv/bin/python "$@"
}

if [ $# -gt 0 ]; then
    run "$@"
else
    run "${TESTS[@]}" tests/test_threads.py tests/test_interrupts.py tests/test_denormals.py \
        tests/test_stream.py tests/test_checkpointing.py tests/test_memory.py
    run -m stress.threads --seconds 120
fi

#!/usr/bin/env bash
# The tests on a build with the address and undefined-behaviour sanitizers. Their first report ends the run.
#
#   stress/asan.sh                                  the test suite, but for what is said below
#   stress/asan.sh -m pytest -x tests/test_math.py  Python with these arguments
#
# The packaging tests start Pythons of their own, without the sanitizers' run time, and the native ones build without.
# environment.sh says which others are left out.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment sanitize
[ $# -gt 0 ] || set -- "${TESTS[@]}" --ignore=tests/test_packaging.py --ignore=tests/test_native.py

# What Python itself never frees is no leak of ours, and a test asks for more memory than there is.
# libstdc++: the run time has to find what throws exceptions before other packages bring it.
time LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 .venv/bin/python "$@"

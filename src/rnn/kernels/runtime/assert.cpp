// How an assertion ends the process: by itself, so that the C library's headers are under no target.
#include "runtime/assert.hpp"

#ifndef NDEBUG
#include <cstdio>
#include <cstdlib>

namespace fastrnn {

void assertion_failed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: expected %s\n", file, line, condition);
  std::abort();
}

}  // namespace fastrnn
#endif

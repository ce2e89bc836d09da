// FASTRNN_ASSERT(condition): nothing under NDEBUG, as in release builds; else the process ends where it does not hold,
// with file, line and the condition on stderr.  For what the kernels may rely on, not for what a user may get wrong.
//
// <cassert> would do the same, but headers of the standard library stay out from under the target of isa_*.cpp.
// From Cython:  cdef extern from "assert.hpp" nogil: void require "FASTRNN_ASSERT"(bint)
#pragma once

#ifdef NDEBUG
#define FASTRNN_ASSERT(...) static_cast<void>(0)
#else
namespace fastrnn {
[[noreturn]] void assertion_failed(const char* file, int line, const char* condition);  // in assert.cpp
}
#define FASTRNN_ASSERT(...) \
  ((__VA_ARGS__) ? static_cast<void>(0) : fastrnn::assertion_failed(__FILE__, __LINE__, #__VA_ARGS__))
#endif

# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: freethreading_compatible=True
"""The loops over time steps, and the products around them.

    engine/       makes a LayerPass for each layer, direction and shard of a call, once it has checked the arguments
      |
    packed_batch  PackedBatch: a shard of a batch, its sequences by falling length
    layer_pass    LayerPass: a shard through one layer in one direction: addresses of its arrays, forward and backward
      forward         for s in steps:            cell.forward(s)        [x . W_ih of many steps at once, for few rows]
      backward        for s in reversed steps:   cell.backward(s)
                      after each chunk of steps: weight gradients and dx
      segment_pass    the same two, a segment at a time, for CheckpointedStack
        |
        kernels/      what happens inside one step, for each cell and instruction set (table)

    memory        a pool of blocks, for large arrays and scratch
    ways          how many threads work is worth, learnt from its calls
    tasks         several threads, and what Ctrl-C does to them
    stack_weights  StackWeights: what all layers of a stack are to the kernels, and packed weights that are kept
    small_calls   SmallInference, without a LayerPass; SmallTraining, of a few LayerPasses
    stream        Stream: a stack that keeps its state and packed weights; time is the outer loop, the layers the inner
    sampler       TokenSampler: a stream that predicts, and writes
    few_rows      the output layer on few rows, softmax and the losses, on arrays of the usual kinds
    tensors       TensorReader: arrays on the memory of torch's tensors
    os            what is the operating system's

These are the .pxi files of core/, parts of this one in the order of their includes.

(A) A cell is data to the loops: a row of function pointers and counts (kernels/table.hpp). No cell is named here.
(B) Everything is decided and allocated before the loops; inside them is no Python, and the GIL is released.
(C) The dgates, gradients of the pre-activations, are held for one chunk of steps at a time, which fits the second-level
    cache; only the saved activations, dx and the weight gradients go to memory. The dgates of the step after the chunk
    lie behind it, since the recurrence reads them.
(D) OpenBLAS runs on one thread: ours are the ones that split the work.
(E) Forward and backward use the same chunk boundaries, which depend only on the sizes; recomputed segments are whole
    chunks, so results are bitwise equal.

Nothing is checked here: a wrong address or size crashes the process. Letters and layouts: kernels/sequence.hpp.
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset
from libcpp cimport bool as cbool

from _blas cimport gemm, real, scipy_openblas_get_config, scipy_openblas_get_corename, scipy_openblas_set_num_threads

cimport numpy as cnp

import _thread
import os
import threading

import numpy as np

cnp.import_array()

include "core/os.pxi"
include "core/table.pxi"
include "core/ways.pxi"
include "core/tasks.pxi"


# ---------------------------------------------------------------- the instruction set, chosen once

cdef const KernelTable* kernels = NULL


def instruction_sets():
    """Names of the kernel sets that this machine can run, best first."""
    cdef const KernelSet* each = kernel_sets()
    names = []
    while each.table != NULL:
        if each.runs:
            names.append(each.table.name.decode())
        each += 1
    return names


def use_instruction_set(str name):
    """Use the kernel set `name` from now on; ValueError if this machine or build cannot run it."""
    global kernels
    cdef const KernelSet* each = kernel_sets()
    while each.table != NULL:
        if each.runs and each.table.name.decode() == name:
            kernels = each.table
            return
        each += 1
    raise ValueError(f"expected an instruction set that this machine runs ({', '.join(instruction_sets())}), got {name!r}")


def instruction_set():
    """Name of the kernel set in use."""
    return kernels.name.decode()


cdef extern from *:
    """
    #if defined(__clang__)
    #define FASTRNN_COMPILER "Clang " __clang_version__
    #else
    #define FASTRNN_COMPILER "GCC " __VERSION__
    #endif
    #if defined(NDEBUG)
    static const char* const compiler_name = FASTRNN_COMPILER;
    #else
    static const char* const compiler_name = FASTRNN_COMPILER ", with assertions";
    #endif
    """
    const char* compiler_name


def compiler():
    """Name and version of the compiler that made this build, and whether assertions are compiled."""
    return compiler_name.decode().strip()


def blas_info():
    """Version and kernel of the vendored OpenBLAS, as it says itself."""
    return f"{scipy_openblas_get_config().decode().strip()}, kernels for {scipy_openblas_get_corename().decode()}"


def warm_blas():
    """Make one product that fills OpenBLAS's packing buffer, for the thread that calls.

    The buffer's pages exist only once they have been written, and OpenBLAS's kernels prefetch far beyond what a product
    has packed. A prefetch from a missing page searches the page tables each time: small products ran at 14 GFLOP/s in
    place of 36 (Zen 1) for as long as no large one had come before. This one is just large enough and takes about a
    millisecond.
    """
    a, b, c = np.zeros((64, 384), np.float32), np.zeros((384, 512), np.float32), np.empty((64, 512), np.float32)
    gemm_rows(False, False, a, b, 0, c)


def gemm_rows(bint transpose_a, bint transpose_b, const real[:, :] a, const real[:, :] b, double beta, real[:, :] c):
    """c = op(a) . op(b) + beta c, for arrays whose rows are contiguous."""
    cdef int64_t k = a.shape[0] if transpose_a else a.shape[1]
    cdef Section section
    if c.shape[0] and c.shape[1] and k:
        with nogil:
            section.begin()
            gemm(transpose_a, transpose_b, c.shape[0], c.shape[1], k, &a[0, 0], a.strides[0] // <int64_t>sizeof(real),
                 &b[0, 0], b.strides[0] // <int64_t>sizeof(real), <real>beta, &c[0, 0], c.strides[0] // <int64_t>sizeof(real))


def sum_rows(const real[:, ::1] a, real[::1] out):
    """out (n,) += sum over rows of a (rows, n)"""
    cdef real which = 0
    cdef Section section
    if a.shape[0] and a.shape[1]:
        with nogil:
            section.begin()
            kernels.of(which).sum_rows(a.shape[0], a.shape[1], &a[0, 0], a.shape[1], &out[0])


scipy_openblas_set_num_threads(1)
warm_blas()
try:
    use_instruction_set(os.environ.get("FASTRNN_CPU") or instruction_sets()[0])
except ValueError as error:
    raise ImportError(f"FASTRNN_CPU: {error}") from None


# ---------------------------------------------------------------- memory

cdef enum:
    CHUNK = 256 << 10  # bytes of the dgates of a chunk of steps
    PROJECTED_ROWS = 64  # rows of a block, whose input products are made together, see block_end
    # Numbers in weights whose gradients no second-level cache holds, and rows of a chunk that these are read and written
    # for at once, at least
    LARGE_WEIGHTS = 1 << 20
    LARGE_ROWS = 256
    MAX_STATES = 4
    SHARED_WORK = 1 << 16  # multiply-adds of a step for each of the threads that share it


cdef void* address(object array, bint writable=False) except? NULL:
    """Where the elements of an array start; None is null. The caller keeps the array alive."""
    cdef Py_buffer view
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
    cdef void* p = view.buf
    PyBuffer_Release(&view)
    return p


include "core/memory.pxi"


cdef int64_t chunk_rows(const Sequence[real]* q) noexcept nogil:
    """The number of rows of a chunk: step s is in chunk  first(s) // chunk_rows,  and the last step of a chunk may
    bring up to B - 1 rows more."""
    cdef int64_t rows = max(q.B, CHUNK // (q.dgates_width * <int64_t>sizeof(real)))
    return max(1, min(q.first(q.steps), max(rows, LARGE_ROWS) if has_large_weights(q) else rows))


cdef bint has_large_weights(const Sequence[real]* q) noexcept nogil:
    return q.dgates_width * (q.I + q.P) * <int64_t>sizeof(real) >= LARGE_WEIGHTS * <int64_t>sizeof(float)


cdef int64_t chunk_room(const Sequence[real]* q) noexcept nogil:
    """At least the rows of any chunk."""
    return min(q.first(q.steps), chunk_rows(q) + q.B)


cdef int64_t chunk_end(const Sequence[real]* q, int64_t s0) noexcept nogil:
    """The end of the chunk that step s0 is in."""
    cdef int64_t rows = chunk_rows(q), end = (q.first(s0) // rows + 1) * rows
    cdef int64_t s1 = s0 + 1
    while s1 < q.steps and q.first(s1) < end:
        s1 += 1
    return s1


cdef int64_t chunk_start(const Sequence[real]* q, int64_t s1) noexcept nogil:
    """The first step of the chunk that step s1 - 1 is in."""
    cdef int64_t rows = chunk_rows(q), first = q.first(s1 - 1) // rows * rows
    cdef int64_t s0 = s1 - 1
    while s0 > 0 and q.first(s0 - 1) >= first:
        s0 -= 1
    return s0


# ---------------------------------------------------------------- the loops

include "core/packed_batch.pxi"
include "core/forward.pxi"
include "core/backward.pxi"
include "core/stack_weights.pxi"
include "core/layer_pass.pxi"
include "core/segment_pass.pxi"
include "core/small_calls.pxi"
include "core/tensors.pxi"
include "core/stream.pxi"
include "core/sampler.pxi"
include "core/few_rows.pxi"


# ---------------------------------------------------------------- around the layers

def softmax_cross_entropy(const real[:, ::1] logits, const int64_t[::1] targets, double scale, real[:, ::1] dlogits):
    """Sum of the losses of all rows whose target is not negative; dlogits = scale (softmax - onehot)."""
    cdef int64_t rows = logits.shape[0], K = logits.shape[1]
    cdef double loss = 0
    cdef real which = 0
    cdef Section section
    if rows and K:
        with nogil:
            section.begin()
            loss = kernels.of(which).softmax_cross_entropy(
                rows, K, &logits[0, 0], &targets[0], <real>scale, &dlogits[0, 0])
    return loss


# The optimisers: one update of flat arrays, in place, see kernels/math/elementwise.hpp; a buffer may be None

def sgd(real[::1] param, const real[::1] grad, object buffer,
        double scale, double l2, double lr, double momentum, double damping, bint nesterov):
    cdef real which = 0
    cdef real* b = <real*>address(buffer, True)
    cdef Section section
    with nogil:
        section.begin()
        kernels.of(which).sgd(param.shape[0], <real>scale, <real>l2, <real>lr, <real>momentum, <real>damping, nesterov,
                              &grad[0], b, &param[0])


def adam(real[::1] param, const real[::1] grad, real[::1] m, real[::1] v,
         double scale, double l2, double keep, double b1, double b2, double rate, double root, double eps):
    cdef real which = 0
    cdef Section section
    with nogil:
        section.begin()
        kernels.of(which).adam(param.shape[0], <real>scale, <real>l2, <real>keep, <real>b1, <real>b2, <real>rate,
                               <real>root, <real>eps, &grad[0], &m[0], &v[0], &param[0])


def rmsprop(real[::1] param, const real[::1] grad, real[::1] v, object m, object buffer,
            double scale, double l2, double lr, double alpha, double eps, double momentum):
    cdef real which = 0
    cdef real* mean = <real*>address(m, True)
    cdef real* b = <real*>address(buffer, True)
    cdef Section section
    with nogil:
        section.begin()
        kernels.of(which).rmsprop(param.shape[0], <real>scale, <real>l2, <real>lr, <real>alpha, <real>eps,
                                  <real>momentum, &grad[0], &v[0], mean, b, &param[0])


def sum_of_squares(const real[::1] x):
    """Sum of x^2, in double."""
    cdef real which = 0
    cdef double total = 0
    cdef Section section
    if x.shape[0]:
        with nogil:
            section.begin()
            total = kernels.of(which).sum_of_squares(x.shape[0], &x[0])
    return total


def elementwise(str function, const real[::1] x, real[::1] y):
    """y = exp, tanh or sigmoid of x by the vectorised kernels: for the tests of their error bounds."""
    cdef real which = 0
    cdef const Kernels[real]* k = &kernels.of(which)
    if x.shape[0]:
        if function == "exp":
            k.exp(x.shape[0], &x[0], &y[0])
        elif function == "tanh":
            k.tanh(x.shape[0], &x[0], &y[0])
        else:
            k.sigmoid(x.shape[0], &x[0], &y[0])

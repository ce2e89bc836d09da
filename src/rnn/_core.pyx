# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: freethreading_compatible=True
"""The loops over time steps, and the products around them.

    recurrent.py   checks every argument, then makes one Scan for each layer and direction of a call
      Scan         one layer, one direction, one batch: addresses of its arrays, and its two passes
        run_forward     for s in steps:            cell.forward(s)        [x . W_ih in advance for few rows]
        run_backward    for s in reversed steps:   cell.backward(s)       [run_steps again where no tape was kept]
                        after each chunk of steps: weight gradients and dx
          kernels/      what happens inside one step, for each cell and instruction set
    _stream.pxi    (included here) layers that keep their state and packed weights: time outside, layers inside

(A) A cell is data to the loops: a row of function pointers and counts (kernels/table.hpp). No cell is named here.
(B) Everything is decided and allocated before the loops; inside them is no Python, and the GIL is released.
(C) The gradients of the pre-activations live for one chunk of steps, which fits the second-level cache; what goes to
    memory is the tape, dx and the weight gradients. The rows of the step after the chunk lie behind it, since the
    recurrence reads them.
(D) OpenBLAS runs on one thread: ours are the ones that split the work.
(E) Where forward kept no tape, backward runs it again, a segment of steps at a time. h(t) is in y; c is kept at the
    borders. A segment begins where a chunk of input products does, and the chunks of backward do not look at segments:
    every product is that of the plain way, and so is every bit.

Nothing is checked here: an address or size that is wrong is a crash. Letters and layouts: kernels/sequence.hpp.
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport INT64_MAX, int64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset
from libcpp cimport bool as cbool
from posix.stdlib cimport posix_memalign

from _blas cimport gemm, real, scipy_openblas_get_config, scipy_openblas_get_corename, scipy_openblas_set_num_threads

cimport numpy as cnp

import os

import numpy as np

cnp.import_array()

cdef extern from "table.hpp" namespace "fastrnn" nogil:
    cppclass Rows[T]:
        T* base
        const int64_t* offset
        int64_t step
        T* at(long, long)  # row (s, b)
    cppclass Zoneout[T]:
        T p
        Rows[uint8_t] keeps
    struct Activation:
        int kind
        double alpha, beta
    cppclass Weights[T]:
        const T *ih
        const T *hh
        const T *b_ih
        const T *b_hh
        const T *hr
        const T *peephole
    cppclass Sequence[T]:
        long steps "T_"
        long B, I, H, P
        const int64_t* start
        Rows[T] x
        Rows[int64_t] ids
        const T* products
        long products_from
        const T* h0
        const T* c0
        Rows[uint8_t] reset
        const T* zeros
        const T* h_mask
        T* h_masked
        Zoneout[T] zoneout_h, zoneout_c
        T* c_saved
        T* dh_kept
        Weights[T] weights
        Activation activation[3]
        T clip, grad_clip
        cbool coupled
        Rows[T] y
        T* c
        cbool c_in_place
        T* tape
        long kept_from
        T* scratch
        long tape_width
        Rows[T] dy
        Rows[T] dx
        T* dh
        T* dc
        T* dgates
        long dgates_from, dgates_width
        T* dprojected
        T* dpeephole
        cbool packs
        long active(long)
        T* tape_at(long, long)
    struct Progress:
        int64_t steps
    void publish(Progress*, int64_t)
    void wait_for(const Progress*, int64_t)
    cppclass Arena[T]:
        T* block
        long used
        T* take(long)
    cppclass Gradients[T]:
        T *ih
        T *hh
        T *b_ih
        T *b_hh
        T *hr
    const T* gather_x[T](const Sequence[T]&, long, long, T*, int64_t*)
    void list_rows[T](const Sequence[T]&, long, long, long, const T**, const T**, const T**, T**)
    void mask_rows[T](const Sequence[T]&, long, long, const T**, T*)

    cppclass GradientBlock:
        int weight, source, gate, gates, column, tape_column
    enum:
        IH "fastrnn::GradientBlock::kIH"
        SOURCE_X "fastrnn::GradientBlock::kX"
        SOURCE_H "fastrnn::GradientBlock::kH"
        SOURCE_TAPE "fastrnn::GradientBlock::kTape"
    cppclass InputColumns[T]:
        long K[2]
        long column[2]
        long row[2]
    long GRADIENT_PANEL "fastrnn::kGradientPanel"
    cppclass CellKernels[T]:
        int gates, tape_width, dgates_width, rows_per_tile, n_blocks
        cbool has_c
        GradientBlock blocks[3]
        void (*pack_forward)(Sequence[T]&, Arena[T]&)
        void (*narrow)(Sequence[T]&)
        void (*pack_backward)(Sequence[T]&, Arena[T]&)
        void (*forward)(const Sequence[T]&, long)
        void (*backward)(const Sequence[T]&, long)
    cppclass Kernels[T]:
        const CellKernels[T]* cell(int)
        void (*weight_gradient)(long, long, long, const T*, long, const T* const*, T*, T*)
        long (*pack_input_gradient)(InputColumns[T]&, long, const T*, T*)
        void (*input_gradient)(long, long, const InputColumns[T]&, const T*, long, const T*, T* const*)
        double (*softmax_cross_entropy)(long, long, const T*, const int64_t*, T, T*)
        void (*sgd)(long, T, T, T, T, T, cbool, const T*, T*, T*)
        void (*adam)(long, T, T, T, T, T, T, T, T, const T*, T*, T*, T*)
        void (*rmsprop)(long, T, T, T, T, T, T, const T*, T*, T*, T*, T*)
        double (*sum_of_squares)(long, const T*)
        void (*sum_rows)(long, long, const T*, long, T*)
        long (*affine_size)(long, long)
        void (*pack_affine)(long, long, const T*, T*)
        void (*affine)(long, long, const T*, const T*, const T*, T*)
        void (*exp)(long, const T*, T*)
        void (*tanh)(long, const T*, T*)
        void (*sigmoid)(long, const T*, T*)
    cppclass KernelTable:
        const char* name
        Kernels[float] f32
        Kernels[double] f64
        const Kernels[float]& of(float)
        const Kernels[double]& of(double)
    struct KernelSet:
        const KernelTable* table
        cbool runs
    const KernelSet* kernel_sets()


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


def blas_info():
    """Version and kernel of the vendored OpenBLAS, as it says itself."""
    return f"{scipy_openblas_get_config().decode().strip()}, kernels for {scipy_openblas_get_corename().decode()}"


def warm_blas():
    """Make one product that fills OpenBLAS's packing buffer, for the thread that calls.

    The buffer's pages exist only once they were written, and the kernels prefetch far beyond what a product has packed.
    A prefetch from a missing page walks the page tables each time: small products ran at 14 GFLOP/s in place of 36
    (Zen 1) for as long as no large one had come before. This one is just large enough and takes about a millisecond.
    """
    a, b, c = np.zeros((64, 384), np.float32), np.zeros((384, 512), np.float32), np.empty((64, 512), np.float32)
    gemm_rows(False, False, a, b, 0, c)


def gemm_rows(bint transpose_a, bint transpose_b, const real[:, :] a, const real[:, :] b, double beta, real[:, :] c):
    """c = op(a) . op(b) + beta c, for arrays whose rows are contiguous."""
    cdef int64_t k = a.shape[0] if transpose_a else a.shape[1]
    if c.shape[0] and c.shape[1] and k:
        with nogil:
            gemm(transpose_a, transpose_b, c.shape[0], c.shape[1], k, &a[0, 0], a.strides[0] // <int64_t>sizeof(real),
                 &b[0, 0], b.strides[0] // <int64_t>sizeof(real), <real>beta, &c[0, 0], c.strides[0] // <int64_t>sizeof(real))


def sum_rows(const real[:, ::1] a, real[::1] out):
    """out (n,) += sum over rows of a (rows, n)"""
    cdef real which = 0
    if a.shape[0] and a.shape[1]:
        with nogil:
            kernels.of(which).sum_rows(a.shape[0], a.shape[1], &a[0, 0], a.shape[1], &out[0])


scipy_openblas_set_num_threads(1)
warm_blas()
try:
    use_instruction_set(os.environ.get("FASTRNN_CPU") or instruction_sets()[0])
except ValueError as error:
    raise ImportError(f"FASTRNN_CPU: {error}") from None


# ---------------------------------------------------------------- memory

# Bytes of input products, and of pre-activation gradients, that are worked on at a time
cdef enum:
    PRODUCT_CHUNK = 256 << 10
    GRADIENT_CHUNK = 256 << 10
    UNPACKED_ROWS = 16  # a call of so few rows does not pay for packed weights
    MAX_SHORT_LAYERS = 4


cdef void* address(object array, bint writable=False) except? NULL:
    """Where the elements of an array start; None is null. The caller keeps the array alive."""
    cdef Py_buffer view
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
    cdef void* p = view.buf
    PyBuffer_Release(&view)
    return p


def new_array(tuple shape, dtype, bint zero=False):
    """np.empty or np.zeros whose elements start on a cache line, so that no vector of them lies across two."""
    cdef int64_t size = np.dtype(dtype).itemsize, start
    for n in shape:
        size *= n
    raw = (np.zeros if zero else np.empty)(size + 64, np.uint8)
    start = -<int64_t>cnp.PyArray_DATA(<cnp.ndarray>raw) % 64
    if start < 0:
        start += 64
    return raw[start : start + size].view(dtype).reshape(shape)


cdef int allocate(Arena[real]* arena) noexcept nogil:
    """Turn an arena that has counted into one that hands out memory; -1 if there is none."""
    cdef void* block
    if posix_memalign(&block, 64, (arena.used + 16) * sizeof(real)):
        return -1
    arena.block = <real*>block
    arena.used = 0
    return 0


cdef int64_t chunk_end(const Sequence[real]* q, long s0, int64_t rows) noexcept nogil:
    """The last s1 for which steps [s0, s1) have at most so many rows; at least one step."""
    cdef long s1 = s0 + 1
    while s1 < q.steps and q.start[s1 + 1] - q.start[s0] <= rows:
        s1 += 1
    return s1


cdef int64_t chunk_start(const Sequence[real]* q, long s1, int64_t rows) noexcept nogil:
    """The first s0 for which steps [s0, s1) have at most so many rows; at least one step."""
    cdef long s0 = s1 - 1
    while s0 > 0 and q.start[s1] - q.start[s0 - 1] <= rows:
        s0 -= 1
    return s0


# ---------------------------------------------------------------- one-hot inputs: a table of some columns of W_ih
# Eight rows of W_ih at a time: of the other side, they are a cache line or half of one

cdef void gather_columns(
        int64_t width, int64_t I, const real* w, int64_t n, const int64_t* columns, real* table) noexcept nogil:
    """table (n, width) := those columns of w (width, I), a row each"""
    cdef int64_t i, j, first
    for first in range(0, width, 8):
        for i in range(n):
            for j in range(first, min(first + 8, width)):
                table[i * width + j] = w[j * I + columns[i]]


def add_to_columns(const real[:, :] table, const int64_t[::1] columns, real[:, ::1] dw):
    """Those columns of dw (width, I) += the rows of table (n, width), whose rows are contiguous; the other way."""
    cdef int64_t n = table.shape[0], width = table.shape[1], I = dw.shape[1], ld, i, j, first
    cdef const real* rows
    cdef real* to
    if n and width:
        rows, ld, to = &table[0, 0], table.strides[0] // <int64_t>sizeof(real), &dw[0, 0]
        with nogil:
            for first in range(0, width, 8):
                for i in range(n):
                    for j in range(first, min(first + 8, width)):
                        to[j * I + columns[i]] += rows[i * ld + j]


# ---------------------------------------------------------------- forward

cdef struct Segments:
    # of a forward pass that keeps no tape: backward makes that of one segment at a time
    int64_t count
    const int64_t *begin  # (count + 1,) the first step of each, and T
    void *c               # (count, B, H) cell state before each; null for a cell without


cdef void lay_out_forward(
        Sequence[real]* q, const CellKernels[real]* cell, Arena[real]* arena, int64_t product_rows,
        real** gathered) noexcept nogil:
    cdef real* zeros = arena.take(max(q.H, q.P))
    q.products = NULL
    if product_rows:
        q.products = arena.take(product_rows * cell.gates * q.H)
    if q.ids.base == NULL:
        gathered[0] = arena.take(product_rows * q.I)
    if q.tape == NULL:
        q.scratch = arena.take(q.B * q.tape_width)
    if q.h_mask != NULL:
        q.h_masked = arena.take(q.B * q.P)
    if q.zoneout_c.p > 0:
        q.c_saved = arena.take(q.B * q.H)
    if arena.block != NULL:
        memset(zeros, 0, max(q.H, q.P) * sizeof(real))
        q.zeros = zeros
    cell.pack_forward(q[0], arena[0])


cdef int64_t product_rows(const Sequence[real]* q, const CellKernels[real]* cell, int64_t n_columns) noexcept nogil:
    """How many rows of input products are made in advance; 0: none."""
    cdef int64_t width = cell.gates * q.H
    if q.ids.base != NULL:
        return n_columns  # a table: x is one-hot, so its product is a row of W_ih transposed
    if q.start[q.steps] > UNPACKED_ROWS and q.B < cell.rows_per_tile:
        # too few rows to fill a tile: the input products of many steps at once make better use of W_ih
        return min(q.start[q.steps], max(q.B, PRODUCT_CHUNK // (width * <int64_t>sizeof(real))))
    return 0


cdef struct ForwardMemory:
    # scratch of one forward pass
    void *block
    void *gathered  # x gathered
    int64_t product_rows


cdef int begin_forward(
        Sequence[real]* q, const CellKernels[real]* cell, int64_t n_columns, const int64_t* columns,
        ForwardMemory* m) noexcept nogil:
    """Pack the weights, make the table of one-hot inputs; -1 if there is no memory."""
    cdef Arena[real] arena
    cdef real* gathered = NULL
    cdef int64_t width = cell.gates * q.H
    arena.block = NULL
    arena.used = 0
    q.packs = q.start[q.steps] > UNPACKED_ROWS
    m.product_rows = product_rows(q, cell, n_columns)
    lay_out_forward(q, cell, &arena, m.product_rows, &gathered)
    if allocate(&arena):
        return -1
    lay_out_forward(q, cell, &arena, m.product_rows, &gathered)
    m.block, m.gathered = arena.block, gathered
    if q.ids.base != NULL and m.product_rows:
        gather_columns(width, q.I, q.weights.ih, n_columns, columns, <real*>q.products)
    return 0


cdef void run_steps(
        Sequence[real]* q, const CellKernels[real]* cell, ForwardMemory* m, long s0, long s1,
        const Progress* below=NULL, Progress* own=NULL) noexcept nogil:
    """Steps [s0, s1), of which the first begins a chunk of input products. `below`: of the layer that makes x."""
    cdef int64_t width = cell.gates * q.H, ld = 0
    cdef long s, chunk = s0 if m.product_rows and q.ids.base == NULL else s1
    cdef const real* x
    for s in range(s0, s1):
        if s == chunk:
            q.products_from = s
            chunk = chunk_end(q, s, m.product_rows)
            wait_for(below, chunk)
            x = gather_x(q[0], s, chunk, <real*>m.gathered, &ld)
            gemm(False, True, q.start[chunk] - q.start[s], width, q.I, x, ld, q.weights.ih, q.I,
                 <real>0, <real*>q.products, width)
        wait_for(below, s + 1)
        cell.forward(q[0], s)
        publish(own, s + 1)


cdef int run_forward(
        Sequence[real]* q, const CellKernels[real]* cell, int64_t n_columns, const int64_t* columns,
        const Segments* kept=NULL, const Progress* below=NULL, Progress* own=NULL) noexcept nogil:
    """y and the tape; in inference, only y; with segments, y and c before each of them.
    Returns -1 if memory ran out, before anything was written.

    columns (n_columns,) of W_ih: ids are places among them; null: ids are the columns themselves."""
    cdef ForwardMemory m
    cdef int64_t i, states = q.B * q.H
    if begin_forward(q, cell, n_columns, columns, &m):
        return -1
    if kept == NULL:
        run_steps(q, cell, &m, 0, q.steps, below, own)
    else:
        for i in range(kept.count):
            if kept.c != NULL:
                memcpy(<real*>kept.c + i * states, q.c, states * sizeof(real))
            run_steps(q, cell, &m, kept.begin[i], kept.begin[i + 1], below, own)
    free(m.block)
    return 0


# ---------------------------------------------------------------- backward

cdef struct BackwardMemory:
    # of one backward pass
    void *x        # addresses of the rows of a chunk: of x,
    void *h        # of h(t-1),
    void *tape     # of the column of the tape that is a source of gradients,
    void *dx       # and of dx
    void *panel    # scratch of weight_gradient
    void *panels   # W_ih packed for dx
    void *sums     # (dgates_width,): sums of dgates over all rows
    void *h_masked  # (rows, P): h(t-1) as the products saw it, if it was masked


cdef void lay_out_backward(
        Sequence[real]* q, const CellKernels[real]* cell, const Kernels[real]* k, Arena[real]* arena, int64_t rows,
        InputColumns[real]* c, BackwardMemory* m) noexcept nogil:
    cdef int64_t pointers = rows * (sizeof(void*) // sizeof(real)), n_zeros = max(q.I, max(q.H, q.P))
    cdef real* zeros = arena.take(n_zeros)
    q.zeros = zeros
    q.dgates = arena.take((rows + q.B) * q.dgates_width)
    if q.weights.hr != NULL:
        q.dprojected = arena.take(rows * q.P)
    if q.zoneout_h.p > 0:
        q.dh_kept = arena.take(q.B * q.P)
    if q.h_mask != NULL:
        m.h_masked = arena.take(rows * q.P)
    m.x, m.h, m.tape, m.dx = arena.take(pointers), arena.take(pointers), arena.take(pointers), arena.take(pointers)
    m.panel = arena.take(GRADIENT_PANEL)
    m.panels = arena.take(k.pack_input_gradient(c[0], q.I, NULL, NULL)) if q.dx.base != NULL else NULL
    m.sums = arena.take(q.dgates_width)
    if arena.block != NULL:
        memset(zeros, 0, n_zeros * sizeof(real))
        memset(m.sums, 0, q.dgates_width * sizeof(real))
        if q.dx.base != NULL:
            k.pack_input_gradient(c[0], q.I, q.weights.ih, <real*>m.panels)
    cell.pack_backward(q[0], arena[0])


cdef void set_input_columns(const CellKernels[real]* cell, int64_t H, InputColumns[real]* c) noexcept nogil:
    """Which columns of dgates reach x, from the cell's gradient blocks."""
    cdef int i, n = 0
    memset(c, 0, sizeof(InputColumns[real]))
    for i in range(cell.n_blocks):
        if cell.blocks[i].source == SOURCE_X:
            c.K[n], c.column[n], c.row[n] = cell.blocks[i].gates * H, cell.blocks[i].column * H, cell.blocks[i].gate * H
            n += 1


cdef struct NonFinite:
    # where the walk back comes upon the first gradient of a pre-activation that is NaN or infinite
    int64_t step, row  # of the walk; step -1: nowhere
    int blocks         # a bit for each block of H columns of dgates


cdef bint found_nonfinite(const Sequence[real]* q, long s0, long s1, NonFinite* found) noexcept nogil:
    """Whether one is in steps [s0, s1)."""
    cdef long s, b
    cdef int64_t j
    cdef const real* d
    for s in range(s1 - 1, s0 - 1, -1):
        for b in range(q.active(s)):
            d = q.dgates + (q.start[s] + b - q.start[s0]) * q.dgates_width
            for j in range(q.dgates_width):
                if d[j] - d[j] != 0:
                    found.step, found.row = s, b
                    found.blocks |= 1 << (j // q.H)
            if found.step >= 0:
                return True
    return False


cdef int64_t gradient_rows(const Sequence[real]* q) noexcept nogil:
    """How many rows of pre-activation gradients are worked on at a time."""
    return min(q.start[q.steps], max(q.B, GRADIENT_CHUNK // (q.dgates_width * <int64_t>sizeof(real))))


cdef int run_backward(
        Sequence[real]* q, const CellKernels[real]* cell, const Kernels[real]* k,
        Gradients[real]* g, int64_t n_columns, const int64_t* columns, const Segments* kept,
        NonFinite* found, const Progress* above, Progress* own) noexcept nogil:
    """Adds into the gradients; writes dx, dh and dc. Returns -1 if memory ran out, before anything was written.
    With `found`, which is null but for a search, it stops there.
    With segments, q's tape and c are room for any one and the rows of a chunk: one may begin before the other ends."""
    cdef Arena[real] arena
    cdef BackwardMemory m
    cdef InputColumns[real] c
    cdef Sequence[real] again = q[0]  # forward, with its own packed weights
    cdef ForwardMemory forward
    cdef int64_t width = q.dgates_width, rows = gradient_rows(q)
    cdef int64_t i = 0 if kept == NULL else kept.count  # the segment that the tape begins with
    cdef long s, s0, s1 = q.steps
    forward.block = NULL
    if kept != NULL and begin_forward(&again, cell, n_columns, columns, &forward):
        return -1
    q.kept_from = 0 if kept == NULL else q.steps  # nothing yet
    arena.block = NULL
    arena.used = 0
    set_input_columns(cell, q.H, &c)
    lay_out_backward(q, cell, k, &arena, rows, &c, &m)
    if allocate(&arena):
        free(forward.block)
        return -1
    lay_out_backward(q, cell, k, &arena, rows, &c, &m)

    while s1 > 0:
        s0 = chunk_start(q, s1, rows)
        wait_for(above, q.steps - s0)
        if s1 < q.steps:  # the first step of the chunk before now comes after this one
            memmove(q.dgates + (q.start[s1] - q.start[s0]) * width, q.dgates, q.active(s1) * width * sizeof(real))
        q.dgates_from = s0
        if s0 < q.kept_from:
            while kept.begin[i] > s0:
                i -= 1
            make_room(q, kept.begin[i], s1)
            replay(&again, cell, &forward, kept, i, q.kept_from)
            q.kept_from, q.c0 = again.kept_from, again.c0
        for s in range(s1 - 1, s0 - 1, -1):
            cell.backward(q[0], s)
        if found != NULL and found_nonfinite(q, s0, s1, found):
            break
        chunk_gradients(q, cell, k, g, &c, &m, s0, s1)
        publish(own, q.steps - s0)
        s1 = s0
    if s1 == 0:
        cell.backward(q[0], -1)
        add_biases(q, cell, g, &m)
    free(arena.block)
    free(forward.block)
    return 0


cdef void replay(
        Sequence[real]* q, const CellKernels[real]* cell, ForwardMemory* m, const Segments* kept, int64_t i,
        long s1) noexcept nogil:
    """Tape and c from segment i up to step s1, the begin of another, by running forward again; y is given the same
    bits."""
    q.kept_from = kept.begin[i]
    if kept.c != NULL:
        q.c0 = <real*>kept.c + i * q.B * q.H
    run_steps(q, cell, m, kept.begin[i], s1)


cdef void make_room(Sequence[real]* q, long s0, long s1) noexcept nogil:
    """Move what is kept of the steps before s1 back, so that tape and c can begin with step s0."""
    cdef int64_t rows = q.start[s1] - q.start[q.kept_from], before = q.start[q.kept_from] - q.start[s0]
    memmove(q.tape + before * q.tape_width, q.tape, rows * q.tape_width * sizeof(real))
    if q.c != NULL:
        memmove(q.c + before * q.H, q.c, rows * q.H * sizeof(real))


cdef void chunk_gradients(
        Sequence[real]* q, const CellKernels[real]* cell, const Kernels[real]* k, Gradients[real]* g,
        const InputColumns[real]* c, BackwardMemory* m, long s0, long s1) noexcept nogil:
    """Weight gradients and dx of steps [s0, s1):  dW += dgates^T . source  and  dx = dgates . W_ih"""
    cdef int64_t rows = q.start[s1] - q.start[s0], width = q.dgates_width, H = q.H, n
    cdef real* panel = <real*>m.panel
    cdef real* d
    cdef long tape_column = q.tape_width - H  # W_hr saw the unprojected h, the last H columns of the tape
    cdef GradientBlock block
    cdef int i
    if rows == 0:
        return
    for i in range(cell.n_blocks):
        if cell.blocks[i].source == SOURCE_TAPE:
            tape_column = cell.blocks[i].tape_column * H
    list_rows(q[0], s0, s1, tape_column, <const real**>m.x, <const real**>m.h, <const real**>m.tape, <real**>m.dx)
    if q.h_mask != NULL:
        mask_rows(q[0], s0, s1, <const real**>m.h, <real*>m.h_masked)
    k.sum_rows(rows, width, q.dgates, width, <real*>m.sums)
    for i in range(cell.n_blocks):
        block = cell.blocks[i]
        n, d = block.gates * H, q.dgates + block.column * H
        if block.source == SOURCE_X and q.ids.base != NULL:
            add_to_table(q, cell, g.ih + block.gate * H, d, n, s0, s1)
        elif block.source == SOURCE_X:
            k.weight_gradient(rows, n, q.I, d, width, <const real* const*>m.x, panel, g.ih + block.gate * H * q.I)
        elif block.source == SOURCE_H:
            k.weight_gradient(rows, n, q.P, d, width, <const real* const*>m.h, panel, g.hh + block.gate * H * q.P)
        else:
            k.weight_gradient(rows, n, q.P, d, width, <const real* const*>m.tape, panel, g.hh + block.gate * H * q.P)
    if q.weights.hr != NULL:
        k.weight_gradient(rows, q.P, H, q.dprojected, q.P, <const real* const*>m.tape, panel, g.hr)
    if q.dx.base != NULL:
        k.input_gradient(rows, q.I, c[0], q.dgates, width, q.zeros, <real* const*>m.dx)


cdef void add_to_table(
        Sequence[real]* q, const CellKernels[real]* cell, real* table, const real* d, int64_t n,
        long s0, long s1) noexcept nogil:
    """table[id of row] += d of that row, for the n columns of a block"""
    cdef long s, b
    cdef int64_t j
    cdef real* row
    for s in range(s0, s1):
        for b in range(q.active(s)):
            row = table + q.ids.at(s, b)[0] * cell.gates * q.H
            for j in range(n):
                row[j] += d[j]
            d += q.dgates_width


cdef void add_biases(
        Sequence[real]* q, const CellKernels[real]* cell, Gradients[real]* g, BackwardMemory* m) noexcept nogil:
    """From the sums of dgates."""
    cdef int64_t H = q.H, i, j
    cdef const real* sums
    cdef real* bias
    cdef GradientBlock block
    for i in range(cell.n_blocks):
        block = cell.blocks[i]
        sums = <real*>m.sums + block.column * H
        bias = g.b_ih if block.weight == IH else g.b_hh
        if bias != NULL:
            for j in range(block.gates * H):
                bias[block.gate * H + j] += sums[j]


# ---------------------------------------------------------------- one layer, one direction, one batch

cdef void set_rows(Rows[real]* rows, object given, bint writable=False) except *:
    """given: (array, offset of each batch row, step), or None"""
    rows.base = NULL
    if given is not None:
        rows.base = <real*>address(given[0], writable)
        rows.offset = <const int64_t*>address(given[1])
        rows.step = given[2]


cdef void set_bytes(Rows[uint8_t]* rows, object given) except *:
    if given is not None:
        rows.base = <uint8_t*>address(given[0])
        rows.offset = <const int64_t*>address(given[1])
        rows.step = given[2]


cdef void set_cell(Sequence[real]* q, const CellKernels[real]* cell, weights, dict options) except *:
    """Start a sequence: all zero but for what a layer and direction has in every call."""
    cdef int i = 0
    memset(q, 0, sizeof(Sequence[real]))
    w_ih, w_hh, b_ih, b_hh, w_hr, peephole = weights
    q.weights.ih = <const real*>address(w_ih)
    q.weights.hh = <const real*>address(w_hh)
    q.weights.b_ih = <const real*>address(b_ih)
    q.weights.b_hh = <const real*>address(b_hh)
    q.weights.hr = <const real*>address(w_hr)
    q.weights.peephole = <const real*>address(peephole)
    q.I, q.H, q.P = w_ih.shape[1], w_ih.shape[0] // cell.gates, w_hh.shape[1]
    q.tape_width = cell.tape_width * q.H + (q.H if w_hr is not None else 0)
    q.dgates_width = cell.dgates_width * q.H
    for kind, alpha, beta in options["activations"]:
        q.activation[i].kind, q.activation[i].alpha, q.activation[i].beta = kind, alpha, beta
        i += 1
    q.clip, q.grad_clip = options["clip"], options["grad_clip"]
    q.coupled = options["coupled"]
    q.zoneout_h.p, q.zoneout_c.p = options["zoneout"]


cdef void set_call(Sequence[real]* q, dict a) except *:
    """What a call gives; all but the backward part."""
    q.steps, q.B = a["sizes"]
    q.start = <const int64_t*>address(a["start"])
    set_rows(<Rows[real]*>&q.x, a["x"])
    if a["ids"] is not None:
        q.ids.base = <int64_t*>address(a["ids"][0])
        q.ids.offset = <const int64_t*>address(a["ids"][1])
        q.ids.step = a["ids"][2]
    set_bytes(<Rows[uint8_t]*>&q.reset, a["reset"])
    set_bytes(<Rows[uint8_t]*>&q.zoneout_h.keeps, a.get("keeps_h"))
    set_bytes(<Rows[uint8_t]*>&q.zoneout_c.keeps, a.get("keeps_c"))
    q.h_mask = <const real*>address(a.get("h_mask"))
    q.h0 = <const real*>address(a["h0"])
    q.c0 = <const real*>address(a["c0"])
    set_rows(&q.y, a["y"], True)


cdef class Scan:
    """One layer in one direction over one batch: `forward`, then, if made for training, `backward`.

    All is as in kernels/sequence.hpp: `weights` the six arrays or None, `options` activations, clip, grad_clip, coupled
    and zoneout; of the call, sizes (T, B), start, h0 and c0, and as (array, offsets, step) or None x, ids, reset and y;
    where there is noise, h_mask, and as rows keeps_h and keeps_c. Arrays are of the layer's dtype, and C-contiguous
    where they have no offsets. With `columns` (int64, n), ids are places among those columns of W_ih, without the
    columns themselves: inference only. `c` holds the cell state: (B, H), the initial one and then the final one; or, if
    `keep` says so, that of all steps (packed rows).
    """

    cdef Sequence[float] f32
    cdef Sequence[double] f64
    cdef int cell
    cdef bint is_double, is_empty
    cdef const int64_t* columns
    cdef int64_t n_columns
    cdef tuple alive  # the arrays that the sequence points to
    cdef Segments segments
    cdef int64_t window  # rows of a tape that holds any segment and a chunk of backward
    cdef object c_before
    cdef Progress steps_done, steps_undone  # of forward and of backward
    cdef Scan before, behind  # that have to go first in forward and in backward; None: nobody
    cdef readonly object y, h0, c, c0, tape, begin  # begin (count + 1,): of the segments; None where all steps are kept

    def __init__(self, int cell, bint is_double, tuple weights, dict options, **call):
        self.cell = cell
        self.is_double = is_double
        self.alive = weights, call
        self.columns = <const int64_t*>address(call["columns"])
        self.n_columns = 0 if call["columns"] is None else len(call["columns"])
        self.is_empty = call["start"][call["sizes"][0]] == 0
        if is_double:
            set_cell(&self.f64, kernels.f64.cell(cell), weights, options)
            set_call(&self.f64, call)
        else:
            set_cell(&self.f32, kernels.f32.cell(cell), weights, options)
            set_call(&self.f32, call)
        self.y, self.h0, self.c0 = call["y"][0], call["h0"], call["c0"]
        self.c = None if self.c0 is None else self.c0.copy()
        self.hold(None, self.c, True)

    cdef int hold(self, tape, c, bint c_in_place) except -1:
        self.tape, self.c = tape, c
        if self.is_double:
            set_kept(&self.f64, tape, c, c_in_place)
        else:
            set_kept(&self.f32, tape, c, c_in_place)
        return 0

    cdef tuple room(self, int64_t rows):
        """A tape of so many rows, and c of as many steps."""
        dtype = self.alive[0][0].dtype
        width, H = (self.f64.tape_width, self.f64.H) if self.is_double else (self.f32.tape_width, self.f32.H)
        return new_array((rows, width), dtype), None if self.c0 is None else new_array((rows, H), dtype)

    def keep(self, int64_t count):
        """Before `forward`, for `backward`: keep the tape of all steps, or, if count is not 0, c before each of about
        so many segments."""
        tape, c = self.room(0 if count else self.total)
        if count and self.total and (tape.shape[1] or c is not None):  # else backward needs but y
            self.begin, self.window = self.divided(count)
            self.c_before = None if c is None else np.empty((len(self.begin) - 1, *self.c0.shape), c.dtype)
            self.segments.count = len(self.begin) - 1
            self.segments.begin = <const int64_t*>address(self.begin)
            self.segments.c = address(self.c_before, c is not None)
        else:
            self.hold(tape, c, False)

    def memory(self, int64_t count):
        """Bytes that `keep(count)` and `backward` need for it."""
        tape, c = self.room(1)
        row = tape.nbytes + (0 if c is None else c.nbytes)
        if count == 0 or row == 0:
            return self.total * row
        begin, window = self.divided(count)
        return window * row + (0 if c is None else (len(begin) - 1) * self.c0.nbytes)

    cdef const Segments* kept(self):
        if self.segments.count:
            return &self.segments
        return NULL

    cdef tuple divided(self, int64_t count):
        if self.is_double:
            return divide(&self.f64, kernels.f64.cell(self.cell), count)
        return divide(&self.f32, kernels.f32.cell(self.cell), count)

    @property
    def total(self):
        """Rows: pairs of a step and a sequence that runs then."""
        return self.f64.start[self.f64.steps] if self.is_double else self.f32.start[self.f32.steps]

    @property
    def usual_count(self):
        """Of segments, so that little is kept; 0 where there would be less than two.

        There must be room for a segment and a chunk of backward: less than two chunks a segment would not save much.
        Segments of sqrt(T) steps keep as much of c as of the tape.
        """
        steps, B = (self.f64.steps, self.f64.B) if self.is_double else (self.f32.steps, self.f32.B)
        chunk = gradient_rows(&self.f64) if self.is_double else gradient_rows(&self.f32)
        count = self.total // max(1, 2 * chunk, B * int(steps**0.5))
        return count if count > 1 else 0

    def follow(self, Scan below):
        """Let forward take each step after that of `below`, the scan that makes x, and backward the other way, so that
        the two may run at once. `below.forward` has to be called first, and this one's `backward`."""
        self.before, below.behind = below, self

    def forward(self):
        """Run all steps: y, the final c in place, and what `keep` asked for."""
        cdef int failed
        cdef const Segments* kept = self.kept()
        cdef const Progress* below = <const Progress*>NULL if self.before is None else &self.before.steps_done
        if self.is_empty:
            return
        with nogil:
            if self.is_double:
                failed = run_forward(
                    &self.f64, kernels.f64.cell(self.cell), self.n_columns, self.columns, kept, below, &self.steps_done)
            else:
                failed = run_forward(
                    &self.f32, kernels.f32.cell(self.cell), self.n_columns, self.columns, kept, below, &self.steps_done)
            publish(&self.steps_done, INT64_MAX)  # nobody shall wait after a failure
        if failed:
            raise MemoryError("no memory for the packed weights")

    def replayed(self, int64_t i):
        """Tape (rows, width) and c (rows, H), or None, of segment i: forward runs again where they were not kept."""
        if self.begin is None:
            return self.tape, self.c
        if self.is_double:
            return scan_replay(&self.f64, self, i)
        return scan_replay(&self.f32, self, i)

    def backward(self, dy, dx, dh, dc, gradients, bint search=False):
        """BPTT. dy, dx: rows or None. dh (B, P), dc (B, H): gradient of the final state, replaced by that of the
        initial one. gradients: of ih, hh, b_ih, b_hh, hr, peephole, added to; for ids, that of ih is (n, G*H), a row
        for each of the columns. In a search it returns (step and row of the walk, bits of the blocks of dgates) where
        the first value that is not finite arises, or None."""
        try:
            if self.is_empty:
                return None
            if self.is_double:
                return scan_backward(&self.f64, self, dy, dx, dh, dc, gradients, search)
            return scan_backward(&self.f32, self, dy, dx, dh, dc, gradients, search)
        finally:
            publish(&self.steps_undone, INT64_MAX)  # nobody shall wait after a failure

    def rewind(self):
        """Before each `backward`: none of its steps is done."""
        self.steps_undone.steps = 0


cdef void set_kept(Sequence[real]* q, tape, c, bint c_in_place) except *:
    q.tape = <real*>address(tape)
    q.c = <real*>address(c)
    q.c_in_place = c_in_place


cdef tuple divide(const Sequence[real]* q, const CellKernels[real]* cell, int64_t count):
    """(first steps of about so many segments, and T; rows of a tape that holds any of them and a chunk of backward)"""
    cdef int64_t chunk = 1, rows = -(-q.start[q.steps] // count), most = 0
    cdef long s = 0, s0 = 0
    if q.ids.base == NULL:
        chunk = max(1, product_rows(q, cell, 0))
    begin = [0]
    while s < q.steps:
        s = chunk_end(q, s, chunk)
        if q.start[s] - q.start[s0] >= rows or s == q.steps:
            most = max(most, q.start[s] - q.start[s0])
            s0 = s
            begin.append(s)
    return np.array(begin, np.int64), min(q.start[q.steps], most + gradient_rows(q))


cdef tuple scan_replay(Sequence[real]* scan, Scan of, int64_t i):
    cdef Sequence[real] q = scan[0]
    cdef ForwardMemory m
    cdef real which = 0
    cdef const CellKernels[real]* cell = kernels.of(which).cell(of.cell)
    cdef int64_t s1 = of.segments.begin[i + 1]
    cdef int failed
    tape, c = of.room(q.start[s1] - q.start[of.segments.begin[i]])
    set_kept(&q, tape, c, False)
    with nogil:
        failed = begin_forward(&q, cell, of.n_columns, of.columns, &m)
        if not failed:
            replay(&q, cell, &m, &of.segments, i, s1)
            free(m.block)
    if failed:
        raise MemoryError("no memory for the packed weights")
    return tape, c


cdef object scan_backward(Sequence[real]* scan, Scan of, dy, dx, dh, dc, gradients, bint search):
    cdef Sequence[real] q = scan[0]  # a tape may be walked more than once
    cdef Gradients[real] g
    cdef const Segments* kept = of.kept()
    cdef NonFinite found
    cdef int failed
    cdef const Progress* above = <const Progress*>NULL if of.behind is None else &of.behind.steps_undone
    cdef Progress* own = &of.steps_undone
    cdef real which = 0
    found.step, found.blocks = -1, 0
    if kept != NULL:
        tape, c = of.room(of.window)
        set_kept(&q, tape, c, False)
    set_rows(<Rows[real]*>&q.dy, dy)
    set_rows(&q.dx, dx, True)
    q.dh = <real*>address(dh, True)
    q.dc = <real*>address(dc, dc is not None)
    d_ih, d_hh, d_b_ih, d_b_hh, d_hr, d_peephole = gradients
    g.ih = <real*>address(d_ih, True)
    g.hh = <real*>address(d_hh, True)
    g.b_ih = <real*>address(d_b_ih, d_b_ih is not None)
    g.b_hh = <real*>address(d_b_hh, d_b_hh is not None)
    g.hr = <real*>address(d_hr, d_hr is not None)
    q.dpeephole = <real*>address(d_peephole, d_peephole is not None)
    with nogil:
        failed = run_backward(&q, kernels.of(which).cell(of.cell), &kernels.of(which), &g, of.n_columns, of.columns,
                              kept, &found if search else NULL, above, own)
    if failed:
        raise MemoryError("no memory for the gradients of a chunk of steps")
    return None if found.step < 0 else (found.step, found.row, found.blocks)


# ---------------------------------------------------------------- short calls

cdef class ShortCalls:
    """Inference of a few rows through a stack of one direction, with nothing made in Python: for single steps, whose
    arithmetic takes less time than the making of a Scan. It reads the weights themselves, as every call does.
    """

    cdef Sequence[float] f32[MAX_SHORT_LAYERS]
    cdef Sequence[double] f64[MAX_SHORT_LAYERS]
    cdef int cell, layers, typenum
    cdef int64_t I, P, H
    cdef bint is_double, batch_first, has_c
    cdef list alive

    def __init__(self, int cell, bint is_double, bint batch_first, list weights, dict options):
        self.cell, self.is_double, self.batch_first = cell, is_double, batch_first
        self.layers, self.alive = len(weights), weights
        self.typenum = cnp.NPY_FLOAT64 if is_double else cnp.NPY_FLOAT32
        for k in range(self.layers):
            if is_double:
                set_cell(&self.f64[k], kernels.f64.cell(cell), weights[k], options)
            else:
                set_cell(&self.f32[k], kernels.f32.cell(cell), weights[k], options)
        self.I, self.P = weights[0][0].shape[1], weights[0][1].shape[1]
        self.H = self.f64[0].H if is_double else self.f32[0].H
        self.has_c = kernels.f32.cell(cell).has_c

    @staticmethod
    def takes(int layers):
        """Whether a stack of so many layers can be run."""
        return layers <= MAX_SHORT_LAYERS

    def run(self, x, state):
        """What a layer returns for x (T, B, I) or (T, I) and state, if T * B is small and all is of just the right
        kind; None for all else, wrong or merely longer."""
        cdef int64_t T, B
        cdef int rank, axis
        cdef cnp.npy_intp shape[3]
        if not self.fits(x, -1):
            return None
        rank = cnp.PyArray_NDIM(x)
        for axis in range(rank):
            shape[axis] = cnp.PyArray_DIM(x, axis)
        T, B = shape[0], 1
        if rank == 3:
            B = shape[1]
            if self.batch_first:
                T, B = B, T
                if T > 1 and B > 1:
                    return None  # not in the order of time
        elif rank != 2:
            return None
        if not 0 < T * B <= UNPACKED_ROWS or shape[rank - 1] != self.I:
            return None

        h0 = c0 = None
        if state is None:
            h0 = self.new_state(rank, B, self.P, True)
            c0 = self.new_state(rank, B, self.H, True) if self.has_c else None
        elif not self.has_c:
            h0 = state
        elif type(state) is tuple and len(<tuple>state) == 2:
            h0, c0 = (<tuple>state)[0], (<tuple>state)[1]
        else:
            return None
        if not self.is_state(h0, rank, B, self.P) or (self.has_c and not self.is_state(c0, rank, B, self.H)):
            return None

        shape[rank - 1] = self.P
        y = cnp.PyArray_EMPTY(rank, shape, self.typenum, 0)
        h = self.new_state(rank, B, self.P, False)
        c = self.new_state(rank, B, self.H, False) if self.has_c else None
        if self.is_double:
            failed = run_short(self.f64, self.layers, kernels.f64.cell(self.cell), T, B, <const double*>data(x),
                               <const double*>data(h0), <const double*>data(c0), <double*>data(y), <double*>data(h),
                               <double*>data(c))
        else:
            failed = run_short(self.f32, self.layers, kernels.f32.cell(self.cell), T, B, <const float*>data(x),
                               <const float*>data(h0), <const float*>data(c0), <float*>data(y), <float*>data(h),
                               <float*>data(c))
        if failed:
            raise MemoryError("no memory for a step")
        return y, (h, c) if self.has_c else h

    cdef bint fits(self, array, int rank):
        """Whether it is an array of our dtype in C order, and of so many axes (-1: any)"""
        return (cnp.PyArray_CheckExact(array) and cnp.PyArray_TYPE(array) == self.typenum
                and cnp.PyArray_ISCARRAY_RO(array) and (rank < 0 or cnp.PyArray_NDIM(array) == rank))

    cdef bint is_state(self, array, int rank, int64_t B, int64_t width):
        return (self.fits(array, rank) and cnp.PyArray_DIM(array, 0) == self.layers
                and cnp.PyArray_DIM(array, rank - 1) == width and (rank == 2 or cnp.PyArray_DIM(array, 1) == B))

    cdef object new_state(self, int rank, int64_t B, int64_t width, bint zero):
        """(L, B, width), or (L, width) unbatched"""
        cdef cnp.npy_intp shape[3]
        shape[0] = self.layers
        shape[1] = B
        shape[rank - 1] = width
        if zero:
            return cnp.PyArray_ZEROS(rank, shape, self.typenum, 0)
        return cnp.PyArray_EMPTY(rank, shape, self.typenum, 0)


cdef inline void* data(array) noexcept:
    """Where the elements of an array start; None is null."""
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


cdef int run_short(
        const Sequence[real]* stack, int layers, const CellKernels[real]* cell, int64_t T, int64_t B, const real* x,
        const real* h0, const real* c0, real* y, real* h, real* c) noexcept nogil:
    cdef Sequence[real] q
    cdef int64_t start[UNPACKED_ROWS + 1]
    cdef int64_t x_offset[UNPACKED_ROWS]
    cdef int64_t y_offset[UNPACKED_ROWS]
    cdef int64_t i, P = stack[0].P, H = stack[0].H
    cdef int k, failed = 0
    cdef real* between = NULL  # y of the layers below the last, two by turns
    for i in range(T + 1):
        start[i] = i * B
    if layers > 1:
        between = <real*>malloc(2 * T * B * P * sizeof(real))
        if between == NULL:
            return -1
    for k in range(layers):
        q = stack[k]
        for i in range(B):
            x_offset[i] = i * q.I
            y_offset[i] = i * P
        q.steps, q.B, q.start = T, B, start
        q.x.base, q.x.offset, q.x.step = <real*>x, x_offset, B * q.I
        q.y.base, q.y.offset, q.y.step = y if k == layers - 1 else between + (k % 2) * T * B * P, y_offset, B * P
        q.h0 = h0 + k * B * P
        if c0 != NULL:
            q.c0, q.c, q.c_in_place = c0 + k * B * H, c + k * B * H, True
        failed = run_forward(&q, cell, 0, NULL)
        if failed:
            break
        memcpy(h + k * B * P, q.y.base + (T - 1) * B * P, B * P * sizeof(real))
        x = q.y.base
    free(between)
    return failed


include "_stream.pxi"


# ---------------------------------------------------------------- around the layers

def softmax_cross_entropy(const real[:, ::1] logits, const int64_t[::1] targets, double scale, real[:, ::1] dlogits):
    """Sum of the losses of all rows whose target is not negative; dlogits = scale (softmax - onehot)."""
    cdef long rows = logits.shape[0], K = logits.shape[1]
    cdef double loss = 0
    cdef real which = 0
    if rows and K:
        with nogil:
            loss = kernels.of(which).softmax_cross_entropy(
                rows, K, &logits[0, 0], &targets[0], <real>scale, &dlogits[0, 0])
    return loss


# The optimisers: one step over flat arrays, in place, see kernels/elementwise.hpp; a buffer may be None

def sgd(real[::1] param, const real[::1] grad, object buffer,
        double scale, double l2, double lr, double momentum, double damping, bint nesterov):
    cdef real which = 0
    cdef real* b = <real*>address(buffer, True)
    with nogil:
        kernels.of(which).sgd(param.shape[0], <real>scale, <real>l2, <real>lr, <real>momentum, <real>damping, nesterov,
                              &grad[0], b, &param[0])


def adam(real[::1] param, const real[::1] grad, real[::1] m, real[::1] v,
         double scale, double l2, double keep, double b1, double b2, double rate, double root, double eps):
    cdef real which = 0
    with nogil:
        kernels.of(which).adam(param.shape[0], <real>scale, <real>l2, <real>keep, <real>b1, <real>b2, <real>rate,
                               <real>root, <real>eps, &grad[0], &m[0], &v[0], &param[0])


def rmsprop(real[::1] param, const real[::1] grad, real[::1] v, object m, object buffer,
            double scale, double l2, double lr, double alpha, double eps, double momentum):
    cdef real which = 0
    cdef real* mean = <real*>address(m, True)
    cdef real* b = <real*>address(buffer, True)
    with nogil:
        kernels.of(which).rmsprop(param.shape[0], <real>scale, <real>l2, <real>lr, <real>alpha, <real>eps,
                                  <real>momentum, &grad[0], &v[0], mean, b, &param[0])


def sum_of_squares(const real[::1] x):
    """Sum of x^2, in double."""
    cdef real which = 0
    cdef double total = 0
    if x.shape[0]:
        with nogil:
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

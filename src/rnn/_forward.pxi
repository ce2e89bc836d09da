# The forward pass of one layer and direction: the loop over steps. Included by _core.pyx.

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
    if q.ids.base != NULL:
        return n_columns  # a table: x is one-hot, so its product is a row of W_ih transposed
    if q.start[q.steps] > UNPACKED_ROWS and q.B < cell.rows_per_tile:
        # too few rows to fill a tile: the input products of many steps at once make better use of W_ih
        return chunk_room(q)
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
            chunk = chunk_end(q, s)
            wait_for(below, chunk)
            x = gather_x(q[0], s, chunk, <real*>m.gathered, &ld)
            gemm(False, True, q.start[chunk] - q.start[s], width, q.I, x, ld, q.weights.ih, q.I,
                 <real>0, <real*>q.products, width)
        wait_for(below, s + 1)
        cell.forward(q[0], s)
        publish(own, s + 1)


cdef int run_forward(
        Sequence[real]* q, const CellKernels[real]* cell, int64_t n_columns, const int64_t* columns,
        const Progress* below=NULL, Progress* own=NULL) noexcept nogil:
    """y and the tape; in inference, only y. Returns -1 if memory ran out, before anything was written.

    columns (n_columns,) of W_ih: ids are places among them; null: ids are the columns themselves."""
    cdef ForwardMemory m
    if begin_forward(q, cell, n_columns, columns, &m):
        return -1
    run_steps(q, cell, &m, 0, q.steps, below, own)
    free(m.block)
    return 0

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
    const void *x   # rows of a chunk, ld apart
    int64_t ld


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


cdef int64_t step_work(const Sequence[real]* q, const CellKernels[real]* cell) noexcept nogil:
    """Multiply-adds of a step's products, those that are made in advance not among them."""
    cdef int64_t inputs = 0 if q.ids.base != NULL or product_rows(q, cell, 0) else q.I
    cdef int64_t weights = cell.gates * q.H * (q.P + inputs) + (q.P * q.H if q.weights.hr != NULL else 0)
    return q.start[q.steps] // q.steps * weights if q.steps else 0


cdef void input_products(const Chunk[real]* of, Share* share) noexcept nogil:
    """A share of those of a chunk of steps: of blocks of columns, if such steps are ever shared"""
    cdef const Sequence[real]* q = of.q
    cdef const ForwardMemory* m = <const ForwardMemory*>of.memory
    cdef int64_t width = of.cell.gates * q.H, rows = q.start[of.s1] - q.start[of.s0]
    cdef int64_t block = PRODUCT_BLOCK if step_work(q, of.cell) >= 2 * SHARED_WORK else width
    cdef long i, end
    take(share, (width + block - 1) // block, &i, &end)
    for i in range(i, end):
        gemm(False, True, rows, min(block, width - i * block), q.I, <const real*>m.x, m.ld,
             q.weights.ih + i * block * q.I, q.I, <real>0, <real*>q.products + i * block, width)


cdef void run_steps(
        Sequence[real]* q, const CellKernels[real]* cell, ForwardMemory* m, long s0, long s1, CrewState* crew=NULL,
        const Progress* below=NULL, Progress* own=NULL) noexcept nogil:
    """Steps [s0, s1), of which the first begins a chunk of input products. `below`: of the layer that makes x."""
    cdef long s, chunk = s0 if m.product_rows and q.ids.base == NULL else s1
    cdef Chunk[real] products
    products.q, products.cell, products.memory = q, cell, m
    for s in range(s0, s1):
        if s == chunk:
            q.products_from = s
            chunk = chunk_end(q, s, m.product_rows)
            wait_for(below, chunk)
            m.x = gather_x(q[0], s, chunk, <real*>m.gathered, &m.ld)
            products.s0, products.s1 = s, chunk
            together(crew, input_products[real], products)
        wait_for(below, s + 1)
        step_together(crew, q[0], cell.forward, s)
        publish(own, s + 1)


cdef int run_forward(
        Sequence[real]* q, const CellKernels[real]* cell, int64_t n_columns, const int64_t* columns,
        const Segments* kept=NULL, CrewState* crew=NULL, const Progress* below=NULL, Progress* own=NULL) noexcept nogil:
    """y and the tape; in inference, only y; with segments, y and c before each of them.
    Returns -1 if memory ran out, before anything was written.

    columns (n_columns,) of W_ih: ids are places among them; null: ids are the columns themselves."""
    cdef ForwardMemory m
    cdef int64_t i, states = q.B * q.H
    if begin_forward(q, cell, n_columns, columns, &m):
        return -1
    if kept == NULL:
        run_steps(q, cell, &m, 0, q.steps, crew, below, own)
    else:
        for i in range(kept.count):
            if kept.c != NULL:
                memcpy(<real*>kept.c + i * states, q.c, states * sizeof(real))
            run_steps(q, cell, &m, kept.begin[i], kept.begin[i + 1], crew, below, own)
    free(m.block)
    return 0

# The forward pass of one layer and direction: the loop over steps. Included by _core.pyx.

# ---------------------------------------------------------------- one-hot inputs: a table of some columns of W_ih
# Eight rows of W_ih are taken at a time: in a row of the table they are a cache line, or half of one

cdef void gather_columns(
        int64_t width, int64_t I, const real* w, int64_t n, const int64_t* columns, real* table) noexcept nogil:
    """table (n, width) := those columns of w (width, I), each as a row"""
    cdef int64_t i, j, first
    for first in range(0, width, 8):
        for i in range(n):
            for j in range(first, min(first + 8, width)):
                table[i * width + j] = w[j * I + columns[i]]


def add_to_columns(const real[:, :] table, const int64_t[::1] columns, real[:, ::1] dw):
    """The inverse of `gather_columns`: those columns of dw (width, I) += the rows of table (n, width). Each row is
    contiguous."""
    cdef int64_t n = table.shape[0], width = table.shape[1], I = dw.shape[1], ld, i, j, first
    cdef const real* rows
    cdef real* to
    cdef Section section
    if n and width:
        rows, ld, to = &table[0, 0], table.strides[0] // <int64_t>sizeof(real), &dw[0, 0]
        with nogil:
            section.begin()
            for first in range(0, width, 8):
                for i in range(n):
                    for j in range(first, min(first + 8, width)):
                        to[j * I + columns[i]] += rows[i * ld + j]


# ---------------------------------------------------------------- forward

cdef enum:
    NEARBY = 8192  # bytes of scratch that are taken from the stack: a step of one row is over sooner than an allocation


cdef struct ForwardMemory:
    # of one forward pass
    void *block              # for `pool_free`
    int64_t projected_rows   # how many rows of accumulators are made in advance; 0: none
    void *input_projection   # these accumulators, see kernels/sequence.hpp
    void *x                  # addresses of the rows of x that they are made from


cdef bint pays_to_pack(int64_t rows, int64_t terms) noexcept nogil:
    """Whether weights are better packed for so many rows: to pack as many of them as a product has terms takes about as
    long as the sums of lanes that `terms` / 7 dot products with unpacked weights end in. (With 64 rows or more, blocks
    could not hold all rows of a step.)"""
    return rows > min(max(4, terms // 7), PROJECTED_ROWS - 1)


cdef bint packs_input(const Sequence[real]* q) noexcept nogil:
    return q.is_packed or pays_to_pack(q.first(q.steps), q.I)


cdef bint packs_state(const Sequence[real]* q) noexcept nogil:
    # Steps of few rows wait for W_hh. If its rows do not begin with a cache line, vectors of it lie across two lines,
    # and come from the second-level cache at half the speed.
    cdef bint waits = q.B < 4 and q.P * sizeof(real) % LINE
    return q.is_packed or pays_to_pack(q.first(q.steps), q.P // 3 if waits else q.P)


cdef int64_t projected_rows(const Sequence[real]* q, const CellKernels[real]* cell) noexcept nogil:
    """Room for so many rows of input projections; 0 if none are made in advance. If a batch has too few rows to fill a
    tile, W_ih is put to better use when the input products of all steps of a block are made together; and weights that
    are not packed are read for many rows at once."""
    cdef bint in_panels = packs_input(q) and packs_state(q)
    if q.ids.base != NULL or q.storage != STORED_FULL or in_panels and (q.steps == 1 or q.B >= cell.rows_per_tile):
        return 0
    return min(chunk_room(q), 2 * PROJECTED_ROWS)


cdef int64_t block_end(const Sequence[real]* q, int64_t s, int64_t chunk) noexcept nogil:
    """The end of the block that begins with step s, in a chunk that ends before step `chunk`. A block has about
    PROJECTED_ROWS rows; the last one of a chunk takes all that is left, which is less than twice as many."""
    return chunk if q.first(chunk) - q.first(s) < 2 * PROJECTED_ROWS else s + PROJECTED_ROWS // q.active(s)


cdef void lay_out_forward(
        Sequence[real]* q, const CellKernels[real]* cell, Arena[real]* arena, int64_t n_columns,
        ForwardMemory* m) noexcept nogil:
    cdef int64_t n_zeros = max(q.P, max(q.H, q.C))
    cdef real* zeros = arena.take(n_zeros)
    q.table = arena.take(n_columns * cell.gates * q.H) if q.ids.base != NULL and n_columns else NULL
    q.input_projection = NULL
    if m.projected_rows:
        m.input_projection = arena.take(m.projected_rows * cell.projection_width(q.H))
        m.x = arena.take(m.projected_rows * (<int64_t>sizeof(void*) // <int64_t>sizeof(real)))
        q.input_projection = <real*>m.input_projection
    if q.saved == NULL:
        q.scratch = arena.take(q.B * q.saved_width)
    if q.h_mask != NULL:
        q.h_masked = arena.take(q.B * q.P)
    if q.zoneout_c > 0:
        q.c_saved = arena.take(q.B * q.C)
    if q.storage == STORED_INT8:
        q.x_fixed, q.h_fixed = arena.take(q.B * fixed_size(q.I)), arena.take(q.B * fixed_size(q.P))
    if arena.block != NULL:
        memset(zeros, 0, n_zeros * sizeof(real))
        q.zeros = zeros
    if not q.is_packed:
        cell.on(q.storage).pack(q[0], arena[0])


cdef int begin_forward(
        Sequence[real]* q, const CellKernels[real]* cell, int64_t n_columns, const int64_t* columns,
        ForwardMemory* m, char* nearby) noexcept nogil:
    """Pack the weights, if they are not, and make the table of one-hot inputs; -1 if there is no memory. nearby
    (NEARBY,): what serves as memory if it suffices, or null."""
    cdef Arena[real] arena
    arena.block = NULL
    arena.used = 0
    q.packs_input, q.packs_state = packs_input(q), packs_state(q)
    m.projected_rows = projected_rows(q, cell)
    lay_out_forward(q, cell, &arena, n_columns, m)
    m.block = NULL
    if nearby != NULL and arena.used * <int64_t>sizeof(real) <= NEARBY - LINE:
        arena.block, arena.used = <real*>(nearby + -<size_t>nearby % LINE), 0
    elif allocate(&arena):
        return -1
    else:
        m.block = arena.block
    lay_out_forward(q, cell, &arena, n_columns, m)
    if q.table != NULL:
        gather_columns(cell.gates * q.H, q.I, q.weights.ih, n_columns, columns, <real*>q.table)
    return 0


cdef int64_t step_work(const Sequence[real]* q, const CellKernels[real]* cell) noexcept nogil:
    """Multiply-adds of a step's products, without those that are made in advance."""
    cdef int64_t inputs = 0 if q.ids.base != NULL or projected_rows(q, cell) else q.I
    cdef int64_t weights = cell.gates * q.H * (q.P + inputs) + (q.P * q.H if q.weights.hr != NULL else 0)
    return q.first(q.steps) // q.steps * weights if q.steps else 0


cdef int64_t whole_step_work(const Sequence[real]* q, const CellKernels[real]* cell) noexcept nogil:
    """About the most multiply-adds of a step; all that is beside its products counts as some for each unit, and some
    for the step."""
    return q.B * cell.gates * q.H * ((0 if q.ids.base != NULL else q.I) + q.P + 64) + 2000


cdef bint run_steps(
        Sequence[real]* q, const CellKernels[real]* cell, ForwardMemory* m, int64_t s0, int64_t s1, Section* section,
        TeamState* team=NULL, const Progress* below=NULL, Progress* own=NULL) noexcept nogil:
    """Run the steps [s0, s1), of which the first begins a chunk. below, own: the progress of the layer pass that makes
    x, and of this one. Returns whether the pass was left."""
    cdef int64_t s, chunk = s0, block = s0 if m.projected_rows else s1
    cdef int64_t work = whole_step_work(q, cell)
    require(0 <= s0 <= s1 <= q.steps and q.y.base != NULL)
    require(s0 == 0 or q.first(s0 - 1) // chunk_rows(q) < q.first(s0) // chunk_rows(q) or q.active(s0) == 0)
    for s in range(s0, s1):
        if section.left_after(work):
            return True
        if s == block:
            if s == chunk:
                chunk = chunk_end(q, s)
            block = block_end(q, s, chunk)
            wait_for(below, block)
            project_block(q, cell, m, s, block, team)
        wait_for(below, s + 1)
        run_step(team, q[0], cell.on(q.storage).step, s)
        q.reverse_panels = not q.reverse_panels  # each step begins with the panels that the step before ended with
        publish(own, s + 1)
    return False


cdef void project_block(
        Sequence[real]* q, const CellKernels[real]* cell, ForwardMemory* m, int64_t s0, int64_t s1,
        TeamState* team) noexcept nogil:
    """Make the input projections, accumulators = bias + W_ih x, of a block: the steps [s0, s1)."""
    cdef Chunk[real] of
    cdef const real** x = <const real**>m.x
    cdef int64_t s, b
    for s in range(s0, s1):
        for b in range(q.active(s)):
            x[q.first(s) - q.first(s0) + b] = q.x.at(s, b)
    require(q.first(s1) - q.first(s0) <= m.projected_rows)
    q.projection_from = s0
    of.q, of.cell, of.memory, of.s0, of.s1 = q, cell, m, s0, s1
    run_shared(team, project_share[real], of)


cdef void project_share(const Chunk[real]* of, WorkShare* share) noexcept nogil:
    cdef const ForwardMemory* m = <const ForwardMemory*>of.memory
    cdef Sequence[real] own = of.q[0]
    own.share = share
    of.cell.project_inputs(own, own.first(of.s1) - own.first(of.s0), <const real* const*>m.x, <real*>m.input_projection)


cdef int run_forward(
        Sequence[real]* q, const CellKernels[real]* cell, int64_t n_columns, const int64_t* columns,
        TeamState* team=NULL, const Progress* below=NULL, Progress* own=NULL) noexcept nogil:
    """Write y and the saved activations; in inference, only y. Returns 0, LEFT or, before anything was written,
    NO_MEMORY.

    columns (n_columns,) of W_ih: ids are places in this list; null: ids are the columns themselves."""
    cdef ForwardMemory m
    cdef char nearby[NEARBY]
    cdef Section section
    section.begin()
    if begin_forward(q, cell, n_columns, columns, &m, nearby):
        return NO_MEMORY
    cdef bint left = run_steps(q, cell, &m, 0, q.steps, &section, team, below, own)
    pool_free(m.block)
    return LEFT if left else 0

# Back-propagation through time of one layer and direction, a chunk of steps at a time. Included by _core.pyx.

cdef struct BackwardMemory:
    # of one backward pass
    void *block
    void *x        # addresses of the rows of a chunk: of x,
    void *h        # of h(t-1),
    void *saved    # of the column of the saved activations that is a source of gradients,
    void *dx       # and of dx
    void *panel    # (workers + 1, GRADIENT_PANEL): scratch of weight_gradient
    void *panels   # W_ih packed for dx
    void *h_masked  # (rows, P): h(t-1) as the products saw it, if it was masked
    const void *k  # Kernels
    void *g        # Gradients
    void *c        # InputColumns


cdef void lay_out_backward(
        Sequence[real]* q, const CellKernels[real]* cell, const Kernels[real]* k, Arena[real]* arena, int workers,
        InputColumns[real]* c, BackwardMemory* m) noexcept nogil:
    cdef int64_t rows = chunk_room(q)
    cdef int64_t pointers = rows * (sizeof(void*) // sizeof(real)), n_zeros = max(max(q.I, q.C), max(q.H, q.P))
    cdef real* zeros = arena.take(n_zeros)
    q.zeros = zeros
    q.dgates = arena.take((rows + q.B) * q.dgates_width)
    if q.weights.hr != NULL:
        q.dprojected = arena.take(rows * q.P)
    if q.zoneout_h > 0:
        q.dh_zoneout = arena.take(q.B * q.P)
    if q.h_mask != NULL:
        m.h_masked = arena.take(rows * q.P)
    m.x, m.h, m.saved, m.dx = arena.take(pointers), arena.take(pointers), arena.take(pointers), arena.take(pointers)
    m.panel = arena.take((workers + 1) * GRADIENT_PANEL)
    m.panels = arena.take(k.pack_input_gradient(c[0], q.I, NULL, NULL)) if q.dx.base != NULL else NULL
    q.sums = arena.take(q.dgates_width)
    if arena.block != NULL:
        memset(zeros, 0, n_zeros * sizeof(real))
        memset(q.sums, 0, q.dgates_width * sizeof(real))
        if q.dx.base != NULL:
            k.pack_input_gradient(c[0], q.I, q.weights.ih, <real*>m.panels)
    cell.pack_backward(q[0], arena[0])


cdef void set_input_columns(const CellKernels[real]* cell, int64_t H, InputColumns[real]* c) noexcept nogil:
    """Find out from the cell's gradient blocks which columns of dgates reach x."""
    cdef int i, n = 0
    memset(c, 0, sizeof(InputColumns[real]))
    for i in range(cell.n_blocks):
        if cell.blocks[i].source == SOURCE_X:
            c.K[n], c.column[n], c.row[n] = cell.blocks[i].gates * H, cell.blocks[i].column * H, cell.blocks[i].gate * H
            n += 1


cdef struct NonFinite:
    # where backward comes upon the first gradient of a pre-activation that is NaN or infinite
    int64_t step, row  # of the shard; step -1: nowhere
    int blocks         # a bit for each block of H columns of dgates


cdef bint found_nonfinite(const Sequence[real]* q, int64_t s0, int64_t s1, NonFinite* found) noexcept nogil:
    """Whether there is such a gradient in steps [s0, s1); `found` then says where."""
    cdef int64_t s, b
    cdef int64_t j
    cdef const real* d
    for s in range(s1 - 1, s0 - 1, -1):
        for b in range(q.active(s)):
            d = q.dgates + (q.first(s) + b - q.first(s0)) * q.dgates_width
            for j in range(q.dgates_width):
                if d[j] - d[j] != 0:
                    found.step, found.row = s, b
                    found.blocks |= 1 << (j // q.H)
            if found.step >= 0:
                return True
    return False


cdef int begin_backward(
        Sequence[real]* q, const CellKernels[real]* cell, const Kernels[real]* k, Gradients[real]* g,
        InputColumns[real]* c, int workers, BackwardMemory* m) noexcept nogil:
    """Pack the weights; -1 if there is no memory. From then on, m points to k, g and c, which must stay where they
    are."""
    cdef Arena[real] arena
    arena.block = NULL
    arena.used = 0
    set_input_columns(cell, q.H, c)
    lay_out_backward(q, cell, k, &arena, workers, c, m)
    if allocate(&arena):
        return -1
    lay_out_backward(q, cell, k, &arena, workers, c, m)
    m.block, m.k, m.g, m.c = arena.block, k, g, c
    return 0


cdef bint run_chunk_back(
        Sequence[real]* q, const CellKernels[real]* cell, BackwardMemory* m, int64_t s0, int64_t s1, NonFinite* found,
        Section* section, TeamState* team=NULL) noexcept nogil:
    """Go back through the steps [s0, s1), which are a chunk: add into the gradients, write dx. Returns whether the pass
    was left; or, with `found`, which is null except in a search, whether the search ends here."""
    cdef int64_t width = q.dgates_width, work = 3 * whole_step_work(q, cell)
    cdef int64_t s
    require(0 <= s0 < s1 <= q.steps and q.first(s1) - q.first(s0) <= chunk_room(q))
    require(q.dh != NULL and (q.dc != NULL or q.C == 0))
    if s1 < q.steps:  # step s1, the first of the chunk that was taken before: the recurrence reads its dgates
        memmove(q.dgates + (q.first(s1) - q.first(s0)) * width, q.dgates, q.active(s1) * width * sizeof(real))
    q.dgates_from = s0
    for s in range(s1 - 1, s0 - 1, -1):
        if section.left_after(work):
            return True
        run_step(team, q[0], cell.backward, s)
    if found != NULL and found_nonfinite(q, s0, s1, found):
        return True
    chunk_gradients(q, cell, m, s0, s1, team)
    return False


cdef void end_backward(Sequence[real]* q, const CellKernels[real]* cell, BackwardMemory* m) noexcept nogil:
    """Make dh and dc of the initial state, and add the gradients of the biases."""
    cell.backward(q[0], -1)
    add_biases(q, cell, <Gradients[real]*>m.g)


cdef int run_backward(
        Sequence[real]* q, const CellKernels[real]* cell, const Kernels[real]* k, Gradients[real]* g,
        NonFinite* found, TeamState* team, const Progress* above, Progress* own) noexcept nogil:
    """Add into the gradients; write dx, dh and dc. Returns NO_MEMORY, before anything was written, LEFT or 0.
    With `found`, which is null except in a search, it stops at the first gradient that is not finite."""
    cdef BackwardMemory m
    cdef Section section
    cdef InputColumns[real] c
    cdef int64_t s0, s1 = q.steps
    section.begin()
    if begin_backward(q, cell, k, g, &c, 0 if team == NULL else team.places, &m):
        return NO_MEMORY
    while s1 > 0:
        s0 = chunk_start(q, s1)
        wait_for(above, q.steps - s0)
        if run_chunk_back(q, cell, &m, s0, s1, found, &section, team):
            break
        publish(own, q.steps - s0)
        s1 = s0
    if s1 == 0:
        end_backward(q, cell, &m)
    pool_free(m.block)
    return LEFT if section.was_left() else 0


cdef void chunk_gradients(
        Sequence[real]* q, const CellKernels[real]* cell, BackwardMemory* m, int64_t s0, int64_t s1,
        TeamState* team) noexcept nogil:
    """Weight gradients and dx of steps [s0, s1):  dW += dgates^T . source  and  dx = dgates . W_ih"""
    cdef int64_t rows = q.first(s1) - q.first(s0)
    cdef const Kernels[real]* k = <const Kernels[real]*>m.k
    cdef Gradients[real]* g = <Gradients[real]*>m.g
    cdef Chunk[real] of
    cdef int64_t saved_column = q.saved_width - q.H  # W_hr saw the unprojected h, the last H saved columns
    cdef GradientBlock block
    cdef int i
    if rows == 0:
        return
    for i in range(cell.n_blocks):
        block = cell.blocks[i]
        if block.source == SOURCE_SAVED:
            saved_column = block.saved_column * q.H
        if block.source == SOURCE_X and q.ids.base != NULL and g.ih != NULL:
            add_to_table(q, cell, g.ih + block.gate * q.H, q.dgates + block.column * q.H, block.gates * q.H, s0, s1)
    list_rows(q[0], s0, s1, saved_column, <const real**>m.x, <const real**>m.h, <const real**>m.saved, <real**>m.dx)
    if q.h_mask != NULL:
        mask_rows(q[0], s0, s1, <const real**>m.h, <real*>m.h_masked)
    if q.norms.gain_hh == NULL:  # else the cell has added them
        k.sum_rows(rows, q.dgates_width, q.dgates, q.dgates_width, q.sums)
    of.q, of.cell, of.memory, of.s0, of.s1 = q, cell, m, s0, s1
    run_shared(team, chunk_products[real], of)


cdef void chunk_products(const Chunk[real]* of, WorkShare* share) noexcept nogil:
    """One share of these products: some of the columns of the weights. Gradients that are null are not wanted."""
    cdef const Sequence[real]* q = of.q
    cdef const BackwardMemory* m = <const BackwardMemory*>of.memory
    cdef const Kernels[real]* k = <const Kernels[real]*>m.k
    cdef Gradients[real]* g = <Gradients[real]*>m.g
    cdef int64_t rows = q.first(of.s1) - q.first(of.s0), width = q.dgates_width, H = q.H, n
    cdef real* panel = <real*>m.panel + (0 if share == NULL else share.index) * GRADIENT_PANEL
    cdef const real* d
    cdef GradientBlock block
    cdef const real* const* source
    cdef int i
    for i in range(of.cell.n_blocks):
        block = of.cell.blocks[i]
        n, d = block.gates * H, q.dgates + block.column * H
        if block.source != SOURCE_X and g.hh != NULL:
            source = <const real* const*>(m.h if block.source == SOURCE_H else m.saved)
            k.weight_gradient(share, rows, n, q.P, d, width, source, panel, g.hh + block.gate * H * q.P)
        elif block.source == SOURCE_X and q.ids.base == NULL and g.ih != NULL:
            source = <const real* const*>m.x
            k.weight_gradient(share, rows, n, q.I, d, width, source, panel, g.ih + block.gate * H * q.I)
    if g.hr != NULL:
        k.weight_gradient(share, rows, q.P, H, q.dprojected, q.P, <const real* const*>m.saved, panel, g.hr)
    if q.dx.base != NULL:
        k.input_gradient(share, rows, q.I, (<InputColumns[real]*>m.c)[0], q.dgates, width, q.zeros, <real* const*>m.dx)


cdef void add_to_table(
        Sequence[real]* q, const CellKernels[real]* cell, real* table, const real* d, int64_t n,
        int64_t s0, int64_t s1) noexcept nogil:
    """table[id of row] += d of that row, for the n columns of a block"""
    cdef int64_t s, b
    cdef int64_t j
    cdef real* row
    for s in range(s0, s1):
        for b in range(q.active(s)):
            row = table + q.ids.at(s, b)[0] * cell.gates * q.H
            for j in range(n):
                row[j] += d[j]
            d += q.dgates_width


cdef void add_biases(
        Sequence[real]* q, const CellKernels[real]* cell, Gradients[real]* g) noexcept nogil:
    """Add the sums of dgates to the gradients of the biases."""
    cdef int64_t H = q.H, i, j
    cdef const real* sums
    cdef real* bias
    cdef GradientBlock block
    for i in range(cell.n_blocks):
        block = cell.blocks[i]
        sums = q.sums + block.column * H
        bias = g.b_ih if block.weight == IH else g.b_hh
        if bias != NULL:
            for j in range(block.gates * H):
                bias[block.gate * H + j] += sums[j]

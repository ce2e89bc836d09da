# Calls whose work is too small to be divided, without the objects of the engine. Included by _core.pyx.

cdef enum:
    HELD_WORK = 1 << 18  # multiply-adds, some 10 µs, from which on a call of ours releases the GIL


cdef struct SmallCall:
    # the arrays of a call; x_step and so on: how far apart their steps and rows are, in elements
    int rank  # of x: 2 if it is not a batch
    int64_t T, B
    const void* x
    int64_t x_step, x_row
    const int64_t* lengths  # (B,), or null: all T
    const void* h0          # (L*D, B, P)
    const void* c0          # (L*D, B, H), or null
    void* y
    int64_t y_step, y_row
    void *h
    void *c


cdef class SmallInference:
    """Inference of small work on the caller's thread, without an object made in Python: for calls whose arithmetic
    takes less time than making the objects of the engine. It gives the same bits as `engine.infer`.

    weights: of the layer, as they lie or packed.   spec: an engine.LayerSpec.   shard_count: that of engine/tuning.py.
    """

    cdef StackWeights weights
    cdef void* sequences  # of Sequence
    cdef int cell, layers, directions, typenum
    cdef int64_t I, P, H, step_work
    cdef bint reverse, batch_first, has_c  # has_c: a state beside h
    cdef object spec, shard_count
    cdef bint reverse_panels  # each call begins with the weights that the call before read last: they are in cache

    def __init__(self, StackWeights weights not None, spec, shard_count):
        self.spec, self.shard_count = spec, shard_count
        self.weights, self.sequences, self.cell = weights, weights.sequences, weights.cell
        self.layers, self.directions = spec.num_layers, spec.num_directions
        self.reverse, self.batch_first = spec.reverse, spec.batch_first
        self.typenum = cnp.NPY_FLOAT64 if spec.is_double else cnp.NPY_FLOAT32
        self.I, self.P, self.H, self.step_work = spec.input_size, spec.output_size, spec.hidden_size, weights.size
        self.has_c = len(spec.states) == 2

    @staticmethod
    def takes(spec):
        """Whether the calls of a layer can be made here, if they are small."""
        return len(spec.states) <= 2 and (spec.num_directions == 1 or spec.merge == "concat")

    def run(self, x, state, lengths=None, engine=None):
        """What a layer returns for x (T, B, I) or (T, I), state and lengths, if the work is small and the arguments are
        of the usual kinds; None for all others, wrong ones and larger ones alike.

        engine(x, state, lengths): the call as the engine makes it. Where several threads might share the work, both
        ways are tried, and that one taken which is the faster (see `Ways`)."""
        cdef SmallCall call
        cdef Ways ways = None
        cdef int64_t begun = 0
        x = self.readable_input(x, &call)
        if x is None or call.T * call.B == 0:
            return None
        if call.T * call.B > (WORTH - 1) // self.step_work:
            if gathers or self.shard_count(self.spec.step_work, call.T, call.B) > 1:
                return None
            if thread_count > 1 and self.most_threads(&call) > 1:
                if engine is None or pool is None or self.is_sure_to_gain(&call):
                    return None
                ways = ways_of((self.spec.kernel, self.step_work, thread_count, magnitude(call.T), magnitude(call.B)))
                begun = nanoseconds()
                if ways.choose(2) == 1:
                    done = all_threads(engine, x, state, lengths)
                    ways.note(1, <double>(nanoseconds() - begun) / (call.T * call.B))
                    return done
        done = self.made(x, state, lengths, &call)
        if ways is not None and done is not None:
            ways.note(0, <double>(nanoseconds() - begun) / (call.T * call.B))
        return done

    cdef object made(self, x, state, lengths, SmallCall* call):
        """The call on this thread; None if state or lengths cannot be read here."""
        cdef const KernelTable* table = self.weights.table()
        cdef int failed
        lengths = self.readable_lengths(lengths, call)
        if lengths is False:
            return None
        h0, c0 = state, None
        if self.has_c and state is not None:
            if not (type(state) is tuple or type(state) is list) or len(state) != 2:
                return None
            h0, c0 = state[0], state[1]
        h0 = self.readable_state(h0, call.rank, call.B, self.P)
        c0 = self.readable_state(c0, call.rank, call.B, self.H) if self.has_c else None
        if h0 is None or (self.has_c and c0 is None):
            return None
        y = self.new_output(x, call)
        h = self.new_state(call.rank, call.B, self.P, False)
        c = self.new_state(call.rank, call.B, self.H, False) if self.has_c else None
        call.h0, call.c0, call.y, call.h, call.c = data(h0), data(c0), data(y), data(h), data(c)
        self.reverse_panels = not self.reverse_panels
        if call.T * call.B < HELD_WORK // self.step_work:
            failed = self.compute(table, call)
        else:
            with nogil:
                failed = self.compute(table, call)
        finished(failed, "a call")
        return y, (h, c) if self.has_c else h

    cdef int64_t most_threads(self, const SmallCall* call) noexcept:
        """How many threads could share the call: side by side in directions and layers, or in the units of a step."""
        if self.directions > 1 or self.layers > 1:
            return self.directions * self.layers
        return call.B * self.step_work // SHARED_WORK if self.weights.can_share() else 1

    cdef bint is_sure_to_gain(self, const SmallCall* call) noexcept:
        """From more threads, see `Ways`"""
        cdef bint is_short = self.directions == 1 and self.layers == 1 and self.most_threads(call) <= SHORT
        return call.T * call.B > (SURE_OF_TEAMS if is_short else SURE) // self.step_work

    cdef int compute(self, const KernelTable* table, const SmallCall* call) noexcept nogil:
        if self.typenum == cnp.NPY_FLOAT64:
            return run_small_call(<Sequence[double]*>self.sequences, table.f64.cell(self.cell), self.layers,
                                  self.directions, self.reverse, self.reverse_panels, call)
        return run_small_call(<Sequence[float]*>self.sequences, table.f32.cell(self.cell), self.layers, self.directions,
                              self.reverse, self.reverse_panels, call)

    cdef object readable_input(self, x, SmallCall* call):
        """x, or a copy of it, which the call then points to; None if it is not of the right kind."""
        cdef int rank = 3 if self.is_readable(x, 3) else 2 if self.is_readable(x, 2) else 0
        cdef int time
        cdef int64_t size
        if rank == 0 and self.is_copied(x):
            x = cnp.PyArray_GETCONTIGUOUS(x)
            rank = cnp.PyArray_NDIM(x)
        if rank == 0 or cnp.PyArray_DIM(x, rank - 1) != self.I:
            return None
        time, size = 1 if rank == 3 and self.batch_first else 0, cnp.PyArray_ITEMSIZE(x)
        call.rank, call.T, call.B = rank, cnp.PyArray_DIM(x, time), cnp.PyArray_DIM(x, 1 - time) if rank == 3 else 1
        call.x, call.x_step = data(x), cnp.PyArray_STRIDE(x, time) // size
        call.x_row = cnp.PyArray_STRIDE(x, 1 - time) // size if rank == 3 else 0
        return x

    cdef bint is_readable(self, array, int rank):
        """Whether it is an array of the layer's dtype with so many axes that can be read where it lies: the numbers of
        a row side by side."""
        cdef int axis
        cdef int64_t size
        if not (cnp.PyArray_CheckExact(array) and cnp.PyArray_TYPE(array) == self.typenum
                and cnp.PyArray_NDIM(array) == rank and cnp.PyArray_ISBEHAVED_RO(array)):
            return False
        if cnp.PyArray_IS_C_CONTIGUOUS(array):
            return True
        size = cnp.PyArray_ITEMSIZE(array)
        for axis in range(rank - 1):
            if cnp.PyArray_STRIDE(array, axis) % size:
                return False
        return cnp.PyArray_STRIDE(array, rank - 1) == size or cnp.PyArray_DIM(array, rank - 1) == 1

    cdef bint is_copied(self, array):
        """Whether a copy of it, in C order, can be read."""
        return (cnp.PyArray_CheckExact(array) and cnp.PyArray_TYPE(array) == self.typenum
                and 2 <= cnp.PyArray_NDIM(array) <= 3 and cnp.PyArray_ISNOTSWAPPED(array))

    cdef object readable_state(self, state, int rank, int64_t B, int64_t width):
        """A state (L*D, B, width), or (L*D, width) unbatched, in C order; zeros for None; None if it is no such array."""
        if state is None:
            return self.new_state(rank, B, width, True)
        if not (cnp.PyArray_CheckExact(state) and cnp.PyArray_TYPE(state) == self.typenum
                and cnp.PyArray_NDIM(state) == rank and cnp.PyArray_ISBEHAVED_RO(state)):
            return None
        if (cnp.PyArray_DIM(state, 0) != self.layers * self.directions or cnp.PyArray_DIM(state, rank - 1) != width
                or (rank == 3 and cnp.PyArray_DIM(state, 1) != B)):
            return None
        return state if cnp.PyArray_IS_C_CONTIGUOUS(state) else cnp.PyArray_GETCONTIGUOUS(state)

    cdef object readable_lengths(self, lengths, SmallCall* call):
        """Lengths (B,) as int64 in C order, to which the call then points; None if all are T, False if they are none
        that can be read here."""
        cdef int64_t b, T = call.T
        cdef bint is_ragged = False
        cdef const int64_t* length
        call.lengths = NULL
        if lengths is None:
            return None
        if type(lengths) is list or type(lengths) is tuple:
            lengths = np.array(lengths)
        if not cnp.PyArray_CheckExact(lengths) or cnp.PyArray_NDIM(lengths) != 1 or cnp.PyArray_DIM(lengths, 0) != call.B:
            return False
        if cnp.PyArray_TYPE(lengths) != cnp.NPY_INT64 or not cnp.PyArray_ISCARRAY_RO(lengths):
            if lengths.dtype.kind != "i":
                return False
            lengths = np.require(lengths, np.int64, ["C", "A"])
        length = <const int64_t*>data(lengths)
        for b in range(call.B):
            if not 0 <= length[b] <= T:
                return False
            is_ragged |= length[b] < T
        if not is_ragged:
            return None
        call.lengths = length
        return lengths

    cdef object new_output(self, x, SmallCall* call):
        """y, laid out as x is"""
        cdef cnp.npy_intp shape[3]
        cdef int64_t width = self.directions * self.P
        cdef bint time_major = call.rank == 2 or not self.batch_first
        call.y_step, call.y_row = width * (call.B if time_major else 1), width * (1 if time_major else call.T)
        shape[0], shape[1] = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
        shape[call.rank - 1] = width
        if call.T * call.B * width >= LEAST_POOLED // 4:
            return new_array(tuple([shape[axis] for axis in range(call.rank)]), self.weights.dtype)
        return cnp.PyArray_EMPTY(call.rank, shape, self.typenum, 0)

    cdef object new_state(self, int rank, int64_t B, int64_t width, bint zero):
        """(L*D, B, width), or (L*D, width) unbatched"""
        cdef cnp.npy_intp shape[3]
        shape[0] = self.layers * self.directions
        shape[1] = B
        shape[rank - 1] = width
        if zero:
            return cnp.PyArray_ZEROS(rank, shape, self.typenum, 0)
        return cnp.PyArray_EMPTY(rank, shape, self.typenum, 0)


cdef object all_threads(engine, x, state, lengths):
    """The call as the engine makes it, on all threads"""
    global is_decided
    is_decided = True
    try:
        return engine(x, state, lengths)
    finally:
        is_decided = False


cdef struct SmallShard:
    # the sequences of a small call by falling length, and where their rows lie
    int64_t *order   # (B,) their batch rows
    int64_t *length  # (B,)
    int64_t *start   # (T+1,), see kernels/sequence.hpp
    int64_t *place   # (T+2,) scratch
    int64_t *x_offset
    int64_t *y_offset


cdef void sort_small(const SmallCall* call, SmallShard* shard) noexcept nogil:
    """Fill in order, length and start."""
    cdef int64_t b, t, n = call.B
    if call.lengths != NULL:
        sort_by_falling_length(call.T, call.B, call.lengths, shard.place, shard.order)
    for b in range(call.B):
        if call.lengths == NULL:
            shard.order[b] = b
        shard.length[b] = call.T if call.lengths == NULL else call.lengths[shard.order[b]]
    if call.lengths == NULL:
        return
    shard.start[0] = 0
    for t in range(call.T):
        while n and shard.length[n - 1] <= t:
            n -= 1
        shard.start[t + 1] = shard.start[t] + n


cdef void place_small(Rows[real]* rows, int64_t* offset, const SmallShard* shard, int64_t B, real* base, int64_t step,
                      int64_t row, bint backwards) noexcept nogil:
    """Where row (s, b) of an array lies whose steps and rows are so far apart."""
    cdef int64_t b
    for b in range(B):
        offset[b] = shard.order[b] * row + ((shard.length[b] - 1) * step if backwards else 0)
    rows.base, rows.offset, rows.step = base, offset, -step if backwards else step
    rows.place = NULL
    rows.last = NULL


cdef int run_small_call(
        const Sequence[real]* stack, const CellKernels[real]* cell, int layers, int directions, bint reverse,
        bint reverse_panels, const SmallCall* call) noexcept nogil:
    cdef Sequence[real] q
    cdef SmallShard shard
    cdef Arena[real] arena
    cdef char nearby[NEARBY]
    cdef int64_t T = call.T, B = call.B, P = stack[0].P, C = stack[0].C, width = directions * P
    cdef int64_t per_index = <int64_t>sizeof(int64_t) // <int64_t>sizeof(real)
    cdef int k, d, at, again, failed = 0
    cdef real *between  # y of the layers below the last, which take two places in turns
    cdef real *h0       # states in the order of the shard, if that is not their own
    cdef real *c
    arena.block = NULL
    for again in range(2):  # counts, then places
        arena.used = 0
        shard.order, shard.length = <int64_t*>arena.take(per_index * B), <int64_t*>arena.take(per_index * B)
        shard.x_offset, shard.y_offset = <int64_t*>arena.take(per_index * B), <int64_t*>arena.take(per_index * B)
        shard.start = <int64_t*>arena.take(per_index * (T + 1))
        shard.place = <int64_t*>arena.take(per_index * (T + 2))
        between = arena.take(2 * T * B * width if layers > 1 else 0)
        h0, c = arena.take(B * P if call.lengths != NULL else 0), arena.take(B * C if call.lengths != NULL else 0)
        if not again:
            if arena.used * <int64_t>sizeof(real) <= NEARBY - LINE:
                arena.block = <real*>(nearby + -<size_t>nearby % LINE)
            elif allocate(&arena):
                return NO_MEMORY
    sort_small(call, &shard)
    for at in range(layers * directions):
        k, d = at // directions, at % directions
        memcpy(&q, stack + at, sizeof(q))  # in one piece: an assignment would copy one base class after the other
        q.steps, q.B, q.reverse_panels = T, B, reverse_panels
        q.start = shard.start if call.lengths != NULL else NULL
        if k == 0:
            place_small(<Rows[real]*>&q.x, shard.x_offset, &shard, B, <real*>call.x, call.x_step, call.x_row, d == 1 or reverse)
        else:
            place_small(<Rows[real]*>&q.x, shard.x_offset, &shard, B, between + (k - 1) % 2 * T * B * width, B * width,
                        width, d == 1 or reverse)
        if k == layers - 1:
            place_small(&q.y, shard.y_offset, &shard, B, <real*>call.y + d * P, call.y_step, call.y_row, d == 1 or reverse)
        else:
            place_small(&q.y, shard.y_offset, &shard, B, between + k % 2 * T * B * width + d * P, B * width, width,
                        d == 1 or reverse)
        failed = run_small_layer(&q, cell, call, &shard, at, d == 1 or reverse, h0, c)
        if failed:
            break
    if arena.block != <real*>(nearby + -<size_t>nearby % LINE):
        pool_free(arena.block)
    return failed


cdef int run_small_layer(
        Sequence[real]* q, const CellKernels[real]* cell, const SmallCall* call, const SmallShard* shard, int at,
        bint backwards, real* h_sorted, real* c_sorted) noexcept nogil:
    """One layer in one direction, whose states are number `at` of all"""
    cdef int64_t i, t, last, B = q.B, P = q.P, C = q.C, nbytes = P * sizeof(real)
    cdef const real* h0 = <const real*>call.h0 + at * B * P
    cdef const real* c0 = <const real*>call.c0 + at * B * C if C else NULL
    cdef real *h = <real*>call.h + at * B * P
    cdef real *c = <real*>call.c + at * B * C if C else NULL
    cdef int failed = 0
    q.h0, q.c0, q.c, q.c_in_place = h0, c0, c, C > 0
    if call.lengths != NULL:
        gather_rows(B, P, h0, shard.order, h_sorted)
        q.h0 = h_sorted
        if C:
            gather_rows(B, C, c0, shard.order, c_sorted)
            q.c0, q.c = c_sorted, c_sorted
    if q.first(q.steps):
        failed = run_forward(q, cell, 0, NULL)
    if failed:
        return failed
    for i in range(B):
        last = shard.length[i] - 1
        memcpy(h + shard.order[i] * P, q.h0 + i * P if last < 0 else q.y.at(last, i), nbytes)
        for t in range(last + 1, q.steps):  # the padding
            memset(q.y.at(last - t if backwards else t, i), 0, nbytes)
    if call.lengths != NULL and C:
        scatter_rows(B, C, c_sorted, shard.order, c)
    return 0


cdef class SmallTraining:
    """Training passes through a stack of layers in one direction that are too small to be divided, on the caller's
    thread, without an object made in Python but LayerPass: the same bits as those of `engine.forward`.

    states: the width of each.   step_work: multiply-adds of one step of one sequence.
    """

    cdef int cell
    cdef bint is_double
    cdef list weights
    cdef dict options
    cdef tuple widths
    cdef int64_t I, step_work
    cdef object dtype, masks

    def __init__(self, int cell, bint is_double, list weights, dict options, tuple widths, int64_t step_work, masks):
        self.cell, self.is_double, self.weights, self.options = cell, is_double, weights, options
        self.widths, self.step_work, self.masks = widths, step_work, masks
        self.I, self.dtype = weights[0][0].shape[1], weights[0][0].dtype

    def forward(self, x, tuple initial):
        """(y, final states, layer passes) of x (T, B, I) and the initial states (L, B, width), none for zeros, if these
        are of just the right kind and the work is small; None for all others, wrong ones and larger ones alike."""
        cdef int64_t T, B, k, L = len(self.weights)
        if not self.is_readable(x, 3) or cnp.PyArray_DIM(x, 2) != self.I:
            return None
        T, B = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
        if T * B == 0 or T * B > (WORTH - 1) // self.step_work:
            return None
        if not initial:
            initial = tuple([np.zeros((L, B, width), self.dtype) for width in self.widths])
        elif len(initial) != len(self.widths):
            return None
        for state, width in zip(initial, self.widths):
            if not self.is_readable(state, 3) or not cnp.PyArray_IS_C_CONTIGUOUS(state):
                return None
            if cnp.PyArray_DIM(state, 0) != L or cnp.PyArray_DIM(state, 1) != B or cnp.PyArray_DIM(state, 2) != width:
                return None
        final = tuple([np.empty((L, B, width), self.dtype) for width in self.widths])
        (shard,) = shards(T, B, None, 1)
        passes, y = [], x
        for k in range(L):
            x, y = y, new_array((T, B, self.widths[0]), self.dtype)
            each = LayerPass(
                self.cell, self.is_double, self.weights[k], self.options, shard, k, False, x, y, initial, final, None,
                self.masks,
            )
            each.save()
            each.forward()
            passes.append(each)
        return y, final, passes

    def backward(self, list passes, dy, tuple final, list gradients, bint wants_dx):
        """(dx, gradients of the initial states) from those of y and of the final states, of which each may be None;
        those of the weights are added. They are of the layer's dtype and of the shapes of `forward`; nothing is checked."""
        cdef LayerPass each = passes[0]
        cdef int64_t k, L = len(passes), T = each.shard.T, B = each.shard.n
        final = tuple([np.zeros((L, B, width), self.dtype) if state is None else np.ascontiguousarray(state)
                       for state, width in zip(final, self.widths)])
        if dy is None:
            dy = np.zeros((T, B, self.widths[0]), self.dtype)
        elif not self.is_readable(dy, 3):
            dy = dy.copy()
        initial = tuple([np.empty_like(state) for state in final])
        for k in reversed(range(L)):
            dx = new_array((T, B, self.I if k == 0 else self.widths[0]), self.dtype) if k or wants_dx else None
            each = passes[k]
            each.rewind()
            each.backward(dy, dx, final, initial, gradients[k])
            dy = dx
        return dy, initial

    cdef bint is_readable(self, array, int rank):
        """Whether a kernel can read it where it lies: of the layer's dtype, its rows of numbers side by side."""
        cdef int axis
        cdef int64_t size = cnp.PyArray_ITEMSIZE(array) if cnp.PyArray_CheckExact(array) else 0
        if size == 0 or cnp.PyArray_TYPE(array) != (cnp.NPY_FLOAT64 if self.is_double else cnp.NPY_FLOAT32):
            return False
        if cnp.PyArray_NDIM(array) != rank or not cnp.PyArray_ISALIGNED(array):
            return False
        for axis in range(rank - 1):
            if cnp.PyArray_STRIDE(array, axis) % size:
                return False
        return cnp.PyArray_STRIDE(array, rank - 1) == size or cnp.PyArray_DIM(array, rank - 1) == 1

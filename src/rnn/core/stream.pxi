# Streams: a stack of layers of one direction, advanced a step at a time. Included by _core.pyx.
#
#   Stream: state and scratch of B rows beside packed StackWeights; step and run, which allocate nothing but y
#
# Time is the outer loop and the layers are the inner one, so each step is step 0 of a sequence of one step: h0 and c
# are the state, and y is scratch, from which h is copied once the layer has read all of the old h.

cdef struct StreamScratch:
    int64_t *x_offset  # (B,) where the rows of x that take part lie
    int64_t *y_offset  # (B,) where the rows of y lie: b * P
    int64_t *rows      # (B,) which rows take part
    void *y            # (2, B, P) y of the layers, which take the two places in turns
    void *h            # (B, P) the state of the rows that take part, if not all do
    void *c            # (B, C)
    void *h_before     # (L, B, P) the state before a call that may be left
    void *c_before     # (L, B, C)


cdef struct StreamCall:
    # the arrays of a call and, in elements, how far apart their steps and their rows are
    int64_t T
    const void* x       # (I,) a row, or null
    const int64_t* ids  # an index a row, or null
    int64_t x_step, x_row
    const uint8_t* active  # a flag a row, or null: all take part
    int64_t active_step, active_row
    void* y             # (P,) a row, or null: not wanted
    int64_t y_step, y_row


cdef class Stream:
    """The state of a stack of layers between steps that come in one by one; see nn/streaming.py, which adds to it.

    spec: an engine.LayerSpec of one direction that runs forwards.   packed: its weights.   batch: rows B.
    """

    cdef readonly object spec
    cdef readonly int64_t batch
    cdef int cell, layers, typenum
    cdef bint is_double, batch_first, holds_gil
    cdef int in_use
    cdef int64_t B, I, P, H, C, step_work  # C: width of the states beside h
    cdef readonly int threads  # that may share a step
    cdef readonly StackWeights packed
    cdef const KernelTable* kernels
    cdef void* stack     # (L,) of Sequence, of our own
    cdef void* memory    # of the scratch
    cdef StreamScratch scratch
    cdef cnp.ndarray h, c  # (L, B, P), (L, B, C) or None
    cdef void *h_at
    cdef void *c_at

    def __init__(self, spec, StackWeights packed not None, int64_t batch):
        if self.stack != NULL:
            raise RuntimeError("expected a new stream, got one that has its state already")
        self.set_up(spec, packed, batch)

    cdef int set_up(self, spec, StackWeights packed, int64_t batch) except -1:
        """State, zero, and scratch of a new stream"""
        self.spec, self.batch, self.B = spec, batch, batch
        self.cell, self.is_double, self.batch_first = spec.cell.number, spec.is_double, spec.batch_first
        self.layers, self.I, self.P, self.H = spec.num_layers, spec.input_size, spec.output_size, spec.hidden_size
        self.C = (kernels.f32.cell(self.cell).n_states - 1) * self.H
        self.typenum = cnp.NPY_FLOAT64 if self.is_double else cnp.NPY_FLOAT32
        self.step_work = batch * packed.size
        self.holds_gil = self.step_work < HELD_WORK
        self.h = new_array((self.layers, batch, self.P), spec.dtype, zero=True)
        self.c = new_array((self.layers, batch, self.C), spec.dtype, zero=True) if self.C else None
        self.h_at, self.c_at = data(self.h), data(self.c)
        self.use(packed)
        return 0

    def __dealloc__(self):
        free(self.stack)
        pool_free(self.memory)

    cdef int use(self, StackWeights packed) except -1:
        """Take these weights, and scratch for them; if there is no memory, everything stays as it was."""
        cdef StreamScratch scratch
        cdef void* memory
        own = self.layers, self.cell, self.is_double
        if packed.packed_for == NULL or (packed.count, packed.cell, packed.is_double) != own:
            raise ValueError("expected packed weights of the stream's own layer, got others")
        cdef void* stack = malloc(self.layers * packed.sequence_size())
        if stack == NULL:
            raise MemoryError("no memory for a stream")
        packed.copy_to(stack, 0, self.layers)
        if self.is_double:
            memory = stream_scratch(<Sequence[double]*>stack, self.layers, self.B, &scratch)
        else:
            memory = stream_scratch(<Sequence[float]*>stack, self.layers, self.B, &scratch)
        if memory == NULL:
            free(stack)
            raise MemoryError("no memory for a stream")
        free(self.stack)
        pool_free(self.memory)
        self.stack, self.memory, self.scratch = stack, memory, scratch
        self.packed, self.kernels = packed, packed.packed_for
        work = self.step_work // self.layers * (2 if self.is_double else 1)
        self.threads = min(254, max(1, work // SHARED_WORK)) if packed.can_share() else 1
        return 0

    def _get_state(self):
        """Copies of the states: h (L, B, P), and those beside it (L, B, H) each."""
        return (self.h.copy(), *[part.copy() for part in self.others()])

    cdef list others(self):
        """Views of the states beside h."""
        return [self.c[:, :, k * self.H : (k + 1) * self.H] for k in range(self.C // self.H)]

    def _set_state(self, tuple state):
        """The inverse of `_get_state`, for arrays of these shapes."""
        self.claim()
        try:
            copy_all(list(zip([self.h, *self.others()], state)))
        finally:
            self.release()

    def reset(self, rows=None):
        """Set the state to zero: of all rows, or of those that `rows` picks of B as an index of NumPy (an integer,
        integers, a mask). Raises IndexError for rows that there are not."""
        try:
            picked = np.arange(self.B)[slice(None) if rows is None else rows]
        except OverflowError as error:
            raise IndexError(str(error)) from None
        self.claim()
        try:
            for array in (self.h, self.c):
                if array is not None:
                    array[:, picked] = 0
        finally:
            self.release()

    def _repack(self, make):
        """Take the weights that make() packs, a StackWeights of the same layers; the state stays."""
        self.claim()
        try:
            self.use(make())
        finally:
            self.release()

    def copy(self):
        """Another stream with the same weights, which both read in one place, and from here on a state of its own."""
        cdef Stream other = type(self).__new__(type(self))
        self.claim()
        try:
            other.set_up(self.spec, self.packed, self.batch)
            other.h[...] = self.h
            if self.C:
                other.c[...] = self.c
        finally:
            self.release()
        return other

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def step(self, x_t, out=None, active=None):
        """Advance by one step: y (B, P) for x_t (B, I).

        x_t: of the layer's dtype and C-contiguous (it is copied first if not), or integers (B,), indices of one-hot
        inputs. With B = 1 also without that axis: (I,) or one integer, for y (P,).
        out: where y goes, C-contiguous; it is what is returned then. It may be x_t.
        active: bool (B,): the rows that take part. The others keep their state, and their y is their last one again
        (zero, or what the state was set to, if there was none).

        Raises TypeError for a wrong dtype and ValueError for a wrong shape or value; the state is unchanged then.
        """
        return self.advance(x_t, out, active, False)

    def run(self, block, out=None, active=None):
        """Advance by T steps: y (T, B, P) for the block (T, B, I); both (B, T, ...) if the layer is batch_first.

        Arguments as for `step`, with the axis of time; `active` (T, B). The GIL is released for the whole block. `out`
        may be the block itself, if that is as wide as y. Raises ValueError if `out` overlaps with the block in any
        other way, or with `active`.
        """
        return self.advance(block, out, active, True)

    cdef object advance(self, x, out, active, bint is_block):
        cdef StreamCall call
        cdef cnp.npy_intp shape[3]
        cdef int rank, axis, time, row
        if not self.is_ours(x, self.typenum):
            x = self.contiguous_input(x)
        cdef bint one_hot = cnp.PyArray_TYPE(x) == cnp.NPY_INT64
        rank = cnp.PyArray_NDIM(x) + one_hot
        cdef bint unbatched = rank == 1 + is_block
        if not (rank == 2 + is_block or (unbatched and self.B == 1)):
            raise self.wrong_shape("x", x, is_block, one_hot, self.I)
        for axis in range(rank - 1):
            shape[axis] = cnp.PyArray_DIM(x, axis)
        time = 1 if is_block and self.batch_first and not unbatched else 0
        row = 1 - time if is_block else 0
        if (not unbatched and shape[row] != self.B) or (not one_hot and cnp.PyArray_DIM(x, rank - 1) != self.I):
            raise self.wrong_shape("x", x, is_block, one_hot, self.I)
        call.T = shape[time] if is_block else 1

        cdef int64_t step = 1 if time == 1 else self.B, apart = call.T if time == 1 else 1
        call.x_step, call.x_row = step, apart
        call.active_step, call.active_row = step, apart
        call.y_step, call.y_row = step * self.P, apart * self.P
        call.x = NULL
        call.ids = NULL
        if one_hot:
            call.ids = <const int64_t*>cnp.PyArray_DATA(x)
        else:
            call.x, call.x_step, call.x_row = cnp.PyArray_DATA(x), step * self.I, apart * self.I
        call.active = NULL
        if active is not None:
            active = self.checked_active(active, x, rank - 1)
            call.active = <const uint8_t*>cnp.PyArray_DATA(active)
        if one_hot and not self.indices_fit(&call):
            raise ValueError(f"expected integer x from 0 to {self.I - 1}, got {x.min()} to {x.max()}")
        shape[rank - 1] = self.P
        if out is None:
            out = cnp.PyArray_EMPTY(rank, shape, self.typenum, 0)
        else:
            self.check_out(out, rank, shape)
            if is_block:
                self.check_overlap("x", x, out, not one_hot and self.I == self.P)
                self.check_overlap("active", active, out, False)
        call.y = cnp.PyArray_DATA(out)
        self.claim()
        try:
            self.compute(&call, is_block)
        finally:
            self.release()
        return out

    cdef int compute(self, const StreamCall* call, bint is_block) except -1:
        """Run the call, without the GIL unless it is one short step. A team shares the steps of a block if they are
        worth it, but not a single step, which would be over before any worker came."""
        cdef Section section
        cdef Recruiting of = None
        cdef bint left
        if self.holds_gil and not is_block:
            section.begin()
            self.advance_state(call, &section, NULL)  # never left: a call is left only between two steps
            return 0
        if self.threads > 1 and call.T > 1:
            of = Recruiting(self.threads, call.T * self.step_work, ("stream", magnitude(self.step_work)))
        cdef TeamState* workers = state_of(None if of is None else of.team)
        try:
            with nogil:
                left = self.advance_or_restore(call, workers)
        finally:
            if of is not None:
                of.end()
        return finished(LEFT if left else 0, "a stream")

    cdef bint advance_or_restore(self, const StreamCall* call, TeamState* team) noexcept nogil:
        """Returns whether the call was left; the state is then as it was before."""
        cdef Section section
        section.begin()
        if call.T > 1:
            self.note_state()
        if self.advance_state(call, &section, team):
            self.restore_state()
        return section.was_left()

    cdef void note_state(self) noexcept nogil:
        memcpy(self.scratch.h_before, self.h_at, self.state_bytes(self.P))
        if self.c_at != NULL:
            memcpy(self.scratch.c_before, self.c_at, self.state_bytes(self.C))

    cdef void restore_state(self) noexcept nogil:
        """Put back the state that `note_state` has copied."""
        memcpy(self.h_at, self.scratch.h_before, self.state_bytes(self.P))
        if self.c_at != NULL:
            memcpy(self.c_at, self.scratch.c_before, self.state_bytes(self.C))

    cdef size_t state_bytes(self, int64_t width) noexcept nogil:
        return self.layers * self.B * width * (sizeof(double) if self.is_double else sizeof(float))

    cdef bint advance_state(self, const StreamCall* call, Section* section, TeamState* team) noexcept nogil:
        """Returns whether the call was left, between two steps."""
        if self.is_double:
            return run_stream(
                <Sequence[double]*>self.stack, self.layers, self.kernels.f64.cell(self.cell), call, &self.scratch,
                <double*>self.h_at, <double*>self.c_at, self.step_work, section, team)
        return run_stream(
            <Sequence[float]*>self.stack, self.layers, self.kernels.f32.cell(self.cell), call, &self.scratch,
            <float*>self.h_at, <float*>self.c_at, self.step_work, section, team)

    # -------------------------------------------------------- checks

    cdef inline int claim(self) except -1:
        """From here to `release`, the stream is this call's alone."""
        if self.stack == NULL:
            raise RuntimeError("expected a stream that `layer.stream()` made, got one that was never set up")
        if not take_flag(&self.in_use):
            raise RuntimeError("expected one call of a stream at a time, got another while one runs in another thread")
        return 0

    cdef inline void release(self) noexcept nogil:
        drop_flag(&self.in_use)

    cdef inline bint is_ours(self, array, int typenum):
        """Whether it is an array of that dtype that can be read as it is."""
        return (cnp.PyArray_CheckExact(array) and cnp.PyArray_TYPE(array) == typenum
                and cnp.PyArray_ISCARRAY_RO(array))

    cdef cnp.ndarray contiguous_input(self, x):
        array = np.asarray(x)
        if array.dtype.kind in "iu":
            return np.require(array, np.int64, ["C", "A"])
        if array.dtype != self.spec.dtype:
            hint = f"; x.astype({self.spec.dtype.name!r}) converts it" if array.dtype.kind == "f" else ""
            raise TypeError(f"expected x of dtype {self.spec.dtype}, or of an integer dtype, got {array.dtype}{hint}")
        return np.require(array, array.dtype, ["C", "A"])

    cdef bint indices_fit(self, const StreamCall* call) noexcept:
        """Whether the indices of the rows that take part lie in [0, I)."""
        cdef int64_t t, b
        for t in range(call.T):
            for b in range(self.B):
                if call.active != NULL and not call.active[t * call.active_step + b * call.active_row]:
                    continue
                if not 0 <= call.ids[t * call.x_step + b * call.x_row] < self.I:
                    return False
        return True

    cdef object checked_active(self, active, x, int axes):
        array = np.asarray(active)
        if array.dtype != np.bool_:
            raise TypeError(f"expected active of dtype bool, got {array.dtype}")
        if array.shape != x.shape[:axes]:
            raise ValueError(f"expected active of shape {x.shape[:axes]}, got {array.shape}")
        return np.require(array, requirements=["C", "A"])

    cdef int check_out(self, out, int rank, const cnp.npy_intp* shape) except -1:
        cdef int axis
        cdef bint fits = cnp.PyArray_Check(out) and cnp.PyArray_NDIM(out) == rank
        if fits:
            for axis in range(rank):
                fits = fits and cnp.PyArray_DIM(out, axis) == shape[axis]
        if fits and cnp.PyArray_TYPE(out) == self.typenum and cnp.PyArray_ISCARRAY(out):
            return 0
        expected = tuple(shape[axis] for axis in range(rank))
        if not cnp.PyArray_Check(out):
            raise TypeError(f"expected out to be an array, got {type(out).__name__}")
        if not fits:
            raise ValueError(f"expected out of shape {expected}, got {out.shape}")
        if out.dtype != self.spec.dtype:
            raise TypeError(f"expected out of dtype {self.spec.dtype}, got {out.dtype}")
        raise ValueError("expected out to be C-contiguous, aligned and writeable, got one that is not")

    cdef int check_overlap(self, str name, array, out, bint may_be_out) except -1:
        """What is still to be read must not be written over."""
        if array is None or may_be_out and data(array) == data(out):
            return 0
        cdef char* a = <char*>data(array)
        cdef char* y = <char*>data(out)
        if a < y + cnp.PyArray_NBYTES(out) and y < a + cnp.PyArray_NBYTES(array):
            raise ValueError(f"expected out to be apart from {name} in memory, got one that overlaps with it")
        return 0

    cdef object wrong_shape(self, str name, array, bint is_block, bint one_hot, int64_t width):
        batch, features = [str(self.B)], [] if one_hot else [str(width)]
        axes = (batch + ["T"] if self.batch_first else ["T"] + batch) if is_block else batch
        expected = f"({', '.join(axes + features)})"
        if self.B == 1:
            expected += f" or ({', '.join((['T'] if is_block else []) + features)})"
        return ValueError(f"expected {'integer ' if one_hot else ''}{name} of shape {expected}, got {array.shape}")


cdef void* stream_scratch(Sequence[real]* stack, int layers, int64_t B, StreamScratch* m) noexcept nogil:
    """The memory that the scratch of a stream lies in; null if there is none."""
    cdef Arena[real] arena
    cdef int64_t P = stack[0].P, b, indices = B * (<int64_t>sizeof(int64_t) // <int64_t>sizeof(real))
    cdef real* saved
    cdef real* c_saved
    cdef real *x_fixed = NULL
    cdef real *h_fixed = NULL
    cdef int k, again
    arena.block = NULL
    for again in range(2):  # counts, then places
        arena.used = 0
        m.x_offset, m.y_offset = <int64_t*>arena.take(indices), <int64_t*>arena.take(indices)
        m.rows = <int64_t*>arena.take(indices)
        m.y, m.h, m.c = arena.take(2 * B * P), arena.take(B * P), arena.take(B * stack[0].C)
        m.h_before, m.c_before = arena.take(layers * B * P), arena.take(layers * B * stack[0].C)
        saved = arena.take(B * stack[0].saved_width)
        c_saved = arena.take(B * stack[0].C) if stack[0].zoneout_c > 0 else NULL
        if stack[0].storage == STORED_INT8:
            x_fixed = arena.take(B * fixed_size(max(stack[0].I, P)))
            h_fixed = arena.take(B * fixed_size(P))
        if not again and allocate(&arena):
            return NULL
    for b in range(B):
        m.y_offset[b] = b * P
    for k in range(layers):
        stack[k].steps, stack[k].B, stack[k].c_in_place, stack[k].scratch = 1, B, True, saved
        stack[k].c_saved, stack[k].x_fixed, stack[k].h_fixed = c_saved, x_fixed, h_fixed
    return arena.block


cdef bint run_stream(
        Sequence[real]* stack, int layers, const CellKernels[real]* cell, const StreamCall* call, StreamScratch* m,
        real* h, real* c, int64_t step_work, Section* section, TeamState* team) noexcept nogil:
    """h (L, B, P), c (L, B, C): the state, updated in place. If some rows do not take part, the state of the others is
    gathered before each layer and put back after it. Returns whether the call was left, between two steps."""
    cdef int64_t B = stack[0].B, P = stack[0].P, H = stack[0].H, C = stack[0].C
    cdef int64_t t, n, i
    cdef int64_t start[2]
    cdef int k
    cdef Sequence[real]* q
    cdef real *hk
    cdef real *ck = NULL
    cdef real* y
    start[0] = 0
    step_work += layers * B * 64 * H + 2000  # and for all that is beside the products
    for t in range(call.T):
        if t > 0 and section.left_after(step_work):
            return True
        n = 0
        for i in range(B):
            if call.active == NULL or call.active[t * call.active_step + i * call.active_row]:
                m.rows[n], m.x_offset[n] = i, i * call.x_row
                n += 1
        start[1] = n
        require(0 <= n <= B)
        for k in range(layers if n else 0):
            q = stack + k
            hk = h + k * B * P
            if c != NULL:
                ck = c + k * B * C
            if n < B:
                gather_rows(n, P, hk, m.rows, <real*>m.h)
                if c != NULL:
                    gather_rows(n, C, ck, m.rows, <real*>m.c)
            y = <real*>m.y + (k % 2) * B * P
            q.start = start
            q.h0 = hk if n == B else <real*>m.h
            if c != NULL:
                q.c = ck if n == B else <real*>m.c
                q.c0 = q.c
            q.y.base, q.y.offset = y, m.y_offset
            if k > 0:
                q.x.base, q.x.offset = <real*>m.y + ((k - 1) % 2) * B * P, m.y_offset
            elif call.ids != NULL:
                q.ids.base, q.ids.offset = <int64_t*>call.ids + t * call.x_step, m.x_offset
            else:
                q.x.base, q.x.offset = <real*>call.x + t * call.x_step, m.x_offset
                q.ids.base = NULL
            run_step(team, q[0], cell.on(q.storage).step, 0)
            q.reverse_panels = not q.reverse_panels  # the next step begins with what was read last: it is in cache
            if n == B:
                memcpy(hk, y, B * P * sizeof(real))
            else:
                scatter_rows(n, P, y, m.rows, hk)
                if c != NULL:
                    scatter_rows(n, C, <real*>m.c, m.rows, ck)
        if call.y != NULL:
            hk = h + (layers - 1) * B * P
            for i in range(B):
                memcpy(<real*>call.y + t * call.y_step + i * call.y_row, hk + i * P, P * sizeof(real))
    return False


cdef void gather_rows(int64_t n, int64_t width, const real* a, const int64_t* rows, real* out) noexcept nogil:
    """out (n, width) := those rows of a"""
    cdef int64_t i
    for i in range(n):
        memcpy(out + i * width, a + rows[i] * width, width * sizeof(real))


cdef void scatter_rows(int64_t n, int64_t width, const real* a, const int64_t* rows, real* out) noexcept nogil:
    """those rows of out := a (n, width)"""
    cdef int64_t i
    for i in range(n):
        memcpy(out + rows[i] * width, a + i * width, width * sizeof(real))

# Calls of few rows through a stack of layers, without a LayerPass for each. Included by _core.pyx.

cdef class SmallBatchInference:
    """Inference of few rows through a stack of layers in one direction, without an object made in Python: for single
    steps, whose arithmetic takes less time than making a LayerPass. Like every call, it reads the layer's own weights.
    """

    cdef Sequence[float] f32[MAX_SMALL_BATCH_LAYERS]
    cdef Sequence[double] f64[MAX_SMALL_BATCH_LAYERS]
    cdef int cell, layers, typenum
    cdef int64_t I, P, H
    cdef bint is_double, batch_first, has_c  # a state beside h
    cdef bint reverse_panels  # each call begins with the weights that the call before read last: they are in cache
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
        if is_double:
            self.I, self.P, self.H = self.f64[0].I, self.f64[0].P, self.f64[0].H
        else:
            self.I, self.P, self.H = self.f32[0].I, self.f32[0].P, self.f32[0].H
        self.has_c = kernels.f32.cell(cell).n_states == 2

    @staticmethod
    def takes(int layers, int states):
        """Whether a stack of so many layers, with so many states each, can be run."""
        return layers <= MAX_SMALL_BATCH_LAYERS and states <= 2

    def run(self, x, state):
        """What a layer returns for x (T, B, I) or (T, I) and state, if T * B is small and the arguments are of just the
        right kind; None for all others, wrong ones and longer ones alike."""
        cdef int64_t T, B
        cdef int rank, axis
        cdef cnp.npy_intp shape[3]
        if not self.fits(x, 3) and not self.fits(x, 2):
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
        self.reverse_panels = not self.reverse_panels
        if self.is_double:
            failed = run_small_batch(self.f64, self.layers, kernels.f64.cell(self.cell), self.reverse_panels, T, B,
                               <const double*>data(x), <const double*>data(h0), <const double*>data(c0), <double*>data(y),
                               <double*>data(h), <double*>data(c))
        else:
            failed = run_small_batch(self.f32, self.layers, kernels.f32.cell(self.cell), self.reverse_panels, T, B,
                               <const float*>data(x), <const float*>data(h0), <const float*>data(c0), <float*>data(y),
                               <float*>data(h), <float*>data(c))
        finished(failed, "a step")
        return y, (h, c) if self.has_c else h

    cdef bint fits(self, array, int rank):
        """Whether it is an array of the layer's dtype, in C order and with so many axes."""
        return (cnp.PyArray_CheckExact(array) and cnp.PyArray_TYPE(array) == self.typenum
                and cnp.PyArray_ISCARRAY_RO(array) and cnp.PyArray_NDIM(array) == rank)

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


cdef int run_small_batch(
        const Sequence[real]* stack, int layers, const CellKernels[real]* cell, bint reverse_panels,
        int64_t T, int64_t B, const real* x, const real* h0, const real* c0, real* y, real* h, real* c) noexcept nogil:
    cdef Sequence[real] q
    cdef int64_t x_offset[UNPACKED_ROWS]
    cdef int64_t y_offset[UNPACKED_ROWS]
    cdef int64_t i, P = stack[0].P, H = stack[0].H
    cdef int k, failed = 0
    cdef real* between = NULL  # y of the layers below the last, which take two places in turns
    if layers > 1:
        between = <real*>malloc(2 * T * B * P * sizeof(real))
        if between == NULL:
            return NO_MEMORY
    for k in range(layers):
        memcpy(&q, stack + k, sizeof(q))  # in one piece: an assignment would copy one base class after the other
        for i in range(B):
            x_offset[i] = i * q.I
            y_offset[i] = i * P
        q.steps, q.B, q.reverse_panels = T, B, reverse_panels
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

# Small calls of a stack of layers in one direction, without the objects of the engine. Included by _core.pyx.

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


cdef class SmallBatchTraining:
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

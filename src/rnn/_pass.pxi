# The two passes of a Scan, some steps at a time, for the segments of segments.py. Included by _core.pyx.

cdef class Pass:
    """A walk of a Scan over windows: arrays that hold some steps, and are given anew when the walk comes to others."""

    cdef Sequence[float] f32
    cdef Sequence[double] f64
    cdef Scan scan
    cdef dict windows  # whose arrays the sequence points to
    cdef bint is_packed

    def __init__(self, Scan scan):
        self.scan, self.windows = scan, {}
        self.f32, self.f64 = scan.f32, scan.f64

    def see(self, **windows):
        """x, y, keeps_h, keeps_c, dy and dx: (array, offsets, step), or None, the offsets so that step 0 would be at 0;
        kept: tape, c, c before them, and the step which they begin with. What is not given stays as it was."""
        self.windows |= windows
        if self.scan.is_double:
            set_windows(&self.f64, windows)
        else:
            set_windows(&self.f32, windows)


cdef void set_windows(Sequence[real]* q, dict a) except *:
    if "x" in a:
        set_rows(<Rows[real]*>&q.x, a["x"])
    if "y" in a:
        set_rows(&q.y, a["y"], True)
    if "keeps_h" in a:
        set_bytes(<Rows[uint8_t]*>&q.zoneout_h.keeps, a["keeps_h"])
    if "keeps_c" in a:
        set_bytes(<Rows[uint8_t]*>&q.zoneout_c.keeps, a["keeps_c"])
    if "dy" in a:
        set_rows(<Rows[real]*>&q.dy, a["dy"])
    if "dx" in a:
        set_rows(&q.dx, a["dx"], True)
    if "kept" in a:
        tape, c, c0, q.kept_from = a["kept"]
        set_kept(q, tape, c, False)
        q.c0 = <const real*>address(c0)


cdef class ForwardPass(Pass):
    """Forward. Without a window `kept`, c is the Scan's, in place."""

    cdef ForwardMemory memory

    def __dealloc__(self):
        free(self.memory.block)

    def run(self, int64_t s0, int64_t s1):
        """Steps [s0, s1), some whole chunks."""
        if self.scan.is_double:
            steps_forward(&self.f64, self, s0, s1)
        else:
            steps_forward(&self.f32, self, s0, s1)


cdef int steps_forward(Sequence[real]* q, ForwardPass of, int64_t s0, int64_t s1) except -1:
    cdef real which = 0
    cdef const CellKernels[real]* cell = kernels.of(which).cell(of.scan.cell)
    if not of.is_packed:
        if begin_forward(q, cell, of.scan.n_columns, of.scan.columns, &of.memory):
            raise MemoryError("no memory for the packed weights")
        of.is_packed = True
    with nogil:
        run_steps(q, cell, &of.memory, s0, s1)
    return 0


cdef class BackwardPass(Pass):
    """Backward: BPTT from the last step. dh, dc and gradients are as in `Scan.backward`."""

    cdef BackwardMemory memory
    cdef InputColumns[float] columns32
    cdef InputColumns[double] columns64
    cdef Gradients[float] gradients32
    cdef Gradients[double] gradients64
    cdef tuple alive

    def __init__(self, Scan scan, dh, dc, gradients):
        super().__init__(scan)
        self.alive = dh, dc, gradients
        if scan.is_double:
            set_gradients(&self.f64, &self.gradients64, dh, dc, gradients)
        else:
            set_gradients(&self.f32, &self.gradients32, dh, dc, gradients)

    def __dealloc__(self):
        free(self.memory.block)

    def run(self, int64_t s0, int64_t s1, bint search=False):
        """Steps [s0, s1), a chunk. Returns what `Scan.backward` does, with which the walk ends."""
        if self.scan.is_double:
            return chunk_backward(&self.f64, &self.gradients64, &self.columns64, self, s0, s1, search)
        return chunk_backward(&self.f32, &self.gradients32, &self.columns32, self, s0, s1, search)

    def end(self):
        """When all steps are done: dh and dc, and the gradients of the biases."""
        if self.scan.is_double:
            end_backward(&self.f64, kernels.f64.cell(self.scan.cell), &self.gradients64, &self.memory)
        else:
            end_backward(&self.f32, kernels.f32.cell(self.scan.cell), &self.gradients32, &self.memory)


cdef object chunk_backward(
        Sequence[real]* q, Gradients[real]* g, InputColumns[real]* columns, BackwardPass of,
        int64_t s0, int64_t s1, bint search):
    cdef real which = 0
    cdef const Kernels[real]* k = &kernels.of(which)
    cdef const CellKernels[real]* cell = k.cell(of.scan.cell)
    cdef NonFinite found
    found.step, found.blocks = -1, 0
    if not of.is_packed:
        if begin_backward(q, cell, k, columns, &of.memory):
            raise MemoryError("no memory for the gradients of a chunk of steps")
        of.is_packed = True
    with nogil:
        run_chunk_back(q, cell, k, g, columns, &of.memory, s0, s1, &found if search else NULL)
    return None if found.step < 0 else (found.step, found.row, found.blocks)

# The two passes of a Scan, some steps at a time, for the segments of segments.py. Included by _core.pyx.

cdef class Pass:
    """A walk of a Scan over windows: arrays (M, n, ...), in the order of the walk, that hold some steps, and are given
    anew when the walk comes to others."""

    cdef Sequence[float] f32
    cdef Sequence[double] f64
    cdef Scan scan
    cdef dict seen  # windows that the sequence points to
    cdef bint is_packed

    def __init__(self, Scan scan):
        self.scan, self.seen = scan, {}
        self.f32, self.f64 = scan.f32, scan.f64

    def see(self, x=None, y=None, keeps_h=None, keeps_c=None, dy=None, dx=None, kept=None):
        """Windows, each with the step that it begins with; kept: tape, c, c before them, and the step which they begin
        with. None: as before, and at first what the scan has."""
        if self.scan.is_double:
            set_windows(&self.f64, self.seen, x, y, keeps_h, keeps_c, dy, dx, kept)
        else:
            set_windows(&self.f32, self.seen, x, y, keeps_h, keeps_c, dy, dx, kept)


cdef void set_windows(Sequence[real]* q, dict seen, x, y, keeps_h, keeps_c, dy, dx, kept) except *:
    if x is not None:
        seen["x"] = x, set_window(<Rows[real]*>&q.x, x, q.B)
    if y is not None:
        seen["y"] = y, set_window(&q.y, y, q.B)
    if keeps_h is not None:
        seen["keeps_h"] = keeps_h, set_window(<Rows[uint8_t]*>&q.zoneout_h.keeps, keeps_h, q.B)
    if keeps_c is not None:
        seen["keeps_c"] = keeps_c, set_window(<Rows[uint8_t]*>&q.zoneout_c.keeps, keeps_c, q.B)
    if dy is not None:
        seen["dy"] = dy, set_window(<Rows[real]*>&q.dy, dy, q.B)
    if dx is not None:
        seen["dx"] = dx, set_window(&q.dx, dx, q.B)
    if kept is not None:
        seen["kept"] = kept
        tape, c, c0, q.kept_from = kept
        set_kept(q, tape, c, False)
        q.c0 = <const real*>address(c0)


cdef class ForwardPass(Pass):
    """Forward. Without a window `kept`, c is the Scan's, in place."""

    cdef ForwardMemory memory

    def __dealloc__(self):
        let_go(self.memory.block)

    def run(self, int64_t s0, int64_t s1):
        """Steps [s0, s1), some whole chunks."""
        if self.scan.is_double:
            steps_forward(&self.f64, self, s0, s1)
        else:
            steps_forward(&self.f32, self, s0, s1)

    def end(self, h):
        """When all steps are done: the final states and, in the padding of y, zeros. h (n, P): the final one where y is
        in windows, else None."""
        cdef Scan scan = self.scan
        if h is not None:
            scan.walk.put(h, scan.final[0], scan.at)
            if scan.c is not None:
                scan.walk.put(scan.c, scan.final[1], scan.at)
        elif scan.is_double:
            end_forward(&self.f64, scan)
        else:
            end_forward(&self.f32, scan)


cdef int steps_forward(Sequence[real]* q, ForwardPass of, int64_t s0, int64_t s1) except -1:
    cdef real which = 0
    cdef const CellKernels[real]* cell = kernels.of(which).cell(of.scan.cell)
    cdef Section section
    cdef int failed = 0
    section.begin()
    with nogil:
        if not of.is_packed:
            failed = NO_MEMORY if begin_forward(q, cell, of.scan.n_columns, of.scan.columns, &of.memory) else 0
            of.is_packed = not failed
        if not failed and run_steps(q, cell, &of.memory, s0, s1, &section):
            failed = LEFT
    return finished(failed, "the packed weights")


cdef class BackwardPass(Pass):
    """Backward: BPTT from the last step. All is as in `Scan.backward`, but that dy and dx may be windows: then None."""

    cdef BackwardMemory memory
    cdef InputColumns[float] columns32
    cdef InputColumns[double] columns64
    cdef Gradients[float] gradients32
    cdef Gradients[double] gradients64
    cdef list states
    cdef tuple initial
    cdef bint has_dx
    cdef object alive

    def __init__(self, Scan scan, dy, dx, tuple final, tuple initial, gradients):
        super().__init__(scan)
        self.states = [scan.walk.take(state, scan.at) for state in final]
        self.initial, self.has_dx = initial, dx is not None
        if scan.is_double:
            made = set_backward(&self.f64, &self.gradients64, self, dy, dx, gradients)
        else:
            made = set_backward(&self.f32, &self.gradients32, self, dy, dx, gradients)
        self.alive = dy, dx, gradients, made

    def __dealloc__(self):
        let_go(self.memory.block)

    def run(self, int64_t s0, int64_t s1, bint search=False):
        """Steps [s0, s1), a chunk. Returns what `Scan.backward` does, with which the walk ends."""
        if self.scan.is_double:
            return chunk_backward(&self.f64, &self.gradients64, &self.columns64, self, s0, s1, search)
        return chunk_backward(&self.f32, &self.gradients32, &self.columns32, self, s0, s1, search)

    def end(self):
        """When all steps are done: gradients of the biases and of the initial states and, in the padding of dx, zeros."""
        if self.scan.is_double:
            end_chunks(&self.f64, self)
        else:
            end_chunks(&self.f32, self)


cdef list set_backward(Sequence[real]* q, Gradients[real]* g, BackwardPass of, dy, dx, gradients):
    """What a call gives. Returns what q then points to and nobody else holds."""
    set_gradients(q, g, of.states, gradients)
    return [
        set_rows(<Rows[real]*>&q.dy, dy, of.scan.walk, of.scan.backwards),
        set_rows(&q.dx, dx, of.scan.walk, of.scan.backwards),
    ]


cdef object chunk_backward(
        Sequence[real]* q, Gradients[real]* g, InputColumns[real]* columns, BackwardPass of,
        int64_t s0, int64_t s1, bint search):
    cdef real which = 0
    cdef const Kernels[real]* k = &kernels.of(which)
    cdef const CellKernels[real]* cell = k.cell(of.scan.cell)
    cdef NonFinite found
    cdef Section section
    cdef int failed = 0
    section.begin()
    found.step, found.blocks = -1, 0
    with nogil:
        if not of.is_packed:
            failed = NO_MEMORY if begin_backward(q, cell, k, g, columns, 0, &of.memory) else 0
            of.is_packed = not failed
        if not failed:
            run_chunk_back(q, cell, &of.memory, s0, s1, &found if search else NULL, &section)
            failed = LEFT if section.was_left() else 0
    finished(failed, "the gradients of a chunk of steps")
    return None if found.step < 0 else (found.step, found.row, found.blocks)


cdef void end_chunks(Sequence[real]* q, BackwardPass of) except *:
    cdef real which = 0
    cdef Section section
    section.begin()
    if of.is_packed:
        end_backward(q, kernels.of(which).cell(of.scan.cell), &of.memory)
    end_gradients(q, of.scan, of.states, of.initial, of.has_dx)

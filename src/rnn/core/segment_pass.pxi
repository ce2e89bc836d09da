# The forward and backward loops of a LayerPass, a segment at a time, for the checkpointed stacks of
# engine/checkpointing.py. Included by _core.pyx.

cdef class SegmentPass:
    """A LayerPass over windows: arrays (M, n, ...), in the order of the shard, that hold some steps at a time. For
    other steps, `set_windows` is called again."""

    cdef Sequence[float] f32
    cdef Sequence[double] f64
    cdef LayerPass layer_pass
    cdef dict windows  # windows that the sequence points to
    cdef bint is_packed

    def __init__(self, LayerPass layer_pass):
        self.layer_pass, self.windows = layer_pass, {}
        self.f32, self.f64 = layer_pass.f32, layer_pass.f64

    def set_windows(self, x=None, y=None, zoneout_h=None, zoneout_c=None, dy=None, dx=None, saved=None):
        """Set windows, each given with the step that it begins with. saved: the saved activations, c, the c before
        them, and the step that they begin with. None: as before, and at first what the LayerPass has."""
        if self.layer_pass.is_double:
            set_window_rows(&self.f64, self.windows, x, y, zoneout_h, zoneout_c, dy, dx, saved)
        else:
            set_window_rows(&self.f32, self.windows, x, y, zoneout_h, zoneout_c, dy, dx, saved)


cdef void set_window_rows(Sequence[real]* q, dict windows, x, y, zoneout_h, zoneout_c, dy, dx, saved) except *:
    if x is not None:
        windows["x"] = x, set_window(<Rows[real]*>&q.x, x, q.B)
    if y is not None:
        windows["y"] = y, set_window(&q.y, y, q.B)
    if zoneout_h is not None:
        windows["zoneout_h"] = zoneout_h, set_window(<Rows[uint8_t]*>&q.keeps_h, zoneout_h, q.B)
    if zoneout_c is not None:
        windows["zoneout_c"] = zoneout_c, set_window(<Rows[uint8_t]*>&q.keeps_c, zoneout_c, q.B)
    if dy is not None:
        windows["dy"] = dy, set_window(<Rows[real]*>&q.dy, dy, q.B)
    if dx is not None:
        windows["dx"] = dx, set_window(&q.dx, dx, q.B)
    if saved is not None:
        windows["saved"] = saved
        activations, c, c0, q.saved_from = saved
        set_saved(q, activations, c, False)
        q.c0 = <const real*>address(c0)


cdef class SegmentForward(SegmentPass):
    """Forward, a segment at a time. Without a window `saved`, c is that of the LayerPass, updated in place."""

    cdef ForwardMemory memory

    def __dealloc__(self):
        pool_free(self.memory.block)

    def run(self, int64_t s0, int64_t s1):
        """Run the steps [s0, s1), which are whole chunks."""
        if self.layer_pass.is_double:
            steps_forward(&self.f64, self, s0, s1)
        else:
            steps_forward(&self.f32, self, s0, s1)

    def end(self, h):
        """When all steps are done, write the final states and, into the padding of y, zeros. h (n, P): the final one if
        y is in windows, else None."""
        cdef LayerPass layer_pass = self.layer_pass
        if h is not None:
            layer_pass.shard.put(h, layer_pass.final[0], layer_pass.at)
            if layer_pass.c is not None:
                put_others(layer_pass.shard, layer_pass.c, layer_pass.final, layer_pass.at)
        elif layer_pass.is_double:
            end_forward(&self.f64, layer_pass)
        else:
            end_forward(&self.f32, layer_pass)


cdef int steps_forward(Sequence[real]* q, SegmentForward of, int64_t s0, int64_t s1) except -1:
    cdef real which = 0
    cdef const CellKernels[real]* cell = kernels.of(which).cell(of.layer_pass.cell)
    cdef Section section
    cdef int failed = 0
    section.begin()
    with nogil:
        if not of.is_packed:
            if begin_forward(q, cell, of.layer_pass.n_columns, of.layer_pass.columns, &of.memory, NULL):
                failed = NO_MEMORY
            of.is_packed = not failed
        if not failed and run_steps(q, cell, &of.memory, s0, s1, &section):
            failed = LEFT
    return finished(failed, "the packed weights")


cdef class SegmentBackward(SegmentPass):
    """Backward, a chunk at a time, the last one first. Arguments are as for `LayerPass.backward`, but dy and dx are
    None if they are in windows."""

    cdef BackwardMemory memory
    cdef InputColumns[float] columns32
    cdef InputColumns[double] columns64
    cdef Gradients[float] gradients32
    cdef Gradients[double] gradients64
    cdef list states
    cdef tuple initial
    cdef bint has_dx
    cdef object alive

    def __init__(self, LayerPass layer_pass, dy, dx, tuple final, tuple initial, gradients):
        super().__init__(layer_pass)
        self.states = [
            layer_pass.shard.take(final[0], layer_pass.at), take_others(layer_pass.shard, final, layer_pass.at)]
        self.initial, self.has_dx = initial, dx is not None
        if layer_pass.is_double:
            made = set_backward(&self.f64, &self.gradients64, self, dy, dx, gradients)
        else:
            made = set_backward(&self.f32, &self.gradients32, self, dy, dx, gradients)
        self.alive = dy, dx, gradients, made

    def __dealloc__(self):
        pool_free(self.memory.block)

    def run(self, int64_t s0, int64_t s1, bint search=False):
        """Go back through the steps [s0, s1), a chunk. Returns what `LayerPass.backward` returns; a search ends with
        the first result that is not None."""
        if self.layer_pass.is_double:
            return chunk_backward(&self.f64, &self.gradients64, &self.columns64, self, s0, s1, search)
        return chunk_backward(&self.f32, &self.gradients32, &self.columns32, self, s0, s1, search)

    def end(self):
        """When all steps are done, add the gradients of the biases, and write those of the initial states and, into the
        padding of dx, zeros."""
        if self.layer_pass.is_double:
            end_chunks(&self.f64, self)
        else:
            end_chunks(&self.f32, self)


cdef list set_backward(Sequence[real]* q, Gradients[real]* g, SegmentBackward of, dy, dx, gradients):
    """Write what a call gives. Returns what q then points to and nothing else refers to, for the caller to keep
    alive."""
    set_gradients(q, g, of.states, gradients)
    return [
        set_rows(<Rows[real]*>&q.dy, dy, of.layer_pass.shard, of.layer_pass.backwards),
        set_rows(&q.dx, dx, of.layer_pass.shard, of.layer_pass.backwards),
    ]


cdef object chunk_backward(
        Sequence[real]* q, Gradients[real]* g, InputColumns[real]* columns, SegmentBackward of,
        int64_t s0, int64_t s1, bint search):
    cdef real which = 0
    cdef const Kernels[real]* k = &kernels.of(which)
    cdef const CellKernels[real]* cell = k.cell(of.layer_pass.cell)
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


cdef void end_chunks(Sequence[real]* q, SegmentBackward of) except *:
    cdef real which = 0
    cdef Section section
    section.begin()
    if of.is_packed:
        end_backward(q, kernels.of(which).cell(of.layer_pass.cell), &of.memory)
    end_gradients(q, of.layer_pass, of.states, of.initial, of.has_dx)

# One shard of a batch through one layer in one direction: the arrays of a call, forward and backward. Included by
# _core.pyx.

cdef void set_cell(CellConfig[real]* q, const CellKernels[real]* cell, weights, dict options) except *:
    """Write what a layer and direction is in every call: weights, sizes and options."""
    cdef int i = 0
    memset(q, 0, sizeof(CellConfig[real]))
    w_ih, w_hh, b_ih, b_hh, w_hr, peephole, *norms = weights
    q.weights.ih = <const real*>address(w_ih)
    q.weights.hh = <const real*>address(w_hh)
    q.weights.b_ih = <const real*>address(b_ih)
    q.weights.b_hh = <const real*>address(b_hh)
    q.weights.hr = <const real*>address(w_hr)
    q.weights.peephole = <const real*>address(peephole)
    set_norms(<Norms[real]*>&q.norms, norms, False)
    q.I, q.H = w_ih.shape[1], w_ih.shape[0] // cell.gates
    q.P = q.H if w_hr is None else w_hr.shape[0]
    q.C = (cell.n_states - 1) * q.H
    q.saved_width = cell.saved_width * q.H + (q.H if w_hr is not None else 0)
    if q.norms.gain_hh != NULL:
        q.saved_width += NORM_STATISTICS
    q.dgates_width = cell.dgates_width * q.H
    for kind, alpha, beta in options["activations"]:
        q.activation[i].kind, q.activation[i].alpha, q.activation[i].beta = kind, alpha, beta
        i += 1
    q.clip, q.grad_clip = options["clip"], options["grad_clip"]
    q.coupled = options["coupled"]
    q.zoneout_h, q.zoneout_c = options["zoneout"]


cdef void set_norms(Norms[real]* norms, list given, bint writable) except *:
    gain_ih, gain_hh, gain_c, bias_c = given
    norms.gain_ih = <real*>address(gain_ih, writable)
    norms.gain_hh = <real*>address(gain_hh, writable)
    norms.gain_c = <real*>address(gain_c, writable)
    norms.bias_c = <real*>address(bias_c, writable)


cdef list set_call(CallArrays[real]* q, PackedBatch shard, bint backwards, x, y, h0, c0, reset, masks):
    """Write what a call gives, all but the arrays of backward. Returns what q then points to and nothing else refers
    to, for the caller to keep alive."""
    h_mask = None if masks.h is None else shard.take(masks.h[None], 0)
    is_one_hot = x is not None and cnp.PyArray_TYPE(x) == cnp.NPY_INT64
    q.steps, q.B, q.start = shard.T, shard.n, <const int64_t*>data(shard.start)
    q.h0, q.c0, q.h_mask = <const real*>data(h0), <const real*>data(c0), <const real*>data(h_mask)
    return [
        h_mask,
        set_rows(<Rows[real]*>&q.x, None if is_one_hot else x, shard, backwards),
        set_rows(<Rows[int64_t]*>&q.ids, x if is_one_hot else None, shard, backwards),
        set_rows(<Rows[uint8_t]*>&q.reset, reset, shard, backwards),
        set_rows(<Rows[uint8_t]*>&q.keeps_h, masks.zoneout_h, shard, backwards),
        set_rows(<Rows[uint8_t]*>&q.keeps_c, masks.zoneout_c, shard, backwards),
        set_rows(&q.y, y, shard, backwards),
    ]


cdef cnp.ndarray take_others(PackedBatch shard, tuple states, int64_t at):
    """The shard's rows of the states beside h, side by side; None if there are none."""
    if len(states) == 1:
        return None
    if len(states) == 2:
        return shard.take(states[1], at)
    return np.concatenate([shard.take(state, at) for state in states[1:]], axis=1)


cdef int put_others(PackedBatch shard, values, tuple states, int64_t at) except -1:
    """The inverse of `take_others`: write values (n, C) into the shard's rows of the states beside h."""
    cdef int64_t k, H
    if len(states) == 2:
        return shard.put(values, states[1], at)
    for k in range(1, len(states)):
        H = states[k].shape[2]
        shard.put(np.ascontiguousarray(values[:, (k - 1) * H : k * H]), states[k], at)
    return 0


cdef class StepsDone:
    """How many steps of a layer pass are done, in forward and in backward: for the layer passes that follow it, which
    refer to this alone, since two that referred to each other would live until the garbage collector came."""

    cdef Progress forward, backward


cdef class LayerPass:
    """One shard through one layer in one direction: `forward`, then, if made for training, `backward`.

    weights: the arrays of Weights and Norms, each or None.   options: activations, clip, grad_clip, coupled and
    zoneout.
    x: (T, B, I), or packed (N, I), and then so are y, dy and dx; or int64 (T, B), places in shard.used_embedding_rows
    or, in inference only and without such a list, columns of W_ih.   y: (T, B, P), to be written. x and y may be None
    if a SegmentPass is given windows of them.
    initial, final: the states of all layers and directions, h and the others, each (L*D, B, width); final[i][at] is
    written.
    reset: (T, B) uint8 or None.   masks: the dropout masks, see `DropoutMasks` in engine/dropout.py.
    packed, packed_at: weights and options in this form, and which of them; x may then hold columns of W_ih, but no
    places.
    Rows of x and y are contiguous, and so are whole states; nothing is checked. Arrays are of the layer's dtype.

    Inside, states are in the order of the shard: h0 (n, P); c0 and c, the states beside h side by side (n, C). `c` is
    the initial one and, after `forward`, the final one; or, after `save`, that of all steps (packed rows).
    """

    cdef Sequence[float] f32
    cdef Sequence[double] f64
    cdef int cell, at
    cdef bint is_double
    cdef const int64_t* columns
    cdef int64_t n_columns
    cdef tuple final
    cdef object alive  # what the sequence points to
    cdef StepsDone steps_done
    cdef StepsDone before, behind  # of the layer passes that go first in forward and in backward; None: there is none
    cdef const KernelTable* forward_kernels
    cdef readonly PackedBatch shard
    cdef readonly bint backwards
    cdef readonly object y, h0, c, c0, saved

    def __init__(self, int cell, bint is_double, tuple weights, dict options, PackedBatch shard, int at, bint backwards,
                 x, y, tuple initial, tuple final, reset, masks, StackWeights packed=None, int packed_at=0):
        self.cell, self.is_double, self.shard, self.at, self.backwards = cell, is_double, shard, at, backwards
        self.final, self.steps_done = final, StepsDone.__new__(StepsDone)
        self.columns = <const int64_t*>data(shard.used_embedding_rows)
        self.n_columns = 0 if shard.used_embedding_rows is None else len(shard.used_embedding_rows)
        self.y, self.h0 = y, shard.take(initial[0], at)
        self.c0 = take_others(shard, initial, at)
        self.forward_kernels = kernels if packed is None else packed.table()
        if packed is not None:
            packed.copy_to(<void*>&self.f64 if is_double else <void*>&self.f32, packed_at, 1)
        elif is_double:
            set_cell(&self.f64, kernels.f64.cell(cell), weights, options)
        else:
            set_cell(&self.f32, kernels.f32.cell(cell), weights, options)
        if is_double:
            made = set_call(&self.f64, shard, backwards, x, y, self.h0, self.c0, reset, masks)
        else:
            made = set_call(&self.f32, shard, backwards, x, y, self.h0, self.c0, reset, masks)
        self.alive = weights, x, reset, masks, made, packed
        self.hold(None, None if self.c0 is None else self.c0.copy(), True)

    cdef int hold(self, saved, c, bint c_in_place) except -1:
        self.saved, self.c = saved, c
        if self.is_double:
            set_saved(&self.f64, saved, c, c_in_place)
        else:
            set_saved(&self.f32, saved, c, c_in_place)
        return 0

    cpdef tuple new_saved(self, int64_t rows):
        """New arrays for the saved activations of so many packed rows and for c of each; None if there is no c."""
        dtype = self.alive[0][0].dtype
        width, C = (self.f64.saved_width, self.f64.C) if self.is_double else (self.f32.saved_width, self.f32.C)
        return new_array((rows, width), dtype), None if self.c0 is None else new_array((rows, C), dtype)

    def save(self):
        """To be called before `forward`: it then saves the activations and c of all steps for `backward`."""
        saved, c = self.new_saved(self.total)
        self.hold(saved, c, False)

    @property
    def total(self):
        """The number of packed rows: pairs of a step and a sequence that runs at that step."""
        return self.f64.first(self.f64.steps) if self.is_double else self.f32.first(self.f32.steps)

    @property
    def row_bytes(self):
        """Bytes of a packed row of the saved activations and c."""
        if self.is_double:
            return (self.f64.saved_width + self.f64.C) * <int64_t>sizeof(double)
        return (self.f32.saved_width + self.f32.C) * <int64_t>sizeof(float)

    @property
    def chunk_rows(self):
        """The number of rows of a chunk: step s is in chunk  first(s) // chunk_rows."""
        return chunk_rows(&self.f64) if self.is_double else chunk_rows(&self.f32)

    def follow(self, LayerPass below):
        """Form a pipeline with `below`, the layer pass that makes x: forward takes each step after `below` has taken
        it, and in backward `below` follows, so that the two may run at the same time. Of the two `forward`, that of
        `below` has to be called first; of the two `backward`, this one's."""
        self.before, below.behind = below.steps_done, self.steps_done

    cdef int64_t step_work(self):
        if self.is_double:
            return 2 * step_work(&self.f64, kernels.f64.cell(self.cell))
        return step_work(&self.f32, kernels.f32.cell(self.cell))

    @property
    def work(self):
        """Multiply-adds of all steps together; in float64, each counts as two."""
        return self.step_work() * (self.f64.steps if self.is_double else self.f32.steps)

    @property
    def threads(self):
        """How many threads are worth having in a team that shares its steps: 1 if the steps are small, or cannot be
        shared."""
        if not (self.f64.can_share() if self.is_double else self.f32.can_share()):
            return 1
        return max(1, self.step_work() // SHARED_WORK)

    def forward(self, Team team=None):
        """Run all steps: write y, zero in the padding, the final states and, after `save`, what backward needs."""
        try:
            if self.is_double:
                pass_forward(&self.f64, self, state_of(team))
            else:
                pass_forward(&self.f32, self, state_of(team))
        finally:
            publish(&self.steps_done.forward, INT64_MAX)  # so that no thread waits for this one after a failure

    def backward(self, dy, dx, tuple final, tuple initial, gradients, bint search=False, Team team=None):
        """BPTT. dy (T, B, P), dx (T, B, I) or None: dx is written, zero in the padding. final, initial: gradients of
        the states, laid out as the states that `LayerPass` is given; initial[i][at] is written. gradients: of ih, hh,
        b_ih, b_hh, hr, of which each may be None if it is not wanted, peephole and Norms, added to; for ids, that of ih is (n, G*H), a row for each of the used
        columns. A search returns (step and row of the shard, bits of the blocks of dgates) where the first value that
        is not finite arises, or None."""
        try:
            if self.is_double:
                return pass_backward(&self.f64, self, dy, dx, final, initial, gradients, search, state_of(team))
            return pass_backward(&self.f32, self, dy, dx, final, initial, gradients, search, state_of(team))
        finally:
            publish(&self.steps_done.backward, INT64_MAX)  # so that no thread waits for this one after a failure

    def rewind(self):
        """To be called before each `backward`: none of its steps is done yet."""
        self.steps_done.backward.steps = 0


cdef void set_saved(Sequence[real]* q, saved, c, bint c_in_place) except *:
    q.saved = <real*>address(saved)
    q.c = <real*>address(c)
    q.c_in_place = c_in_place


cdef void clear_padding(const Rows[real]* rows, PackedBatch shard, bint backwards, int64_t width) noexcept nogil:
    """Set the rows of an array (T, B, width) beyond the true ends of the sequences to zero; a packed one has none."""
    cdef int64_t i, s, t
    if rows.place != NULL:
        return
    for i in range(shard.n):
        for t in range(shard.length[i], shard.T):
            s = shard.length[i] - 1 - t if backwards else t
            memset(rows.at(s, i), 0, width * sizeof(real))


cdef void put_final(const Sequence[real]* q, PackedBatch shard, real* h, real** others) noexcept nogil:
    """Write the states at the true end of each sequence into h (B, P) and into the others, (B, H) each."""
    cdef int64_t i, s, k
    cdef const real* c
    for i in range(shard.n):
        s = shard.length[i] - 1
        memcpy(h + shard.sorted_index[i] * q.P, q.h0 + i * q.P if s < 0 else q.y.at(s, i), q.P * sizeof(real))
        if q.C:
            c = q.c0 + i * q.C if s < 0 else q.c_at(s, i)
            for k in range(q.C // q.H):
                memcpy(others[k] + shard.sorted_index[i] * q.H, c + k * q.H, q.H * sizeof(real))


cdef void end_forward(const Sequence[real]* q, LayerPass of) except *:
    """When all steps are done, write zeros into the padding of y, and the final states."""
    cdef PackedBatch shard = of.shard
    cdef real* h = <real*>state_data(of.final[0], of.at)
    cdef real* others[MAX_STATES]
    cdef int k
    for k in range(1, len(of.final)):
        others[k - 1] = <real*>state_data(of.final[k], of.at)
    with nogil:
        clear_padding(&q.y, shard, of.backwards, q.P)
        put_final(q, shard, h, others)


cdef int pass_forward(Sequence[real]* q, LayerPass of, TeamState* workers) except -1:
    cdef const Progress* below = <const Progress*>NULL if of.before is None else &of.before.forward
    cdef real which = 0
    cdef int failed = 0
    if q.first(q.steps):
        with nogil:
            failed = run_forward(
                q, of.forward_kernels.of(which).cell(of.cell), of.n_columns, of.columns, workers, below,
                &of.steps_done.forward)
    finished(failed, "the packed weights")
    end_forward(q, of)
    return 0


cdef void set_gradients(Sequence[real]* q, Gradients[real]* g, list states, gradients) except *:
    """states: the gradients of the states at the end of each sequence, in the order in which the direction runs;
    backward overwrites them with those at the beginning."""
    q.dh = <real*>data(states[0])
    q.dc = <real*>(data(states[1]) if len(states) == 2 else NULL)
    d_ih, d_hh, d_b_ih, d_b_hh, d_hr, d_peephole, *d_norms = gradients
    g.ih = <real*>address(d_ih, d_ih is not None)
    g.hh = <real*>address(d_hh, d_hh is not None)
    g.b_ih = <real*>address(d_b_ih, d_b_ih is not None)
    g.b_hh = <real*>address(d_b_hh, d_b_hh is not None)
    g.hr = <real*>address(d_hr, d_hr is not None)
    q.dpeephole = <real*>address(d_peephole, d_peephole is not None)
    set_norms(&q.dnorms, d_norms, True)


cdef void end_gradients(const Sequence[real]* q, LayerPass of, list states, tuple initial, bint has_dx) except *:
    """When all steps are done, write zeros into the padding of dx, if dx is the caller's, and the gradients of the
    initial states into `initial`."""
    cdef PackedBatch shard = of.shard
    if has_dx:
        with nogil:
            clear_padding(&q.dx, shard, of.backwards, q.I)
    shard.put(states[0], initial[0], of.at)
    if states[1] is not None:
        put_others(shard, states[1], initial, of.at)


cdef object pass_backward(
        const Sequence[real]* layer_pass, LayerPass of, dy, dx, tuple final, tuple initial, gradients, bint search,
        TeamState* workers):
    cdef Sequence[real] q = layer_pass[0]  # a copy, since a tape may be used for several backward passes
    cdef Gradients[real] g
    cdef NonFinite found
    cdef int failed = 0
    cdef const Progress* above = <const Progress*>NULL if of.behind is None else &of.behind.backward
    cdef Progress* own = &of.steps_done.backward
    cdef PackedBatch shard = of.shard
    cdef real which = 0
    found.step, found.blocks = -1, 0
    dy_offsets = set_rows(<Rows[real]*>&q.dy, dy, shard, of.backwards)
    dx_offsets = set_rows(&q.dx, dx, shard, of.backwards)
    states = [shard.take(final[0], of.at), take_others(shard, final, of.at)]
    set_gradients(&q, &g, states, gradients)
    if q.first(q.steps):
        with nogil:
            failed = run_backward(&q, kernels.of(which).cell(of.cell), &kernels.of(which), &g,
                                  &found if search else NULL, workers, above, own)
    finished(failed, "the gradients of a chunk of steps")
    end_gradients(&q, of, states, initial, dx is not None)
    return None if found.step < 0 else (found.step, found.row, found.blocks)

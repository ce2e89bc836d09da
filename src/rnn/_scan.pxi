# One layer, one direction, one batch: the arrays of a call, and its two passes. Included by _core.pyx.

cdef void set_rows(Rows[real]* rows, object given, bint writable=False) except *:
    """given: (array, offset of each batch row, step), or None"""
    rows.base = NULL
    if given is not None:
        rows.base = <real*>address(given[0], writable)
        rows.offset = <const int64_t*>address(given[1])
        rows.step = given[2]


cdef void set_bytes(Rows[uint8_t]* rows, object given) except *:
    if given is not None:
        rows.base = <uint8_t*>address(given[0])
        rows.offset = <const int64_t*>address(given[1])
        rows.step = given[2]


cdef void set_cell(Sequence[real]* q, const CellKernels[real]* cell, weights, dict options) except *:
    """Start a sequence: all zero but for what a layer and direction has in every call."""
    cdef int i = 0
    memset(q, 0, sizeof(Sequence[real]))
    w_ih, w_hh, b_ih, b_hh, w_hr, peephole = weights
    q.weights.ih = <const real*>address(w_ih)
    q.weights.hh = <const real*>address(w_hh)
    q.weights.b_ih = <const real*>address(b_ih)
    q.weights.b_hh = <const real*>address(b_hh)
    q.weights.hr = <const real*>address(w_hr)
    q.weights.peephole = <const real*>address(peephole)
    q.I, q.H, q.P = w_ih.shape[1], w_ih.shape[0] // cell.gates, w_hh.shape[1]
    q.tape_width = cell.tape_width * q.H + (q.H if w_hr is not None else 0)
    q.dgates_width = cell.dgates_width * q.H
    for kind, alpha, beta in options["activations"]:
        q.activation[i].kind, q.activation[i].alpha, q.activation[i].beta = kind, alpha, beta
        i += 1
    q.clip, q.grad_clip = options["clip"], options["grad_clip"]
    q.coupled = options["coupled"]
    q.zoneout_h.p, q.zoneout_c.p = options["zoneout"]


cdef void set_call(Sequence[real]* q, dict a) except *:
    """What a call gives; all but the backward part."""
    q.steps, q.B = a["sizes"]
    q.start = <const int64_t*>address(a["start"])
    set_rows(<Rows[real]*>&q.x, a["x"])
    if a["ids"] is not None:
        q.ids.base = <int64_t*>address(a["ids"][0])
        q.ids.offset = <const int64_t*>address(a["ids"][1])
        q.ids.step = a["ids"][2]
    set_bytes(<Rows[uint8_t]*>&q.reset, a["reset"])
    set_bytes(<Rows[uint8_t]*>&q.zoneout_h.keeps, a.get("keeps_h"))
    set_bytes(<Rows[uint8_t]*>&q.zoneout_c.keeps, a.get("keeps_c"))
    q.h_mask = <const real*>address(a.get("h_mask"))
    q.h0 = <const real*>address(a["h0"])
    q.c0 = <const real*>address(a["c0"])
    set_rows(&q.y, a["y"], True)


cdef class Scan:
    """One layer in one direction over one batch: `forward`, then, if made for training, `backward`.

    All is as in kernels/sequence.hpp: `weights` the six arrays or None, `options` activations, clip, grad_clip, coupled
    and zoneout; of the call, sizes (T, B), start, h0 and c0, and as (array, offsets, step) or None x, ids, reset and y;
    where there is noise, h_mask, and as rows keeps_h and keeps_c. Arrays are of the layer's dtype, and C-contiguous
    where they have no offsets. With `columns` (int64, n), ids are places among those columns of W_ih, without the
    columns themselves: inference only. `c` holds the cell state: (B, H), the initial one and then the final one; or,
    after `keep`, that of all steps (packed rows). x and y of a layer that is walked by passes (_pass.pxi) may be None.
    """

    cdef Sequence[float] f32
    cdef Sequence[double] f64
    cdef int cell
    cdef bint is_double, is_empty
    cdef const int64_t* columns
    cdef int64_t n_columns
    cdef tuple alive  # the arrays that the sequence points to
    cdef Progress steps_done, steps_undone  # of forward and of backward
    cdef Scan before, behind  # that have to go first in forward and in backward; None: nobody
    cdef readonly object y, h0, c, c0, tape

    def __init__(self, int cell, bint is_double, tuple weights, dict options, **call):
        self.cell = cell
        self.is_double = is_double
        self.alive = weights, call
        self.columns = <const int64_t*>address(call["columns"])
        self.n_columns = 0 if call["columns"] is None else len(call["columns"])
        self.is_empty = call["start"][call["sizes"][0]] == 0
        if is_double:
            set_cell(&self.f64, kernels.f64.cell(cell), weights, options)
            set_call(&self.f64, call)
        else:
            set_cell(&self.f32, kernels.f32.cell(cell), weights, options)
            set_call(&self.f32, call)
        self.y = None if call["y"] is None else call["y"][0]
        self.h0, self.c0 = call["h0"], call["c0"]
        self.c = None if self.c0 is None else self.c0.copy()
        self.hold(None, self.c, True)

    cdef int hold(self, tape, c, bint c_in_place) except -1:
        self.tape, self.c = tape, c
        if self.is_double:
            set_kept(&self.f64, tape, c, c_in_place)
        else:
            set_kept(&self.f32, tape, c, c_in_place)
        return 0

    def room(self, int64_t rows):
        """A tape of so many rows, and c of as many steps, or None."""
        dtype = self.alive[0][0].dtype
        width, H = (self.f64.tape_width, self.f64.H) if self.is_double else (self.f32.tape_width, self.f32.H)
        return new_array((rows, width), dtype), None if self.c0 is None else new_array((rows, H), dtype)

    def keep(self):
        """Before `forward`, for `backward`: keep the tape and c of all steps."""
        tape, c = self.room(self.total)
        self.hold(tape, c, False)

    @property
    def total(self):
        """Rows: pairs of a step and a sequence that runs then."""
        return self.f64.start[self.f64.steps] if self.is_double else self.f32.start[self.f32.steps]

    @property
    def row_bytes(self):
        """Of the tape and c."""
        tape, c = self.room(1)
        return tape.nbytes + (0 if c is None else c.nbytes)

    @property
    def chunk_rows(self):
        """Step s is in chunk  start[s] // chunk_rows  of those that the passes work through."""
        return chunk_rows(&self.f64) if self.is_double else chunk_rows(&self.f32)

    def follow(self, Scan below):
        """Let forward take each step after that of `below`, the scan that makes x, and backward the other way, so that
        the two may run at once. `below.forward` has to be called first, and this one's `backward`."""
        self.before, below.behind = below, self

    def forward(self):
        """Run all steps: y, the final c in place, and what `keep` asked for."""
        cdef int failed
        cdef const Progress* below = <const Progress*>NULL if self.before is None else &self.before.steps_done
        if self.is_empty:
            return
        with nogil:
            if self.is_double:
                failed = run_forward(
                    &self.f64, kernels.f64.cell(self.cell), self.n_columns, self.columns, below, &self.steps_done)
            else:
                failed = run_forward(
                    &self.f32, kernels.f32.cell(self.cell), self.n_columns, self.columns, below, &self.steps_done)
            publish(&self.steps_done, INT64_MAX)  # nobody shall wait after a failure
        if failed:
            raise MemoryError("no memory for the packed weights")

    def backward(self, dy, dx, dh, dc, gradients, bint search=False):
        """BPTT. dy, dx: rows or None. dh (B, P), dc (B, H): gradient of the final state, replaced by that of the
        initial one. gradients: of ih, hh, b_ih, b_hh, hr, peephole, added to; for ids, that of ih is (n, G*H), a row
        for each of the columns. In a search it returns (step and row of the walk, bits of the blocks of dgates) where
        the first value that is not finite arises, or None."""
        try:
            if self.is_empty:
                return None
            if self.is_double:
                return scan_backward(&self.f64, self, dy, dx, dh, dc, gradients, search)
            return scan_backward(&self.f32, self, dy, dx, dh, dc, gradients, search)
        finally:
            publish(&self.steps_undone, INT64_MAX)  # nobody shall wait after a failure

    def rewind(self):
        """Before each `backward`: none of its steps is done."""
        self.steps_undone.steps = 0


cdef void set_kept(Sequence[real]* q, tape, c, bint c_in_place) except *:
    q.tape = <real*>address(tape)
    q.c = <real*>address(c)
    q.c_in_place = c_in_place


cdef void set_gradients(Sequence[real]* q, Gradients[real]* g, dh, dc, gradients) except *:
    q.dh = <real*>address(dh, True)
    q.dc = <real*>address(dc, dc is not None)
    d_ih, d_hh, d_b_ih, d_b_hh, d_hr, d_peephole = gradients
    g.ih = <real*>address(d_ih, True)
    g.hh = <real*>address(d_hh, True)
    g.b_ih = <real*>address(d_b_ih, d_b_ih is not None)
    g.b_hh = <real*>address(d_b_hh, d_b_hh is not None)
    g.hr = <real*>address(d_hr, d_hr is not None)
    q.dpeephole = <real*>address(d_peephole, d_peephole is not None)


cdef object scan_backward(Sequence[real]* scan, Scan of, dy, dx, dh, dc, gradients, bint search):
    cdef Sequence[real] q = scan[0]  # a tape may be walked more than once
    cdef Gradients[real] g
    cdef NonFinite found
    cdef int failed
    cdef const Progress* above = <const Progress*>NULL if of.behind is None else &of.behind.steps_undone
    cdef Progress* own = &of.steps_undone
    cdef real which = 0
    found.step, found.blocks = -1, 0
    set_rows(<Rows[real]*>&q.dy, dy)
    set_rows(&q.dx, dx, True)
    set_gradients(&q, &g, dh, dc, gradients)
    with nogil:
        failed = run_backward(&q, kernels.of(which).cell(of.cell), &kernels.of(which), &g,
                              &found if search else NULL, above, own)
    if failed:
        raise MemoryError("no memory for the gradients of a chunk of steps")
    return None if found.step < 0 else (found.step, found.row, found.blocks)

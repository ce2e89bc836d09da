# Which sequences of a batch a shard has, and where their rows lie. Included by _core.pyx.

cdef cnp.ndarray new_indices(int64_t n):
    return cnp.PyArray_EMPTY(1, <cnp.npy_intp*>&n, cnp.NPY_INT64, 0)


cdef inline void* data(array) noexcept:
    """Where the elements of an array start; None is null."""
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


cdef inline void* state_data(cnp.ndarray state, int64_t at) noexcept:
    """Where state[at] starts, of (L*D, B, N) and contiguous."""
    return <char*>data(state) + at * cnp.PyArray_DIM(state, 1) * cnp.PyArray_DIM(state, 2) * cnp.PyArray_ITEMSIZE(state)


cdef class PackedBatch:
    """A shard: some sequences of a batch by falling length, which one thread takes through all steps.

    sorted_indices (n,): their batch rows; lengths (n,), falling; used_embedding_rows: the list of columns of W_ih that
    one-hot x holds places in; None: x holds the columns themselves. All int64. A packed row is a pair of a step and a
    sequence that runs at that step; packed rows are numbered step by step.
    """

    cdef readonly int64_t T, n
    cdef readonly object sorted_indices, lengths
    cdef object start  # (T+1,), see kernels/sequence.hpp; None: all n run at every step
    cdef public object used_embedding_rows
    cdef object place, last  # of packed x and y: (T,) where each time step begins, (n,) when each sequence ends; or None
    cdef const int64_t *sorted_index  # where the elements of sorted_indices, and of lengths, start
    cdef const int64_t *length

    @property
    def is_ragged(self):
        """Whether any of them ends before step T."""
        return self.start is not None

    def first_row(self, step):
        """The packed row that a step, or each of several, begins with; for step T, how many there are."""
        return step * self.n if self.start is None else self.start[step]

    def step_of(self, row):
        """The step of a packed row, or of each of several."""
        return row // max(1, self.n) if self.start is None else np.searchsorted(self.start, row, side="right") - 1

    def places(self, int64_t s0, int64_t s1, bint backwards):
        """(time (M, 1) or (M, n), batch row (n,)) of steps [s0, s1) of each sequence, whether it still runs or not."""
        steps = np.arange(s0, s1)[:, None]
        return self.lengths - 1 - steps if backwards else steps, self.sorted_indices

    def packed(self, window, int64_t s0, int64_t s1):
        """The packed rows of steps [s0, s1), from a window (M, n, N) that begins with step s0."""
        return window[: s1 - s0][self.lengths > np.arange(s0, s1)[:, None]]

    def where(self, int64_t first, int64_t end, bint backwards):
        """(time, batch row) of the packed rows [first, end)."""
        rows = np.arange(first, end)
        steps = self.step_of(rows)
        places = rows - self.first_row(steps)
        if backwards:
            steps = self.lengths[places] - 1 - steps
        return steps, self.sorted_indices[places]

    cdef cnp.ndarray take(self, cnp.ndarray state, int64_t at):
        """A copy (n, N) of the shard's rows of state[at]; the state is (L*D, B, N) and contiguous."""
        cdef cnp.npy_intp shape[2]
        shape[0], shape[1] = self.n, cnp.PyArray_DIM(state, 2)
        taken = cnp.PyArray_EMPTY(2, shape, cnp.PyArray_TYPE(state), 0)
        cdef int64_t i, size = shape[1] * cnp.PyArray_ITEMSIZE(state)
        for i in range(self.n):
            require(0 <= self.sorted_index[i] < cnp.PyArray_DIM(state, 1))
            memcpy(<char*>data(taken) + i * size, <char*>state_data(state, at) + self.sorted_index[i] * size, size)
        return taken

    cdef int put(self, cnp.ndarray values, cnp.ndarray state, int64_t at) except -1:
        """The inverse of `take`: the shard's rows of state[at] := values (n, N)."""
        cdef int64_t i, size = cnp.PyArray_DIM(state, 2) * cnp.PyArray_ITEMSIZE(state)
        for i in range(self.n):
            require(0 <= self.sorted_index[i] < cnp.PyArray_DIM(state, 1))
            memcpy(<char*>state_data(state, at) + self.sorted_index[i] * size, <char*>data(values) + i * size, size)
        return 0


def shards(int64_t T, int64_t B, lengths, int64_t parts, place=None):
    """A batch divided into so many shards. lengths (B,), int64; None: all T. place (T,), int64: the arrays of the caller
    are packed, and there each time step begins with this row; their sequences are sorted by falling length.

    If all sequences have one length, each shard has neighbouring rows, since threads that write to rows side by side
    slow each other down; otherwise, each shard has long and short ones.
    """
    cdef int64_t b
    cdef int64_t *length
    cdef int64_t *row
    if lengths is None:
        lengths, order = new_indices(B), new_indices(B)
        length, row = <int64_t*>data(lengths), <int64_t*>data(order)
        for b in range(B):
            length[b], row[b] = T, b
    else:
        order = by_falling_length(T, B, <const int64_t*>data(lengths))
        length, row = <int64_t*>data(lengths), <int64_t*>data(order)
    if B and length[row[0]] == length[row[B - 1]]:
        ends = [(B * part + parts - 1) // parts for part in range(parts + 1)]
        return [new_shard(T, order[ends[part] : ends[part + 1]], lengths, place) for part in range(parts)]
    return [new_shard(T, order[part::parts], lengths, place) for part in range(parts)]


cdef cnp.ndarray by_falling_length(int64_t T, int64_t B, const int64_t* length):
    """The batch rows (B,) by falling length; those of one length stay in their order."""
    order, place = new_indices(B), new_indices(T + 2)
    sort_by_falling_length(T, B, length, <int64_t*>data(place), <int64_t*>data(order))
    return order


cdef void sort_by_falling_length(
        int64_t T, int64_t B, const int64_t* length, int64_t* place, int64_t* order) noexcept nogil:
    """The same into order (B,). place (T+2,): scratch, [T - l] is where the next sequence of length l goes."""
    cdef int64_t b, t
    memset(place, 0, (T + 2) * sizeof(int64_t))
    for b in range(B):
        place[T - length[b] + 1] += 1
    for t in range(T):
        place[t + 1] += place[t]
    for b in range(B):
        order[place[T - length[b]]] = b
        place[T - length[b]] += 1


cdef PackedBatch new_shard(int64_t T, sorted_indices, lengths, place):
    """The shard of some batch rows, which are sorted by falling length."""
    cdef PackedBatch shard = PackedBatch.__new__(PackedBatch)
    cdef int64_t t, active = len(sorted_indices)
    cdef int64_t* start
    shard.T, shard.n = T, active
    shard.sorted_indices = np.ascontiguousarray(sorted_indices)
    shard.lengths = lengths[shard.sorted_indices]
    shard.sorted_index, shard.length = <const int64_t*>data(shard.sorted_indices), <const int64_t*>data(shard.lengths)
    if place is not None:
        shard.place, shard.last = place, shard.lengths - 1
    if active == 0 or shard.length[active - 1] == T:
        return shard
    shard.start = new_indices(T + 1)
    start = <int64_t*>data(shard.start)
    start[0] = 0
    for t in range(T):
        while active and shard.length[active - 1] <= t:
            active -= 1
        start[t + 1] = start[t] + active
    return shard


# ---------------------------------------------------------------- the rows of an array (T, B, ...)

ctypedef fused element:
    float
    double
    int64_t
    uint8_t


cdef cnp.ndarray set_rows(Rows[element]* rows, array, PackedBatch shard, bint backwards):
    """Set where row (s, i) of a shard lies; of None, nowhere. Returns the offsets, which the caller keeps alive."""
    rows.base = <element*>data(array)
    rows.place = NULL
    rows.last = NULL
    if array is None:
        return None
    if shard.place is not None and (element is float or element is double):
        return set_packed_rows(rows, array, shard, backwards)
    offsets = new_indices(shard.n)
    cdef int64_t *offset = <int64_t*>data(offsets)
    cdef int64_t i, per_step = cnp.PyArray_STRIDE(array, 0) // <int64_t>sizeof(element)
    cdef int64_t per_row = cnp.PyArray_STRIDE(array, 1) // <int64_t>sizeof(element)
    require(cnp.PyArray_NDIM(array) >= 2 and cnp.PyArray_ITEMSIZE(array) == <int>sizeof(element))
    for i in range(shard.n):
        require(0 <= shard.sorted_index[i] < cnp.PyArray_DIM(array, 1) and 0 <= shard.length[i] <= cnp.PyArray_DIM(array, 0))
        offset[i] = shard.sorted_index[i] * per_row + ((shard.length[i] - 1) * per_step if backwards else 0)
    rows.offset = offset
    rows.step = -per_step if backwards else per_step
    return offsets


cdef cnp.ndarray set_packed_rows(Rows[element]* rows, array, PackedBatch shard, bint backwards):
    """The same for an array (N, ...) that is packed as the caller's are."""
    offsets = new_indices(shard.n)
    cdef int64_t *offset = <int64_t*>data(offsets)
    cdef int64_t i, t
    rows.offset, rows.step = offset, cnp.PyArray_STRIDE(array, 0) // <int64_t>sizeof(element)
    rows.place = <const int64_t*>data(shard.place)
    rows.last = <const int64_t*>data(shard.last) if backwards else NULL
    require(cnp.PyArray_NDIM(array) == 2 and cnp.PyArray_ITEMSIZE(array) == <int>sizeof(element))
    for i in range(shard.n):
        t = shard.length[i] - 1
        require(0 <= t < shard.T and rows.place[t] + shard.sorted_index[i] < cnp.PyArray_DIM(array, 0))
        offset[i] = shard.sorted_index[i] * rows.step
    return offsets


cdef cnp.ndarray set_window(Rows[element]* rows, window, int64_t n):
    """The same in a window: (array (M, n, ...) in the order of the shard, the step that it begins with)."""
    array, begin = window
    offsets = new_indices(n)
    cdef int64_t *offset = <int64_t*>data(offsets)
    cdef int64_t i, first = begin, per_row = cnp.PyArray_STRIDE(array, 1) // <int64_t>sizeof(element)
    rows.base, rows.offset = <element*>data(array), offset
    rows.place = NULL
    rows.last = NULL
    rows.step = cnp.PyArray_STRIDE(array, 0) // <int64_t>sizeof(element)
    for i in range(n):
        offset[i] = i * per_row - first * rows.step
    return offsets

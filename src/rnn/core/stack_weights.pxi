# The weights of a stack of layers and directions, as the kernels take them. Included by _core.pyx.

cdef class StackWeights:
    """Weights and options of all layers and directions, [layer * D + direction]: where they lie or, packed once, in
    panels for the kernel set in use, which any number of calls and streams may read at the same time.

    stored: None, not packed; "bfloat16" or "int8", packed in words; their own dtype, packed as they are.
    weights, options: as for a LayerPass, of each layer and direction.
    """

    cdef void* sequences  # of Sequence
    cdef void* memory     # of the panels; null if they are not packed
    cdef const KernelTable* packed_for
    cdef int cell
    cdef readonly int count  # of layers and directions
    cdef bint is_double
    cdef readonly int64_t size  # numbers in all arrays
    cdef readonly object dtype
    cdef tuple alive

    def __init__(self, int cell, bint is_double, stored, list weights, dict options):
        cdef Storage storage = {"bfloat16": STORED_BFLOAT16, "int8": STORED_INT8}.get(stored, STORED_FULL)
        cdef int k
        self.cell, self.is_double, self.count, self.alive = cell, is_double, len(weights), (weights, options)
        self.dtype = np.dtype(np.float64 if is_double else np.float32)
        self.size = sum([array.size for arrays in weights for array in arrays if array is not None])
        self.sequences = calloc(self.count, self.sequence_size())
        if self.sequences == NULL:
            raise MemoryError("no memory for a layer")
        for k in range(self.count):
            if is_double:
                set_cell(<Sequence[double]*>self.sequences + k, kernels.f64.cell(cell), weights[k], options)
            else:
                set_cell(<Sequence[float]*>self.sequences + k, kernels.f32.cell(cell), weights[k], options)
                (<Sequence[float]*>self.sequences)[k].storage = storage
        if stored is not None:
            self.pack()

    def __dealloc__(self):
        free(self.sequences)
        pool_free(self.memory)

    cdef int pack(self) except -1:
        self.packed_for = kernels
        if self.is_double:
            self.memory = pack_layers(<Sequence[double]*>self.sequences, self.count, kernels.f64.cell(self.cell))
        else:
            self.memory = pack_layers(<Sequence[float]*>self.sequences, self.count, kernels.f32.cell(self.cell))
        if self.memory == NULL:
            raise MemoryError("no memory for the packed weights")
        return 0

    cdef const KernelTable* table(self) noexcept:
        """The kernels that read them: those that they are packed for."""
        return kernels if self.packed_for == NULL else self.packed_for

    cdef size_t sequence_size(self) noexcept:
        return sizeof(Sequence[double]) if self.is_double else sizeof(Sequence[float])

    cdef void copy_to(self, void* sequences, int first, int count) noexcept:
        memcpy(sequences, <char*>self.sequences + first * self.sequence_size(), count * self.sequence_size())

    cdef bint can_share(self) noexcept:
        """Whether a team may share the steps of a stream."""
        if self.is_double:
            return (<Sequence[double]*>self.sequences).can_share()
        return (<Sequence[float]*>self.sequences).can_share()


cdef void* pack_layers(Sequence[real]* stack, int count, const CellKernels[real]* cell) noexcept nogil:
    """The memory that the panels lie in; null if there is none."""
    cdef Arena[real] arena
    cdef Section section
    cdef int k, again
    section.begin()
    arena.block = NULL
    for again in range(2):  # counts, then packs
        arena.used = 0
        for k in range(count):
            stack[k].is_packed = stack[k].packs_input = stack[k].packs_state = True
            cell.on(stack[k].storage).pack(stack[k], arena)
        if not again and allocate(&arena):
            return NULL
    return arena.block

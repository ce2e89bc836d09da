# Memory of large arrays and of scratch: what one pass frees, the next one takes. Included by _core.pyx.
#
# New memory is dear: the system clears each page of 4 KiB when it is first written to, which takes 1 to 2 µs. Whether
# malloc gives blocks back to the system depends on what a process did before. So freed blocks are held in a pool here,
# for a request that they fit; the block of an array is freed with the last view of it. The pool
#   - holds at most MOST_POOLED bytes in POOLED_BLOCKS blocks: the block freed first is the first to be given back;
#   - raises the peak of memory by an eighth at most: when a block has to be made, so many are given back that those in
#     use and those in the pool are together no more than 9/8 of what was in use at once, now or ever before. (Not all
#     that a pass uses is in use at once: the scratch of its forward is freed before that of its backward is taken.)
# No call of Python is made while the lock is held, so it does not matter when the garbage collector frees an array.

cdef enum:
    LEAST_POOLED = 64 << 10  # smaller blocks are malloc's
    MOST_POOLED = 256 << 20
    POOLED_BLOCKS = 256
    MOST_AXES = 32
    LINE = 64  # before the memory lies a cache line with the size of the block
    HUGE_PAGE = 2 << 20
    NUMPY_DOMAIN = 389047  # of tracemalloc: np.lib.tracemalloc_domain

cdef extern from * nogil:
    """
    /* Before Python 3.12 its header does not tell C++ that these are C. */
    namespace tracemalloc {
    extern "C" int PyTraceMalloc_Track(unsigned int domain, uintptr_t start, size_t size);
    extern "C" int PyTraceMalloc_Untrack(unsigned int domain, uintptr_t start);
    }
    """
    int track "tracemalloc::PyTraceMalloc_Track"(unsigned int domain, size_t start, size_t size)
    int untrack "tracemalloc::PyTraceMalloc_Untrack"(unsigned int domain, size_t start)


cdef struct BlockPool:
    char* blocks[POOLED_BLOCKS]  # the one freed first is the first
    int count
    int64_t bytes  # of all these
    int64_t used   # of the blocks of this size that are in use
    int64_t most   # that ever were in use at once

cdef BlockPool pooled
cdef Mutex pool_mutex
memset(&pooled, 0, sizeof(pooled))


cdef void lock_pool() noexcept nogil:
    pool_mutex.lock()


cdef void unlock_pool() noexcept nogil:
    pool_mutex.unlock()

at_fork(lock_pool, unlock_pool)  # a child forked while another thread holds the lock would wait for it for ever


cdef inline int64_t* size_of(char* block) noexcept nogil:
    """The size of the whole block, the line before the memory included."""
    return <int64_t*>block


cdef char* taken_from_pool(int i) noexcept nogil:
    """The i-th block, taken out of the pool."""
    require(0 <= i < pooled.count <= POOLED_BLOCKS)
    cdef char* block = pooled.blocks[i]
    pooled.count -= 1
    pooled.bytes -= size_of(block)[0]
    memmove(&pooled.blocks[i], &pooled.blocks[i + 1], (pooled.count - i) * sizeof(char*))
    return block


cdef void give_back(int64_t bytes, int count) noexcept nogil:
    """Give blocks back to the system, until the pool holds no more than so many bytes and blocks."""
    while pooled.count and (pooled.bytes > bytes or pooled.count > count):
        free_aligned(taken_from_pool(0))


cdef char* fitting(int64_t size) noexcept nogil:
    """The smallest block in the pool that has this size, or up to a quarter more; NULL if there is none."""
    cdef int i, best = -1
    cdef int64_t each, least = size + size // 4 + 1
    for i in range(pooled.count - 1, -1, -1):
        each = size_of(pooled.blocks[i])[0]
        if size <= each < least:
            best, least = i, each
    return taken_from_pool(best) if best >= 0 else NULL


cdef char* new_block(int64_t size, int64_t room) noexcept nogil:
    """A new block of `room` bytes, of which `size` are needed now; NULL if there is no memory."""
    cdef bint is_huge = size >= 2 * HUGE_PAGE
    cdef void* block = allocate_aligned(HUGE_PAGE if is_huge else LINE, room)
    if block == NULL:
        return NULL
    if is_huge:
        advise_huge_pages(block, size // HUGE_PAGE * HUGE_PAGE)
    size_of(<char*>block)[0] = room
    return <char*>block


cdef char* pooled_or_new_block(int64_t size) noexcept nogil:
    """A block of the pool, or else a new one; NULL if there is no memory. The caller holds the lock."""
    cdef int64_t room, used, step = HUGE_PAGE >> 8
    cdef char* block = fitting(size)
    if block == NULL:
        while size >= 16 * step:
            step *= 2
        room = (size + step - 1) // step * step  # an eighth more at most, for batches of changing length
        used = pooled.used + room
        give_back(max(pooled.most, used) * 9 // 8 - used, POOLED_BLOCKS)
        block = new_block(size, room)
    if block == NULL:
        give_back(0, 0)
        block = new_block(size, size)
    if block != NULL:
        pooled.used += size_of(block)[0]
        pooled.most = max(pooled.most, pooled.used)
    return block


cdef void* pool_alloc(int64_t bytes) noexcept nogil:
    """Memory for so many bytes that starts on a cache line, for `pool_free`; NULL if there is none."""
    cdef int64_t size = bytes + LINE
    cdef char* block
    if size < LEAST_POOLED:
        block = new_block(size, size)
    else:
        lock_pool()
        block = pooled_or_new_block(size)
        unlock_pool()
    return NULL if block == NULL else block + LINE


cdef void pool_free(void* memory) noexcept nogil:
    """Free what `pool_alloc` has returned; NULL is ignored."""
    if memory == NULL:
        return
    cdef char* block = <char*>memory - LINE
    cdef int64_t size = size_of(block)[0]
    if size < LEAST_POOLED:
        free_aligned(block)
        return
    lock_pool()
    require(0 < size <= pooled.used)
    pooled.used -= size
    if size > MOST_POOLED:
        free_aligned(block)
    else:
        give_back(MOST_POOLED - size, POOLED_BLOCKS - 1)
        pooled.blocks[pooled.count] = block
        pooled.count += 1
        pooled.bytes += size
    unlock_pool()


def memory_kept():
    """(bytes in the pool, bytes in use, the most that ever were in use at once), of blocks of 64 KiB or more"""
    return pooled.bytes, pooled.used, pooled.most


cdef class Memory:
    """The memory of the elements of one array, freed when nothing refers to the array any more. tracemalloc sees what
    is in use, not what is in the pool."""

    cdef void* start
    cdef Py_ssize_t size

    def __cinit__(self, Py_ssize_t size):
        self.size, self.start = size, pool_alloc(size)
        if self.start == NULL:
            raise MemoryError(f"no memory for an array of {size} bytes")
        track(NUMPY_DOMAIN, <size_t>self.start, size)

    def __dealloc__(self):
        if self.start != NULL:
            untrack(NUMPY_DOMAIN, <size_t>self.start)
            pool_free(self.start)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.start, self.size, 0, flags)


def new_array(tuple shape, dtype, bint zero=False):
    """np.empty or np.zeros whose elements start on a cache line, so that no vector of them lies across two. Large ones
    are in memory that is used again. The dtype is one of numbers, in the byte order of this machine."""
    cdef cnp.npy_intp dims[MOST_AXES]
    cdef cnp.npy_intp size, n
    cdef cnp.dtype descr = dtype if isinstance(dtype, cnp.dtype) else np.dtype(dtype)
    cdef int axis, rank = len(shape)
    cdef char* start
    if rank > MOST_AXES:
        raise ValueError(f"expected at most {MOST_AXES} axes, got {rank}")
    size = descr.itemsize
    for axis in range(rank):
        n = dims[axis] = shape[axis]
        if n < 0 or (n and size > INT64_MAX // 2 // n):
            raise MemoryError(f"no memory for an array of shape {shape}")
        size *= n
    if size >= LEAST_POOLED:
        owner = Memory(size)
        start = <char*>(<Memory>owner).start
        if zero:
            memset(start, 0, size)
    else:
        size += LINE
        owner = cnp.PyArray_ZEROS(1, &size, cnp.NPY_UINT8, 0) if zero else cnp.PyArray_EMPTY(1, &size, cnp.NPY_UINT8, 0)
        start = <char*>cnp.PyArray_DATA(owner)
        start += -<size_t>start % LINE
    array = cnp.PyArray_SimpleNewFromData(rank, dims, descr.type_num, start)
    cnp.set_array_base(array, owner)
    return array


cdef int allocate(Arena[real]* arena) noexcept nogil:
    """Turn an arena that has counted into one that hands out memory, for `pool_free`; -1 if there is none."""
    arena.block = <real*>pool_alloc((arena.used + 16) * sizeof(real))
    arena.used = 0
    return -1 if arena.block == NULL else 0

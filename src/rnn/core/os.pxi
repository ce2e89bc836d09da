# What is the operating system's: kernels/runtime/os.hpp. Included by _core.pyx.

cdef extern from "runtime/os.hpp" namespace "fastrnn" nogil:
    cppclass Mutex:
        Mutex() noexcept
        void lock()
        void unlock()
    void at_fork(void (*before)() noexcept, void (*after)() noexcept)  # after: in both processes
    void* allocate_aligned(size_t alignment, size_t size)
    void free_aligned(void* block)
    void advise_huge_pages(void* start, size_t size)

// All that the operating system and the processor give beside arithmetic: clocks, locks, memory, the mode of floats.
// To run elsewhere takes another version of this file, and of nothing else.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

namespace fastrnn {

// ---------------------------------------------------------------- clocks

inline int64_t clock_nanoseconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}
inline int64_t nanoseconds() { return clock_nanoseconds(CLOCK_MONOTONIC); }

// The time that the calling thread has had a core
inline int64_t nanoseconds_on_core() { return clock_nanoseconds(CLOCK_THREAD_CPUTIME_ID); }

// ---------------------------------------------------------------- threads

// Lets another thread of this core run
inline void yield() { sched_yield(); }

inline void sleep_for(int64_t nanoseconds) {
  const timespec nap = {time_t(nanoseconds / 1000000000), long(nanoseconds % 1000000000)};
  nanosleep(&nap, nullptr);
}

// Tells the processor that the thread spins
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Mutex {
  friend class Condition;
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;

 public:
  void lock() { pthread_mutex_lock(&mutex_); }
  void unlock() { pthread_mutex_unlock(&mutex_); }
};

// Waiters hold the mutex
class Condition {
  pthread_cond_t condition_ = PTHREAD_COND_INITIALIZER;

 public:
  void notify_all() { pthread_cond_broadcast(&condition_); }
  void wait(Mutex& mutex) { pthread_cond_wait(&condition_, &mutex.mutex_); }

  // Returns when done() is true, or after about so many nanoseconds
  template <class Done> void wait_for(Mutex& mutex, int64_t nanoseconds, Done done) {
    const int64_t until = clock_nanoseconds(CLOCK_REALTIME) + nanoseconds;
    const timespec t = {time_t(until / 1000000000), long(until % 1000000000)};
    while (!done() && pthread_cond_timedwait(&condition_, &mutex.mutex_, &t) == 0) {}
  }
};

// Has `before` called before each fork, and `after` in both processes after it
inline void at_fork(void (*before)(), void (*after)()) { pthread_atfork(before, after, after); }

// ---------------------------------------------------------------- memory

// Memory whose address is a multiple of `alignment`, for `free_aligned`; null if there is none
inline void* allocate_aligned(size_t alignment, size_t size) {
  void* block;
  return posix_memalign(&block, alignment, size) ? nullptr : block;
}
inline void free_aligned(void* block) { free(block); }

// Asks for large pages, of which the system has fewer to look after
inline void advise_huge_pages([[maybe_unused]] void* start, [[maybe_unused]] size_t size) {
#ifdef MADV_HUGEPAGE
  madvise(start, size, MADV_HUGEPAGE);
#endif
}

// ---------------------------------------------------------------- the mode of floats: whether denormals count as zero

#if defined(__x86_64__)
using FloatMode = unsigned;
constexpr FloatMode kFlushDenormals = 0x8040;  // FTZ, of results, and DAZ, of operands
inline FloatMode float_mode() { return __builtin_ia32_stmxcsr(); }
inline void set_float_mode(FloatMode mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
using FloatMode = uint64_t;
constexpr FloatMode kFlushDenormals = 1 << 24;  // FZ, of both
inline FloatMode float_mode() {
  FloatMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
#else
using FloatMode = int;
constexpr FloatMode kFlushDenormals = 0;
inline FloatMode float_mode() { return 0; }
inline void set_float_mode(FloatMode) {}
#endif

}  // namespace fastrnn

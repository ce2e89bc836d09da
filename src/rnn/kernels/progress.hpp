// How far a walk has come, told by the thread that walks to one that follows it, a layer above or below.
#pragma once

#include <cstdint>
#include <sched.h>
#include <time.h>

namespace fastrnn {

struct Progress {
  int64_t steps;  // done so far
};

inline void publish(Progress* p, int64_t steps) {
  if (p) __atomic_store_n(&p->steps, steps, __ATOMIC_RELEASE);
}

inline int64_t nanoseconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// Returns when done() is true, and for how many nanoseconds it waited, or 0 if that was not long.  Without sleep at
// first: a step takes microseconds.
template <class Done> int64_t wait(Done done) {
  for (int tries = 0; tries < 1000; ++tries) {
    if (done()) return 0;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  const int64_t since = nanoseconds();
  while (!done()) sched_yield();
  return nanoseconds() - since;
}

// Returns when so many steps are done
inline void wait_for(const Progress* p, int64_t steps) {
  if (p) wait([&] { return __atomic_load_n(&p->steps, __ATOMIC_ACQUIRE) >= steps; });
}

}  // namespace fastrnn

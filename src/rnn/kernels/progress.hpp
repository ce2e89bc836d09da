// How far a walk has come, told by the thread that walks to one that follows it, a layer above or below.
#pragma once

#include <cstdint>
#include <sched.h>

namespace fastrnn {

struct Progress {
  int64_t steps;  // done so far
};

inline void publish(Progress* p, int64_t steps) {
  if (p) __atomic_store_n(&p->steps, steps, __ATOMIC_RELEASE);
}

// Returns when so many steps are done.  Waits without sleep at first: a step takes microseconds.
inline void wait_for(const Progress* p, int64_t steps) {
  if (!p) return;
  for (int tries = 0; __atomic_load_n(&p->steps, __ATOMIC_ACQUIRE) < steps; ++tries) {
    if (tries > 1000) sched_yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#endif
  }
}

}  // namespace fastrnn

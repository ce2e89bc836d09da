// How far a layer pass has come, told by its thread to that of the layer above or below, which follows it; and how
// threads wait for each other.
#pragma once

#include "runtime/os.hpp"

namespace fastrnn {

struct Progress {
  int64_t steps;  // done so far
};

inline void publish(Progress* p, int64_t steps) {
  if (p) __atomic_store_n(&p->steps, steps, __ATOMIC_RELEASE);
}

// A flag that one thread at a time may hold
inline bool take_flag(int* flag) { return __atomic_exchange_n(flag, 1, __ATOMIC_ACQUIRE) == 0; }
inline void drop_flag(int* flag) { __atomic_store_n(flag, 0, __ATOMIC_RELEASE); }

// Waits until done() is true; returns for how many nanoseconds, or 0 if it was not long.  It spins before it lets other
// threads run: a step takes microseconds.
template <class Done> int64_t wait(Done done) {
  for (int tries = 0; tries < 1000; ++tries) {
    if (done()) return 0;
    pause();
  }
  const int64_t since = nanoseconds();
  while (!done()) yield();
  return nanoseconds() - since;
}

// The same for a short time only, before the caller goes to sleep: waking up a thread that sleeps takes some 40
// microseconds.  Returns whether done() is true; if not, the time is over, or others want the core.
template <class Done> bool wait_briefly(Done done) {
  constexpr int64_t kMost = 100000, kElsewhere = 20000;  // nanoseconds
  const int64_t since = nanoseconds();
  for (int64_t now = since, before = since; now - since < kMost && now - before < kElsewhere; now = nanoseconds()) {
    for (int tries = 0; tries < 50; ++tries) {
      if (done()) return true;
      pause();
    }
    before = nanoseconds();
    yield();
  }
  return done();
}

// How many threads have done something
struct PendingCount {
  int64_t n;
};

inline void add(PendingCount* p, int64_t n) { __atomic_fetch_add(&p->n, n, __ATOMIC_ACQ_REL); }

// Waits until at least n have; returns how many have
inline int64_t wait_for(const PendingCount* p, int64_t n) {
  int64_t there;
  wait([&] { return (there = __atomic_load_n(&p->n, __ATOMIC_ACQUIRE)) >= n; });
  return there;
}

// Waits until so many steps are done
inline void wait_for(const Progress* p, int64_t steps) {
  if (p) wait([&] { return __atomic_load_n(&p->steps, __ATOMIC_ACQUIRE) >= steps; });
}

}  // namespace fastrnn

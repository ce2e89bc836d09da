// A walk that several threads make together: each takes some of the units of every step.
//
// The leader, whose walk it is, gives orders: `together` has one step, or the like, done by all who are there.  Helpers
// come when they get to run (`help`), and each order is for those who had come before it: the leader waits for nobody
// who is still on the way, and makes the whole walk alone if nobody comes.  An order goes like this:
//
//   leader      call: number + 1, taking part: all who have come       does share 0       meets      next order
//   helper i    ... sees the number change                             does share i       meets      waits for the next
//
// `sweep` takes a share of the panels; where a step sweeps twice, all meet between.  What is not in a sweep is done by
// every thread.  Shares are of panels, which do not depend on each other: the results are the same bits for any number.
//
// A helper whose core is needed elsewhere keeps the leader waiting.  When that adds up to kPatience, and to more than what
// was done meanwhile pays for, the leader sends its helpers away, and crews of this process rest for many times as long as
// it waited: each time for twice as long as before, until they get on again.
#pragma once

#include "progress.hpp"

namespace fastrnn {

struct Share;

// Padding keeps what different threads write on cache lines of their own
struct Crew {
  int64_t call;  // number of the order << 16 | how many helpers take part in it << 8 | how many have come, or kDismissed
  char apart[120];
  int64_t arrived;  // at meetings, so far
  char apart_too[120];
  void (*work)(const void* job, Share*);  // the order
  const void* job;
  int64_t arrived_before;
  int64_t since, waited;  // time on core of the leader when it was last counted, 0 before the first order; waits since
  int places;             // how many helpers may come
};

struct Share {
  Crew* crew;
  int index, count;
  int64_t meeting;      // `arrived` when all have come to the last meeting
  int64_t waited = 0;   // nanoseconds, at meetings
  bool swept = false;   // see `sweep`
  void take(long n, long* begin, long* end) const { *begin = n * index / count, *end = n * (index + 1) / count; }
};

// The share of n panels; all of them if there is none
inline void take(const Share* share, long n, long* begin, long* end) {
  *begin = 0, *end = n;
  if (share) share->take(n, begin, end);
}

constexpr int64_t kPatience = 300000;  // nanoseconds
constexpr int kDismissed = 255;        // in place of how many have come, of which there are fewer
constexpr int64_t kNumber = 1 << 16, kTaking = 1 << 8;

inline int have_come(int64_t call) { return int(call & 255); }
inline int taking_part(int64_t call) { return int(call >> 8 & 255); }

// Time that the calling thread had a core
inline int64_t time_on_core() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// Whether crews are worth it at present, of all crews of this process.  What it holds is a guess: leaders may overwrite
// each other's.
class Rest {
  static constexpr int64_t kLeast = 128, kMost = 1024;
  static inline int64_t until = 0, times = kLeast, worked = 0, waited = 0;  // nanoseconds of leaders
  static void set(int64_t* p, int64_t value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }
  static int64_t get(const int64_t* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }

 public:
  static bool now() { return nanoseconds() < get(&until); }

  // Counts what a leader worked and waited for; returns whether it has to do without helpers
  static bool after(int64_t work, int64_t wait) {
    work += get(&worked), wait += get(&waited);
    const bool is_long = wait >= kPatience, pays = work > 4 * wait;
    set(&worked, is_long ? 0 : work), set(&waited, is_long ? 0 : wait);
    if (!is_long) return false;
    if (!pays) set(&until, nanoseconds() + wait * get(&times));
    set(&times, pays ? kLeast : get(&times) < kMost ? 2 * get(&times) : kMost);
    return !pays;
  }
};

// Returns when all who take part have come
inline void meet(Share* share) {
  Crew* crew = share->crew;
  share->meeting += share->count;
  __atomic_fetch_add(&crew->arrived, 1, __ATOMIC_ACQ_REL);
  share->waited += wait([&] { return __atomic_load_n(&crew->arrived, __ATOMIC_ACQUIRE) >= share->meeting; });
}

// Announces the next order, or, with kDismissed, that there are no more: for how many helpers it is
inline int announce(Crew* crew, bool dismissed) {
  int64_t call = __atomic_load_n(&crew->call, __ATOMIC_RELAXED), next;
  do next = (call / kNumber + 1) * kNumber + (dismissed ? kDismissed : have_come(call) * (kTaking + 1));
  while (!__atomic_compare_exchange_n(&crew->call, &call, next, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
  return taking_part(next);
}

// Counts the leader's time; returns whether it has to do without helpers
inline bool count(Crew* crew) {
  const int64_t now = time_on_core(), waited = crew->waited, worked = now - crew->since - waited;
  crew->since = now, crew->waited = 0;
  return Rest::after(worked > 0 ? worked : 0, waited);
}

// The walk is done: nobody comes from here on, and who waits for an order leaves
inline void dismiss(Crew* crew) {
  const int64_t call = __atomic_load_n(&crew->call, __ATOMIC_RELAXED);
  if (have_come(call) == kDismissed) return;
  if (crew->since) count(crew);
  announce(crew, true);
}

// Has work(job, share) done by all who have come, or by the caller alone, with a null share
template <class Job> void together(Crew* crew, void (*work)(const Job*, Share*), const Job& job) {
  const int64_t call = crew ? __atomic_load_n(&crew->call, __ATOMIC_RELAXED) : 0;
  if (have_come(call) == 0 || have_come(call) == kDismissed) return work(&job, nullptr);
  struct Order {
    void (*work)(const Job*, Share*);
    const Job* job;
  } const order{work, &job};
  crew->work = [](const void* p, Share* share) {
    const Order* order = static_cast<const Order*>(p);
    order->work(order->job, share);
  };
  crew->job = &order;
  if (!crew->since) crew->since = time_on_core();
  crew->arrived_before = __atomic_load_n(&crew->arrived, __ATOMIC_RELAXED);
  Share share{crew, 0, 1 + announce(crew, false), crew->arrived_before};
  work(&job, &share);
  meet(&share);
  crew->waited += share.waited;
  if (crew->waited >= kPatience && count(crew)) announce(crew, true);
}

// A helper's part, from coming to leaving
inline void help(Crew* crew) {
  int64_t call = __atomic_load_n(&crew->call, __ATOMIC_RELAXED);
  do {
    if (have_come(call) >= crew->places) return;  // so it is when they were dismissed
  } while (!__atomic_compare_exchange_n(&crew->call, &call, call + 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  const int index = have_come(call) + 1;
  for (int64_t number = call / kNumber;; number = call / kNumber) {
    wait([&] { return (call = __atomic_load_n(&crew->call, __ATOMIC_ACQUIRE)) / kNumber != number; });
    if (index > taking_part(call)) return;
    Share share{crew, index, 1 + taking_part(call), crew->arrived_before};
    crew->work(crew->job, &share);
    meet(&share);
  }
}

}  // namespace fastrnn

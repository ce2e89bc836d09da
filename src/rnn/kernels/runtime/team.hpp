// A team: threads that share every step of one layer pass, or of a stream, each with some of the panels.
//
// The master, whose pass it is, gives orders: `run_shared` has one step, or the products of many steps, done by all
// threads of the team.  Workers join when they get to run (`serve`), and each order is for those that had joined before
// it: the master never waits for one that has not come yet, and makes the whole pass alone if none comes.  An order
// goes like this:
//
//   master      call: number + 1, taking part: all who have joined     does share 0       barrier    next order
//   worker i    ... sees the number change                             does share i       barrier    waits for the next
//
// `for_each_tile` takes a share of the panels; if a step calls it twice, there is a barrier between the two.  What is
// done outside of it is done by every thread.  Panels do not depend on each other, so the results are the same bits for
// any number of workers.
//
// A worker whose core is needed elsewhere keeps the master waiting.  When this adds up to kPatience, and to more than
// the work done meanwhile pays for, the master sends its workers away, and the teams of this process back off for many
// times as long as it waited: each time for twice as long as before, until teams pay again.
#pragma once

#include "index.hpp"
#include "runtime/progress.hpp"

namespace fastrnn {

struct WorkShare;

// Padding keeps what different threads write on cache lines of their own
struct Team {
  // number of the order << 16 | how many workers take part in it << 8 | how many have joined, or kShutDown
  int64_t call;
  char apart[120];
  int64_t arrived;  // how often a thread has come to a barrier so far
  char apart_too[120];
  void (*work)(const void* job, WorkShare*);  // the order
  const void* job;
  int64_t arrived_before;
  int64_t since, waited;  // the master's time on a core at the last count, 0 before the first order; its waits since
  int places;             // how many workers may join
};

struct WorkShare {
  Team* team;
  int index, count;
  int64_t meeting;      // what `arrived` is when all have come to the last barrier
  int64_t waited = 0;   // nanoseconds, at barriers
  bool swept = false;   // see `for_each_tile`
  void take(Index n, Index* begin, Index* end) const { *begin = n * index / count, *end = n * (index + 1) / count; }
};

// The range of a share of n panels; all of them if `share` is null
inline void take(const WorkShare* share, Index n, Index* begin, Index* end) {
  *begin = 0, *end = n;
  if (share) share->take(n, begin, end);
}

constexpr int64_t kPatience = 300000;  // nanoseconds
constexpr int kShutDown = 255;        // in place of the number that have joined, which is smaller
constexpr int64_t kNumber = 1 << 16, kTaking = 1 << 8;

inline int joined(int64_t call) { return int(call & 255); }
inline int participants(int64_t call) { return int(call >> 8 & 255); }

// Whether teams are worth it at present, for all teams of this process.  Its numbers are estimates: masters may
// overwrite each other's.
class Backoff {
  static constexpr int64_t kLeast = 128, kMost = 1024;
  static inline int64_t until = 0, times = kLeast, worked = 0, waited = 0;  // nanoseconds of masters
  static void set(int64_t* p, int64_t value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }
  static int64_t get(const int64_t* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }

 public:
  static bool now() { return nanoseconds() < get(&until); }

  // Counts what a master worked and waited for; returns whether it has to do without workers
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

// Returns when all threads that take part in the order have come
inline void barrier(WorkShare* share) {
  Team* team = share->team;
  share->meeting += share->count;
  __atomic_fetch_add(&team->arrived, 1, __ATOMIC_ACQ_REL);
  share->waited += wait([&] { return __atomic_load_n(&team->arrived, __ATOMIC_ACQUIRE) >= share->meeting; });
}

// Announces the next order, or that there are no more (kShutDown).  Returns for how many workers it is.
inline int announce(Team* team, bool dismissed) {
  int64_t call = __atomic_load_n(&team->call, __ATOMIC_RELAXED), next;
  do next = (call / kNumber + 1) * kNumber + (dismissed ? kShutDown : joined(call) * (kTaking + 1));
  while (!__atomic_compare_exchange_n(&team->call, &call, next, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
  return participants(next);
}

// Counts the master's time; returns whether it has to do without workers
inline bool count(Team* team) {
  const int64_t now = nanoseconds_on_core(), waited = team->waited, worked = now - team->since - waited;
  team->since = now, team->waited = 0;
  return Backoff::after(worked > 0 ? worked : 0, waited);
}

// Ends the team when the pass is done: no worker joins from here on, and those that wait for an order leave
inline void shut_down(Team* team) {
  const int64_t call = __atomic_load_n(&team->call, __ATOMIC_RELAXED);
  if (joined(call) == kShutDown) return;
  if (team->since) count(team);
  announce(team, true);
}

// Has work(job, share) done by the caller, the master, and all workers that have joined; or, if there are none, by the
// caller alone, with a null share
template <class Job> void run_shared(Team* team, void (*work)(const Job*, WorkShare*), const Job& job) {
  const int64_t call = team ? __atomic_load_n(&team->call, __ATOMIC_RELAXED) : 0;
  if (joined(call) == 0 || joined(call) == kShutDown) return work(&job, nullptr);
  struct Order {
    void (*work)(const Job*, WorkShare*);
    const Job* job;
  } const order{work, &job};
  team->work = [](const void* p, WorkShare* share) {
    const Order* order = static_cast<const Order*>(p);
    order->work(order->job, share);
  };
  team->job = &order;
  if (!team->since) team->since = nanoseconds_on_core();
  team->arrived_before = __atomic_load_n(&team->arrived, __ATOMIC_RELAXED);
  WorkShare share{team, 0, 1 + announce(team, false), team->arrived_before};
  work(&job, &share);
  barrier(&share);
  team->waited += share.waited;
  if (team->waited >= kPatience && count(team)) announce(team, true);
}

// A worker's part, from joining to leaving
inline void serve(Team* team) {
  int64_t call = __atomic_load_n(&team->call, __ATOMIC_RELAXED);
  do {
    if (joined(call) >= team->places) return;  // so it is after a shutdown
  } while (!__atomic_compare_exchange_n(&team->call, &call, call + 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  const int index = joined(call) + 1;
  for (int64_t number = call / kNumber;; number = call / kNumber) {
    wait([&] { return (call = __atomic_load_n(&team->call, __ATOMIC_ACQUIRE)) / kNumber != number; });
    if (index > participants(call)) return;
    WorkShare share{team, index, 1 + participants(call), team->arrived_before};
    team->work(team->job, &share);
    barrier(&share);
  }
}

}  // namespace fastrnn

// How the tasks of a call are shared out among threads: the part that is not Python.  See core/tasks.pxi.
#pragma once

#include "runtime/progress.hpp"

namespace fastrnn {

// The tasks of one call.  The master, and workers that come while there are tasks left, each take the next one; then
// the master closes the job and waits for the workers to leave.
class Job {
  static constexpr int64_t kClosed = int64_t(1) << 32;

  Job* outer_ = nullptr;  // the job that has a task which this job is part of
  int cancelled_ = 0;
  int64_t next_ = 0;      // the task that is taken next
  int64_t workers_ = 0;   // that have come and not left, + kClosed when no more may come
  int64_t come_ = 0;      // how many have come so far
  Mutex mutex_;
  Condition left_;

  static inline thread_local Job* current_ = nullptr;

  bool no_workers() const { return __atomic_load_n(&workers_, __ATOMIC_ACQUIRE) % kClosed == 0; }

 public:
  Job() noexcept {}

  // The job that the calling thread works for; null: none
  static Job* current() { return current_; }
  static void set_current(Job* job) { current_ = job; }

  // For the master: `begin` before any worker is asked to come, `lead` before it takes tasks itself
  void begin() { outer_ = current_; }
  void lead() { current_ = this; }

  // Tasks that have begun are left when their sections next look, others do not begin.  Returns whether this was the
  // first call.
  bool cancel() { return __atomic_exchange_n(&cancelled_, 1, __ATOMIC_ACQ_REL) == 0; }
  bool is_cancelled() const {
    for (const Job* job = this; job; job = job->outer_)
      if (__atomic_load_n(&job->cancelled_, __ATOMIC_ACQUIRE)) return true;
    return false;
  }

  // The next of n tasks; -1 if there is none left, or the job is cancelled
  int64_t take(int64_t n) {
    if (is_cancelled()) return -1;
    const int64_t i = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
    return i < n ? i : -1;
  }

  // For a worker: it comes, and takes tasks until it leaves; false: it is too late
  bool enter() {
    int64_t workers = __atomic_load_n(&workers_, __ATOMIC_RELAXED);
    do {
      if (workers >= kClosed) return false;
    } while (!__atomic_compare_exchange_n(&workers_, &workers, workers + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    __atomic_fetch_add(&come_, 1, __ATOMIC_RELEASE);
    current_ = this;
    return true;
  }
  void leave() {
    current_ = nullptr;
    if (__atomic_sub_fetch(&workers_, 1, __ATOMIC_ACQ_REL) != kClosed) return;
    mutex_.lock();
    left_.notify_all();
    mutex_.unlock();
  }
  int64_t come() const { return __atomic_load_n(&come_, __ATOMIC_ACQUIRE); }

  // For the master: no worker may come from here on
  void close() { __atomic_fetch_add(&workers_, kClosed, __ATOMIC_ACQ_REL); }

  // Waits until all workers have left, for about so many nanoseconds at most; returns whether they have
  bool all_left(int64_t patience) {
    if (wait_briefly([&] { return no_workers(); })) return true;
    mutex_.lock();
    left_.wait_for(mutex_, patience, [&] { return no_workers(); });
    mutex_.unlock();
    return no_workers();
  }

  // For the master, at the end
  void end() { current_ = outer_; }
};

// Counts pieces of work that were given to threads and not yet taken.  A thread looks out for one for a short time, and
// then sleeps until there is one.
class Tickets {
  int64_t count_ = 0, sleepers_ = 0;
  Mutex mutex_;
  Condition given_;

  bool try_take() {
    int64_t count = __atomic_load_n(&count_, __ATOMIC_SEQ_CST);
    while (count > 0)
      if (__atomic_compare_exchange_n(&count_, &count, count - 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return true;
    return false;
  }

 public:
  Tickets() noexcept {}

  void give(int64_t n) {
    __atomic_fetch_add(&count_, n, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&sleepers_, __ATOMIC_SEQ_CST) == 0) return;
    mutex_.lock();
    given_.notify_all();
    mutex_.unlock();
  }

  void take() {
    if (wait_briefly([&] { return try_take(); })) return;
    mutex_.lock();
    __atomic_fetch_add(&sleepers_, 1, __ATOMIC_SEQ_CST);
    while (!try_take()) given_.wait(mutex_);
    __atomic_fetch_sub(&sleepers_, 1, __ATOMIC_SEQ_CST);
    mutex_.unlock();
  }
};

// Waits until `count()` comes to n, for so many nanoseconds at most; returns whether it has
template <class Count> bool comes_to(int64_t n, int64_t patience, Count count) {
  const auto done = [&] { return count() >= n; };
  if (wait_briefly(done)) return true;
  for (const int64_t until = nanoseconds() + patience; nanoseconds() < until; sleep_for(100000))
    if (done()) return true;
  return done();
}

}  // namespace fastrnn

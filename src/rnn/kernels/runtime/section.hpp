// A section of a call: a stretch in which one thread computes, without Python.  While it lasts,
//
//   denormals   count as zero, when they are read and when they would be written.  States that decay and gradients that
//               vanish become such numbers, for which many processors take some hundred cycles an operation.  What the
//               caller had is restored in the end.
//   interrupts  are heard: the loops ask `left_after` at each step, and leave when it says so.
//
// Every thread that works is in a section of its own: what is computed does not depend on which thread computes it.
#pragma once

#include "runtime/tasks.hpp"

namespace fastrnn {

// Runs the handlers of signals that have come, if the caller is the thread in which Python runs them.  Returns whether
// one of them raised an error, which is set then.  Takes the GIL.
using HearSignals = bool (*)();

class Section {
  static constexpr int64_t kWork = 1 << 22;    // multiply-adds between two looks at the clock, 40 microseconds or more
  static constexpr int64_t kPause = 40000000;  // nanoseconds between two times that signals are heard

  // Of the thread, whose sections may all be short: the budget that the last one left over, and when signals are heard
  // again
  static inline thread_local int64_t left_over_ = 0, next_ = 0;

  FloatMode mode_ = 0;  // of the caller
  int64_t budget_ = 0;
  bool begun_ = false, flushes_ = false, left_ = false;

  bool look() {
    budget_ = kWork;
    if (Job::current() && Job::current()->is_cancelled()) return true;
    const int64_t now = nanoseconds();
    if (now < next_) return false;
    set_float_mode(mode_);  // for the handlers
    const bool raised = hear_signals();
    set_float_mode(mode_ | kFlushDenormals);
    next_ = nanoseconds() + kPause;
    return raised;
  }

 public:
  static inline HearSignals hear_signals = [] { return false; };

  Section() noexcept {}
  ~Section() {
    if (flushes_) set_float_mode(mode_);
    if (begun_) left_over_ = budget_;
  }
  Section(const Section&) = delete;
  Section& operator=(const Section&) = delete;

  void begin() {
    budget_ = left_over_, begun_ = true;
    mode_ = float_mode(), flushes_ = (mode_ & kFlushDenormals) != kFlushDenormals;
    if (flushes_) set_float_mode(mode_ | kFlushDenormals);  // setting it takes some ten cycles
  }

  // Whether the call is to be left.  work: how many multiply-adds were done since it was last asked
  bool left_after(int64_t work) {
    if (left_) return true;
    budget_ -= work;
    return budget_ <= 0 && (left_ = look());
  }
  bool was_left() const { return left_; }
};

}  // namespace fastrnn

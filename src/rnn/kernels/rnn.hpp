// The vanilla RNN (equations 6.1 and 6.2 of the post that this project starts from; Elman 1990)
//
//   a(t) = b_ih + b_hh + W_ih x(t) + W_hh h(t-1)         h(t) = f(a(t))
//
// tape, General only: f'(a), (H,) a row.  dgates: da, (H,) a row.
#pragma once

#include "cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T, class F, bool General> struct Rnn {
  static constexpr int G = 1, GS = 1, kShared = 1;
  static constexpr bool kPassesThrough = false, kHasC = false;
  static constexpr int kLinesOn = 1, kLinesBack = 2;  // that an item of will_go_on and of will_go_back adds
  static constexpr int L = kLanes<T>;

  static void pack_forward(Sequence<T>& q, Arena<T>& arena) { pack_products<T, Rnn>(q, arena); }

  static void forward(const Sequence<T>& q, long s) {
    sweep<T, G, 1>(q.share, 0, q.active(s), q.H, [&](const Tile<T, 1>& t) {
      const Items<T, Rnn> items(q, s, t);
      Wanted<T> wanted;
      for (int r = 0; r < t.rows; ++r) will_go_on(q, items, r, wanted);
      preactivations<T, Rnn>(q, s, t, items, wanted);
      pointwise(q, t, items);
    }, q.from_last);
  }

  template <class Items>
  static FASTRNN_INLINE void will_go_on(const Sequence<T>&, const Items& items, int r, Wanted<T>& wanted) {
    wanted.add(items.y[r]);
  }

  static FASTRNN_INLINE void pointwise(const Sequence<T>& q, const Tile<T, 1>& t, const Items<T, Rnn>& items) {
    for (int r = 0; r < t.rows; ++r)
      for (int v = 0; v < t.vectors; ++v) {
        Vec<T> slope;
        store(items.y[r] + v * L, gate<T, General, F>(q, 0, t.get(r, 0, v), &slope), t.lanes_of(v));
        if (General && q.tape) store(items.tape[r] + v * L, slope, t.lanes_of(v));
      }
  }

  static void pack_backward(Sequence<T>& q, Arena<T>& arena) { pack_state_gradient<T, Rnn>(q, arena); }

  static FASTRNN_INLINE const T* slopes_or_h(const Sequence<T>& q, long s, long b) {
    return General ? q.tape_at(s, b) : q.y.at(s, b);
  }

  static FASTRNN_INLINE void will_go_back(const Sequence<T>& q, long s, long b, long unit, Wanted<T>& wanted) {
    wanted.add(slopes_or_h(q, s, b) + unit);
    wanted.add(q.dgates_at(s, b) + unit);
  }

  // da = dh f'(a)
  static void backward(const Sequence<T>& q, long s) {
    if (s < 0) return initial_state_gradient<T, Rnn>(q);
    sweep_state_gradient<T, Rnn>(q, s, [&](const Tile<T, 1>& t) {
      for (int r = 0; r < t.rows; ++r) {
        const T* from = slopes_or_h(q, s, t.row + r) + t.unit;
        T* da = q.dgates_at(s, t.row + r) + t.unit;
        for (int v = 0; v < t.vectors; ++v) {
          const Vec<T> read = load(from + v * L, t.lanes_of(v));
          store(da + v * L, clipped(q, t.get(r, 0, v) * (General ? read : F::slope(read))), t.lanes_of(v));
        }
      }
    });
  }
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

// The vanilla RNN (equations 6.1 and 6.2 of the post that this project starts from; Elman 1990)
//
//   a(t) = b_ih + b_hh + W_ih x(t) + W_hh h(t-1)         h(t) = f(a(t))
//
// saved activations, General only: f'(a), (H,) a row.  dgates: da, (H,) a row.
#pragma once

#include "cells/cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T, class F, bool General, class P = Full<T>> struct Rnn {
  using Products = P;
  static constexpr int G = 1, GS = 1, kShared = 1;
  static constexpr int kStates = 1;
  static constexpr bool kPassesThrough = false, kIsNormed = false;
  static constexpr int kLinesForward = 1, kLinesBackward = 2;  // of an item, in the prefetch lists
  static constexpr int L = kLanes<T>;

  static void pack_forward(Sequence<T>& q, Arena<T>& arena) { pack_products<T, Rnn>(q, arena); }

  static void forward(const Sequence<T>& q, Index s) {
    for_each_tile<T, G, 1>(q.share, 0, q.active(s), q.H, [&](const Tile<T, 1>& t) {
      const TileOperands<T, Rnn> operands(q, s, t);
      PrefetchList<T> prefetch;
      for (int r = 0; r < t.rows; ++r) prefetch_forward(q, operands, r, prefetch);
      preactivations<T, Rnn>(q, s, t, operands, prefetch);
      pointwise(q, t, operands);
    }, q.reverse_panels);
  }

  template <class TileOperands>
  static FASTRNN_INLINE void prefetch_forward(const Sequence<T>&, const TileOperands& operands, int r,
                                              PrefetchList<T>& prefetch) {
    prefetch.add(operands.y[r]);
  }

  static FASTRNN_INLINE void pointwise(const Sequence<T>& q, const Tile<T, 1>& t,
                                       const TileOperands<T, Rnn>& operands) {
    for (int r = 0; r < t.rows; ++r)
      for (int v = 0; v < t.vectors; ++v) {
        Vec<T> slope;
        store(operands.y[r] + v * L, gate<T, General, F>(q, 0, t.get(r, 0, v), &slope), t.lanes_of(v));
        if (General && q.saved) store(operands.saved[r] + v * L, slope, t.lanes_of(v));
      }
  }

  static void pack_backward(Sequence<T>& q, Arena<T>& arena) { pack_state_gradient<T, Rnn>(q, arena); }

  static FASTRNN_INLINE const T* slopes_or_h(const Sequence<T>& q, Index s, Index b) {
    return General ? q.saved_at(s, b) : q.y.at(s, b);
  }

  static FASTRNN_INLINE void prefetch_backward(const Sequence<T>& q, Index s, Index b, Index unit,
                                               PrefetchList<T>& prefetch) {
    prefetch.add(slopes_or_h(q, s, b) + unit);
    prefetch.add(q.dgates_at(s, b) + unit);
  }

  // da = dh f'(a)
  static void backward(const Sequence<T>& q, Index s) {
    if (s < 0) return initial_state_gradient<T, Rnn>(q);
    const bool mixed = !General && mixes_means(q);
    for_each_state_gradient<T, Rnn>(q, s, [&](const Tile<T, 1>& t) {
      for (int r = 0; r < t.rows; ++r) {
        const T* from = slopes_or_h(q, s, t.row + r) + t.unit;
        T* da = q.dgates_at(s, t.row + r) + t.unit;
        for (int v = 0; v < t.vectors; ++v) {
          Vec<T> read = load(from + v * L, t.lanes_of(v));
          if (mixed) read = unmixed(q, s, t.row + r, t.unit + v * L, t.lanes_of(v), read);
          store(da + v * L, clipped(q, t.get(r, 0, v) * (General ? read : F::slope(read))), t.lanes_of(v));
        }
      }
    });
  }
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

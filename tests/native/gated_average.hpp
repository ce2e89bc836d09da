// A cell for tests: its step has no product of the state, and it has no W_hh.
//
//   z = sigmoid(b_z + W_z x(t))        n = tanh(b_n + W_n x(t))        h(t) = n + z (h(t-1) - n)
//
// saved activations: z n.   dgates: dz dn.
#pragma once

#include "cells/dropout.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T, class P = Full<T>> struct GatedAverage {
  using Products = P;
  static constexpr int G = 2, GS = 0, kShared = 0, kStates = 1;
  static constexpr bool kPassesThrough = true, kIsNormed = false;
  static constexpr int kLinesForward = 0, kLinesBackward = 0;
  static constexpr int L = kLanes<T>;

  static void pack_forward(Sequence<T>& q, Arena<T>& arena) { pack_products<T, GatedAverage>(q, arena); }

  static void forward(const Sequence<T>& q, Index s) {
    for_each_tile<T, G, 2>(q.share, 0, q.active(s), q.H, [&](const Tile<T, 2>& t) {
      const TileOperands<T, GatedAverage> operands(q, s, t);
      PrefetchList<T> prefetch;
      preactivations<T, GatedAverage>(q, s, t, operands, prefetch);
      for (int i = 0; i < t.items(); ++i) {
        const int lanes = t.lanes_of_item(i);
        const Vec<T> z = Sigmoid<T>::value(t.get(i, 0, 0)), n = Tanh<T>::value(t.get(i, 1, 0));
        const Vec<T> h_before = load(q.h_before(s, t.row + t.row_of(i)) + t.unit_of(i), lanes);
        store(operands.y[i], n + z * (h_before - n), lanes);
        store(operands.saved[i], z, lanes), store(operands.saved[i] + q.H, n, lanes);
      }
    }, q.reverse_panels);
  }

  static void pack_backward(Sequence<T>& q, Arena<T>& arena) { pack_state_gradient<T, GatedAverage>(q, arena); }

  static void prefetch_backward(const Sequence<T>&, Index, Index, Index, PrefetchList<T>&) {}

  //   dz = dh (h(t-1) - n) z (1 - z)        dn = dh (1 - z) (1 - n^2)        dh(t-1) gets dh z
  static void backward(const Sequence<T>& q, Index s) {
    if (s < 0) return initial_state_gradient<T, GatedAverage>(q);
    for_each_state_gradient<T, GatedAverage>(q, s, [&](const Tile<T, 1>& t) {
      for (int r = 0; r < t.rows; ++r)
        for (int v = 0; v < t.vectors; ++v) {
          const Index b = t.row + r, unit = t.unit + v * L;
          const int lanes = t.lanes_of(v);
          const T* saved = q.saved_at(s, b) + unit;
          const Vec<T> z = load(saved, lanes), n = load(saved + q.H, lanes), dh = t.get(r, 0, v);
          const Vec<T> h_before = load(q.h_before(s, b) + unit, lanes);
          T* dgates = q.dgates_at(s, b) + unit;
          store(dgates, dh * (h_before - n) * Sigmoid<T>::slope(z), lanes);
          store(dgates + q.H, dh * (T(1) - z) * Tanh<T>::slope(n), lanes);
          store(q.dh + b * q.H + unit, dh * z, lanes);
        }
    });
  }
};

// Its row of a table
template <class T> struct GatedAverageOf {
  template <class P> using With = GatedAverage<T, P>;
};
template <class T> constexpr CellKernels<T> gated_average() {
  return kernels_of<T, GatedAverageOf<T>, Int8<false>>({"gated average", "gated average", "h", "z n", ""}, false, 2, 2, 1,
                                        {B::kIH, B::kX, 0, 2, 0, 0}, {});
}
static_assert(blocks_fit(gated_average<float>()) && blocks_fit(gated_average<double>()));

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

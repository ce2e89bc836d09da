// The output layer,  out (K,) = bias (K,) + w (K, I) . x (I,):  on packed weights, one row, and on weights as they are
#pragma once

#include "products/unpacked.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

// Values in the panels
template <class T> Index affine_size(Index K, Index I) { return I * Panels<T, 1>{K}.padded(); }

template <class T> void pack_affine(Index K, Index I, const T* w, T* panels) { pack_rows<T, 1>(w, I, K, I, panels); }

template <class T> void affine(Index K, Index I, const T* x, const T* panels, const T* bias, T* out) {
  for_each_tile<T, 1, 1>(nullptr, 0, 1, K, [&](const Tile<T, 1>& t) {
    product_alone(t, I, panels, [&](Index) { return x; });
    for (int v = 0; v < t.vectors; ++v) {
      const Index k = t.unit + v * kLanes<T>;
      store(out + k, t.get(0, 0, v) + load(bias + k, t.lanes_of(v)), t.lanes_of(v));
    }
  });
}

// The same for a few rows, x (rows, I), out (rows, K), from w as it is; bias may be null
template <class T>
void affine_rows(Index rows, Index K, Index I, const T* x, const T* w, const T* bias, T* out) {
  constexpr int L = kLanes<T>;
  alignas(64) T acc[kDotRows * L];
  const T* a[kDotRows];
  for (Index k = 0; k < K; k += L) {
    const int lanes = int(K - k < L ? K - k : L);
    const Vec<T> start = bias ? load(bias + k, lanes) : Vec<T>{};
    for (Index row = 0; row < rows; row += kDotRows) {
      const int n = int(rows - row < kDotRows ? rows - row : kDotRows);
      for (int r = 0; r < n; ++r) a[r] = x + (row + r) * I, store(acc + r * L, start);
      multiply_unpacked<T>(n, lanes, a, I, w + k * I, acc, L);
      for (int r = 0; r < n; ++r) store(out + (row + r) * K + k, load<T>(acc + r * L), lanes);
    }
  }
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

// The output layer on packed weights, one row:  out (K,) = bias (K,) + w (K, I) . x (I,)
#pragma once

#include "products/product.hpp"

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

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

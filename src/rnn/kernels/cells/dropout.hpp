// Dropout of the state and zoneout, around the step of any cell.
//
//   recurrent dropout   a product sees  m h(t-1)  in place of h(t-1); m (B, P) is the same at all steps
//   zoneout             h(t) = k h(t-1) + (1 - k) h~(t), h~ what the cell computes; k is 1 or 0, in inference their
//                       mean; c(t) alike; h~(t) sees c~(t)
//
// A cell without either pays for one test in each step and, in the backward pass, one in each row.
#pragma once

#include "cells/cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

// row = k before + (1 - k) row, of n units
template <class T>
void mix(T p, const Rows<const uint8_t>& keeps, Index s, Index b, Index n, const T* before, T* row) {
  for (Index i = 0; i < n; i += kLanes<T>) {
    const int lanes = int(n - i < kLanes<T> ? n - i : kLanes<T>);
    const Vec<T> k = zoneout_keep(p, keeps, s, b, i, lanes);
    store(row + i, k * load(before + i, lanes) + (T(1) - k) * load<T>(row + i, lanes), lanes);
  }
}

template <class T, class Cell> void forward_step(const Sequence<T>& q, Index s) {
  if (!q.has_dropout()) return Cell::forward(q, s);
  const Index n = q.active(s);
  for (Index b = 0; b < n; ++b) {
    if (q.h_mask) times(q.P, q.h_before(s, b), q.h_mask + b * q.P, q.h_masked + b * q.P);
    if (q.zoneout_c > 0)  // c may be in place
      __builtin_memcpy(q.c_saved + b * q.H, q.c_before(s, b), q.H * sizeof(T));
  }
  Cell::forward(q, s);
  for (Index b = 0; b < n; ++b) {
    if (q.zoneout_h > 0) mix(q.zoneout_h, q.keeps_h, s, b, q.P, q.h_before(s, b), q.y.at(s, b));
    if (q.zoneout_c > 0) mix(q.zoneout_c, q.keeps_c, s, b, q.H, q.c_saved + b * q.H, q.c_at(s, b));
  }
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

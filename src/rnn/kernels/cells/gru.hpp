// The GRU
//
//   r = f0(b_ir + b_hr + W_ir x(t) + W_hr h(t-1))         z alike
//   reset after the product (cuDNN, torch):
//     n = f1(b_in + W_in x(t) + r (b_hn + W_hn h(t-1)))
//   reset before it (Cho et al. 2014):
//     n = f1(b_in + b_hn + W_in x(t) + W_hn (r h(t-1)))
//   h(t) = (1 - z) n + z h(t-1)
//
// f0 = sigmoid, f1 = tanh.  General: any activations, and the clip.
//
// saved activations: r z n hn (hn = b_hn + W_hn h(t-1); reset before: r h(t-1)) | General: slopes of r z n.
// dgates, gradients of the pre-activations: dr dz dhn dn (the first three go back to h(t-1); reset before: dr dz dn).
#pragma once

#include "cells/cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

// What both kinds share: one vector of units of the saved activations, loaded
template <class T, bool General> struct GruSaved {
  Vec<T> r, z, n, last, slope_r, slope_z, slope_n;

  GruSaved(const T* saved, Index H, int lanes) {
    r = load(saved, lanes), z = load(saved + H, lanes), n = load(saved + 2 * H, lanes), last = load(saved + 3 * H, lanes);
    if constexpr (General) {
      slope_r = load(saved + 4 * H, lanes), slope_z = load(saved + 5 * H, lanes), slope_n = load(saved + 6 * H, lanes);
    } else {
      slope_r = Sigmoid<T>::slope(r), slope_z = Sigmoid<T>::slope(z), slope_n = Tanh<T>::slope(n);
    }
  }
};

template <class T>
FASTRNN_INLINE void gru_prefetch_backward(const Sequence<T>& q, Index s, Index b, Index unit,
                                          PrefetchList<T>& prefetch) {
  for (int k = 0; k < 4; ++k) prefetch.add(q.saved_at(s, b) + k * q.H + unit);
  for (int k = 0; k < q.dgates_width / q.H; ++k) prefetch.add(q.dgates_at(s, b) + k * q.H + unit);
  prefetch.add(q.h_before(s, b) + unit);
}

template <class T, bool General, class P = Full<T>> struct Gru {
  using Products = P;
  static constexpr int G = 3, GS = 3, kShared = 2;
  static constexpr int kStates = 1;
  static constexpr bool kPassesThrough = true, kIsNormed = false;
  static constexpr int kLinesForward = 5, kLinesBackward = 5 + GS + G;  // with norms, dgates are so wide
  static constexpr int L = kLanes<T>;

  static void pack_forward(Sequence<T>& q, Arena<T>& arena) { pack_products<T, Gru>(q, arena); }

  static void forward(const Sequence<T>& q, Index s) {
    for_each_tile<T, G, 4>(q.share, 0, q.active(s), q.H, [&](const Tile<T, 4>& t) {
      const TileOperands<T, Gru> operands(q, s, t);
      PrefetchList<T> prefetch;
      for (int i = 0; i < t.items(); ++i) prefetch_forward(q, operands, i, prefetch);
      preactivations<T, Gru>(q, s, t, operands, prefetch);
      pointwise(q, s, t, operands);
    }, q.reverse_panels);
  }

  template <class TileOperands>
  static FASTRNN_INLINE void prefetch_forward(const Sequence<T>& q, const TileOperands& operands, int i,
                                              PrefetchList<T>& prefetch) {
    prefetch.add(operands.y[i]);
    for (int k = 0; q.saved && k < 4; ++k) prefetch.add(operands.saved[i] + k * q.H);
  }

  // The gates of all items, then the candidates of all: n waits for r, so an item by itself would wait too.
  static FASTRNN_INLINE void pointwise(const Sequence<T>& q, Index s, const Tile<T, 4>& t,
                                       const TileOperands<T, Gru>& operands) {
    const Index H = q.H;
    for (int i = 0; i < t.items(); ++i) {
      const int lanes = t.lanes_of_item(i);
      Vec<T> slope_r{}, slope_z{};
      const Vec<T> hn = t.get(i, 2, 0);
      const Vec<T> r = gate<T, General, Sigmoid<T>>(q, 0, t.get(i, 0, 0), &slope_r);
      const Vec<T> z = gate<T, General, Sigmoid<T>>(q, 0, t.get(i, 1, 0), &slope_z);
      store(t.at(i, 1, 0), z);
      store(t.at(i, 3, 0), t.get(i, 3, 0) + r * hn);
      if (!q.saved) continue;
      T* saved = operands.saved[i];
      store(saved, r, lanes), store(saved + H, z, lanes), store(saved + 3 * H, hn, lanes);
      if (General) store(saved + 4 * H, slope_r, lanes), store(saved + 5 * H, slope_z, lanes);
    }
    for (int i = 0; i < t.items(); ++i) {
      const int lanes = t.lanes_of_item(i);
      Vec<T> slope_n{};
      const Vec<T> n = gate<T, General, Tanh<T>>(q, 1, t.get(i, 3, 0), &slope_n);
      const Vec<T> h_before = load(q.h_before(s, t.row + t.row_of(i)) + t.unit_of(i), lanes);
      store(operands.y[i], n + t.get(i, 1, 0) * (h_before - n), lanes);
      if (!q.saved) continue;
      store(operands.saved[i] + 2 * H, n, lanes);
      if (General) store(operands.saved[i] + 6 * H, slope_n, lanes);
    }
  }

  static void pack_backward(Sequence<T>& q, Arena<T>& arena) { pack_state_gradient<T, Gru>(q, arena); }

  static FASTRNN_INLINE void prefetch_backward(const Sequence<T>& q, Index s, Index b, Index unit,
                                               PrefetchList<T>& prefetch) {
    gru_prefetch_backward(q, s, b, unit, prefetch);
  }

  //   dz = dh (h(t-1) - n) f0'     dn = dh (1 - z) f1'     dr = dn hn f0'     dhn = dn r     dh(t-1) gets dh z
  static void backward(const Sequence<T>& q, Index s) {
    if (s < 0) return initial_state_gradient<T, Gru>(q);
    const Index H = q.H;
    for_each_state_gradient<T, Gru>(q, s, [&](const Tile<T, 1>& t) {
      for (int row = 0; row < t.rows; ++row)
        for (int v = 0; v < t.vectors; ++v) {
          const Index b = t.row + row, unit = t.unit + v * L;
          const int lanes = t.lanes_of(v);
          const GruSaved<T, General> k(q.saved_at(s, b) + unit, H, lanes);
          const Vec<T> dh = t.get(row, 0, v), h_before = load(q.h_before(s, b) + unit, lanes);
          const Vec<T> dn = clipped(q, dh * (T(1) - k.z) * k.slope_n);
          const Vec<T> dr = clipped(q, dn * k.last * k.slope_r);
          const Vec<T> dz = clipped(q, dh * (h_before - k.n) * k.slope_z);
          const Vec<T> out[] = {dr, dz, dn * k.r, dn};
          T* dgates = q.dgates_at(s, b) + unit;
          for (int i = 0; i < 4; ++i) store(dgates + i * H, out[i], lanes);
          store(q.dh + b * H + unit, dh * k.z, lanes);
        }
    });
  }
};

template <class T, bool General, class P = Full<T>> struct GruResetBefore {
  using Products = P;
  static constexpr int G = 3, GS = 2, kShared = 2;
  static constexpr int kStates = 1;
  static constexpr bool kPassesThrough = true, kIsNormed = false;
  static constexpr int kLinesForward = 0, kLinesBackward = 8;
  static constexpr int L = kLanes<T>;

  static void pack_forward(Sequence<T>& q, Arena<T>& arena) {
    pack_products<T, GruResetBefore>(q, arena);
    T* candidate = arena.take(q.H * Panels<T, 1>{q.H}.padded());
    if (!arena.block) return;
    pack_rows<T, 1>(q.weights.hh + 2 * q.H * q.H, q.H, q.H, q.H, candidate);
    q.w_second = candidate;
  }

  // Two products a step: r and z first, then n from r h(t-1).  What the second needs of the first is in the saved row.
  static void forward(const Sequence<T>& q, Index s) {
    const Index H = q.H;
    for_each_tile<T, G, 3>(q.share, 0, q.active(s), H, [&](const Tile<T, 3>& t) {
      const TileOperands<T, GruResetBefore> operands(q, s, t);
      PrefetchList<T> prefetch;
      preactivations<T, GruResetBefore>(q, s, t, operands, prefetch);
      for (int i = 0; i < t.items(); ++i) {
        Vec<T> slope_r{}, slope_z{};
        const Vec<T> r = gate<T, General, Sigmoid<T>>(q, 0, t.get(i, 0, 0), &slope_r);
        const Vec<T> z = gate<T, General, Sigmoid<T>>(q, 0, t.get(i, 1, 0), &slope_z);
        const Vec<T> h_seen = load(operands.h[i] + t.unit_of(i), t.lanes_of_item(i));
        const Vec<T> kept[] = {r, z, t.get(i, 2, 0), r * h_seen, slope_r, slope_z, Vec<T>{}};
        for (int k = 0; k < (General ? 7 : 4); ++k) store(operands.saved[i] + k * H, kept[k], t.lanes_of_item(i));
      }
    }, q.reverse_panels);
    for_each_tile<T, 1, 1>(q.share, 0, q.active(s), H, [&](const Tile<T, 1>& t) {
      const T* a[kMaxRows];
      PrefetchList<T> prefetch;
      for (int row = 0; row < t.rows; ++row) {
        const T* saved = q.saved_at(s, t.row + row);
        a[row] = saved + 3 * H;
        for (int v = 0; v < t.vectors; ++v) store(t.at(row, 0, v), load(saved + 2 * H + t.unit + v * L, t.lanes_of(v)));
      }
      multiply<T>(t.rows, t.vectors, {a, H, q.w_second + t.unit * H}, t.acc, t.ld(), prefetch);
      for (int row = 0; row < t.rows; ++row)
        for (int v = 0; v < t.vectors; ++v) {
          const Index b = t.row + row, unit = t.unit + v * L;
          const int lanes = t.lanes_of(v);
          T* saved = q.saved_at(s, b) + unit;
          Vec<T> slope_n{};
          const Vec<T> n = gate<T, General, Tanh<T>>(q, 1, t.get(row, 0, v), &slope_n);
          const Vec<T> z = load<T>(saved + H, lanes), h_before = load(q.h_before(s, b) + unit, lanes);
          store(q.y.at(s, b) + unit, n + z * (h_before - n), lanes);
          store(saved + 2 * H, n, lanes);
          if (General) store(saved + 6 * H, slope_n, lanes);
        }
    });
  }

  static void pack_backward(Sequence<T>& q, Arena<T>& arena) {
    pack_state_gradient<T, GruResetBefore>(q, arena);
    T* candidate = arena.take(q.H * Panels<T, 1>{q.H}.padded());
    if (!arena.block) return;
    pack_columns(q.weights.hh + 2 * q.H * q.H, q.H, q.H, q.H, candidate);
    q.w_second = candidate;
  }

  static FASTRNN_INLINE void prefetch_backward(const Sequence<T>& q, Index s, Index b, Index unit,
                                               PrefetchList<T>& prefetch) {
    gru_prefetch_backward(q, s, b, unit, prefetch);
  }

  //   dz = dh (h(t-1) - n) f0'     dn = dh (1 - z) f1'     drh = dn . W_hn     dr = drh h(t-1) f0'
  //   dh(t-1) gets dh z + drh r
  static void backward(const Sequence<T>& q, Index s) {
    if (s < 0) return initial_state_gradient<T, GruResetBefore>(q);
    const Index H = q.H;
    for_each_state_gradient<T, GruResetBefore>(q, s, [&](const Tile<T, 1>& t) {
      for (int row = 0; row < t.rows; ++row)
        for (int v = 0; v < t.vectors; ++v) {
          const Index b = t.row + row, unit = t.unit + v * L;
          const int lanes = t.lanes_of(v);
          const GruSaved<T, General> k(q.saved_at(s, b) + unit, H, lanes);
          const Vec<T> dh = t.get(row, 0, v), h_before = load(q.h_before(s, b) + unit, lanes);
          T* dgates = q.dgates_at(s, b) + unit;
          store(dgates + H, clipped(q, dh * (h_before - k.n) * k.slope_z), lanes);
          store(dgates + 2 * H, clipped(q, dh * (T(1) - k.z) * k.slope_n), lanes);
          store(q.dh + b * H + unit, dh * k.z, lanes);
        }
    });
    for_each_tile<T, 1, 1>(q.share, 0, q.active(s), H, [&](const Tile<T, 1>& t) {
      product_alone(t, H, q.w_second, [&](Index b) { return q.dgates_at(s, b) + 2 * H; });
      for (int row = 0; row < t.rows; ++row)
        for (int v = 0; v < t.vectors; ++v) {
          const Index b = t.row + row, unit = t.unit + v * L;
          const int lanes = t.lanes_of(v);
          const GruSaved<T, General> k(q.saved_at(s, b) + unit, H, lanes);
          const Vec<T> drh = t.get(row, 0, v) * h_mask(q, b, unit, lanes);  // of r h(t-1), h(t-1) without the mask
          const Vec<T> h_before = load(q.h_before(s, b) + unit, lanes);
          store(q.dgates_at(s, b) + unit, clipped(q, drh * h_before * k.slope_r), lanes);
          T* dh = q.dh + b * H + unit;
          store(dh, load<T>(dh, lanes) + drh * k.r, lanes);
        }
    });
  }
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

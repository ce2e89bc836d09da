// Product policies: how the weights of a cell's products are stored, what is multiplied, and the type of the sums.  A
// cell takes one as a template parameter; its formulas are the same for all.
//
//                    stored as             multiplied                       sums     for
//   Full<T>          T                     T                                T        all passes
//   Bf16             bfloat16, two a word  float                            float    streams
//   Int8<false>      int8, four a word     float                            float    streams
//   Int8<true>       the same              x and h in fixed point, exactly  int32    streams, with AVX512_VNNI
//
// A policy for forward has, for a row of K weights a gate and unit,
//   kStorage, kIsFull
//   panel_rows(K), pack<G>        panels of W_ih and W_hh
//   column                        a row of a panel, for one-hot input
//   prepare, multiply<G>          the product of a tile; not of Full, whose two products are one (`multiply_any`)
// and one for backward and the gradients of weights
//   pack_columns, multiply_columns, multiply_both_columns, tile_gradient
#pragma once

#include "products/product.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T> struct Full {
  static constexpr Storage kStorage = kFull;
  static constexpr bool kIsFull = true;

  static constexpr Index panel_rows(Index K) { return K; }

  template <int G> static void pack(const T* w, Index H, Index K, T* panels) { pack_rows<T, G>(w, K, H, K, panels); }

  static FASTRNN_INLINE Vec<T> column(const T* panel, Index k, Index vectors, int v) {
    return load(panel + (k * vectors + v) * kLanes<T>);
  }

  // Panels of a (K, H) matrix, and acc (rows, ld) += a (rows, K) . panel
  static void pack_columns(const T* w, Index ld, Index K, Index H, T* panels) {
    fastrnn::FASTRNN_ISA::pack_columns(w, ld, K, H, panels);
  }
  static FASTRNN_INLINE void multiply_columns(int rows, int vectors, const Factors<T>& f, T* acc, Index ld,
                                              PrefetchList<T>& prefetch) {
    fastrnn::FASTRNN_ISA::multiply<T>(rows, vectors, f, acc, ld, prefetch);
  }
  // acc = zeros + first + second product
  static FASTRNN_INLINE void multiply_both_columns(int rows, int vectors, const T* zeros, const Factors<T>& first,
                                                   const Factors<T>& second, T* acc, Index ld,
                                                   PrefetchList<T>& prefetch) {
    fastrnn::FASTRNN_ISA::multiply<T, 1, 1, 1>(rows, vectors, zeros, 0, first, second, acc, ld, prefetch);
  }

  // dw (MR, NV vectors), rows ld_w apart, the last vector with `lanes` lanes, += d^T . panel (rows, NV vectors)
  template <int NV, int MR>
  __attribute__((noinline)) static void tile_gradient(Index rows, const T* d, Index ld, const T* panel, T* dw,
                                                      Index ld_w, int lanes) {
    constexpr int L = kLanes<T>;
    Vec<T> c[MR][NV];
    FASTRNN_UNROLL
    for (int r = 0; r < MR; ++r)
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) {
        __builtin_prefetch(dw + r * ld_w + v * L);
        c[r][v] = Vec<T>{};
      }
    for (Index i = 0; i < rows; ++i, panel += NV * L, d += ld) {
      Vec<T> x[NV];
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) x[v] = load(panel + v * L);
      FASTRNN_UNROLL
      for (int r = 0; r < MR; ++r) {
        const Vec<T> each = splat(d[r]);
        FASTRNN_UNROLL
        for (int v = 0; v < NV; ++v) c[r][v] += each * x[v];
      }
    }
    FASTRNN_UNROLL
    for (int r = 0; r < MR; ++r) {
      T* to = dw + r * ld_w;
      FASTRNN_UNROLL
      for (int v = 0; v + 1 < NV; ++v) store(to + v * L, load<T>(to + v * L) + c[r][v]);
      to += (NV - 1) * L;
      store(to, load<T>(to, lanes) + c[r][NV - 1], lanes);
    }
  }
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

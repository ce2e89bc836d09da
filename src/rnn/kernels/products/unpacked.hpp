// Products with the weights as torch stores them, for calls too short to pay for packing:
//
//   acc (rows, units) += a (rows, K) . w (units, K)^T
//
// Both sides are read along K, as dot products: for each row and unit a vector of partial sums, lane by lane.  Those of
// as many units as a vector has lanes are then added up together (`sums_of_lanes`), which makes a vector of units.
#pragma once

#include "products/product.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

constexpr int kDotUnits = 4;                             // units whose rows of w are read side by side
constexpr int kDotRows = kAccumulators / kDotUnits;      // rows of a

// Lane i of the result: the sum of all lanes of v[i].  Each round halves the vectors: of a pair (i, i + M), the lanes
// in blocks of 2M become M partial sums of one and M of the other.
template <int L, int M> struct FirstTerms {
  static constexpr int at(int l) { return l / (2 * M) * (2 * M) + l % M + (l % (2 * M) < M ? 0 : L); }
};
template <int L, int M> struct SecondTerms { static constexpr int at(int l) { return FirstTerms<L, M>::at(l) + M; } };

template <class T, int M = kLanes<T> / 2> FASTRNN_INLINE Vec<T> sums_of_lanes(Vec<T> (&v)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  if constexpr (M == 0) return v[0];
  else {
    FASTRNN_UNROLL
    for (int i = 0; i < M; ++i)
      v[i] = shuffle<T, FirstTerms<L, M>>(v[i], v[i + M]) + shuffle<T, SecondTerms<L, M>>(v[i], v[i + M]);
    return sums_of_lanes<T, M / 2>(v);
  }
}

// sums[r][u] = a[r] . row u of w (U, K), lane by lane; sums (R, L, L)
template <class T, int R, int U>
FASTRNN_INLINE void dot_products(const T* const* a, Index K, const T* w, T* sums) {
  constexpr int L = kLanes<T>, kNear = 4;  // rows of w that are found from one pointer
  constexpr auto load_some = [](const T* p, int lanes) { return lanes == L ? load(p) : load_first(p, lanes); };
  Vec<T> c[R][U];
  const T *row[R], *near[(U + kNear - 1) / kNear];
  FASTRNN_UNROLL
  for (int r = 0; r < R; ++r) {
    row[r] = a[r];
    FASTRNN_UNROLL
    for (int u = 0; u < U; ++u) c[r][u] = Vec<T>{};
  }
  FASTRNN_UNROLL
  for (int u = 0; u < U; u += kNear) near[u / kNear] = w + u * K;
  const auto add = [&](Index k, int lanes) __attribute__((always_inline)) {
    Vec<T> x[R];
    FASTRNN_UNROLL
    for (int r = 0; r < R; ++r) x[r] = load_some(row[r] + k, lanes);
    FASTRNN_UNROLL
    for (int u = 0; u < U; ++u) {
      const Vec<T> each = load_some(near[u / kNear] + u % kNear * K, lanes);
      FASTRNN_UNROLL
      for (int r = 0; r < R; ++r) c[r][u] += x[r] * each;
    }
    FASTRNN_UNROLL
    for (int u = 0; u < U; u += kNear) near[u / kNear] += L;
  };
  Index k = 0;
  for (; k + L <= K; k += L) add(k, L);
  if (k < K) add(k, int(K - k));
  FASTRNN_UNROLL
  for (int r = 0; r < R; ++r)
    FASTRNN_UNROLL
    for (int u = 0; u < U; ++u) store(sums + (r * L + u) * L, c[r][u]);
}

// The same for `units` units, from unit u on, as many as a vector has lanes at most
template <class T, int R, int U>
FASTRNN_INLINE void dot_products(int u, int units, const T* const* a, Index K, const T* w, T* sums) {
  FASTRNN_ASSERT(units <= kLanes<T>);
  for (; u + U <= units; u += U) dot_products<T, R, U>(a, K, w + u * K, sums + Index(u) * kLanes<T>);
  if constexpr (U > 1) dot_products<T, R, (U > kDotUnits ? kDotUnits : 1)>(u, units, a, K, w, sums);
}

// acc (lanes) += the sums of the lanes of each of `units` vectors; sums (L, L)
template <class T> FASTRNN_INLINE void add_sums(int units, T* sums, T* acc) {
  constexpr int L = kLanes<T>;
  for (int u = units; u < L; ++u) store(sums + u * L, Vec<T>{});
  Vec<T> each[L];
  FASTRNN_UNROLL
  for (int u = 0; u < L; ++u) each[u] = load(sums + u * L);
  store(acc, load(acc) + sums_of_lanes<T>(each));
}

// acc (R, units), rows ld apart, += a . w^T
template <class T, int R = kDotRows>
FASTRNN_INLINE void add_unpacked_rows(int rows, int units, const T* const* a, Index K, const T* w, T* acc, Index ld) {
  FASTRNN_ASSERT(rows >= 1 && rows <= R);
  if constexpr (R > 1)
    if (rows < R) return add_unpacked_rows<T, R - 1>(rows, units, a, K, w, acc, ld);
  constexpr int L = kLanes<T>, U = L < kDotUnits ? L : R == 1 && L >= 8 ? 2 * kDotUnits : kDotUnits;
  alignas(64) T sums[R * L * L];
  dot_products<T, R, U>(0, units, a, K, w, sums);
  for (int r = 0; r < R; ++r) add_sums(units, sums + r * L * L, acc + r * ld);
}

// The same for any number of rows; w are the rows of a vector of units, of which there are `units`
template <class T>
__attribute__((noinline)) void multiply_unpacked(int rows, int units, const T* const* a, Index K, const T* w, T* acc,
                                                 Index ld) {
  FASTRNN_ASSERT(rows >= 1 && units >= 1 && units <= kLanes<T> && a && K > 0 && w && acc);
  if (rows <= kDotRows) return add_unpacked_rows<T>(rows, units, a, K, w, acc, ld);
  const int parts = (rows + kDotRows - 1) / kDotRows;
  for (int part = 0, first = 0; part < parts; ++part) {  // of even sizes, as in `for_each_tile`
    const int n = rows / parts + (part < rows % parts);
    add_unpacked_rows<T>(n, units, a + first, K, w, acc + first * ld, ld);
    first += n;
  }
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

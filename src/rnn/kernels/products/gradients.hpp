// Gradients of many rows at once, when the dgates of a chunk of steps are known:
//
//   dW (N, K)  += d^T (N, rows) . source (rows, K)        d: N columns of dgates
//   dx (rows, I) = dgates . W_ih
//
// Rows of the sources and of dx are given by pointers, as everywhere; d has rows ld apart.  OpenBLAS, which packs both
// sides of such a product anew, makes these at 100 of 117 GFLOP/s (Zen 4); here only `source` is packed, a panel at a
// time, and d is read as it is.
#pragma once

#include "products/full.hpp"
#include "table.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

// Rows of a panel of the source: it stays in the first-level cache
constexpr Index kPanelRows = 128;
static_assert(kPanelRows * panel_vectors(1) * kLanes<float> <= kGradientPanel);

template <class T, class Products, int NV, int MR = tile_rows(NV)>
FASTRNN_INLINE void gradient_of_rows(int n, Index rows, const T* d, Index ld, const T* panel, T* dw, Index ld_w,
                                     int lanes) {
  FASTRNN_ASSERT(n >= 1 && n <= MR);
  if (n == MR) return Products::template tile_gradient<NV, MR>(rows, d, ld, panel, dw, ld_w, lanes);
  if constexpr (MR > 1) gradient_of_rows<T, Products, NV, MR - 1>(n, rows, d, ld, panel, dw, ld_w, lanes);
}

// dw (N, NV vectors), the last with `lanes` lanes, += d^T . source, whose columns start at `column`
template <class T, class Products, int NV = panel_vectors(1)>
void panel_gradient(int vectors, int lanes, Index rows, Index N, const T* d, Index ld, const T* const* source,
                    Index column, T* panel, T* dw, Index ld_w) {
  if constexpr (NV > 1)
    if (vectors < NV)
      return panel_gradient<T, Products, NV - 1>(vectors, lanes, rows, N, d, ld, source, column, panel, dw, ld_w);
  constexpr int L = kLanes<T>, kRows = tile_rows(NV);
  const Index tiles = (N + kRows - 1) / kRows;
  for (Index row = 0; row < rows; row += kPanelRows) {
    const Index n = rows - row < kPanelRows ? rows - row : kPanelRows;
    for (Index i = 0; i < n; ++i)
      for (int v = 0; v < NV; ++v)
        store(panel + (i * NV + v) * L, load(source[row + i] + column + v * L, v + 1 < NV ? L : lanes));
    for (Index tile = 0, j = 0; tile < tiles; ++tile) {  // of even sizes, as in `for_each_tile`
      const int width = int(N / tiles + (tile < N % tiles));
      gradient_of_rows<T, Products, NV>(width, n, d + row * ld + j, ld, panel, dw + j * ld_w, ld_w, lanes);
      j += width;
    }
  }
}

// Numbers of d that are used for all panels of the source before others are: they stay in the second-level cache
constexpr Index kGradientBlock = 1 << 16;

// A share of  dw (N, K) += d^T . source.  panel: scratch of kGradientPanel numbers
template <class T, class Products>
void weight_gradient(const WorkShare* share, Index rows, Index N, Index K, const T* d, Index ld, const T* const* source,
                     T* panel, T* dw) {
  const Panels<T, 1> panels{K};
  FASTRNN_ASSERT(rows >= 0 && K > 0 && N > 0 && N <= ld && d && source && panel && dw);
  Index first, end;
  take(share, panels.count(), &first, &end);
  const Index block = rows * N <= 2 * kGradientBlock ? N : (kGradientBlock / rows + 24) / 24 * 24;  // of whole tiles
  for (Index n = 0; n < N; n += block) {
    for (Index p = first; p < end; ++p) {
      const Index column = p * panels.kUnits;
      const int vectors = panels.vectors(p), left = int(K - column - (vectors - 1) * kLanes<T>);
      panel_gradient<T, Products>(vectors, left < kLanes<T> ? left : kLanes<T>, rows, N - n < block ? N - n : block, d + n,
                                  ld, source, column, panel, dw + n * K + column, K);
    }
  }
}

// Panels of the rows of W_ih (G*H, I) that belong to each of the at most two runs of columns of dgates that reach x.
// Returns their size; if `panels` is null, it only counts.
template <class T, class Products> Index pack_input_gradient(InputColumns<T>& c, Index I, const T* w_ih, T* panels) {
  Index size = 0;
  for (int i = 0; i < 2; ++i) {
    c.panels[i] = panels + size;
    if (panels) Products::pack_columns(w_ih + c.row[i] * I, I, c.K[i], I, panels + size);
    size += c.K[i] * Panels<T, 1>{I}.padded();
  }
  return size;
}

// A share of  dx (I,) of each row = its dgates (rows ld apart) . W_ih.  zeros: at least I of them
template <class T, class Products>
void input_gradient(WorkShare* share, Index rows, Index I, const InputColumns<T>& c, const T* dgates, Index ld,
                    const T* zeros, T* const* dx) {
  for (int i = 0; i < 2; ++i)
    FASTRNN_ASSERT(c.K[i] >= 0 && c.column[i] >= 0 && c.column[i] + c.K[i] <= ld && (c.K[i] == 0 || c.panels[i]));
  for_each_tile<T, 1, 1>(share, 0, rows, I, [&](const Tile<T, 1>& t) {
    const T *first[kMaxRows], *second[kMaxRows];
    PrefetchList<T> prefetch;
    for (int r = 0; r < t.rows; ++r) {
      first[r] = dgates + (t.row + r) * ld + c.column[0], second[r] = dgates + (t.row + r) * ld + c.column[1];
      prefetch.add(dx[t.row + r] + t.unit);
    }
    Products::multiply_both_columns(t.rows, t.vectors, zeros, {second, c.K[1], c.panels[1] + t.unit * c.K[1]},
                                    {first, c.K[0], c.panels[0] + t.unit * c.K[0]}, t.acc, t.ld(), prefetch);
    for (int r = 0; r < t.rows; ++r)
      for (int v = 0; v < t.vectors; ++v)
        store(dx[t.row + r] + t.unit + v * kLanes<T>, t.get(r, 0, v), t.lanes_of(v));
  });
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

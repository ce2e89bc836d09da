// The recurrent product on packed weights.
//
//   acc (rows, N) += a (rows, K) . w (K, N)
//
// for a few rows of a batch and one panel: the columns of all gates of up to `units` hidden units.  A panel is stored
// (K, G, units): what the inner loop reads is contiguous, whatever the gate count, and the accumulators of a unit's
// gates lie side by side, so that the cell's pointwise maths follows while they are still in the first-level cache.
// `a` is given by a pointer a row: a row may lie anywhere (a batch sorted by length, a reversed direction, a state that
// was reset to zero), nothing is copied to make it contiguous.
//
//   Panels        how H units divide into panels
//   pack_rows     panels of a (G*H, K) matrix, for products with its transpose (forward: a . W^T)
//   pack_columns  panels of a (K, H) matrix (backward: da . W)
//   multiply      the product of one tile
//   sweep         calls a body for each tile: panels outside, so that a panel stays in cache while the rows pass
#pragma once

#include "sequence.hpp"
#include "vec.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

// Accumulator registers of a tile: what the instruction set has, less those for weights and the broadcast row.
constexpr int kAccumulators = FASTRNN_REGISTERS >= 32 ? 24 : 12;
constexpr int kMaxRows = 8;
constexpr int kMaxVectors = 4;

// Rows in a tile that has `vectors` vectors of columns
constexpr int tile_rows(int vectors) {
  return kAccumulators / vectors < kMaxRows ? kAccumulators / vectors : kMaxRows;
}

// Vectors of units in a panel of G gates
constexpr int panel_vectors(int gates) {
  return gates > 1 ? 1 : FASTRNN_REGISTERS >= 32 ? 4 : 2;
}

template <class T, int G> struct Panels {
  static constexpr int kVectors = panel_vectors(G);
  static constexpr int kUnits = kVectors * kLanes<T>;
  long H;

  long count() const { return (H + kUnits - 1) / kUnits; }
  long padded() const { return (H + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }  // all panels but the last are full
  int vectors(long panel) const {
    long left = (H - panel * kUnits + kLanes<T> - 1) / kLanes<T>;
    return int(left < kVectors ? left : kVectors);
  }
};

// out: for each panel (K, G, units), units of G*H x K weights w (row-major, ld); gate g of the panel is gate order[g].
template <class T, int G>
void pack_rows(const T* w, long ld, const int (&order)[G], long H, long K, T* out) {
  Panels<T, G> panels{H};
  for (long p = 0; p < panels.count(); ++p) {
    const int width = panels.vectors(p) * kLanes<T>;
    for (long k0 = 0; k0 < K; k0 += 16) {  // a block of k at a time: reads and writes both stay within a few lines
      const long k1 = k0 + 16 < K ? k0 + 16 : K;
      for (int g = 0; g < G; ++g)
        for (int u = 0; u < width; ++u) {
          const long unit = p * panels.kUnits + u;
          const T* row = w + (order[g] * H + unit) * ld;
          for (long k = k0; k < k1; ++k) out[(k * G + g) * width + u] = unit < H ? row[k] : T(0);
        }
    }
    out += K * G * width;
  }
}

// out: for each panel (K, units), units of K x H weights w (row-major, ld)
template <class T> void pack_columns(const T* w, long ld, long K, long H, T* out) {
  Panels<T, 1> panels{H};
  for (long p = 0; p < panels.count(); ++p) {
    const int width = panels.vectors(p) * kLanes<T>;
    for (long k = 0; k < K; ++k)
      for (int u = 0; u < width; ++u, ++out) {
        const long unit = p * panels.kUnits + u;
        *out = unit < H ? w[k * ld + unit] : T(0);
      }
  }
}

// acc (MR, ld) += a (MR, K) . panel (K, NV vectors).  Tiles of few accumulators sum S interleaved parts of k, so that
// enough independent multiply-adds are in flight.
template <class T, int MR, int NV>
__attribute__((noinline)) void tile_product(const T* const* a, long K, const T* panel, T* acc, long ld) {
  constexpr int L = kLanes<T>;
  constexpr int S = MR * NV >= 8 ? 1 : (8 + MR * NV - 1) / (MR * NV);
  Vec<T> c[S][MR][NV];
  const T* row[MR];
  for (int r = 0; r < MR; ++r) {
    row[r] = a[r];
    for (int v = 0; v < NV; ++v) {
      c[0][r][v] = load(acc + r * ld + v * L);
      for (int s = 1; s < S; ++s) c[s][r][v] = Vec<T>{};
    }
  }
  long k = 0;
  for (; k + S <= K; k += S)
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s, panel += NV * L) {
      Vec<T> w[NV];
      for (int v = 0; v < NV; ++v) w[v] = load(panel + v * L);
      for (int r = 0; r < MR; ++r) {
        const Vec<T> x = splat(row[r][k + s]);
        for (int v = 0; v < NV; ++v) c[s][r][v] += x * w[v];
      }
    }
  for (; k < K; ++k, panel += NV * L)
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v) c[0][r][v] += splat(row[r][k]) * load(panel + v * L);
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) {
      for (int s = 1; s < S; ++s) c[0][r][v] += c[s][r][v];
      store(acc + r * ld + v * L, c[0][r][v]);
    }
}

template <class T, int NV, int MR = tile_rows(NV)>
FASTRNN_INLINE void multiply_rows(int rows, const T* const* a, long K, const T* panel, T* acc, long ld) {
  if (rows == MR) return tile_product<T, MR, NV>(a, K, panel, acc, ld);
  if constexpr (MR > 1) multiply_rows<T, NV, MR - 1>(rows, a, K, panel, acc, ld);
}

// acc (rows, ld) += a (rows, K) . panel (K, vectors)
template <class T, int NV = kMaxVectors>
FASTRNN_INLINE void multiply(int rows, int vectors, const T* const* a, long K, const T* panel, T* acc, long ld) {
  if (vectors == NV) return multiply_rows<T, NV>(rows, a, K, panel, acc, ld);
  if constexpr (NV > 1) multiply<T, NV - 1>(rows, vectors, a, K, panel, acc, ld);
}

// The same product with weights as torch stores them, for calls too short to pay for packing: acc (rows, G, ld_gate)
// += a (rows, K) . w^T, where gate g of unit u is row order[g] * H + u of w (G*H, K).  Eight units at a time: as many
// independent sums, and a row of `a` is read once for all of them.
template <class T, int G>
__attribute__((noinline)) void multiply_unpacked(int rows, int units, const T* const* a, long K, const T* w,
                                                 const int (&order)[G], long H, T* acc, long ld, long ld_gate) {
  constexpr int L = kLanes<T>, N = 8;
  for (int g = 0; g < G; ++g)
    for (int u0 = 0; u0 < units; u0 += N) {
      const T* row[N];
      for (int i = 0; i < N; ++i) row[i] = w + (order[g] * H + (u0 + i < units ? u0 + i : u0)) * K;
      for (int r = 0; r < rows; ++r) {
        const T* x = a[r];
        Vec<T> sum[N] = {};
        long k = 0;
        for (; k + L <= K; k += L) {
          const Vec<T> xk = load(x + k);
          for (int i = 0; i < N; ++i) sum[i] += xk * load(row[i] + k);
        }
        for (int i = 0; i < N && u0 + i < units; ++i) {
          T part[L];
          store(part, sum[i]);
          for (int half = L / 2; half > 0; half /= 2)
            for (int j = 0; j < half; ++j) part[j] += part[j + half];
          for (long rest = k; rest < K; ++rest) part[0] += x[rest] * row[i][rest];
          acc[r * ld + g * ld_gate + u0 + i] += part[0];
        }
      }
    }
}

// Some rows of the batch by some units, with A accumulators a unit: acc (rows, A, vectors of units)
template <class T, int A> struct Tile {
  long row;     // first row of the batch
  int rows;
  long panel, unit;  // index of the panel, its first unit
  int vectors;  // vectors of units
  int lanes;    // units in the last of them
  T* acc;

  long ld() const { return long(A) * vectors * kLanes<T>; }
  T* at(int r, int gate, int v) const { return acc + r * ld() + (gate * vectors + v) * kLanes<T>; }
  Vec<T> get(int r, int gate, int v) const { return load(at(r, gate, v)); }
  int units() const { return (vectors - 1) * kLanes<T> + lanes; }
  int lanes_of(int v) const { return v + 1 == vectors ? lanes : kLanes<T>; }
};

// acc = a . panel for a tile of a product by itself, without bias or other terms; row(b) is the row of `a` for batch row b
template <class T, class Row>
FASTRNN_INLINE void product_alone(const Tile<T, 1>& t, long K, const T* panels, Row row) {
  const T* a[kMaxRows];
  for (int r = 0; r < t.rows; ++r) {
    a[r] = row(t.row + r);
    for (int v = 0; v < t.vectors; ++v) store(t.at(r, 0, v), Vec<T>{});
  }
  multiply(t.rows, t.vectors, a, K, panels + t.unit * K, t.acc, t.ld());
}

// Calls body(tile) for all tiles of rows [row0, row1) and H units, A accumulators a unit.  The rows divide evenly, so
// that no tile is much smaller than the others.
template <class T, int G, int A, class Body> FASTRNN_INLINE void sweep(long row0, long row1, long H, Body body) {
  const Panels<T, G> panels{H};
  constexpr int kRows = tile_rows(G * panels.kVectors);
  const long rows = row1 - row0, tiles = (rows + kRows - 1) / kRows;
  if (rows <= 0) return;
  alignas(64) T acc[kRows * A * panels.kUnits];
  for (long p = 0; p < panels.count(); ++p) {
    Tile<T, A> tile;
    tile.panel = p;
    tile.unit = p * panels.kUnits;
    tile.vectors = panels.vectors(p);
    tile.lanes = int(H - tile.unit - (tile.vectors - 1) * kLanes<T>);
    if (tile.lanes > kLanes<T>) tile.lanes = kLanes<T>;
    tile.acc = acc;
    tile.row = row0;
    for (long i = 0; i < tiles; ++i) {
      tile.rows = int(rows / tiles + (i < rows % tiles));
      body(static_cast<const Tile<T, A>&>(tile));
      tile.row += tile.rows;
    }
  }
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

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
//   pack_words    the same for weights that are stored in fewer bytes (bf16.hpp, int8.hpp)
//   pack_columns  panels of a (K, H) matrix (backward: da . W)
//   multiply      the product of one tile
//   for_each_tile calls a body for each tile: panels are the outer loop, so that one stays in cache for all rows
#pragma once

#include "sequence.hpp"
#include "math/vec.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

// Accumulator registers of a tile: what the instruction set has, less those for weights and the broadcast row.
constexpr int kAccumulators = FASTRNN_REGISTERS >= 32 ? 24 : 12;
constexpr int kMaxRows = 8;

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
  Index H;

  Index count() const { return (H + kUnits - 1) / kUnits; }
  Index padded() const { return (H + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }  // all panels but the last are full
  int vectors(Index panel) const {
    Index left = (H - panel * kUnits + kLanes<T> - 1) / kLanes<T>;
    return int(left < kVectors ? left : kVectors);
  }
};

// out: for each panel (K, G, units), units of G*H x K weights w (row-major, ld)
template <class T, int G> void pack_rows(const T* w, Index ld, Index H, Index K, T* out) {
  constexpr int L = kLanes<T>;
  FASTRNN_ASSERT(w && out && H > 0 && K > 0 && ld >= K);
  const Panels<T, G> panels{H};
  for (Index p = 0; p < panels.count(); ++p) {
    const int width = panels.vectors(p) * L;
    for (int g = 0; g < G; ++g)
      for (int u = 0; u < width; u += L) {
        const Index unit = p * panels.kUnits + u;
        for (Index k = 0; k < K; k += L) {
          const int steps = int(K - k < L ? K - k : L);
          Vec<T> v[L];
          for (int i = 0; i < L; ++i) v[i] = unit + i < H ? load(w + (g * H + unit + i) * ld + k, steps) : Vec<T>{};
          transpose<T>(v);
          for (int i = 0; i < steps; ++i) store(out + ((k + i) * G + g) * width + u, v[i]);
        }
      }
    out += K * G * width;
  }
}

// As pack_rows, for weights that are stored in words, in panels (rows, G, units): body(row, column, width) puts a row
// (K,) of w into column[0], column[width], ..., which are zero
template <int G, class Body> void pack_words(const float* w, Index H, Index K, Index rows, float* panels, Body body) {
  const Panels<float, G> all{H};
  FASTRNN_ASSERT(w && panels && H > 0 && K > 0);
  __builtin_memset(panels, 0, rows * G * all.padded() * sizeof(float));
  for (Index p = 0; p < all.count(); ++p) {
    const Index units = all.vectors(p) * kLanes<float>, width = G * units;
    for (int g = 0; g < G; ++g)
      for (Index u = 0; u < units && p * all.kUnits + u < H; ++u)
        body(w + (g * H + p * all.kUnits + u) * K, panels + g * units + u, width);
    panels += rows * width;
  }
}

// out: for each panel (K, units), units of K x H weights w (row-major, ld)
template <class T> void pack_columns(const T* w, Index ld, Index K, Index H, T* out) {
  constexpr int L = kLanes<T>;
  const Panels<T, 1> panels{H};
  FASTRNN_ASSERT(K == 0 || (w && out && H > 0 && ld >= H));
  for (Index p = 0; p < panels.count(); ++p)
    for (Index k = 0; k < K; ++k)
      for (int v = 0; v < panels.vectors(p); ++v, out += L) {
        const Index unit = p * panels.kUnits + v * L;
        store(out, load(w + k * ld + unit, int(H - unit < L ? H - unit : L)));
      }
}

// Cache lines that the pointwise maths after a product reads or writes, at most kMostLines of an item.  The product
// asks for them as it runs: all at once, they would wait for each other.
constexpr int kMostLines = 14;
template <class T> struct PrefetchList {
  const T* at[kMaxRows * kMostLines];
  int n = 0;
  void add(const T* p) {
    FASTRNN_ASSERT(n < kMaxRows * kMostLines);
    at[n++] = p;
  }
};

// The left side of a product, a pointer for each row of the tile, and its panel
template <class T> struct Factors {
  const T* const* a;
  Index K;
  const T* panel;
};

// c (MR, NV vectors) += a (MR, K) . panel (K, NV vectors).  Tiles of few accumulators sum S interleaved parts of k, so
// that enough independent multiply-adds are in flight.
template <class T, int NV, int MR, int N>
FASTRNN_INLINE void accumulate(Vec<T> (&c)[MR][N], const Factors<T>& f, PrefetchList<T>& prefetch) {
  constexpr int L = kLanes<T>;
  constexpr int S = MR * NV >= 8 ? 1 : (8 + MR * NV - 1) / (MR * NV);
  constexpr int kStride = S == 1 ? 2 : S;
  Vec<T> more[S][MR][NV];  // [0] is not used
  const T *row[MR], *panel = f.panel;
  FASTRNN_ASSERT(f.K == 0 || (f.K > 0 && f.a && f.panel));
  FASTRNN_UNROLL
  for (int r = 0; r < MR; ++r) {
    row[r] = f.K ? f.a[r] : nullptr;
    FASTRNN_ASSERT(f.K == 0 || row[r]);
    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s)
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) more[s][r][v] = Vec<T>{};
  }
  Index k = 0;
  int n = prefetch.n;
  for (; k + kStride <= f.K; k += kStride) {
    if (n) {
      const T* line = prefetch.at[--n];
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) __builtin_prefetch(line + v * L);
    }
    FASTRNN_UNROLL
    for (int s = 0; s < kStride; ++s, panel += NV * L) {
      Vec<T> w[NV];
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) w[v] = load(panel + v * L);
      FASTRNN_UNROLL
      for (int r = 0; r < MR; ++r) {
        const Vec<T> x = splat(row[r][k + s]);
        FASTRNN_UNROLL
        for (int v = 0; v < NV; ++v)
          if (S == 1 || s == 0) c[r][v] += x * w[v];
          else more[s][r][v] += x * w[v];
      }
    }
  }
  prefetch.n = n;
  for (; k < f.K; ++k, panel += NV * L)
    FASTRNN_UNROLL
    for (int r = 0; r < MR; ++r)
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) c[r][v] += splat(row[r][k]) * load(panel + v * L);
  FASTRNN_UNROLL
  for (int s = 1; s < S; ++s)
    FASTRNN_UNROLL
    for (int r = 0; r < MR; ++r)
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) c[r][v] += more[s][r][v];
}

// Two products into the accumulators of one tile, whose first NS vectors both go to:
//
//   acc[0, NS)   = init + x . panel + h . panel
//   acc[NS, NH)  = init + h . panel               (the last vectors of h's panel)
//   acc[NH, A)   = init + x . panel               (the last vectors of x's panel)
//
// init has rows of A vectors, init_ld apart: biases (init_ld = 0) or acc itself.  With x.K = 0 it is one product.
template <class T, int NX, int NH, int NS, int MR>
__attribute__((noinline)) void tile_products(const T* init, Index init_ld, const Factors<T>& x, const Factors<T>& h,
                                             T* acc, Index ld, PrefetchList<T>& prefetch) {
  constexpr int L = kLanes<T>;
  constexpr auto x_slot = [](int v) { return v < NS ? v : NH + v - NS; };
  FASTRNN_ASSERT(init && init_ld >= 0 && acc && ld > 0);
  Vec<T> c[MR][NX > NH ? NX : NH];
  FASTRNN_UNROLL
  for (int r = 0; r < MR; ++r)
    FASTRNN_UNROLL
    for (int v = 0; v < NX; ++v) c[r][v] = load(init + r * init_ld + x_slot(v) * L);
  accumulate<T, NX>(c, x, prefetch);
  FASTRNN_UNROLL
  for (int r = 0; r < MR; ++r) {
    FASTRNN_UNROLL
    for (int v = NS; v < NX; ++v) store(acc + r * ld + x_slot(v) * L, c[r][v]);
    FASTRNN_UNROLL
    for (int v = NS; v < NH; ++v) c[r][v] = load(init + r * init_ld + v * L);
  }
  if constexpr (NH > 0) accumulate<T, NH>(c, h, prefetch);
  FASTRNN_UNROLL
  for (int r = 0; r < MR; ++r)
    FASTRNN_UNROLL
    for (int v = 0; v < NH; ++v) store(acc + r * ld + v * L, c[r][v]);
  for (; prefetch.n; --prefetch.n)  // those that are left, if there were fewer steps of k
    FASTRNN_UNROLL
    for (int v = 0; v < NH; ++v) __builtin_prefetch(prefetch.at[prefetch.n - 1] + v * L);
}

template <class T, int NX, int NH, int NS, int MR = tile_rows(NX > NH ? NX : NH)>
FASTRNN_INLINE void products_of_rows(int rows, const T* init, Index init_ld, const Factors<T>& x, const Factors<T>& h,
                                     T* acc, Index ld, PrefetchList<T>& prefetch) {
  FASTRNN_ASSERT(rows >= 1 && rows <= MR);
  if (rows == MR) return tile_products<T, NX, NH, NS, MR>(init, init_ld, x, h, acc, ld, prefetch);
  if constexpr (MR > 1) products_of_rows<T, NX, NH, NS, MR - 1>(rows, init, init_ld, x, h, acc, ld, prefetch);
}

// Both products of a tile of `vectors` vectors of units: G gates of x, GS of h, the first `Shared` of them summed
template <class T, int G, int GS, int Shared, int V = panel_vectors(G)>
FASTRNN_INLINE void multiply(int rows, int vectors, const T* init, Index init_ld, const Factors<T>& x,
                             const Factors<T>& h, T* acc, Index ld, PrefetchList<T>& prefetch) {
  FASTRNN_ASSERT(vectors >= 1 && vectors <= V);
  if (vectors == V)
    return products_of_rows<T, G * V, GS * V, Shared * V>(rows, init, init_ld, x, h, acc, ld, prefetch);
  if constexpr (V > 1) multiply<T, G, GS, Shared, V - 1>(rows, vectors, init, init_ld, x, h, acc, ld, prefetch);
}

// The same for large K: sums of kTerms terms of both products at a time, which lose less precision than one long sum
constexpr Index kTerms = 256, kManyTerms = 512;

template <class T, int G, int GS, int Shared>
__attribute__((noinline)) void multiply_many(int rows, int vectors, const T* init, Index init_ld, const Factors<T>& x,
                                             const Factors<T>& h, T* acc, Index ld, PrefetchList<T>& prefetch) {
  constexpr int A = GS + G - Shared, V = panel_vectors(G), L = kLanes<T>;
  alignas(64) T zeros[A * V * L] = {}, part[kMaxRows * A * V * L];
  const Index width = Index(A) * vectors * L;
  const T *rows_of_x[kMaxRows], *rows_of_h[kMaxRows];
  const auto terms = [&](const Factors<T>& f, int width_of_k, Index k, const T** a) {
    const Index left = f.K - k, count = left < 0 ? 0 : left < kTerms ? left : kTerms;
    if (count == 0) return Factors<T>{nullptr, 0, nullptr};
    for (int r = 0; r < rows; ++r) a[r] = f.a[r] + k;
    return Factors<T>{a, count, f.panel + k * width_of_k * vectors * L};
  };
  const auto sum = [&](Index k, const T* from, Index from_ld, T* to, Index to_ld) {
    multiply<T, G, GS, Shared>(rows, vectors, from, from_ld, terms(x, G, k, rows_of_x), terms(h, GS, k, rows_of_h), to,
                               to_ld, prefetch);
  };
  sum(0, init, init_ld, acc, ld);
  for (Index k = kTerms; k < x.K || k < h.K; k += kTerms) {
    sum(k, zeros, 0, part, width);
    for (int r = 0; r < rows; ++r)
      for (Index i = 0; i < width; i += L) store(acc + r * ld + i, load(acc + r * ld + i) + load(part + r * width + i));
  }
}

// `multiply` or, for large K, `multiply_many`
template <class T, int G, int GS, int Shared>
FASTRNN_INLINE void multiply_any(int rows, int vectors, const T* init, Index init_ld, const Factors<T>& x,
                                 const Factors<T>& h, T* acc, Index ld, PrefetchList<T>& prefetch) {
  if (x.K > kManyTerms || h.K > kManyTerms)
    return multiply_many<T, G, GS, Shared>(rows, vectors, init, init_ld, x, h, acc, ld, prefetch);
  multiply<T, G, GS, Shared>(rows, vectors, init, init_ld, x, h, acc, ld, prefetch);
}

// acc (rows, ld) += a (rows, K) . panel (K, vectors)
template <class T>
FASTRNN_INLINE void multiply(int rows, int vectors, const Factors<T>& f, T* acc, Index ld, PrefetchList<T>& prefetch) {
  multiply<T, 1, 1, 1>(rows, vectors, acc, ld, {nullptr, 0, nullptr}, f, acc, ld, prefetch);
}

// Vectors of units in a panel; of several gates there is room for one
template <bool SeveralGates> struct PanelWidth { static constexpr int vectors = 1; };
template <> struct PanelWidth<false> { int vectors; };

// Some rows of the batch by a panel of units, with A accumulators a unit: acc (rows, A, vectors of units).  Or, where
// the batch is one row and a panel one vector, that row by some panels, acc (panels, A, units): the pointwise maths of
// a row is a chain of dependent operations, and those of several panels overlap as those of several rows do.
template <class T, int A, bool SeveralGates = (A > 1)> struct Tile : PanelWidth<SeveralGates> {
  using PanelWidth<SeveralGates>::vectors;
  Index row, unit;     // the first
  int rows, panels;    // one of them is 1
  int lanes;           // units in the last vector
  bool is_first;       // the first tile of its rows
  T* acc;

  // The items of a tile: its rows, or its panels
  int items() const { return SeveralGates ? rows * panels : rows; }
  int row_of(int i) const { return panels > 1 ? 0 : i; }  // beyond `row`
  Index unit_of(int i) const { return panels > 1 ? unit + i * kLanes<T> : unit; }
  int lanes_of_item(int i) const { return i + 1 < panels ? kLanes<T> : lanes; }

  // Panel j by itself
  Tile panel(int j) const {
    Tile one = *this;
    if (panels > 1) one.panels = 1, one.unit = unit_of(j), one.lanes = lanes_of_item(j), one.acc = at(j, 0, 0);
    return one;
  }

  Index ld() const { return Index(A) * vectors * kLanes<T>; }
  T* at(int i, int gate, int v) const {
    FASTRNN_ASSERT(i >= 0 && i < items() && gate >= 0 && gate < A && v >= 0 && v < vectors);
    return acc + i * ld() + (gate * vectors + v) * kLanes<T>;
  }
  Vec<T> get(int i, int gate, int v) const { return load(at(i, gate, v)); }
  int lanes_of(int v) const { return v + 1 == vectors ? lanes : kLanes<T>; }
  int lanes_of(int i, int v) const { return v + 1 == vectors ? lanes_of_item(i) : kLanes<T>; }
};

// acc = a . panel for a tile of a product by itself, without bias or other terms; row(b) is the row of `a` for row b of
// the batch
template <class T, class Row>
FASTRNN_INLINE void product_alone(const Tile<T, 1>& t, Index K, const T* panels, Row row) {
  FASTRNN_ASSERT(panels);
  const T* a[kMaxRows];
  PrefetchList<T> prefetch;
  for (int r = 0; r < t.rows; ++r) {
    a[r] = row(t.row + r);
    for (int v = 0; v < t.vectors; ++v) store(t.at(r, 0, v), Vec<T>{});
  }
  multiply<T>(t.rows, t.vectors, {a, K, panels + t.unit * K}, t.acc, t.ld(), prefetch);
}

// Calls body(tile) for all tiles of rows [row0, row1) and a share of the H units (all of them if it is null), with A
// accumulators a unit.  The rows divide evenly, so that no tile is much smaller than the others.  If a share is used a
// second time, that begins when all threads have finished the first (a barrier).  `reverse_panels`: the last panel
// first.
template <class T, int G, int A, class Body>
FASTRNN_INLINE void for_each_tile(WorkShare* share, Index row0, Index row1, Index H, Body body,
                                  bool reverse_panels = false) {
  const Panels<T, G> panels{H};
  constexpr int kRows = tile_rows(G * panels.kVectors);
  const int rows = int(row1 - row0), tiles = (rows + kRows - 1) / kRows;
  if (rows <= 0) return;
  if (share && share->swept) barrier(share);
  if (share) share->swept = true;
  Index first, end;
  take(share, panels.count(), &first, &end);
  FASTRNN_ASSERT(row0 >= 0 && H > 0 && first >= 0 && first <= end && end <= panels.count());
  alignas(64) T acc[kMaxRows * A * panels.kUnits];
  Tile<T, A, (G > 1)> tile;
  tile.acc = acc;
  for (Index n = first; n < end; n += tile.panels) {
    tile.panels = G > 1 && rows == 1 ? int(end - n < kMaxRows ? end - n : kMaxRows) : 1;
    tile.is_first = n == first;
    const Index p = reverse_panels ? first + end - n - tile.panels : n;
    tile.unit = p * panels.kUnits;
    if constexpr (G == 1) tile.vectors = panels.vectors(p);
    const Index left = H - tile.unit - ((tile.panels - 1) * panels.kUnits + (tile.vectors - 1) * kLanes<T>);
    tile.lanes = int(left < kLanes<T> ? left : kLanes<T>);
    tile.row = row0;
    for (int i = 0; i < tiles; ++i) {
      tile.rows = rows / tiles + (i < rows % tiles);
      FASTRNN_ASSERT(tile.rows >= 1 && tile.rows <= kRows && tile.row + tile.rows <= row1 && tile.unit >= 0);
      FASTRNN_ASSERT(tile.unit < H && tile.lanes >= 1 && tile.lanes <= kLanes<T> && tile.items() <= kMaxRows);
      body(static_cast<const Tile<T, A, (G > 1)>&>(tile));
      tile.row += tile.rows;
    }
  }
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

// What the cells share: the products before the pointwise maths of a step, forward and backward, and their packing.
//
// A cell has G gates, GS of which see h(t-1), in torch's order.  The two products of the first kShared gates are added
// up; those of the others stay apart.  So a unit has A = GS + G - kShared accumulators; those that h(t-1) goes to come
// first.  A cell whose step has no product of the state has GS = 0, and no W_hh.
//
//                            G  GS  kShared    accumulators
//   RNN                      1   1     1       a
//   LSTM                     4   4     4       i f g o
//   GRU                      3   3     2       r z hn nx      (the reset gate acts on hn alone)
//   GRU, reset before        3   2     2       r z nx         (its hn is a second product)
#pragma once

#include "math/activations.hpp"
#include "products/bf16.hpp"
#include "products/full.hpp"
#include "products/int8.hpp"
#include "products/unpacked.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class Cell> constexpr int kAccumulatorsOf = Cell::GS + Cell::G - Cell::kShared;
template <class T, class Cell> using TileOf = Tile<T, kAccumulatorsOf<Cell>, (Cell::G > 1)>;
template <class Cell> constexpr int input_slot(int gate) {
  return gate < Cell::kShared ? gate : Cell::GS + gate - Cell::kShared;
}

// acc += a . panel for a tile and G gates, with weights stored in words; `slot_of(gate)` is the accumulator of a gate
template <class Products, int G, int A, bool M, class Slot>
FASTRNN_INLINE void multiply_words(const Tile<float, A, M>& t, const float* const* a, Index K, const float* panel,
                                   const float* fixed, Slot slot_of) {
  int slot[G * panel_vectors(G)];
  for (int g = 0; g < G; ++g)
    for (int v = 0; v < t.vectors; ++v) slot[g * t.vectors + v] = (slot_of(g) * t.vectors + v) * kLanes<float>;
  Products::template multiply<G>(t, a, K, panel, fixed, slot);
}

// Length of a row of accumulators, (panels, A, units)
template <class T, class Cell> Index projection_width(Index H) {
  return kAccumulatorsOf<Cell> * Panels<T, Cell::G>{H}.padded();
}

// acc += a . W^T of G gates, from the weights (G*H, K) as they are stored; gate by gate, so that they are read in long
// runs.  a: the rows of the tile; slot_of(gate) is the accumulator of a gate
template <int G, class T, int A, bool M, class Slot>
FASTRNN_INLINE void multiply_as_stored(const Tile<T, A, M>& t, const T* const* a, Index H, Index K, const T* w,
                                       Slot slot_of) {
  FASTRNN_ASSERT(a && w && K > 0);
  for (int gate = 0; gate < G; ++gate)
    for (int item = 0; item < t.panels; ++item)
      for (int v = 0; v < t.vectors; ++v) {
        const Index unit = t.unit_of(item) + v * kLanes<T>;
        multiply_unpacked<T>(t.rows, t.lanes_of(t.panels > 1 ? item : 0, v), a, K, w + (gate * H + unit) * K,
                             t.at(item, slot_of(gate), v), t.ld());
      }
}

// input_projection (rows, panels, A, units) = bias + W_ih x for rows that lie anywhere
template <class T, class Cell>
void project_inputs(const Sequence<T>& q, Index rows, const T* const* x, T* input_projection) {
  constexpr int G = Cell::G, A = kAccumulatorsOf<Cell>;
  FASTRNN_ASSERT(rows >= 0 && x && input_projection && q.bias && Cell::Products::kIsFull);
  const Index width = projection_width<T, Cell>(q.H);
  for_each_tile<T, G, A>(q.share, 0, rows, q.H, [&](const TileOf<T, Cell>& tile) {
    PrefetchList<T> prefetch;
    if (!q.w_input) {
      for (int i = 0; i < tile.items(); ++i)
        __builtin_memcpy(tile.at(i, 0, 0), q.bias + tile.unit_of(i) * A, tile.ld() * sizeof(T));
      multiply_as_stored<G>(tile, x + tile.row, q.H, q.I, q.weights.ih, input_slot<Cell>);
      for (int i = 0; i < tile.items(); ++i)
        __builtin_memcpy(input_projection + (tile.row + tile.row_of(i)) * width + tile.unit_of(i) * A, tile.at(i, 0, 0),
                         tile.ld() * sizeof(T));
      return;
    }
    for (int j = 0; j < tile.panels; ++j) {
      const TileOf<T, Cell> t = tile.panel(j);
      multiply_any<T, G, Cell::GS, Cell::kShared>(t.rows, t.vectors, q.bias + t.unit * A, 0,
                                                  {x + t.row, q.I, q.w_input + t.unit * G * q.I}, {nullptr, 0, nullptr},
                                                  input_projection + t.row * width + t.unit * A, width, prefetch);
    }
  });
}

// Where the numbers that a tile reads and writes at step s lie, for each of its items: those of the item's units, from
// its first unit on; rows of x and h, from their beginning on
template <class T, class Cell> struct TileOperands {
  static constexpr int A = kAccumulatorsOf<Cell>;
  const T *x[kMaxRows], *h[kMaxRows];  // what the products read; x is not set if no product of x is to be made
  const T* input_projection;           // accumulators of the first row, if they were made in advance
  const T* c_before[kMaxRows];
  T *c[kMaxRows], *y[kMaxRows], *saved[kMaxRows];

  FASTRNN_INLINE TileOperands(const Sequence<T>& q, Index s, const TileOf<T, Cell>& t) {
    FASTRNN_ASSERT(t.items() <= kMaxRows && t.row + t.rows <= q.active(s) && (!q.input_projection || s >= q.projection_from));
    const Index row = q.packed(s, t.row) - q.first(q.projection_from);
    input_projection = q.input_projection ? q.input_projection + row * projection_width<T, Cell>(q.H) : nullptr;
    for (int i = 0; i < t.items(); ++i)
      if (i > 0 && t.panels > 1) step(i);
      else look_up(i, q, s, t.row + i, t.unit);
  }

  FASTRNN_INLINE void look_up(int i, const Sequence<T>& q, Index s, Index b, Index unit) {
    if (q.has_x_product()) x[i] = q.x.at(s, b);
    h[i] = q.h_in_product(s, b);
    if (Cell::kStates > 1) c_before[i] = q.c_before(s, b) + unit, c[i] = q.c_at(s, b) + unit;
    y[i] = q.y.at(s, b) + unit;
    saved[i] = q.saved_at(s, b) + unit;
  }

  FASTRNN_INLINE void step(int i) {  // from item i - 1 to the next panel
    constexpr int L = kLanes<T>;
    x[i] = x[0], h[i] = h[0];
    if (Cell::kStates > 1) c_before[i] = c_before[i - 1] + L, c[i] = c[i - 1] + L;
    y[i] = y[i - 1] + L, saved[i] = saved[i - 1] + L;
  }
};

// acc += W_ih x(t) of a one-hot x: a row of the table or of a panel or, where W_ih is not packed, a column of W_ih
template <class T, class Cell>
FASTRNN_INLINE void add_one_hot(const Sequence<T>& q, Index s, const TileOf<T, Cell>& t, int i) {
  using Products = typename Cell::Products;
  const Index id = *q.ids.at(s, t.row + t.row_of(i)), unit = t.unit_of(i);
  FASTRNN_ASSERT(id >= 0 && (q.table || (id < q.I && (q.w_input || q.weights.ih))));
  for (int g = 0; g < Cell::G; ++g)
    for (int v = 0; v < t.vectors; ++v) {
      T* to = t.at(i, input_slot<Cell>(g), v);
      const int lanes = t.lanes_of(i, v);
      if (q.table) {
        const T* row = q.table + (id * Cell::G + g) * q.H + unit;
        store(to, load<T>(to) + load(row + v * kLanes<T>, lanes));
      } else if (q.w_input) {
        const T* panel = q.w_input + unit * Cell::G * Products::panel_rows(q.I);
        store(to, load<T>(to) + Products::column(panel, id, Cell::G * t.vectors, g * t.vectors + v));
      } else {
        const T* w = q.weights.ih + (g * q.H + unit + v * kLanes<T>) * q.I + id;
        for (int u = 0; u < lanes; ++u) to[u] += w[u * q.I];
      }
    }
}

// acc = the input projection, or the bias with the input product of a one-hot x
template <class T, class Cell>
FASTRNN_INLINE void start_accumulators(const Sequence<T>& q, Index s, const TileOf<T, Cell>& t,
                                       const TileOperands<T, Cell>& operands) {
  FASTRNN_ASSERT(q.bias);
  const Index width = projection_width<T, Cell>(q.H);
  for (int i = 0; i < t.items(); ++i) {
    const T* from = operands.input_projection ? operands.input_projection + t.row_of(i) * width : q.bias;
    from += t.unit_of(i) * kAccumulatorsOf<Cell>;
    for (int j = 0; j < t.ld(); j += kLanes<T>) store(t.at(i, 0, 0) + j, load(from + j));
    if (q.one_hot()) add_one_hot<T, Cell>(q, s, t, i);
  }
}

// acc (rows, A, vectors of units) = start + W_ih x(t) + W_hh h(t-1), where start is the bias, the input projection,
// which has W_ih x(t) already, or acc itself
template <class T, class Cell>
FASTRNN_INLINE void multiply_panel(const Sequence<T>& q, const TileOf<T, Cell>& t,
                                   const TileOperands<T, Cell>& operands, bool in_place, PrefetchList<T>& prefetch) {
  constexpr int G = Cell::G, GS = Cell::GS, A = kAccumulatorsOf<Cell>;
  using Products = typename Cell::Products;
  const bool has_x = q.has_x_product();
  FASTRNN_ASSERT(q.bias && (q.w_state || GS == 0) && (!has_x || q.w_input) && (Products::kIsFull || !q.input_projection));
  const T* input = q.w_input + t.unit * G * Products::panel_rows(q.I);
  const T* state = q.w_state + t.unit * GS * Products::panel_rows(q.P);
  if constexpr (Products::kIsFull) {
    multiply_any<T, G, GS, Cell::kShared>(
        t.rows, t.vectors, in_place ? t.acc : (operands.input_projection ? operands.input_projection : q.bias) + t.unit * A,
        in_place ? t.ld() : operands.input_projection ? projection_width<T, Cell>(q.H) : 0,
        {operands.x, has_x ? q.I : 0, input}, {operands.h, GS ? q.P : 0, state}, t.acc, t.ld(), prefetch);
  } else {
    if (has_x) multiply_words<Products, G>(t, operands.x, q.I, input, q.x_fixed, input_slot<Cell>);
    if constexpr (GS > 0)
      multiply_words<Products, GS>(t, operands.h, q.P, state, q.h_fixed, [](int gate) { return gate; });
  }
}

// acc = bias + W_ih x(t) + W_hh h(t-1) for the items of a tile
template <class T, class Cell>
FASTRNN_INLINE void preactivations(const Sequence<T>& q, Index s, const TileOf<T, Cell>& t,
                                   const TileOperands<T, Cell>& operands, PrefetchList<T>& prefetch) {
  FASTRNN_ASSERT(prefetch.n <= t.items() * Cell::kLinesForward);
  using Products = typename Cell::Products;
  const bool as_stored = Cell::GS > 0 && !q.w_state;
  FASTRNN_ASSERT(!as_stored || (Products::kIsFull && !q.has_x_product()));
  const bool in_place = q.one_hot() || as_stored || !Products::kIsFull;
  if (in_place) start_accumulators<T, Cell>(q, s, t, operands);
  if constexpr (!Products::kIsFull) {
    if (t.is_first) {
      if (q.has_x_product()) Products::prepare(t.rows, operands.x, q.I, q.x_fixed, t.row);
      Products::prepare(t.rows, operands.h, q.P, q.h_fixed, t.row);
    }
  } else if constexpr (Cell::GS > 0) {
    if (as_stored)
      return multiply_as_stored<Cell::GS>(t, operands.h, q.H, q.P, q.weights.hh, [](int gate) { return gate; });
  }
  for (int j = 0; j < t.panels; ++j)
    multiply_panel<T, Cell>(q, t.panel(q.reverse_panels ? t.panels - 1 - j : j), operands, in_place, prefetch);
}

// The mask m of recurrent dropout, or one; k of zoneout, see dropout.hpp
template <class T> FASTRNN_INLINE Vec<T> h_mask(const Sequence<T>& q, Index b, Index unit, int lanes) {
  return q.h_mask ? load(q.h_mask + b * q.P + unit, lanes) : splat(T(1));
}

template <class T>
FASTRNN_INLINE Vec<T> zoneout_keep(T p, const Rows<const uint8_t>& keeps, Index s, Index b, Index unit, int lanes) {
  return keeps.base ? load_bytes<T>(keeps.at(s, b) + unit, lanes) : splat(p);
}

// Whether y is no output of the cell but  p h(t-1) + (1 - p) h~(t),  the mean of zoneout
template <class T> bool mixes_means(const Sequence<T>& q) { return q.zoneout_h > 0 && !q.keeps_h.base; }

// h~(t) of that y; with p = 1, where no gradient reaches it, any number
template <class T>
FASTRNN_INLINE Vec<T> unmixed(const Sequence<T>& q, Index s, Index b, Index unit, int lanes, Vec<T> y) {
  const T p = q.zoneout_h;
  return p < 1 ? (y - p * load(q.h_before(s, b) + unit, lanes)) / (T(1) - p) : y;
}

// From the gradient of what the products saw of h(s) to that of h(s): times the mask, plus what h(s) hands on without a
// product
template <class T, class Cell>
void add_unmasked(const Sequence<T>& q, const Tile<T, 1>& t, int r) {
  const Index b = t.row + r;
  for (int v = 0; v < t.vectors; ++v) {
    const Index unit = t.unit + v * kLanes<T>;
    const int lanes = t.lanes_of(v);
    Vec<T> dh = t.get(r, 0, v) * h_mask(q, b, unit, lanes);
    if (Cell::kPassesThrough) dh += load(q.dh + b * q.P + unit, lanes);
    if (q.zoneout_h > 0) dh += load(q.dh_zoneout + b * q.P + unit, lanes);
    store(t.at(r, 0, v), dh);
  }
}

// dh(s) becomes the gradient of what the cell computed; the rest, which is for h(s-1), goes to dh_zoneout
template <class T> void split_zoneout(const Sequence<T>& q, Index s, const Tile<T, 1>& t, int r) {
  const Index b = t.row + r;
  for (int v = 0; v < t.vectors; ++v) {
    const Index unit = t.unit + v * kLanes<T>;
    const int lanes = t.lanes_of(v);
    const Vec<T> dh = t.get(r, 0, v), k = zoneout_keep(q.zoneout_h, q.keeps_h, s, b, unit, lanes);
    store(q.dh_zoneout + b * q.P + unit, k * dh, lanes);
    store(t.at(r, 0, v), (T(1) - k) * dh);
  }
}

// The gradient of a pre-activation, held within +-grad_clip (Graves 2013); NaN stays NaN
template <class T> FASTRNN_INLINE Vec<T> clipped(const Sequence<T>& q, Vec<T> d) {
  const Vec<T> most = splat(q.grad_clip);
  d = select<T>(d > most, most, d);
  return select<T>(d < -most, -most, d);
}

// Calls body(tile) with acc = dL/dh(s), for all rows that run at step s and all P units of h.  For s = -1: the gradient
// of the initial state.
//   rows that run at s+1:   dgates(s+1) . W_hh  +  what the cell passed straight through into q.dh, 0 if it was reset
//   rows that end at s:     the gradient of the final state, q.dh
//   all:                    + dy(s)
// With zoneout, acc is the gradient of what the cell computed, before zoneout.
template <class T, class Cell, class Body>
FASTRNN_INLINE void for_each_state_gradient(const Sequence<T>& q, Index s, Body body) {
  const bool noisy = q.h_mask || q.zoneout_h > 0, zones = q.zoneout_h > 0 && s >= 0;
  FASTRNN_ASSERT(s >= -1 && s < q.T_ && q.dh && (q.w_state || Cell::GS == 0) && (!zones || q.dh_zoneout));
  const Index continuing = s + 1 < q.T_ ? q.active(s + 1) : 0;
  const auto add_dy = [&](const Tile<T, 1>& t, int r) {
    if (s < 0 || !q.dy.base) return;
    const T* dy = q.dy.at(s, t.row + r) + t.unit;
    for (int v = 0; v < t.vectors; ++v)
      store(t.at(r, 0, v), t.get(r, 0, v) + load(dy + v * kLanes<T>, t.lanes_of(v)));
  };
  const auto set = [&](const Tile<T, 1>& t, int r, const T* from) {  // to zero if null
    for (int v = 0; v < t.vectors; ++v)
      store(t.at(r, 0, v), from ? load(from + t.unit + v * kLanes<T>, t.lanes_of(v)) : Vec<T>{});
  };
  for_each_tile<T, 1, 1>(q.share, 0, continuing, q.P, [&](const Tile<T, 1>& t) {
    const T* a[kMaxRows];
    PrefetchList<T> prefetch;
    for (int r = 0; r < t.rows; ++r) {
      const Index b = t.row + r;
      if (s >= 0 && q.dy.base) prefetch.add(q.dy.at(s, b) + t.unit);
      if (s >= 0) Cell::prefetch_backward(q, s, b, t.unit, prefetch);
      a[r] = q.dgates_at(s + 1, b);
      set(t, r, Cell::kPassesThrough && !noisy ? q.dh + b * q.P : nullptr);
    }
    FASTRNN_ASSERT(prefetch.n <= t.rows * (Cell::kLinesBackward + 1));
    if constexpr (Cell::GS > 0) {
      const Factors<T> factors{a, Cell::GS * q.H, q.w_state + t.unit * Cell::GS * q.H};
      Cell::Products::multiply_columns(t.rows, t.vectors, factors, t.acc, t.ld(), prefetch);
    }
    for (int r = 0; r < t.rows; ++r) {
      if (noisy) add_unmasked<T, Cell>(q, t, r);
      if (q.is_reset(s + 1, t.row + r)) set(t, r, nullptr);
      add_dy(t, r);
      if (zones) split_zoneout(q, s, t, r);
    }
    body(t);
  });
  if (s < 0) return;
  for_each_tile<T, 1, 1>(q.share, continuing, q.active(s), q.P, [&](const Tile<T, 1>& t) {
    for (int r = 0; r < t.rows; ++r) {
      set(t, r, q.dh + (t.row + r) * q.P);
      add_dy(t, r);
      if (zones) split_zoneout(q, s, t, r);
    }
    body(t);
  });
}

// dL/dh(-1) into q.dh
template <class T, class Cell> FASTRNN_INLINE void initial_state_gradient(const Sequence<T>& q) {
  for_each_state_gradient<T, Cell>(q, -1, [&](const Tile<T, 1>& t) {
    for (int r = 0; r < t.rows; ++r)
      for (int v = 0; v < t.vectors; ++v)
        store(q.dh + (t.row + r) * q.P + t.unit + v * kLanes<T>, t.get(r, 0, v), t.lanes_of(v));
  });
}

// Panels of W_ih and W_hh and, in the layout of the accumulators, the biases: each gate's b_ih goes where its input
// product goes, and b_hh where its state product goes, if it has one in this product.
template <class T, class Cell> void pack_products(Sequence<T>& q, Arena<T>& arena) {
  using Products = typename Cell::Products;
  constexpr int G = Cell::G, GS = Cell::GS, A = kAccumulatorsOf<Cell>;
  const Panels<T, G> panels{q.H};
  const Weights<T>& w = q.weights;
  T* bias = arena.take(A * panels.padded());
  const Index input_size = G * Products::panel_rows(q.I) * panels.padded();
  const Index state_size = GS * Products::panel_rows(q.P) * panels.padded();
  T* input = q.one_hot() || !q.packs_input ? nullptr : arena.take(input_size);
  T* state = q.packs_state ? arena.take(state_size) : nullptr;
  if (!arena.block) return;
  FASTRNN_ASSERT(w.ih && (w.hh || GS == 0) && (Products::kIsFull || (q.packs_input && q.packs_state)));
  if (input) Products::template pack<G>(w.ih, q.H, q.I, input);
  if constexpr (GS > 0)
    if (state) Products::template pack<GS>(w.hh, q.H, q.P, state);
  q.w_input = input, q.w_state = state, q.bias = bias;
  for (Index p = 0; p < panels.count(); ++p) {
    const int width = panels.vectors(p) * kLanes<T>;
    for (int i = 0; i < A * width; ++i) bias[i] = T(0);
    for (int g = 0; g < G; ++g)
      for (Index u = 0; u < width && p * panels.kUnits + u < q.H; ++u) {
        const Index row = g * q.H + p * panels.kUnits + u;
        if (w.b_ih) bias[input_slot<Cell>(g) * width + u] += w.b_ih[row];
        if (w.b_hh) bias[(g < GS ? g : input_slot<Cell>(g)) * width + u] += w.b_hh[row];
      }
    bias += A * width;
  }
}

// Panels of W_hh for dgates . W_hh: rows of the GS gates that see h(t-1)
template <class T, class Cell> void pack_state_gradient(Sequence<T>& q, Arena<T>& arena) {
  if (Cell::GS == 0) return;
  T* state = arena.take(Cell::GS * q.H * Panels<T, 1>{q.P}.padded());
  if (!arena.block) return;
  Cell::Products::pack_columns(q.weights.hh, q.P, Cell::GS * q.H, q.P, state);
  q.w_state = state;
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

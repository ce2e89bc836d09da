// What the cells share: the products before the pointwise maths of a step, forward and backward, and their packing.
//
// A cell has G gates, GS of which see h(t-1), in torch's order.  The two products of the first kShared gates are added
// up; those of the others stay apart.  So a unit has A = GS + G - kShared accumulators, first those that h(t-1) goes to:
//
//                            G  GS  kShared    accumulators
//   RNN                      1   1     1       a
//   LSTM                     4   4     4       i f g o
//   GRU                      3   3     2       r z hn nx      (the reset gate acts on hn alone)
//   GRU, reset before        3   2     2       r z nx         (its hn is a second product)
#pragma once

#include "activations.hpp"
#include "narrow.hpp"
#include "product.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class Cell> constexpr int kAccumulatorsOf = Cell::GS + Cell::G - Cell::kShared;
template <class Cell> constexpr int input_slot(int gate) {
  return gate < Cell::kShared ? gate : Cell::GS + gate - Cell::kShared;
}

// Length of a row of accumulators, (panels, A, units)
template <class T, class Cell> long start_width(long H) {
  return kAccumulatorsOf<Cell> * Panels<T, Cell::G>{H}.padded();
}

// started (rows, panels, A, units) = bias + W_ih x for rows that lie anywhere
template <class T, class Cell> void start_rows(const Sequence<T>& q, long rows, const T* const* x, T* started) {
  constexpr int G = Cell::G, A = kAccumulatorsOf<Cell>;
  const long width = start_width<T, Cell>(q.H);
  sweep<T, G, A>(q.share, 0, rows, q.H, [&](const Tile<T, A>& tile) {
    Wanted<T> wanted;
    for (int j = 0; j < tile.panels; ++j) {
      const Tile<T, A> t = tile.panel(j);
      multiply<T, G, Cell::GS, Cell::kShared>(t.rows, t.vectors, q.bias + t.unit * A, 0,
                                              {x + t.row, q.I, q.w_input + t.unit * G * q.I}, {nullptr, 0, nullptr},
                                              started + t.row * width + t.unit * A, width, wanted);
    }
  });
}

// Where the items of a tile lie at step s: what belongs to the units at the first unit, x and h at their begin
template <class T, class Cell> struct Items {
  static constexpr int A = kAccumulatorsOf<Cell>;
  const T *x[kMaxRows], *h[kMaxRows];  // what the products take; x is not set where its product is there already
  const T* started;                    // accumulators of the first row, if they were made in advance
  const T* c_before[kMaxRows];
  T *c[kMaxRows], *y[kMaxRows], *tape[kMaxRows];

  FASTRNN_INLINE Items(const Sequence<T>& q, long s, const Tile<T, A>& t) {
    started = q.started ? q.started + (q.packed(s, t.row) - q.start[q.started_from]) * start_width<T, Cell>(q.H) : nullptr;
    for (int i = 0; i < t.items(); ++i)
      if (i > 0 && t.panels > 1) step(i);
      else look_up(i, q, s, t.row + i, t.unit);
  }

  FASTRNN_INLINE void look_up(int i, const Sequence<T>& q, long s, long b, long unit) {
    if (q.has_x_product()) x[i] = q.x.at(s, b);
    h[i] = q.h_in_product(s, b);
    if (Cell::kHasC) c_before[i] = q.c_before(s, b) + unit, c[i] = q.c_at(s, b) + unit;
    y[i] = q.y.at(s, b) + unit;
    tape[i] = q.tape_at(s, b) + unit;
  }

  FASTRNN_INLINE void step(int i) {  // from item i - 1 to the next panel
    constexpr int L = kLanes<T>;
    x[i] = x[0], h[i] = h[0];
    if (Cell::kHasC) c_before[i] = c_before[i - 1] + L, c[i] = c[i - 1] + L;
    y[i] = y[i - 1] + L, tape[i] = tape[i - 1] + L;
  }
};

// acc += W_ih x(t) of a one-hot x: a row of the table or of a panel or, where W_ih is not packed, a column of W_ih
template <class T, class Cell>
FASTRNN_INLINE void add_one_hot(const Sequence<T>& q, long s, const Tile<T, kAccumulatorsOf<Cell>>& t, int i) {
  const long id = *q.ids.at(s, t.row + t.row_of(i)), unit = t.unit_of(i), units = t.vectors * kLanes<T>;
  for (int g = 0; g < Cell::G; ++g)
    for (int v = 0; v < t.vectors; ++v) {
      T* to = t.at(i, input_slot<Cell>(g), v);
      const long column = g * units + v * kLanes<T>;
      const int lanes = v + 1 == t.vectors ? t.lanes_of_item(i) : kLanes<T>;
      if (q.table) {
        const T* row = q.table + (id * Cell::G + g) * q.H + unit;
        store(to, load<T>(to) + load(row + v * kLanes<T>, lanes));
      } else if (q.narrow) {
        if constexpr (sizeof(T) == sizeof(float)) {
          const Bits<T> words = load_words(q.w_input + (unit * words_of(q.I) + id / 2 * units) * Cell::G + column);
          store(to, load<T>(to) + (id % 2 ? upper(words) : lower(words)));
        }
      } else if (q.w_input) {
        store(to, load<T>(to) + load(q.w_input + (unit * q.I + id * units) * Cell::G + column));
      } else {
        const T* w = q.weights.ih + (g * q.H + unit + v * kLanes<T>) * q.I + id;
        for (int u = 0; u < lanes; ++u) to[u] += w[u * q.I];
      }
    }
}

// acc = bias, and the input product of a one-hot x
template <class T, class Cell>
FASTRNN_INLINE void start_accumulators(const Sequence<T>& q, long s, const Tile<T, kAccumulatorsOf<Cell>>& t) {
  for (int i = 0; i < t.items(); ++i) {
    const T* bias = q.bias + t.unit_of(i) * kAccumulatorsOf<Cell>;
    for (int j = 0; j < t.ld(); j += kLanes<T>) store(t.at(i, 0, 0) + j, load(bias + j));
    if (q.one_hot()) add_one_hot<T, Cell>(q, s, t, i);
  }
}

// acc (rows, A, vectors of units) = what it starts from + W_ih x(t) + W_hh h(t-1), that being the bias, what was made in
// advance, or acc itself
template <class T, class Cell>
FASTRNN_INLINE void multiply_panel(const Sequence<T>& q, const Tile<T, kAccumulatorsOf<Cell>>& t,
                                   const Items<T, Cell>& items, bool in_place, Wanted<T>& wanted) {
  constexpr int G = Cell::G, GS = Cell::GS, A = kAccumulatorsOf<Cell>;
  const bool has_x = q.has_x_product();
  if constexpr (sizeof(T) == sizeof(float))
    if (q.narrow) {
      if (has_x) multiply_narrow<G>(t, items.x, q.I, q.w_input + t.unit * G * words_of(q.I), input_slot<Cell>);
      return multiply_narrow<GS>(t, items.h, q.P, q.w_state + t.unit * GS * words_of(q.P), [](int gate) { return gate; });
    }
  if (q.packs)
    return multiply<T, G, GS, Cell::kShared>(
        t.rows, t.vectors, in_place ? t.acc : (items.started ? items.started : q.bias) + t.unit * A,
        in_place ? t.ld() : items.started ? start_width<T, Cell>(q.H) : 0, {items.x, has_x ? q.I : 0, q.w_input + t.unit * G * q.I}, {items.h, q.P, q.w_state + t.unit * GS * q.P}, t.acc,
        t.ld(), wanted);
  for (int r = 0; r < t.rows; ++r)
    for (int v = 0; v < t.vectors; ++v) {
      const long unit = t.unit + v * kLanes<T>;
      multiply_unpacked<T, G, GS, Cell::kShared>(
          t.lanes_of(v), q.H, has_x ? items.x[r] : nullptr, q.I, q.weights.ih + unit * q.I, items.h[r], q.P,
          q.weights.hh + unit * q.P, t.at(r, 0, v), t.vectors * kLanes<T>);
    }
}

// acc = bias + W_ih x(t) + W_hh h(t-1) for the items of a tile
template <class T, class Cell>
FASTRNN_INLINE void preactivations(const Sequence<T>& q, long s, const Tile<T, kAccumulatorsOf<Cell>>& t,
                                   const Items<T, Cell>& items, Wanted<T>& wanted) {
  const bool in_place = q.one_hot() || !q.packs || q.narrow;
  if (in_place) start_accumulators<T, Cell>(q, s, t);
  for (int j = 0; j < t.panels; ++j) multiply_panel<T, Cell>(q, t.panel(j), items, in_place, wanted);
}

// m of recurrent dropout, or one; k of zoneout, see noise.hpp
template <class T> FASTRNN_INLINE Vec<T> h_mask(const Sequence<T>& q, long b, long unit, int lanes) {
  return q.h_mask ? load(q.h_mask + b * q.P + unit, lanes) : splat(T(1));
}

template <class T> FASTRNN_INLINE Vec<T> kept(const Zoneout<T>& z, long s, long b, long unit, int lanes) {
  return z.keeps.base ? load_bytes<T>(z.keeps.at(s, b) + unit, lanes) : splat(z.p);
}

// The products' gradients of h become those of h(s): through the mask, with what h(s) handed on unchanged
template <class T, class Cell>
void add_unmasked(const Sequence<T>& q, const Tile<T, 1>& t, int r) {
  const long b = t.row + r;
  for (int v = 0; v < t.vectors; ++v) {
    const long unit = t.unit + v * kLanes<T>;
    const int lanes = t.lanes_of(v);
    Vec<T> dh = t.get(r, 0, v) * h_mask(q, b, unit, lanes);
    if (Cell::kPassesThrough) dh += load(q.dh + b * q.P + unit, lanes);
    if (q.zoneout_h.p > 0) dh += load(q.dh_kept + b * q.P + unit, lanes);
    store(t.at(r, 0, v), dh);
  }
}

// dh(s) becomes that of what the cell computed; the rest is kept for h(s-1)
template <class T> void split_kept(const Sequence<T>& q, long s, const Tile<T, 1>& t, int r) {
  const long b = t.row + r;
  for (int v = 0; v < t.vectors; ++v) {
    const long unit = t.unit + v * kLanes<T>;
    const int lanes = t.lanes_of(v);
    const Vec<T> dh = t.get(r, 0, v), k = kept(q.zoneout_h, s, b, unit, lanes);
    store(q.dh_kept + b * q.P + unit, k * dh, lanes);
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
// With noise, acc is the gradient of what the cell computed, before zoneout.
template <class T, class Cell, class Body>
FASTRNN_INLINE void sweep_state_gradient(const Sequence<T>& q, long s, Body body) {
  const bool noisy = q.h_mask || q.zoneout_h.p > 0, zones = q.zoneout_h.p > 0 && s >= 0;
  const long continuing = s + 1 < q.T_ ? q.active(s + 1) : 0;
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
  sweep<T, 1, 1>(q.share, 0, continuing, q.P, [&](const Tile<T, 1>& t) {
    const T* a[kMaxRows];
    Wanted<T> wanted;
    for (int r = 0; r < t.rows; ++r) {
      const long b = t.row + r;
      if (s >= 0 && q.dy.base) wanted.add(q.dy.at(s, b) + t.unit);
      if (s >= 0) Cell::will_go_back(q, s, b, t.unit, wanted);
      a[r] = q.dgates_at(s + 1, b);
      set(t, r, Cell::kPassesThrough && !noisy ? q.dh + b * q.P : nullptr);
    }
    multiply<T>(t.rows, t.vectors, {a, Cell::GS * q.H, q.w_state + t.unit * Cell::GS * q.H}, t.acc, t.ld(), wanted);
    for (int r = 0; r < t.rows; ++r) {
      if (noisy) add_unmasked<T, Cell>(q, t, r);
      if (q.is_reset(s + 1, t.row + r)) set(t, r, nullptr);
      add_dy(t, r);
      if (zones) split_kept(q, s, t, r);
    }
    body(t);
  });
  if (s < 0) return;
  sweep<T, 1, 1>(q.share, continuing, q.active(s), q.P, [&](const Tile<T, 1>& t) {
    for (int r = 0; r < t.rows; ++r) {
      set(t, r, q.dh + (t.row + r) * q.P);
      add_dy(t, r);
      if (zones) split_kept(q, s, t, r);
    }
    body(t);
  });
}

// dL/dh(-1) into q.dh
template <class T, class Cell> FASTRNN_INLINE void initial_state_gradient(const Sequence<T>& q) {
  sweep_state_gradient<T, Cell>(q, -1, [&](const Tile<T, 1>& t) {
    for (int r = 0; r < t.rows; ++r)
      for (int v = 0; v < t.vectors; ++v)
        store(q.dh + (t.row + r) * q.P + t.unit + v * kLanes<T>, t.get(r, 0, v), t.lanes_of(v));
  });
}

// Panels of W_ih and W_hh and, in the layout of the accumulators, the biases: each gate's b_ih goes where its input
// product goes, and b_hh where its state product goes, if it has one in this sweep.
template <class T, class Cell> void pack_products(Sequence<T>& q, Arena<T>& arena) {
  constexpr int G = Cell::G, GS = Cell::GS, A = kAccumulatorsOf<Cell>;
  const Panels<T, G> panels{q.H};
  const Weights<T>& w = q.weights;
  T* bias = arena.take(A * panels.padded());
  T* input = q.one_hot() || !q.packs ? nullptr : arena.take(G * q.I * panels.padded());
  T* state = q.packs ? arena.take(GS * q.P * panels.padded()) : nullptr;
  if (!arena.block) return;
  if (input) pack_rows<T, G>(w.ih, q.I, q.H, q.I, input);
  if (state) pack_rows<T, GS>(w.hh, q.P, q.H, q.P, state);
  q.w_input = input, q.w_state = state, q.bias = bias;
  for (long p = 0; p < panels.count(); ++p) {
    const int width = panels.vectors(p) * kLanes<T>;
    for (int i = 0; i < A * width; ++i) bias[i] = T(0);
    for (int g = 0; g < G; ++g)
      for (long u = 0; u < width && p * panels.kUnits + u < q.H; ++u) {
        const long row = g * q.H + p * panels.kUnits + u;
        if (w.b_ih) bias[input_slot<Cell>(g) * width + u] += w.b_ih[row];
        if (w.b_hh) bias[(g < GS ? g : input_slot<Cell>(g)) * width + u] += w.b_hh[row];
      }
    bias += A * width;
  }
}

// W_ih and W_hh, packed, to bfloat16
template <class T, class Cell> void narrow_products(Sequence<T>& q) {
  if constexpr (sizeof(T) == sizeof(float)) {
    narrow_panels<Cell::G>(const_cast<float*>(q.w_input), q.I, q.H);
    narrow_panels<Cell::GS>(const_cast<float*>(q.w_state), q.P, q.H);
    q.narrow = true;
  }
}

// Panels of W_hh for dgates . W_hh: rows of the GS gates that see h(t-1)
template <class T, class Cell> void pack_state_gradient(Sequence<T>& q, Arena<T>& arena) {
  T* state = arena.take(Cell::GS * q.H * Panels<T, 1>{q.P}.padded());
  if (!arena.block) return;
  pack_columns(q.weights.hh, q.P, Cell::GS * q.H, q.P, state);
  q.w_state = state;
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

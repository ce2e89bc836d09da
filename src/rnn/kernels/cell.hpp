// What the cells share: the products before the pointwise maths of a step, forward and backward, and their packing.
//
// A cell has G gates and A accumulators a unit.  Accumulators [0, G) take the input product, in the order
// `kInputOrder` of torch's gates; accumulators [kStateFirst, kStateFirst + GS) take the product with h(t-1), in torch's
// own order.  For the RNN and LSTM both are all gates.  The GRU's candidate keeps the two apart: its accumulators are
// n, r, z, hn, so that the input product fills the first three and the state product the last three.
#pragma once

#include "activations.hpp"
#include "product.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <int G> struct TorchOrder {
  int gate[G];
  constexpr TorchOrder() : gate() {
    for (int g = 0; g < G; ++g) gate[g] = g;
  }
};
template <int G> constexpr TorchOrder<G> kTorchOrder{};

// acc = bias + W_ih x(t) + W_hh h(t-1) for the units and rows of a tile
template <class T, class Cell>
FASTRNN_INLINE void preactivations(const Sequence<T>& q, long s, const Tile<T, Cell::A>& t) {
  constexpr int G = Cell::G, GS = Cell::GS;
  const long ld = t.ld();
  const T* a[kMaxRows];
  for (int r = 0; r < t.rows; ++r)
    for (int i = 0; i < ld; i += kLanes<T>) store(t.acc + r * ld + i, load(q.bias + t.unit * Cell::A + i));
  if (q.products)
    for (int r = 0; r < t.rows; ++r) {
      const long b = t.row + r;
      const long row = q.one_hot() ? *q.ids.at(s, b) : q.packed(s, b) - q.start[q.products_from];
      const T* product = q.products + row * G * q.H + t.unit;
      for (int g = 0; g < G; ++g)
        for (int v = 0; v < t.vectors; ++v) {
          const T* p = product + Cell::kInputOrder[g] * q.H + v * kLanes<T>;
          store(t.at(r, g, v), t.get(r, g, v) + load(p, t.lanes_of(v)));
        }
    }
  else if (q.one_hot()) {
    for (int r = 0; r < t.rows; ++r)
      for (int g = 0; g < G; ++g)
        for (int u = 0; u < t.units(); ++u)
          t.at(r, g, 0)[u] += q.weights.ih[(Cell::kInputOrder[g] * q.H + t.unit + u) * q.I + *q.ids.at(s, t.row + r)];
  } else {
    for (int r = 0; r < t.rows; ++r) a[r] = q.x.at(s, t.row + r);
    if (q.packs)
      multiply(t.rows, G * t.vectors, a, q.I, q.w_input + t.unit * G * q.I, t.acc, ld);
    else
      multiply_unpacked<T, G>(t.rows, t.units(), a, q.I, q.weights.ih + t.unit * q.I, Cell::kInputOrder, q.H, t.acc, ld,
                              t.vectors * kLanes<T>);
  }
  for (int r = 0; r < t.rows; ++r) a[r] = q.h_before(s, t.row + r);
  if (q.packs)
    multiply(t.rows, GS * t.vectors, a, q.P, q.w_state + t.unit * GS * q.P, t.at(0, Cell::kStateFirst, 0), ld);
  else
    multiply_unpacked<T, GS>(t.rows, t.units(), a, q.P, q.weights.hh + t.unit * q.P, kTorchOrder<GS>.gate, q.H,
                             t.at(0, Cell::kStateFirst, 0), ld, t.vectors * kLanes<T>);
}

// Calls body(tile) with acc = dL/dh(s), for all rows that run at step s and all P units of h.  For s = -1: the gradient
// of the initial state.
//   rows that run at s+1:   dgates(s+1) . W_hh  +  what the cell passed straight through into q.dh, 0 if it was reset
//   rows that end at s:     the gradient of the final state, q.dh
//   all:                    + dy(s)
template <class T, class Cell, class Body>
FASTRNN_INLINE void sweep_state_gradient(const Sequence<T>& q, long s, Body body) {
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
  sweep<T, 1, 1>(0, continuing, q.P, [&](const Tile<T, 1>& t) {
    const T* a[kMaxRows];
    for (int r = 0; r < t.rows && s >= 0; ++r) {
      if (q.dy.base) will_read(q.dy.at(s, t.row + r) + t.unit);
      Cell::will_go_back(q, s, t.row + r, t.unit);
    }
    for (int r = 0; r < t.rows; ++r) {
      a[r] = q.dgates_at(s + 1, t.row + r) + Cell::kStateFirst * q.H;
      set(t, r, Cell::kPassesThrough ? q.dh + (t.row + r) * q.P : nullptr);
    }
    multiply(t.rows, t.vectors, a, Cell::GS * q.H, q.w_state + t.unit * Cell::GS * q.H, t.acc, t.ld());
    for (int r = 0; r < t.rows; ++r) {
      if (q.is_reset(s + 1, t.row + r)) set(t, r, nullptr);
      add_dy(t, r);
    }
    body(t);
  });
  if (s < 0) return;
  sweep<T, 1, 1>(continuing, q.active(s), q.P, [&](const Tile<T, 1>& t) {
    for (int r = 0; r < t.rows; ++r) {
      set(t, r, q.dh + (t.row + r) * q.P);
      add_dy(t, r);
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

// Panels of W_ih and W_hh and, in the layout of the accumulators, the biases: `from_ih` and `from_hh` say which of
// torch's gates each accumulator's bias comes from (-1: from none).
template <class T, class Cell>
void pack_products(Sequence<T>& q, Arena<T>& arena, const int (&from_ih)[Cell::A], const int (&from_hh)[Cell::A]) {
  constexpr int G = Cell::G, GS = Cell::GS, A = Cell::A;
  const Panels<T, G> panels{q.H};
  const Weights<T>& w = q.weights;
  T* bias = arena.take(A * panels.padded());
  T* input = q.products || q.one_hot() || !q.packs ? nullptr : arena.take(G * q.I * panels.padded());
  T* state = q.packs ? arena.take(GS * q.P * panels.padded()) : nullptr;
  if (!arena.block) return;
  if (input) pack_rows<T, G>(w.ih, q.I, Cell::kInputOrder, q.H, q.I, input);
  if (state) pack_rows<T, GS>(w.hh, q.P, kTorchOrder<GS>.gate, q.H, q.P, state);
  q.w_input = input, q.w_state = state, q.bias = bias;
  for (long p = 0; p < panels.count(); ++p)
    for (int g = 0; g < A; ++g)
      for (int u = 0; u < panels.vectors(p) * kLanes<T>; ++u, ++bias) {
        const long unit = p * panels.kUnits + u;
        *bias = T(0);
        if (unit >= q.H) continue;
        if (w.b_ih && from_ih[g] >= 0) *bias += w.b_ih[from_ih[g] * q.H + unit];
        if (w.b_hh && from_hh[g] >= 0) *bias += w.b_hh[from_hh[g] * q.H + unit];
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

// The LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000)
//
//   i = f0(b_i + W_ii x(t) + W_hi h(t-1) [+ p_i c(t-1)])        f, g alike: f = f0(...), g = f1(...)
//   c(t) = f c(t-1) + i g                                       coupled: f = 1 - i
//   o = f0(b_o + W_io x(t) + W_ho h(t-1) [+ p_o c(t)])
//   h(t) = o f2(c(t))                                           projected: h(t) = W_hr (o f2(c(t)))
//
// f0 = sigmoid, f1 = f2 = tanh.  General: any activations, the clip, peepholes p (3, H) and coupled gates.
//
// saved activations: i f g o | General: their slopes | projected: o f2(c).  c is saved for every step beside them; in
// inference it is updated in place.
// dgates: di df dg do (of the pre-activations).
#pragma once

#include "cells/cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T, bool General, class P = Full<T>> struct Lstm {
  using Products = P;
  static constexpr int G = 4, GS = 4, kShared = 4;
  static constexpr int kStates = 2;
  static constexpr bool kPassesThrough = false, kIsNormed = false;
  static constexpr int kLinesForward = 6, kLinesBackward = 9;
  static constexpr int L = kLanes<T>;
  static constexpr int kUnprojected = General ? 8 : 4;  // column of o f2(c) in the saved activations, in H

  static void pack_forward(Sequence<T>& q, Arena<T>& arena) {
    pack_products<T, Lstm>(q, arena);
    if (!q.weights.hr) return;
    T* projection = arena.take(q.H * Panels<T, 1>{q.P}.padded());
    if (!arena.block) return;
    pack_rows<T, 1>(q.weights.hr, q.H, q.P, q.H, projection);
    q.w_second = projection;
  }

  // Row k of the peephole weights times c, or zero
  static FASTRNN_INLINE Vec<T> peephole(const Sequence<T>& q, int k, Index unit, int lanes, Vec<T> c) {
    return q.weights.peephole ? load(q.weights.peephole + k * q.H + unit, lanes) * c : Vec<T>{};
  }

  static void forward(const Sequence<T>& q, Index s) {
    for_each_tile<T, G, 4>(q.share, 0, q.active(s), q.H, [&](const Tile<T, 4>& t) {
      const TileOperands<T, Lstm> operands(q, s, t);
      PrefetchList<T> prefetch;
      for (int i = 0; i < t.items(); ++i) prefetch_forward(q, operands, i, prefetch);
      preactivations<T, Lstm>(q, s, t, operands, prefetch);
      // The gates and c of all items, then h of all: h waits for c, so an item by itself would wait too.
      for (int i = 0; i < t.items(); ++i) gates_and_c(q, t, operands, i);
      for (int i = 0; i < t.items(); ++i) {
        const int lanes = t.lanes_of_item(i);
        Vec<T> slope;
        const Vec<T> h = t.get(i, 3, 0) * output(q, load<T>(operands.c[i], lanes), &slope);
        store(q.weights.hr ? operands.saved[i] + kUnprojected * q.H : operands.y[i], h, lanes);
      }
    }, q.reverse_panels);
    if (q.weights.hr) project(q, s);
  }

  template <class TileOperands>
  static FASTRNN_INLINE void prefetch_forward(const Sequence<T>& q, const TileOperands& operands, int i,
                                              PrefetchList<T>& prefetch) {
    prefetch.add(operands.c_before[i]);
    if (!q.weights.hr) prefetch.add(operands.y[i]);
    for (int k = 0; q.saved && k < 4; ++k) prefetch.add(operands.saved[i] + k * q.H);
  }

  // o stays in its accumulator
  static FASTRNN_INLINE void gates_and_c(const Sequence<T>& q, const Tile<T, 4>& t,
                                         const TileOperands<T, Lstm>& operands, int n) {
    const Index H = q.H, unit = t.unit_of(n);
    const int lanes = t.lanes_of_item(n);
    const Vec<T> c_before = load(operands.c_before[n], lanes);
    Vec<T> ai = t.get(n, 0, 0), af = t.get(n, 1, 0), ag = t.get(n, 2, 0), ao = t.get(n, 3, 0), slope[4];
    if (General) {
      ai += peephole(q, 0, unit, lanes, c_before);
      af += peephole(q, 1, unit, lanes, c_before);
    }
    const Vec<T> i = gate<T, General, Sigmoid<T>>(q, 0, ai, &slope[0]);
    Vec<T> f = gate<T, General, Sigmoid<T>>(q, 0, af, &slope[1]);
    if (General && q.coupled) f = T(1) - i, slope[1] = Vec<T>{};
    const Vec<T> g = gate<T, General, Tanh<T>>(q, 1, ag, &slope[2]);
    const Vec<T> c = f * c_before + i * g;
    if (General) ao += peephole(q, 2, unit, lanes, c);
    const Vec<T> o = gate<T, General, Sigmoid<T>>(q, 0, ao, &slope[3]);
    store(operands.c[n], c, lanes);
    store(t.at(n, 3, 0), o);
    if (!q.saved) return;
    T* saved = operands.saved[n];
    const Vec<T> gates[] = {i, f, g, o};
    for (int k = 0; k < 4; ++k) store(saved + k * H, gates[k], lanes);
    for (int k = 0; General && k < 4; ++k) store(saved + (4 + k) * H, slope[k], lanes);
  }

  // f2(c); not clipped
  static FASTRNN_INLINE Vec<T> output(const Sequence<T>& q, Vec<T> c, Vec<T>* slope) {
    if constexpr (General) return activate<T>(q.activation[2], T(__builtin_inf()), c, slope);
    const Vec<T> y = tanh<T>(c);
    *slope = Tanh<T>::slope(y);
    return y;
  }

  // h = W_hr (o f2(c))
  static void project(const Sequence<T>& q, Index s) {
    FASTRNN_ASSERT(q.saved_width >= (kUnprojected + 1) * q.H);
    for_each_tile<T, 1, 1>(q.share, 0, q.active(s), q.P, [&](const Tile<T, 1>& t) {
      product_alone(t, q.H, q.w_second, [&](Index b) { return q.saved_at(s, b) + kUnprojected * q.H; });
      for (int r = 0; r < t.rows; ++r)
        for (int v = 0; v < t.vectors; ++v)
          store(q.y.at(s, t.row + r) + t.unit + v * L, t.get(r, 0, v), t.lanes_of(v));
    });
  }

  static void pack_backward(Sequence<T>& q, Arena<T>& arena) {
    pack_state_gradient<T, Lstm>(q, arena);
    if (!q.weights.hr) return;
    T* projection = arena.take(q.P * Panels<T, 1>{q.H}.padded());
    if (!arena.block) return;
    pack_columns(q.weights.hr, q.H, q.P, q.H, projection);
    q.w_second = projection;
  }

  static FASTRNN_INLINE void prefetch_backward(const Sequence<T>& q, Index s, Index b, Index unit,
                                               PrefetchList<T>& prefetch) {
    if (q.weights.hr) return;  // units are those of the projection then
    for (int k = 0; k < 4; ++k) {
      prefetch.add(q.saved_at(s, b) + k * q.H + unit);
      prefetch.add(q.dgates_at(s, b) + k * q.H + unit);
    }
    prefetch.add(q.c_before(s, b) + unit);
  }

  static void backward(const Sequence<T>& q, Index s) {
    FASTRNN_ASSERT(q.dc && (!General || !q.weights.peephole || q.dpeephole));
    if (s < 0) {
      for (Index b = 0; b < q.active(0); ++b)
        if (q.is_reset(0, b)) __builtin_memset(q.dc + b * q.H, 0, q.H * sizeof(T));
      return initial_state_gradient<T, Lstm>(q);
    }
    if (!q.weights.hr)
      return for_each_state_gradient<T, Lstm>(q, s, [&](const Tile<T, 1>& t) { backward_tile(q, s, t); });
    for_each_state_gradient<T, Lstm>(q, s, [&](const Tile<T, 1>& t) {
      for (int r = 0; r < t.rows; ++r)
        for (int v = 0; v < t.vectors; ++v)
          store(q.dprojected_at(s, t.row + r) + t.unit + v * L, t.get(r, 0, v), t.lanes_of(v));
    });
    for_each_tile<T, 1, 1>(q.share, 0, q.active(s), q.H, [&](const Tile<T, 1>& t) {
      product_alone(t, q.P, q.w_second, [&](Index b) { return q.dprojected_at(s, b); });
      backward_tile(q, s, t);
    });
  }

  // Row (s, b): what backward reads and writes of it
  struct Row {
    Index s, b;
    const T *saved, *c, *c_before;
    T *dgates, *dc;
    bool reset;  // after this step

    FASTRNN_INLINE Row(const Sequence<T>& q, Index s, Index b)
        : s(s), b(b), saved(q.saved_at(s, b)), c(q.c_at(s, b)), c_before(q.c_before(s, b)), dgates(q.dgates_at(s, b)),
          dc(q.dc + b * q.H), reset(s + 1 < q.T_ && b < q.active(s + 1) && q.is_reset(s + 1, b)) {}
  };

  // What forward saved of one vector of units
  struct Values {
    Vec<T> i, f, g, o, slope[4], c_before, c;

    FASTRNN_INLINE Values(const Sequence<T>& q, const Row& row, Index unit, int lanes) {
      const Index H = q.H;
      const T* saved = row.saved + unit;
      i = load(saved, lanes), f = load(saved + H, lanes), g = load(saved + 2 * H, lanes), o = load(saved + 3 * H, lanes);
      if constexpr (General) {
        for (int k = 0; k < 4; ++k) slope[k] = load(saved + (4 + k) * H, lanes);
      } else {
        slope[0] = Sigmoid<T>::slope(i), slope[1] = Sigmoid<T>::slope(f);
        slope[2] = Tanh<T>::slope(g), slope[3] = Sigmoid<T>::slope(o);
      }
      c_before = load(row.c_before + unit, lanes);
      c = q.zoneout_c > 0 ? f * c_before + i * g : load(row.c + unit, lanes);  // before zoneout
    }
  };

  static FASTRNN_INLINE void backward_tile(const Sequence<T>& q, Index s, const Tile<T, 1>& t) {
    for (int r = 0; r < t.rows; ++r) {
      const Row row(q, s, t.row + r);
      for (int v = 0; v < t.vectors; ++v) {
        const Index unit = t.unit + v * L;
        const int lanes = t.lanes_of(v);
        const Values k(q, row, unit, lanes);
        Vec<T> slope, dc_zoneout;
        const Vec<T> dh = t.get(r, 0, v), dout = output_gradient(q, k, dh, k.c, &slope);
        const Vec<T> dc = dc_after(q, row, unit, lanes, &dc_zoneout) + dh * k.o * slope;
        gate_gradients(q, row, unit, lanes, k, dout, dc, dc_zoneout);
      }
    }
  }

  //   do = dh f2(c) f0'        dc(t) = what step t+1 hands back + dh o f2'(c) + p_o do
  static FASTRNN_INLINE Vec<T> output_gradient(const Sequence<T>& q, const Values& k, Vec<T> dh, Vec<T> c,
                                               Vec<T>* slope) {
    return clipped(q, dh * output(q, c, slope) * k.slope[3]);
  }

  // dc(t) from step t+1, less what of it is for c(t-1) by zoneout
  static FASTRNN_INLINE Vec<T> dc_after(const Sequence<T>& q, const Row& row, Index unit, int lanes,
                                        Vec<T>* dc_zoneout) {
    Vec<T> dc = row.reset ? Vec<T>{} : load<T>(row.dc + unit, lanes);
    *dc_zoneout = Vec<T>{};
    if (q.zoneout_c > 0) {
      *dc_zoneout = zoneout_keep(q.zoneout_c, q.keeps_c, row.s, row.b, unit, lanes) * dc;
      dc -= *dc_zoneout;
    }
    return dc;
  }

  //   di = dc g f0'            df = dc c(t-1) f0'           dg = dc i f1'
  //   dc(t-1) = dc f + p_i di + p_f df
  static FASTRNN_INLINE void gate_gradients(const Sequence<T>& q, const Row& row, Index unit, int lanes,
                                            const Values& k, Vec<T> dout, Vec<T> dc, Vec<T> dc_zoneout) {
    const Index H = q.H;
    if (General) dc += peephole(q, 2, unit, lanes, dout);
    Vec<T> di = dc * k.g, df = dc * k.c_before;
    if (General && q.coupled) di -= df;
    di = clipped(q, di * k.slope[0]);
    df = clipped(q, df * k.slope[1]);
    Vec<T> dc_before = dc * k.f + dc_zoneout;
    if (General) {
      dc_before += peephole(q, 0, unit, lanes, di) + peephole(q, 1, unit, lanes, df);
      if (q.weights.peephole) {
        const Vec<T> terms[] = {di * k.c_before, df * k.c_before, dout * k.c};
        for (int n = 0; n < 3; ++n) {
          T* p = q.dpeephole + n * H + unit;
          store(p, load<T>(p, lanes) + terms[n], lanes);
        }
      }
    }
    store(row.dc + unit, dc_before, lanes);
    const Vec<T> out[] = {di, df, clipped(q, dc * k.i * k.slope[2]), dout};
    for (int n = 0; n < 4; ++n) store(row.dgates + n * H + unit, out[n], lanes);
  }
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

// Layer normalisation inside a cell (Ba, Kiros and Hinton 2016)
//
//   LN(a) = (a - mean(a)) / sqrt(variance(a) + 1e-5)                  over a whole row, all gates of it
//   a_x = LN(W_ih x(t)) gain_ih + b_ih        a_h = LN(W_hh h(t-1)) gain_hh + b_hh
//   the cell as it is, with a_x and a_h in place of W_ih x(t) + b_ih and W_hh h(t-1) + b_hh
//   LSTM: h(t) = o tanh(LN(c(t)) gain_c + bias_c); the c that is carried on stays as it is
//
// A row has to be whole before any of it is normalised: a step makes the products of all rows, then goes through the
// rows, a few at a time, and gives the cell its accumulators.
//
// saved activations: the cell's own (Own, in H) | normalised: W_hh h(t-1) (GS) | W_ih x(t) (G) | then the statistics.
// dgates: gradients of W_hh h(t-1) (GS) | of W_ih x(t) (G); before that, those of the accumulators by the cell.
#pragma once

#include "cells/cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T> struct Statistics {
  T mean, rstd;
};

template <int Half> struct OtherHalf { static constexpr int at(int l) { return l ^ Half; } };

template <class T, int Half = kLanes<T> / 2> FASTRNN_INLINE T sum_of_lanes(Vec<T> v) {
  if constexpr (Half == 0) return v[0];
  else return sum_of_lanes<T, Half / 2>(v + shuffle<T, OtherHalf<Half>>(v, v));
}

// Sums f(i, lanes) over vectors of n numbers that start at i; four sums, so that they do not wait for each other
template <class T, class F> FASTRNN_INLINE T sum_of(Index n, F f) {
  constexpr int L = kLanes<T>;
  Vec<T> sums[4] = {};
  Index i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    FASTRNN_UNROLL
    for (int k = 0; k < 4; ++k) sums[k] += f(i + k * L, L);
  for (; i < n; i += L) sums[0] += f(i, n - i < L ? int(n - i) : L);
  return sum_of_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// v with zeros beyond the first lanes
template <class T> FASTRNN_INLINE Vec<T> first_lanes(Vec<T> v, int lanes) {
  for (int l = lanes; l < kLanes<T>; ++l) v[l] = 0;
  return v;
}

// Mean, and 1 / sqrt(variance + eps), of n numbers
template <class T> FASTRNN_INLINE T mean(const T* a, Index n) {
  return sum_of<T>(n, [&](Index i, int lanes) { return load(a + i, lanes); }) / T(n);
}

template <class T> FASTRNN_INLINE T rstd(const T* a, Index n, T mean) {
  const T square = sum_of<T>(n, [&](Index i, int lanes) {
    const Vec<T> d = first_lanes<T>(load(a + i, lanes) - mean, lanes);
    return d * d;
  });
  return T(1) / T(__builtin_sqrt(square / T(n) + T(1e-5)));
}

// The way back through the norm of a row: from the gradient d of  n gain + bias,  n = LN(a),  to that of a.
// With g = d gain:
//   rstd (g - mean(g) - n mean(g n))          dgain += d n          dbias += d
template <class T> struct NormGradient {
  const T *n, *gain;
  T *dgain, *dbias, rstd, mean_g = 0, mean_gn = 0;

  // Adds to the means the part of `count` of the N numbers, from `first` on, whose gradients are d
  FASTRNN_INLINE void add_means(Index first, Index count, const T* d, Index N) {
    const auto g = [&](Index i, int lanes) { return load(d + i, lanes) * load(gain + first + i, lanes); };
    mean_g += sum_of<T>(count, g) / T(N);
    mean_gn += sum_of<T>(count, [&](Index i, int lanes) { return g(i, lanes) * load(n + first + i, lanes); }) / T(N);
  }

  // The gradient of the numbers from i on, once the means are complete
  FASTRNN_INLINE Vec<T> of_product(Index i, Vec<T> d, int lanes) const {
    const Vec<T> normed = load(n + i, lanes), g = d * load(gain + i, lanes);
    store(dgain + i, load<T>(dgain + i, lanes) + d * normed, lanes);
    if (dbias) store(dbias + i, load<T>(dbias + i, lanes) + d, lanes);
    return (g - mean_g - normed * mean_gn) * rstd;
  }
};

template <class T, class Cell, int Own> struct Normed {
  using Products = typename Cell::Products;
  static constexpr int G = Cell::G, GS = Cell::GS, kShared = 0;  // its accumulators are both products of every gate
  static constexpr int A = kAccumulatorsOf<Cell>, L = kLanes<T>;
  static constexpr int kStates = Cell::kStates;
  static constexpr bool kHasC = kStates > 1, kIsNormed = true;
  static constexpr int kLinesForward = Cell::kLinesForward + GS + G, kLinesBackward = Cell::kLinesBackward;

  // What a row of the saved activations, or the scratch in its place, has beside the cell's own
  struct Row {
    T *h, *x;           // (GS, H), (G, H)
    Statistics<T>* of;  // of h, of x, of c

    Row() = default;
    FASTRNN_INLINE Row(const Sequence<T>& q, Index s, Index b)
        : h(q.saved_at(s, b) + Own * q.H), x(h + GS * q.H), of(reinterpret_cast<Statistics<T>*>(x + G * q.H)) {}
  };

  static void pack_forward(Sequence<T>& q, Arena<T>& arena) {
    const Weights<T> weights = q.weights;
    q.weights.b_ih = q.weights.b_hh = nullptr;  // they come after the normalisation
    pack_products<T, Normed>(q, arena);
    q.weights = weights;
  }

  static void forward(const Sequence<T>& q, Index s) {
    constexpr int kRows = tile_rows(G * panel_vectors(G));
    const Index n = q.active(s);
    FASTRNN_ASSERT(q.norms.gain_ih && q.norms.gain_hh && (!kHasC || q.norms.gain_c) && q.P == q.H);
    FASTRNN_ASSERT(q.saved_width == (Own + GS + G) * q.H + kNormStatistics);
    for_each_tile<T, G, GS + G>(q.share, 0, n, q.H, [&](const TileOf<T, Normed>& t) { products(q, s, t); }, q.reverse_panels);
    for (Index first = 0; first < n; first += kRows)
      after_products(q, s, first, int(n - first < kRows ? n - first : kRows));
  }

  // The step of some rows, whose products are made
  static FASTRNN_INLINE void after_products(const Sequence<T>& q, Index s, Index first, int rows) {
    Row row[kMaxRows];
    for (int r = 0; r < rows; ++r) {
      row[r] = Row(q, s, first + r);
      row[r].of[0].mean = mean(row[r].h, GS * q.H), row[r].of[1].mean = mean(row[r].x, G * q.H);
    }
    for (int r = 0; r < rows; ++r) {
      row[r].of[0].rstd = rstd(row[r].h, GS * q.H, row[r].of[0].mean);
      row[r].of[1].rstd = rstd(row[r].x, G * q.H, row[r].of[1].mean);
    }
    for_each_tile<T, G, A>(q.share, first, first + rows, q.H, [&](const TileOf<T, Cell>& t) {
      const TileOperands<T, Cell> operands(q, s, t);
      accumulators(q, row, t);
      if constexpr (kHasC)
        for (int i = 0; i < t.items(); ++i) {
          Cell::gates_and_c(q, t, operands, i);
          if (!q.saved) store(operands.saved[i] + 3 * q.H, t.get(i, 3, 0), t.lanes_of_item(i));  // o
        }
      else if constexpr (Cell::kPassesThrough) Cell::pointwise(q, s, t, operands);
      else Cell::pointwise(q, t, operands);
    });
    if constexpr (kHasC)
      for (Index b = first; b < first + rows; ++b) output(q, s, b);
  }

  // Both products of a tile, into the rows of the saved activations
  static FASTRNN_INLINE void products(const Sequence<T>& q, Index s, const TileOf<T, Normed>& t) {
    const TileOperands<T, Normed> operands(q, s, t);
    PrefetchList<T> prefetch;
    for (int i = 0; i < t.items(); ++i) {
      Cell::prefetch_forward(q, operands, i, prefetch);
      for (int k = 0; q.saved && k < GS + G; ++k) prefetch.add(operands.saved[i] + (Own + k) * q.H);
    }
    preactivations<T, Normed>(q, s, t, operands, prefetch);
    for (int i = 0; i < t.items(); ++i)
      for (int k = 0; k < GS + G; ++k)
        for (int v = 0; v < t.vectors; ++v)
          store(operands.saved[i] + (Own + k) * q.H + v * L, t.get(i, k, v), t.lanes_of(i, v));
  }

  // The accumulators of the cell from the products, which are normalised in place if activations are saved
  static FASTRNN_INLINE void accumulators(const Sequence<T>& q, const Row* rows, const TileOf<T, Cell>& t) {
    const Index H = q.H;
    const bool keeps = q.saved;
    for (int n = 0; n < t.items(); ++n) {
      const Row& row = rows[t.row_of(n)];
      const Statistics<T> h = row.of[0], x = row.of[1];
      for (int v = 0; v < t.vectors; ++v) {
        const Index unit = t.unit_of(n) + v * L;
        const int lanes = t.lanes_of(n, v);
        const auto scaled = [&](T* product, Statistics<T> k, const T* gain, const T* bias) {
          const Vec<T> normed = (load<T>(product, lanes) - k.mean) * k.rstd, a = normed * load(gain, lanes);
          if (keeps) store(product, normed, lanes);
          return bias ? a + load(bias, lanes) : a;
        };
        const auto of_h = [&](int g) {
          const Index i = g * H + unit;
          return scaled(row.h + i, h, q.norms.gain_hh + i, q.weights.b_hh ? q.weights.b_hh + i : nullptr);
        };
        const auto of_x = [&](int g) {
          const Index i = g * H + unit;
          return scaled(row.x + i, x, q.norms.gain_ih + i, q.weights.b_ih ? q.weights.b_ih + i : nullptr);
        };
        for (int g = 0; g < Cell::kShared; ++g) store(t.at(n, g, v), of_h(g) + of_x(g));
        for (int g = Cell::kShared; g < GS; ++g) store(t.at(n, g, v), of_h(g));
        for (int g = Cell::kShared; g < G; ++g) store(t.at(n, input_slot<Cell>(g), v), of_x(g));
      }
    }
  }

  // ---------------------------------------------------------------- backward

  static void pack_backward(Sequence<T>& q, Arena<T>& arena) { pack_state_gradient<T, Cell>(q, arena); }

  static void backward(const Sequence<T>& q, Index s) {
    if (s < 0) return Cell::backward(q, s);
    if constexpr (kHasC) cell_backward(q, s);
    else Cell::backward(q, s);
    for (Index b = 0; b < q.active(s); ++b) through_norms(q, s, b);
  }

  // In dgates of a row: from the gradients of the accumulators, as the cell left them, to those of the products
  static FASTRNN_INLINE void through_norms(const Sequence<T>& q, Index s, Index b) {
    const Index H = q.H, shared = Cell::kShared * H;
    FASTRNN_ASSERT(q.sums && q.dnorms.gain_ih && q.dnorms.gain_hh && q.dgates_width == (GS + G) * H);
    const Row row(q, s, b);
    T* d = q.dgates_at(s, b);
    NormGradient<T> h{row.h, q.norms.gain_hh, q.dnorms.gain_hh, q.sums, row.of[0].rstd};
    NormGradient<T> x{row.x, q.norms.gain_ih, q.dnorms.gain_ih, q.sums + GS * H, row.of[1].rstd};
    h.add_means(0, GS * H, d, GS * H);
    x.add_means(0, shared, d, G * H);
    x.add_means(shared, G * H - shared, d + GS * H, G * H);
    for (Index u = 0; u < H; u += L) {
      const int lanes = H - u < L ? int(H - u) : L;
      Vec<T> da[A];
      for (int k = 0; k < A; ++k) da[k] = load<T>(d + k * H + u, lanes);
      for (int g = 0; g < GS; ++g) store(d + g * H + u, h.of_product(g * H + u, da[g], lanes), lanes);
      for (int g = 0; g < G; ++g)
        store(d + (GS + g) * H + u, x.of_product(g * H + u, da[input_slot<Cell>(g)], lanes), lanes);
    }
  }

  // ---------------------------------------------------------------- the cell state of an LSTM

  // h = o tanh(LN(c) gain + bias) of a row whose gates and c are computed
  static FASTRNN_INLINE void output(const Sequence<T>& q, Index s, Index b) {
    const T *c = q.c_at(s, b), *o = q.saved_at(s, b) + 3 * q.H;
    const T m = mean(c, q.H);
    const Statistics<T> k = Row(q, s, b).of[2] = {m, rstd(c, q.H, m)};
    for (Index u = 0; u < q.H; u += L) {
      const int lanes = q.H - u < L ? int(q.H - u) : L;
      Vec<T> slope;
      const Vec<T> seen = seen_c(q, u, lanes, (load(c + u, lanes) - k.mean) * k.rstd);
      store(q.y.at(s, b) + u, load(o + u, lanes) * Cell::output(q, seen, &slope), lanes);
    }
  }

  static FASTRNN_INLINE Vec<T> seen_c(const Sequence<T>& q, Index unit, int lanes, Vec<T> normed) {
    const Vec<T> bias = q.norms.bias_c ? load(q.norms.bias_c + unit, lanes) : Vec<T>{};
    return normed * load(q.norms.gain_c + unit, lanes) + bias;
  }

  // Cell::backward with the norm of c between h and c.  Until they are written, columns of dgates hold the gradient of
  // what the norm gives (4) and c normalised (5).
  static void cell_backward(const Sequence<T>& q, Index s) {
    const Index H = q.H;
    for_each_state_gradient<T, Cell>(q, s, [&](const Tile<T, 1>& t) {
      for (int r = 0; r < t.rows; ++r) {
        const typename Cell::Row row(q, s, t.row + r);
        const Statistics<T> c = Row(q, s, t.row + r).of[2];
        for (int v = 0; v < t.vectors; ++v) {
          const Index unit = t.unit + v * L;
          const int lanes = t.lanes_of(v);
          const typename Cell::Values k(q, row, unit, lanes);
          const Vec<T> dh = t.get(r, 0, v), normed = (k.c - c.mean) * c.rstd;
          Vec<T> slope;
          const Vec<T> dout = Cell::output_gradient(q, k, dh, seen_c(q, unit, lanes, normed), &slope);
          store(row.dgates + 3 * H + unit, dout, lanes);
          store(row.dgates + 4 * H + unit, dh * k.o * slope, lanes);
          store(row.dgates + 5 * H + unit, normed, lanes);
        }
      }
    });
    for (Index b = 0; b < q.active(s); ++b) {
      const typename Cell::Row row(q, s, b);
      T* d = row.dgates;
      NormGradient<T> c{d + 5 * H, q.norms.gain_c, q.dnorms.gain_c, q.dnorms.bias_c, Row(q, s, b).of[2].rstd};
      c.add_means(0, H, d + 4 * H, H);
      for (Index u = 0; u < H; u += L) {
        const int lanes = H - u < L ? int(H - u) : L;
        const Vec<T> by_h = c.of_product(u, load<T>(d + 4 * H + u, lanes), lanes), dout = load<T>(d + 3 * H + u, lanes);
        const typename Cell::Values k(q, row, u, lanes);
        Vec<T> dc_zoneout;
        const Vec<T> dc = Cell::dc_after(q, row, u, lanes, &dc_zoneout) + by_h;
        Cell::gate_gradients(q, row, u, lanes, k, dout, dc, dc_zoneout);
      }
    }
  }
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

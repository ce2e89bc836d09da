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
// tape: the cell's own (Kept, in H) | W_hh h(t-1), normalised (GS) | W_ih x(t), normalised (G) | statistics.
// dgates: gradients of W_hh h(t-1) (GS) | of W_ih x(t) (G); before that, those of the accumulators by the cell.
#pragma once

#include "cell.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T> struct Statistics {
  T mean, rstd;
};

template <class T, int Half = kLanes<T> / 2> FASTRNN_INLINE T sum_of_lanes(Vec<T> v) {
  if constexpr (Half == 0) return v[0];
  else {
    Bits<T> other;
    for (int l = 0; l < kLanes<T>; ++l) other[l] = l ^ Half;
    return sum_of_lanes<T, Half / 2>(v + shuffle<T>(v, v, other));
  }
}

// Sums f(i, lanes) over vectors of n numbers that start at i; four sums, so that they do not wait for each other
template <class T, class F> FASTRNN_INLINE T sum_of(long n, F f) {
  constexpr int L = kLanes<T>;
  Vec<T> sums[4] = {};
  long i = 0;
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
template <class T> FASTRNN_INLINE T mean(const T* a, long n) {
  return sum_of<T>(n, [&](long i, int lanes) { return load(a + i, lanes); }) / T(n);
}

template <class T> FASTRNN_INLINE T rstd(const T* a, long n, T mean) {
  const T square = sum_of<T>(n, [&](long i, int lanes) {
    const Vec<T> d = first_lanes<T>(load(a + i, lanes) - mean, lanes);
    return d * d;
  });
  return T(1) / T(__builtin_sqrt(square / T(n) + T(1e-5)));
}

// The way back through a norm, for some rows at a time: from the gradients d of  n gain + bias,  n = LN(a),  to those of a.
// With g = d gain:
//   rstd (g - mean(g) - n mean(g n))          dgain += d n          dbias += d
template <class T> struct NormGradient {
  static constexpr int kRows = 4;
  struct Row {
    const T* n;
    T rstd, mean_g = 0, mean_gn = 0;
  };
  const T* gain;
  T *dgain, *dbias;
  Row row[kRows];

  // The share in a row's means of `count` of N numbers, from `first` on, whose gradients are d
  FASTRNN_INLINE void add_means(int r, long first, long count, const T* d, long N) {
    const T* n = row[r].n + first;
    const auto g = [&](long i, int lanes) { return load(d + i, lanes) * load(gain + first + i, lanes); };
    row[r].mean_g += sum_of<T>(count, g) / T(N);
    row[r].mean_gn += sum_of<T>(count, [&](long i, int lanes) { return g(i, lanes) * load(n + i, lanes); }) / T(N);
  }

  // Of the numbers from i on, once the means are there: body(r, gradient), where d(r) is what comes in
  template <class D, class Body> FASTRNN_INLINE void of_products(int rows, long i, int lanes, D d, Body body) const {
    const Vec<T> scale = load(gain + i, lanes);
    Vec<T> by_gain{}, by_bias{};
    for (int r = 0; r < rows; ++r) {
      const Vec<T> normed = load(row[r].n + i, lanes), dr = d(r);
      by_gain += dr * normed, by_bias += dr;
      body(r, (dr * scale - row[r].mean_g - normed * row[r].mean_gn) * row[r].rstd);
    }
    store(dgain + i, load<T>(dgain + i, lanes) + by_gain, lanes);
    if (dbias) store(dbias + i, load<T>(dbias + i, lanes) + by_bias, lanes);
  }
};

template <class T, class Cell, int Kept> struct Normed {
  static constexpr int G = Cell::G, GS = Cell::GS, kShared = 0;  // its accumulators are both products of every gate
  static constexpr int A = kAccumulatorsOf<Cell>, L = kLanes<T>;
  static constexpr bool kHasC = Cell::kHasC;

  // What a row of the tape, or the scratch in its place, has beside the cell's own
  struct Row {
    T *h, *x;           // (GS, H), (G, H)
    Statistics<T>* of;  // of h, of x, of c

    Row() = default;
    FASTRNN_INLINE Row(const Sequence<T>& q, long s, long b)
        : h(q.tape_at(s, b) + Kept * q.H), x(h + GS * q.H), of(reinterpret_cast<Statistics<T>*>(x + G * q.H)) {}
  };

  static void pack_forward(Sequence<T>& q, Arena<T>& arena) {
    const Weights<T> weights = q.weights;
    q.weights.b_ih = q.weights.b_hh = nullptr;  // they come after the normalisation
    pack_products<T, Normed>(q, arena);
    q.weights = weights;
  }

  static void forward(const Sequence<T>& q, long s) {
    constexpr int kRows = tile_rows(G * panel_vectors(G));
    const long n = q.active(s);
    sweep<T, G, GS + G>(q.share, 0, n, q.H, [&](const TileOf<T, Normed>& t) { products(q, s, t); }, q.from_last);
    for (long first = 0; first < n; first += kRows)
      after_products(q, s, first, int(n - first < kRows ? n - first : kRows));
  }

  // The step of some rows, whose products are there
  static FASTRNN_INLINE void after_products(const Sequence<T>& q, long s, long first, int rows) {
    Row row[kMaxRows];
    for (int r = 0; r < rows; ++r) {
      row[r] = Row(q, s, first + r);
      row[r].of[0].mean = mean(row[r].h, GS * q.H), row[r].of[1].mean = mean(row[r].x, G * q.H);
    }
    for (int r = 0; r < rows; ++r) {
      row[r].of[0].rstd = rstd(row[r].h, GS * q.H, row[r].of[0].mean);
      row[r].of[1].rstd = rstd(row[r].x, G * q.H, row[r].of[1].mean);
    }
    sweep<T, G, A>(q.share, first, first + rows, q.H, [&](const TileOf<T, Cell>& t) {
      const Items<T, Cell> items(q, s, t);
      accumulators(q, row, t);
      if constexpr (kHasC)
        for (int i = 0; i < t.items(); ++i) {
          Cell::gates_and_c(q, t, items, i);
          if (!q.tape) store(items.tape[i] + 3 * q.H, t.get(i, 3, 0), t.lanes_of_item(i));  // o
        }
      else if constexpr (Cell::kPassesThrough) Cell::pointwise(q, s, t, items);
      else Cell::pointwise(q, t, items);
    });
    if constexpr (kHasC)
      for (long b = first; b < first + rows; ++b) output(q, s, b);
  }

  // Both products of a tile, into the rows of the tape
  static FASTRNN_INLINE void products(const Sequence<T>& q, long s, const TileOf<T, Normed>& t) {
    const Items<T, Normed> items(q, s, t);
    Wanted<T> wanted;
    for (int i = 0; i < t.items(); ++i) {
      Cell::will_go_on(q, items, i, wanted);
      for (int k = 0; q.tape && k < GS + G; ++k) wanted.add(items.tape[i] + (Kept + k) * q.H);
    }
    preactivations<T, Normed>(q, s, t, items, wanted);
    for (int i = 0; i < t.items(); ++i)
      for (int k = 0; k < GS + G; ++k)
        for (int v = 0; v < t.vectors; ++v)
          store(items.tape[i] + (Kept + k) * q.H + v * L, t.get(i, k, v), t.lanes_of(i, v));
  }

  // The accumulators of the cell from the products, which are normalised in place where there is a tape
  static FASTRNN_INLINE void accumulators(const Sequence<T>& q, const Row* rows, const TileOf<T, Cell>& t) {
    const long H = q.H;
    const bool keeps = q.tape;
    for (int n = 0; n < t.items(); ++n) {
      const Row& row = rows[t.row_of(n)];
      const Statistics<T> h = row.of[0], x = row.of[1];
      for (int v = 0; v < t.vectors; ++v) {
        const long unit = t.unit_of(n) + v * L;
        const int lanes = t.lanes_of(n, v);
        const auto scaled = [&](T* product, Statistics<T> k, const T* gain, const T* bias) {
          const Vec<T> normed = (load<T>(product, lanes) - k.mean) * k.rstd, a = normed * load(gain, lanes);
          if (keeps) store(product, normed, lanes);
          return bias ? a + load(bias, lanes) : a;
        };
        const auto of_h = [&](int g) {
          const long i = g * H + unit;
          return scaled(row.h + i, h, q.norms.gain_hh + i, q.weights.b_hh ? q.weights.b_hh + i : nullptr);
        };
        const auto of_x = [&](int g) {
          const long i = g * H + unit;
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

  static void backward(const Sequence<T>& q, long s) {
    if (s < 0) return Cell::backward(q, s);
    if constexpr (kHasC) cell_backward(q, s);
    else Cell::backward(q, s);
    by_rows(q.active(s), [&](long first, int rows) { through_norms(q, s, first, rows); });
  }

  // body(first, rows) for some of n rows at a time
  template <class Body> static FASTRNN_INLINE void by_rows(long n, Body body) {
    constexpr int kRows = NormGradient<T>::kRows;
    for (long first = 0; first < n; first += kRows) body(first, int(n - first < kRows ? n - first : kRows));
  }

  // In dgates of some rows: from the gradients of the accumulators, as the cell left them, to those of the products
  static FASTRNN_INLINE void through_norms(const Sequence<T>& q, long s, long first, int rows) {
    const long H = q.H, shared = Cell::kShared * H;
    NormGradient<T> h{q.norms.gain_hh, q.dnorms.gain_hh, q.sums, {}};
    NormGradient<T> x{q.norms.gain_ih, q.dnorms.gain_ih, q.sums + GS * H, {}};
    T* d[NormGradient<T>::kRows];
    for (int r = 0; r < rows; ++r) {
      const Row row(q, s, first + r);
      d[r] = q.dgates_at(s, first + r);
      h.row[r] = {row.h, row.of[0].rstd}, x.row[r] = {row.x, row.of[1].rstd};
      h.add_means(r, 0, GS * H, d[r], GS * H);
      x.add_means(r, 0, shared, d[r], G * H);
      x.add_means(r, shared, G * H - shared, d[r] + GS * H, G * H);
    }
    for (long u = 0; u < H; u += L) {
      const int lanes = H - u < L ? int(H - u) : L;
      Vec<T> da[NormGradient<T>::kRows][A];
      for (int r = 0; r < rows; ++r)
        for (int k = 0; k < A; ++k) da[r][k] = load<T>(d[r] + k * H + u, lanes);
      const auto to = [&](int column) {
        return [&, column](int r, Vec<T> gradient) { store(d[r] + column * H + u, gradient, lanes); };
      };
      for (int g = 0; g < GS; ++g) h.of_products(rows, g * H + u, lanes, [&](int r) { return da[r][g]; }, to(g));
      for (int g = 0; g < G; ++g)
        x.of_products(rows, g * H + u, lanes, [&](int r) { return da[r][input_slot<Cell>(g)]; }, to(GS + g));
    }
  }

  // ---------------------------------------------------------------- the cell state of an LSTM

  // h = o tanh(LN(c) gain + bias) of a row whose gates and c are there
  static FASTRNN_INLINE void output(const Sequence<T>& q, long s, long b) {
    const T *c = q.c_at(s, b), *o = q.tape_at(s, b) + 3 * q.H;
    const T m = mean(c, q.H);
    const Statistics<T> k = Row(q, s, b).of[2] = {m, rstd(c, q.H, m)};
    for (long u = 0; u < q.H; u += L) {
      const int lanes = q.H - u < L ? int(q.H - u) : L;
      Vec<T> slope;
      const Vec<T> seen = seen_c(q, u, lanes, (load(c + u, lanes) - k.mean) * k.rstd);
      store(q.y.at(s, b) + u, load(o + u, lanes) * Cell::output(q, seen, &slope), lanes);
    }
  }

  static FASTRNN_INLINE Vec<T> seen_c(const Sequence<T>& q, long unit, int lanes, Vec<T> normed) {
    const Vec<T> bias = q.norms.bias_c ? load(q.norms.bias_c + unit, lanes) : Vec<T>{};
    return normed * load(q.norms.gain_c + unit, lanes) + bias;
  }

  // Cell::backward with the norm of c between h and c.  The columns of dgates that are yet to come hold, on the way,
  // the gradient of what the norm gives and then that of c (4), and c normalised (5).
  static void cell_backward(const Sequence<T>& q, long s) {
    const long H = q.H;
    sweep_state_gradient<T, Cell>(q, s, [&](const Tile<T, 1>& t) {
      for (int r = 0; r < t.rows; ++r) {
        const typename Cell::Row row(q, s, t.row + r);
        const Statistics<T> c = Row(q, s, t.row + r).of[2];
        for (int v = 0; v < t.vectors; ++v) {
          const long unit = t.unit + v * L;
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
    by_rows(q.active(s), [&](long first, int rows) { through_norm_of_c(q, s, first, rows); });
  }

  static FASTRNN_INLINE void through_norm_of_c(const Sequence<T>& q, long s, long first, int rows) {
    const long H = q.H;
    NormGradient<T> c{q.norms.gain_c, q.dnorms.gain_c, q.dnorms.bias_c, {}};
    for (int r = 0; r < rows; ++r) {
      const T* d = q.dgates_at(s, first + r);
      c.row[r] = {d + 5 * H, Row(q, s, first + r).of[2].rstd};
      c.add_means(r, 0, H, d + 4 * H, H);
    }
    for (long u = 0; u < H; u += L) {
      const int lanes = H - u < L ? int(H - u) : L;
      const auto by_norm = [&](int r) { return load<T>(q.dgates_at(s, first + r) + 4 * H + u, lanes); };
      c.of_products(rows, u, lanes, by_norm, [&](int r, Vec<T> by_h) {
        const typename Cell::Row row(q, s, first + r);
        const Vec<T> dout = load<T>(row.dgates + 3 * H + u, lanes);
        const typename Cell::Values k(q, row, u, lanes);
        Vec<T> dc_kept;
        const Vec<T> dc = Cell::dc_after(q, row, u, lanes, &dc_kept) + by_h;
        Cell::gate_gradients(q, row, u, lanes, k, dout, dc, dc_kept);
      });
    }
  }
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

// What a cell's step sees: one layer in one direction over one batch.  Plain data, shared with _core.pyx.
//
// Letters: T time steps, B batch, I input size, H hidden size, P width of h (H, or the projection), G gates.
//
// Step s runs from 0 to T-1 in the order of the recurrence; a reversed direction starts at the end of time.  The batch
// is sorted by falling length, so the rows still running at step s are the first n(s) of them.  Two layouts follow:
//
//   Rows    the caller's arrays: row (s, b) lies at base + offset[b] + s * step.  Offset and step hold all of batch
//           order, sorting, time order and strides; nothing is copied or transposed.
//   packed  our own arrays (tape, dgates): row (s, b) is row first(s) + b, with first(s) = n(0) + ... + n(s-1).
#pragma once

#include "assert.hpp"
#include "crew.hpp"

#include <cstdint>

namespace fastrnn {

template <class T> struct Rows {
  T* base;
  const int64_t* offset;  // (B,) in elements
  int64_t step;           // in elements
  T* at(long s, long b) const {
    FASTRNN_ASSERT(base && offset && b >= 0);
    return base + offset[b] + s * step;
  }
};

// An activation of the general cells: which, and its two parameters (ONNX's alpha and beta)
struct Activation {
  int kind;  // index into ACTIVATIONS of activations.py
  double alpha, beta;
};

// Weights of one layer and direction as torch stores them (row-major); null where the layer has none
template <class T> struct Weights {
  const T* ih;        // (G*H, I)
  const T* hh;        // (G*H, P)
  const T* b_ih;      // (G*H,)
  const T* b_hh;      // (G*H,)
  const T* hr;        // (P, H) projection of an LSTM
  const T* peephole;  // (3, H) rows i, f, o of an LSTM
};

// Of layer normalisation, see layer_norm.hpp: gains of both products, gain and shift of an LSTM's c; or their
// gradients.  Null where the layer has none
template <class T> struct Norms {
  T *gain_ih, *gain_hh;  // (G*H,)
  T *gain_c, *bias_c;    // (H,)
};
constexpr long kNormStatistics = 16;  // numbers at the end of a row of the tape, of a layer that has them

// Which units keep their old value at a step: nonzero in `keeps`, (n,) a row, or, where its base is null, a share p of
// each unit.  p = 0: none
template <class T> struct Zoneout {
  T p;
  Rows<const uint8_t> keeps;
};

// How a stream holds W_ih and W_hh: as they are or, those of float32, in fewer bytes, see narrow.hpp and integer.hpp
enum Storage { kFull, kBfloat16, kInt8 };

// Words that a row of K values takes in fixed point, see integer.hpp
constexpr long fixed_size(long K) { return 16 + (K + 15) / 16 * 12; }

template <class T> struct Sequence {
  // sizes
  long T_, B, I, H, P;  // T_ is T, which names the type here
  const int64_t* start;  // (T+1,) first packed row of each step; null: all B run at every step

  // inputs: x, or indices of one-hot rows
  Rows<const T> x;          // (I,) a row; base null if absent
  Rows<const int64_t> ids;  // one index a row; base null if absent
  const T* table;           // for ids: (n, G*H), columns of W_ih, a row an index; null: they are picked from W_ih
  const T* started;         // packed rows (panels, A, units) from step `started_from` on: accumulators that hold
                            // bias + x . W_ih, made in advance; null: x . W_ih is made step by step
  long started_from;
  const T* h0;                // (B, P) initial state
  const T* c0;                // (B, H) cell state before step `kept_from`, at first the initial one
  Rows<const uint8_t> reset;  // nonzero: the state is zeroed before this step; base null if absent
  const T* zeros;             // (max(H, P),)

  // noise, see noise.hpp
  const T* h_mask;  // (B, P) h(t-1) is multiplied by it where it enters a product; null: it is not
  T* h_masked;      // (B, P) scratch: h(t-1) so multiplied
  Zoneout<T> zoneout_h, zoneout_c;
  T* c_saved;       // (B, H) scratch: c(t-1)
  T* dh_kept;       // (B, P) scratch: the part of dh that h(t-1) gets by zoneout

  // the cell
  Weights<T> weights;
  Norms<const T> norms;
  Activation activation[3];
  T clip;        // pre-activations are held within +-clip; infinity: never
  T grad_clip;   // gradients of pre-activations are held within +-grad_clip; infinity: never
  bool coupled;  // LSTM: f = 1 - i

  // forward
  Rows<T> y;         // (P,) a row: h of every step
  T* c;              // (H,) cell state, a row each step (packed) or, in inference, in place (B, H)
  bool c_in_place;
  T* tape;           // packed rows (tape_width,), what backward needs; null in inference
  long kept_from;    // the first step whose c and tape are kept: not 0 where forward runs again for a segment of steps
  T* scratch;        // (B, tape_width) in its place in inference, for cells with two products a step
  long tape_width;

  // backward
  Rows<const T> dy;       // (P,) a row; base null if zero
  Rows<T> dx;             // (I,) a row; base null if not wanted
  T* dh;                  // (B, P) gradient of the state: in, of the final one; out, of the initial one
  T* dc;                  // (B, H)
  T* dgates;              // packed rows from step `dgates_from` on: gradients of the pre-activations
  long dgates_from, dgates_width;
  T* dprojected;          // packed rows (P,) as dgates: gradient of h of a projected LSTM
  T* dpeephole;           // (3, H), added to
  Norms<T> dnorms;        // added to
  T* sums;                // (dgates_width,) of dgates over all rows; a cell with norms adds to it those of a_h and a_x

  // packed weights, see each cell; a call of few rows reads W_ih and W_hh as they are
  bool packs;
  Storage storage;  // of w_input and w_state
  bool dots;        // int8 is multiplied in whole numbers: the machine has an instruction for it
  bool from_last;   // forward takes the panels from the last to the first
  const T *w_input, *w_state, *w_second, *bias;
  T *x_fixed, *h_fixed;  // (B, fixed_size(I)), (B, fixed_size(P)) scratch: x(t), h(t-1) in fixed point; null unless int8

  Share* share;  // of a step that several threads make, see crew.hpp; null: all of it

  bool one_hot() const { return ids.base; }
  bool has_x_product() const { return !started && !ids.base; }  // x . W_ih is made step by step
  long first(long s) const {  // packed row of step s; of step T: how many there are
    FASTRNN_ASSERT(s >= 0 && s <= T_);
    return start ? start[s] : s * B;
  }
  long active(long s) const {
    FASTRNN_ASSERT(s >= 0 && s < T_);
    return start ? start[s + 1] - start[s] : B;
  }
  long packed(long s, long b) const {
    FASTRNN_ASSERT(b >= 0 && b < active(s));
    return first(s) + b;
  }
  bool is_reset(long s, long b) const {
    FASTRNN_ASSERT(b >= 0 && b < active(s));
    return reset.base && *reset.at(s, b);
  }

  const T* h_before(long s, long b) const {
    if (is_reset(s, b)) return zeros;
    FASTRNN_ASSERT(s > 0 || h0);
    return s == 0 ? h0 + b * P : y.at(s - 1, b);
  }
  bool is_noisy() const { return h_mask || zoneout_h.p > 0 || zoneout_c.p > 0; }
  // Whether threads may share its steps, those of calls and of streams alike: what is done for whole rows, outside of
  // sweeps, is not for several (noise, norms, numbers in fixed point)
  bool can_share() const { return !is_noisy() && !norms.gain_hh && storage != kInt8; }
  const T* h_in_product(long s, long b) const { return h_mask ? h_masked + b * P : h_before(s, b); }
  long kept(long s, long b) const {
    FASTRNN_ASSERT(s >= kept_from);
    return packed(s, b) - first(kept_from);
  }
  T* c_at(long s, long b) const {
    FASTRNN_ASSERT(c && b >= 0 && b < active(s));
    return c + (c_in_place ? b : kept(s, b)) * H;
  }
  const T* c_before(long s, long b) const {
    if (is_reset(s, b)) return zeros;
    FASTRNN_ASSERT(s != kept_from || c0);
    return s == kept_from ? c0 + b * H : c_at(s - 1, b);
  }
  T* tape_at(long s, long b) const {
    FASTRNN_ASSERT((tape || scratch || !tape_width) && b >= 0 && b < active(s));
    return tape ? tape + kept(s, b) * tape_width : scratch + b * tape_width;
  }
  T* dgates_at(long s, long b) const {
    FASTRNN_ASSERT(dgates && s >= dgates_from);
    return dgates + (packed(s, b) - first(dgates_from)) * dgates_width;
  }
  T* dprojected_at(long s, long b) const {
    FASTRNN_ASSERT(dprojected && s >= dgates_from);
    return dprojected + (packed(s, b) - first(dgates_from)) * P;
  }
};

// Where the gradients of the weights are added; null where the layer has none
template <class T> struct Gradients {
  T *ih, *hh, *b_ih, *b_hh, *hr;
};

// out = a m, of n numbers
template <class T> void times(long n, const T* a, const T* m, T* out) {
  for (long i = 0; i < n; ++i) out[i] = a[i] * m[i];
}

// Addresses of the rows of steps [s0, s1), in packed order; null where q has none.  `from_tape` is a column of the tape.
template <class T>
void list_rows(const Sequence<T>& q, long s0, long s1, long from_tape, const T** x, const T** h_before, const T** tape,
               T** dx) {
  for (long s = s0; s < s1; ++s)
    for (long b = 0; b < q.active(s); ++b) {
      if (q.x.base) *x++ = q.x.at(s, b);
      *h_before++ = q.h_before(s, b);
      if (q.tape_width) *tape++ = q.tape_at(s, b) + from_tape;
      if (q.dx.base) *dx++ = q.dx.at(s, b);
    }
}

// The listed rows of h(s-1) as the products saw them: masked, in `to` (rows, P)
template <class T> void mask_rows(const Sequence<T>& q, long s0, long s1, const T** h_before, T* to) {
  for (long s = s0; s < s1; ++s)
    for (long b = 0; b < q.active(s); ++b, ++h_before, to += q.P) {
      times(q.P, *h_before, q.h_mask + b * q.P, to);
      *h_before = to;
    }
}

// A step, as one of those who make it together does it
template <class T> struct Step {
  const Sequence<T>* q;
  void (*step)(const Sequence<T>&, long);
  long s;
  static void make(const Step* of, Share* share) {
    Sequence<T> own = *of->q;
    own.share = share;
    of->step(own, of->s);
  }
};

template <class T>
void step_together(Crew* crew, const Sequence<T>& q, void (*step)(const Sequence<T>&, long), long s) {
  if (crew) together(crew, Step<T>::make, Step<T>{&q, step, s});
  else step(q, s);
}

// Hands out parts of one block of memory; with a null block it only counts what is needed.
template <class T> struct Arena {
  T* block;
  long used;
  long counted = 0;
  T* take(long n) {
    FASTRNN_ASSERT(n >= 0);
    T* p = block ? block + used : nullptr;
    used += (n + 15) / 16 * 16;
    if (!block) counted = used;
    FASTRNN_ASSERT(used <= counted);
    return p;
  }
};

}  // namespace fastrnn

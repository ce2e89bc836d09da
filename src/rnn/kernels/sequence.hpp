// What a cell's step sees: one layer in one direction over one batch.  Plain data, shared with _core.pyx.
//
// Letters: T time steps, B batch, I input size, H hidden size, P width of h (H, or the projection), G gates.
//
// Step s runs from 0 to T-1 in the order of the recurrence; a reversed direction starts at the end of time.  The batch
// is sorted by falling length, so the rows still running at step s are the first n(s) of them.  Two layouts follow:
//
//   Rows    the caller's arrays: row (s, b) lies at base + offset[b] + s * step, or, if the caller has packed them,
//           where `place` says.  This holds all of batch order, sorting, time order and strides; nothing is copied or
//           transposed.
//   packed  our own arrays (saved, dgates): row (s, b) is row first(s) + b, with first(s) = n(0) + ... + n(s-1).
#pragma once

#include "index.hpp"
#include "runtime/assert.hpp"
#include "runtime/team.hpp"

namespace fastrnn {

// Where row (s, b) of an array lies: one step further, it is `step` elements further.  Or, if the caller's array is
// packed as torch packs sequences, all rows of a time step are together: time t begins with row place[t], and step is
// the width of a row; a direction that runs backwards begins at the time last[b].
template <class T> struct Rows {
  T* base;
  const int64_t* offset;  // (B,) in elements
  int64_t step;           // in elements
  const int64_t* place;   // (T,), or null
  const int64_t* last;    // (B,), or null
  T* at(Index s, Index b) const {
    FASTRNN_ASSERT(base && offset && b >= 0);
    return base + offset[b] + (place ? place[last ? last[b] - s : s] : s) * step;
  }
};

enum ActivationKind {
  kTanh, kRelu, kSigmoid, kAffine, kLeakyRelu, kThresholdedRelu, kScaledTanh, kHardSigmoid, kElu, kSoftsign, kSoftplus,
  kIdentity
};
constexpr const char* kActivationNames =
    "tanh relu sigmoid affine leaky_relu thresholded_relu scaled_tanh hard_sigmoid elu softsign softplus identity";

// An activation of the general cells: which, and its two parameters (ONNX's alpha and beta)
struct Activation {
  int kind;
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
constexpr Index kNormStatistics = 16;  // numbers at the end of a row of the saved activations, of a layer that has them

// How a stream holds W_ih and W_hh: as they are or, those of float32, in fewer bytes, see bf16.hpp and int8.hpp
enum Storage { kFull, kBfloat16, kInt8, kStorages };

// Words that a row of K values takes in fixed point, see int8.hpp
constexpr Index fixed_size(Index K) { return 16 + (K + 15) / 16 * 12; }

// What a layer and direction is, the same in every call
template <class T> struct CellConfig {
  Index I, H, P;
  Index C;  // width of the states beside h, which lie side by side, H each: that of an LSTM's c; 0 if there is none
  Index saved_width, dgates_width;
  Weights<T> weights;
  Norms<const T> norms;
  Activation activation[3];
  T clip;                  // pre-activations are held within +-clip; infinity: never
  T grad_clip;             // gradients of pre-activations are held within +-grad_clip; infinity: never
  bool coupled;            // LSTM: f = 1 - i
  T zoneout_h, zoneout_c;  // probability that a unit of h, of c, keeps its value; see dropout.hpp
  Storage storage;         // of w_input and w_state
};

// The arrays of one call
template <class T> struct CallArrays {
  Index T_, B;           // T_ is T, which names the type here
  const int64_t* start;  // (T+1,) first packed row of each step; null: all B run at every step

  Rows<const T> x;                // (I,) a row; base null if absent
  Rows<const int64_t> ids;        // indices of one-hot x, one a row; base null if absent
  const T* h0;                    // (B, P) initial state
  const T* c0;                    // (B, C) the other states before step `saved_from`, at first the initial ones
  Rows<const uint8_t> reset;      // nonzero: the state is zeroed before this step; base null if absent
  const T* h_mask;                // (B, P) h(t-1) is multiplied by it where it enters a product; null: it is not
  Rows<const uint8_t> keeps_h;    // (P,) a row: 1 where zoneout keeps the old value; base null: the mean
  Rows<const uint8_t> keeps_c;    // (H,) a row

  Rows<T> y;         // (P,) a row: h of every step
  T* c;              // (C,) the other states, a row each step (packed) or, in inference, in place (B, C)
  bool c_in_place;
  T* saved;          // packed rows (saved_width,), what backward needs; null in inference
  Index saved_from;  // the first step of c and saved: not 0 where forward runs again for a segment of steps

  Rows<const T> dy;  // (P,) a row; base null if zero
  Rows<T> dx;        // (I,) a row; base null if not wanted
  T* dh;             // (B, P) gradient of the state: in, of the final one; out, of the initial one
  T* dc;             // (B, C)
  T* dpeephole;      // (3, H), added to
  Norms<T> dnorms;   // added to
};

// Scratch of one call, and packed weights
template <class T> struct Workspace {
  const T* zeros;   // (max(H, P),)
  const T* table;   // for ids: (n, G*H), columns of W_ih, a row an index; null: they are picked from W_ih
  const T* input_projection;  // packed rows (panels, A, units) from step `projection_from` on: accumulators that hold
  Index projection_from;      // bias + x . W_ih, made in advance; null: x . W_ih is made step by step
  T* h_masked;      // (B, P) h(t-1) times h_mask
  T* c_saved;       // (B, C) c(t-1)
  T* dh_zoneout;    // (B, P) the part of dh that h(t-1) gets by zoneout
  T* scratch;       // (B, saved_width) in the place of `saved` in inference, for cells with two products a step
  T* dgates;        // packed rows from step `dgates_from` on: gradients of the pre-activations
  Index dgates_from;
  T* dprojected;    // packed rows (P,) as dgates: gradient of h of a projected LSTM
  T* sums;          // (dgates_width,) of dgates over all rows; a cell with norms adds to it those of a_h and a_x

  bool is_packed;       // before the call, see below: forward does not pack
  bool packs_input, packs_state;  // whether forward packs W_ih, W_hh; a call of few rows reads them as they are
  bool reverse_panels;  // forward takes the panels from the last to the first
  const T *w_input, *w_state, *w_second, *bias;  // in panels, see each cell; W_ih and W_hh are null if not packed
  T *x_fixed, *h_fixed;  // (B, fixed_size(I)), (B, fixed_size(P)) x(t), h(t-1) in fixed point; null unless int8

  WorkShare* share;  // of a step that a team makes, see team.hpp; null: all of it
};

// All that a step sees
template <class T> struct Sequence : CellConfig<T>, CallArrays<T>, Workspace<T> {
  using CellConfig<T>::H, CellConfig<T>::P, CellConfig<T>::C, CellConfig<T>::saved_width, CellConfig<T>::dgates_width;
  using CellConfig<T>::norms, CellConfig<T>::zoneout_h, CellConfig<T>::zoneout_c, CellConfig<T>::storage;
  using CallArrays<T>::T_, CallArrays<T>::B, CallArrays<T>::start, CallArrays<T>::ids, CallArrays<T>::reset;
  using CallArrays<T>::h0, CallArrays<T>::c0, CallArrays<T>::y, CallArrays<T>::c, CallArrays<T>::c_in_place;
  using CallArrays<T>::saved, CallArrays<T>::saved_from, CallArrays<T>::h_mask;
  using Workspace<T>::zeros, Workspace<T>::input_projection, Workspace<T>::h_masked, Workspace<T>::scratch;
  using Workspace<T>::dgates, Workspace<T>::dgates_from, Workspace<T>::dprojected;

  bool one_hot() const { return ids.base; }
  bool has_x_product() const { return !input_projection && !ids.base; }  // x . W_ih is made step by step
  Index first(Index s) const {  // packed row of step s; of step T: how many there are
    FASTRNN_ASSERT(s >= 0 && s <= T_);
    return start ? start[s] : s * B;
  }
  Index active(Index s) const {
    FASTRNN_ASSERT(s >= 0 && s < T_);
    return start ? start[s + 1] - start[s] : B;
  }
  Index packed(Index s, Index b) const {
    FASTRNN_ASSERT(b >= 0 && b < active(s));
    return first(s) + b;
  }
  bool is_reset(Index s, Index b) const {
    FASTRNN_ASSERT(b >= 0 && b < active(s));
    return reset.base && *reset.at(s, b);
  }

  const T* h_before(Index s, Index b) const {
    if (is_reset(s, b)) return zeros;
    FASTRNN_ASSERT(s > 0 || h0);
    return s == 0 ? h0 + b * P : y.at(s - 1, b);
  }
  bool has_dropout() const { return h_mask || zoneout_h > 0 || zoneout_c > 0; }
  // Whether a team may share its steps, those of calls and of streams alike: not if anything is done for whole rows,
  // outside of for_each_tile (dropout, norms, numbers in fixed point)
  bool can_share() const { return !has_dropout() && !norms.gain_hh && storage != kInt8; }
  const T* h_in_product(Index s, Index b) const { return h_mask ? h_masked + b * P : h_before(s, b); }
  Index saved_row(Index s, Index b) const {
    FASTRNN_ASSERT(s >= saved_from);
    return packed(s, b) - first(saved_from);
  }
  T* c_at(Index s, Index b) const {
    FASTRNN_ASSERT(c && b >= 0 && b < active(s));
    return c + (c_in_place ? b : saved_row(s, b)) * C;
  }
  const T* c_before(Index s, Index b) const {
    if (is_reset(s, b)) return zeros;
    FASTRNN_ASSERT(s != saved_from || c0);
    return s == saved_from ? c0 + b * C : c_at(s - 1, b);
  }
  T* saved_at(Index s, Index b) const {
    FASTRNN_ASSERT((saved || scratch || !saved_width) && b >= 0 && b < active(s));
    return saved ? saved + saved_row(s, b) * saved_width : scratch + b * saved_width;
  }
  T* dgates_at(Index s, Index b) const {
    FASTRNN_ASSERT(dgates && s >= dgates_from);
    return dgates + (packed(s, b) - first(dgates_from)) * dgates_width;
  }
  T* dprojected_at(Index s, Index b) const {
    FASTRNN_ASSERT(dprojected && s >= dgates_from);
    return dprojected + (packed(s, b) - first(dgates_from)) * P;
  }
};

// Where the gradients of the weights are added; null where the layer has none
template <class T> struct Gradients {
  T *ih, *hh, *b_ih, *b_hh, *hr;
};

// out = a m, of n numbers
template <class T> void times(Index n, const T* a, const T* m, T* out) {
  for (Index i = 0; i < n; ++i) out[i] = a[i] * m[i];
}

// Lists the addresses of the rows of steps [s0, s1), in packed order, of those arrays that q has.  `from_saved` is a
// column of `saved`.
template <class T>
void list_rows(const Sequence<T>& q, Index s0, Index s1, Index from_saved, const T** x, const T** h_before,
               const T** saved, T** dx) {
  for (Index s = s0; s < s1; ++s)
    for (Index b = 0; b < q.active(s); ++b) {
      if (q.x.base) *x++ = q.x.at(s, b);
      *h_before++ = q.h_before(s, b);
      if (q.saved_width) *saved++ = q.saved_at(s, b) + from_saved;
      if (q.dx.base) *dx++ = q.dx.at(s, b);
    }
}

// Replaces the listed rows of h(s-1) by what the products saw: the masked rows, in `to` (rows, P)
template <class T> void mask_rows(const Sequence<T>& q, Index s0, Index s1, const T** h_before, T* to) {
  for (Index s = s0; s < s1; ++s)
    for (Index b = 0; b < q.active(s); ++b, ++h_before, to += q.P) {
      times(q.P, *h_before, q.h_mask + b * q.P, to);
      *h_before = to;
    }
}

// A step as an order to a team: `make` is what each of its threads does
template <class T> struct Step {
  const Sequence<T>* q;
  void (*step)(const Sequence<T>&, Index);
  Index s;
  static void make(const Step* of, WorkShare* share) {
    Sequence<T> own = *of->q;
    own.share = share;
    of->step(own, of->s);
  }
};

template <class T>
void run_step(Team* team, const Sequence<T>& q, void (*step)(const Sequence<T>&, Index), Index s) {
  if (team) run_shared(team, Step<T>::make, Step<T>{&q, step, s});
  else step(q, s);
}

// Hands out parts of one block of memory; with a null block it only counts what is needed.
template <class T> struct Arena {
  T* block;
  Index used;
  Index counted = 0;
  T* take(Index n) {
    FASTRNN_ASSERT(n >= 0);
    T* p = block ? block + used : nullptr;
    used += (n + 15) / 16 * 16;
    if (!block) counted = used;
    FASTRNN_ASSERT(used <= counted);
    return p;
  }
};

}  // namespace fastrnn

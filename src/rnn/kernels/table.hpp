// The table of kernels: one for each instruction set, chosen once at import.  This is all that _core.pyx sees.
#pragma once

#include "runtime/progress.hpp"
#include "sequence.hpp"

#include <type_traits>  // here, since nothing of the standard library may be compiled for one instruction set
#include <utility>

namespace fastrnn {

// What a row of the table is called, and what its columns hold.  Names are separated by spaces.  Python looks rows up
// by name, so their order does not matter.
struct CellNames {
  const char* row;
  const char* cell;       // whose equations it computes: rnn, gru, lstm
  const char* states;     // the first is h
  const char* saved;      // the first columns of the saved activations, H wide each
  const char* gradients;  // blocks of dgates, in the order in which backward makes them: a name, and its place
};
constexpr int kCells = 13;

// A product after the backward loop: rows [gate H, (gate + gates) H) of a weight's gradient += dgates^T . source,
// with `gates` blocks of H columns of dgates from `column` on.  The sums of those columns go to the same rows of the
// weight's bias.
struct GradientBlock {
  enum Weight { kIH, kHH } weight;
  enum Source { kX, kH, kSaved } source;
  int gate, gates, column;
  int saved_column;  // where the source is the saved activations: first column, in H
};

// The columns of dgates that reach x, in at most two runs, and the rows of W_ih that they are multiplied by
template <class T> struct InputColumns {
  Index K[2], column[2], row[2];  // K: how many, zero for a run that there is not
  const T* panels[2];
};
constexpr Index kGradientPanel = 8192;  // scratch of weight_gradient

// The forward step for one way of storing the weights
template <class T> struct ForwardKernels {
  void (*pack)(Sequence<T>&, Arena<T>&);
  void (*step)(const Sequence<T>&, Index s);
};

template <class T> struct CellKernels {
  CellNames names;
  bool is_general, is_normed;  // takes any activations and the clip; with layer normalisation
  int gates;                   // G
  int saved_width;             // in H, of an unprojected cell
  int dgates_width;            // in H
  int rows_per_tile;
  int n_blocks;
  int n_states;                // h, and those beside it
  GradientBlock blocks[3];
  ForwardKernels<T> forward[kStorages];  // by Storage; of float64, kFull alone
  const ForwardKernels<T>& on(Storage storage) const { return forward[storage]; }
  Index (*projection_width)(Index H);
  void (*project_inputs)(const Sequence<T>&, Index rows, const T* const* x, T* input_projection);
  void (*pack_backward)(Sequence<T>&, Arena<T>&);
  void (*backward)(const Sequence<T>&, Index s);  // s = -1: gradients of the initial state
};

template <class T> struct Kernels {
  CellKernels<T> cells[kCells];
  const CellKernels<T>* cell(int row) const { return &cells[row]; }
  void (*weight_gradient)(const WorkShare* share, Index rows, Index N, Index K, const T* d, Index ld,
                          const T* const* source, T* panel, T* dw);
  Index (*pack_input_gradient)(InputColumns<T>& c, Index I, const T* w_ih, T* panels);
  void (*input_gradient)(WorkShare* share, Index rows, Index I, const InputColumns<T>& c, const T* dgates, Index ld,
                         const T* zeros, T* const* dx);
  double (*softmax_cross_entropy)(Index rows, Index K, const T* logits, const int64_t* targets, T scale, T* dlogits);
  void (*softmax)(Index rows, Index K, const T* logits, T* p);
  double (*squared_error)(Index n, T scale, const T* y, const T* target, T* d);
  void (*sgd)(Index n, T scale, T l2, T lr, T momentum, T damping, bool nesterov, const T* grad, T* buffer, T* param);
  void (*adam)(Index n, T scale, T l2, T keep, T b1, T b2, T rate, T root, T eps, const T* grad, T* m, T* v, T* param);
  void (*rmsprop)(Index n, T scale, T l2, T lr, T alpha, T eps, T momentum, const T* grad, T* v, T* m, T* buffer,
                  T* param);
  double (*sum_of_squares)(Index n, const T* x);
  void (*sum_rows)(Index rows, Index n, const T* a, Index ld, T* out);
  Index (*affine_size)(Index K, Index I);
  void (*pack_affine)(Index K, Index I, const T* w, T* panels);
  void (*affine)(Index K, Index I, const T* x, const T* panels, const T* bias, T* out);
  void (*affine_rows)(Index rows, Index K, Index I, const T* x, const T* w, const T* bias, T* out);
  void (*exp)(Index n, const T* x, T* y);
  void (*tanh)(Index n, const T* x, T* y);
  void (*sigmoid)(Index n, const T* x, T* y);
};

// The products of a chunk, or of a block, of steps [s0, s1), as an order to a team.  `memory` is the ForwardMemory or
// BackwardMemory of core/.
template <class T> struct Chunk {
  const Sequence<T>* q;
  const CellKernels<T>* cell;
  const void* memory;
  Index s0, s1;
};

struct KernelTable {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  const Kernels<float>& of(float) const { return f32; }
  const Kernels<double>& of(double) const { return f64; }
};

// The tables that this build has, best first; null-terminated.  `runs` tells whether this machine can run one.
struct KernelSet {
  const KernelTable* table;
  bool runs;
};
const KernelSet* kernel_sets();

}  // namespace fastrnn

// One instruction set's kernels: included by each isa_*.cpp, which has set the compiler's target and defined
//   FASTRNN_ISA           namespace and name
//   FASTRNN_VECTOR_BYTES  width of a vector
//   FASTRNN_REGISTERS     number of vector registers
#include "products/affine.hpp"
#include "math/elementwise.hpp"
#include "products/gradients.hpp"
#include "cells/gru.hpp"
#include "cells/layer_norm.hpp"
#include "math/loss.hpp"
#include "cells/lstm.hpp"
#include "cells/dropout.hpp"
#include "cells/rnn.hpp"
#include "table.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T, class Cell>
constexpr CellKernels<T> kernels_of(CellNames names, bool is_general, int saved_width, int dgates_width, int n_blocks,
                                    GradientBlock b0, GradientBlock b1, GradientBlock b2 = {}) {
  static_assert(Cell::kLinesForward <= kMostLines && Cell::kLinesBackward + 1 <= kMostLines,
                "PrefetchList is too small for this cell");
  return {names, is_general, Cell::kIsNormed, Cell::G, saved_width, dgates_width,
          tile_rows(Cell::G * panel_vectors(Cell::G)), n_blocks, Cell::kStates, {b0, b1, b2}, Cell::pack_forward,
          projection_width<T, Cell>, project_inputs<T, Cell>, Cell::pack_backward, forward_step<T, Cell>, Cell::backward};
}

using B = GradientBlock;

template <class T, class F, bool General> constexpr CellKernels<T> rnn(const char* row) {
  return kernels_of<T, Rnn<T, F, General>>({row, "rnn", "h", "", "a0"}, General, General, 1, 2,
                                           {B::kIH, B::kX, 0, 1, 0, 0}, {B::kHH, B::kH, 0, 1, 0, 0});
}

template <class T, bool General> constexpr CellKernels<T> gru(const char* row) {  // dgates: r z hn n
  return kernels_of<T, Gru<T, General>>({row, "gru", "h", "r z n", "n3 z1 r0 n2"}, General, General ? 7 : 4, 4, 3,
                                        {B::kIH, B::kX, 0, 2, 0, 0}, {B::kIH, B::kX, 2, 1, 3, 0},
                                        {B::kHH, B::kH, 0, 3, 0, 0});
}

template <class T, bool General> constexpr CellKernels<T> gru_before(const char* row) {  // dgates: r z n
  return kernels_of<T, GruResetBefore<T, General>>({row, "gru", "h", "r z n", "n2 z1 r0"}, General, General ? 7 : 4, 3, 3,
                                                   {B::kIH, B::kX, 0, 3, 0, 0}, {B::kHH, B::kH, 0, 2, 0, 0},
                                                   {B::kHH, B::kSaved, 2, 1, 2, 3});  // saved column 3: r h(t-1)
}

template <class T, bool General> constexpr CellKernels<T> lstm(const char* row) {
  return kernels_of<T, Lstm<T, General>>({row, "lstm", "h c", "i f g o", "o3 i0 f1 g2"}, General, General ? 8 : 4, 4, 2,
                                         {B::kIH, B::kX, 0, 4, 0, 0}, {B::kHH, B::kH, 0, 4, 0, 0});
}

// dgates: gradients of the product of the state, then of that of the input; the norms mix those of all gates
template <class T, class Cell, int Own> constexpr CellKernels<T> normed(const char* row, CellKernels<T> cell) {
  constexpr int G = Cell::G, GS = Cell::GS;
  const CellNames names = {row, cell.names.cell, cell.names.states, cell.names.saved, ""};
  return kernels_of<T, Normed<T, Cell, Own>>(names, false, Own + GS + G, GS + G, 2, {B::kIH, B::kX, 0, G, GS, 0},
                                             {B::kHH, B::kH, 0, GS, 0, 0});
}

template <class T> constexpr Kernels<T> kernels() {
  using RnnTanh = Rnn<T, Tanh<T>, false>;
  using RnnRelu = Rnn<T, Relu<T>, false>;
  return {{rnn<T, Tanh<T>, false>("rnn tanh"), rnn<T, Relu<T>, false>("rnn relu"), rnn<T, Tanh<T>, true>("rnn general"),
           gru<T, false>("gru"), gru<T, true>("gru general"), gru_before<T, false>("gru reset before"),
           gru_before<T, true>("gru reset before general"), lstm<T, false>("lstm"), lstm<T, true>("lstm general"),
           normed<T, RnnTanh, 0>("rnn tanh layer norm", rnn<T, Tanh<T>, false>("")),
           normed<T, RnnRelu, 0>("rnn relu layer norm", rnn<T, Relu<T>, false>("")),
           normed<T, Gru<T, false>, 4>("gru layer norm", gru<T, false>("")),
           normed<T, Lstm<T, false>, 4>("lstm layer norm", lstm<T, false>(""))},
          weight_gradient<T>, pack_input_gradient<T>, input_gradient<T>, softmax_cross_entropy<T>, sgd<T>, adam<T>,
          rmsprop<T>, sum_of_squares<T>, sum_rows<T>, affine_size<T>, pack_affine<T>, affine<T>,
          map<T, exp<T>>, map<T, tanh<T>>, map<T, sigmoid<T>>};
}

// Whether the gradient blocks of a cell lie within its dgates and saved activations and are, of W_ih as of W_hh if there is one,
// as many as its gates
template <class T> constexpr bool blocks_fit(const CellKernels<T>& cell) {
  int gates[] = {0, 0};
  for (int i = 0; i < cell.n_blocks; ++i) {
    const GradientBlock& b = cell.blocks[i];
    if (b.gate != gates[b.weight] || b.column + b.gates > cell.dgates_width) return false;
    if (b.source == GradientBlock::kSaved && b.saved_column >= cell.saved_width) return false;
    gates[b.weight] += b.gates;
  }
  return gates[GradientBlock::kIH] == cell.gates &&
         (gates[GradientBlock::kHH] == cell.gates || gates[GradientBlock::kHH] == 0);
}

template <class T> constexpr bool all_blocks_fit() {
  for (const CellKernels<T>& cell : kernels<T>().cells)
    if (!blocks_fit(cell)) return false;
  return true;
}
static_assert(all_blocks_fit<float>() && all_blocks_fit<double>());

#define FASTRNN_STRING_(x) #x
#define FASTRNN_STRING(x) FASTRNN_STRING_(x)
extern const KernelTable table;
const KernelTable table = {FASTRNN_STRING(FASTRNN_ISA), false, kernels<float>(), kernels<double>()};
#if FASTRNN_VECTOR_BYTES == 64
extern const KernelTable with_vnni;
const KernelTable with_vnni = {FASTRNN_STRING(FASTRNN_ISA) "vnni", true, kernels<float>(), kernels<double>()};
#endif

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

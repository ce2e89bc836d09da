// The kernels of one instruction set: included by each isa_*.cpp, which has set the compiler's target and defined
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

// Cells by their product policy: Family::With<Products>
template <class T, class F, bool General> struct RnnOf { template <class P> using With = Rnn<T, F, General, P>; };
template <class T, bool General> struct GruOf { template <class P> using With = Gru<T, General, P>; };
template <class T, bool General> struct GruBeforeOf { template <class P> using With = GruResetBefore<T, General, P>; };
template <class T, bool General> struct LstmOf { template <class P> using With = Lstm<T, General, P>; };
template <class T, class Family, int Own> struct NormedOf {
  template <class P> using With = Normed<T, typename Family::template With<P>, Own>;
};

template <class T, class Cell> constexpr ForwardKernels<T> forward_kernels() {
  return {Cell::pack_forward, forward_step<T, Cell>};
}

template <class T, class Family, class Int8Policy>
constexpr CellKernels<T> kernels_of(CellNames names, bool is_general, int saved_width, int dgates_width, int n_blocks,
                                    GradientBlock b0, GradientBlock b1, GradientBlock b2 = {}) {
  using Cell = typename Family::template With<Full<T>>;
  static_assert(Cell::kLinesForward <= kMostLines && Cell::kLinesBackward + 1 <= kMostLines,
                "PrefetchList is too small for this cell");
  CellKernels<T> row = {names, is_general, Cell::kIsNormed, Cell::G, saved_width, dgates_width,
                        tile_rows(Cell::G * panel_vectors(Cell::G)), n_blocks, Cell::kStates, {b0, b1, b2},
                        {forward_kernels<T, Cell>()}, projection_width<T, Cell>, project_inputs<T, Cell>,
                        Cell::pack_backward, Cell::backward};
  if constexpr (sizeof(T) == sizeof(float)) {
    row.forward[kBfloat16] = forward_kernels<T, typename Family::template With<Bf16>>();
    row.forward[kInt8] = forward_kernels<T, typename Family::template With<Int8Policy>>();
  }
  return row;
}

using B = GradientBlock;

template <class T, class I8, class F, bool General> constexpr CellKernels<T> rnn(const char* row) {
  return kernels_of<T, RnnOf<T, F, General>, I8>({row, "rnn", "h", "", "a0"}, General, General, 1, 2,
                                                 {B::kIH, B::kX, 0, 1, 0, 0}, {B::kHH, B::kH, 0, 1, 0, 0});
}

template <class T, class I8, bool General> constexpr CellKernels<T> gru(const char* row) {  // dgates: r z hn n
  return kernels_of<T, GruOf<T, General>, I8>({row, "gru", "h", "r z n", "n3 z1 r0 n2"}, General, General ? 7 : 4, 4, 3,
                                              {B::kIH, B::kX, 0, 2, 0, 0}, {B::kIH, B::kX, 2, 1, 3, 0},
                                              {B::kHH, B::kH, 0, 3, 0, 0});
}

template <class T, class I8, bool General> constexpr CellKernels<T> gru_before(const char* row) {  // dgates: r z n
  return kernels_of<T, GruBeforeOf<T, General>, I8>({row, "gru", "h", "r z n", "n2 z1 r0"}, General, General ? 7 : 4, 3, 3,
                                                    {B::kIH, B::kX, 0, 3, 0, 0}, {B::kHH, B::kH, 0, 2, 0, 0},
                                                    {B::kHH, B::kSaved, 2, 1, 2, 3});  // saved column 3: r h(t-1)
}

template <class T, class I8, bool General> constexpr CellKernels<T> lstm(const char* row) {
  return kernels_of<T, LstmOf<T, General>, I8>({row, "lstm", "h c", "i f g o", "o3 i0 f1 g2"}, General, General ? 8 : 4, 4,
                                               2, {B::kIH, B::kX, 0, 4, 0, 0}, {B::kHH, B::kH, 0, 4, 0, 0});
}

// dgates: gradients of the product of the state, then of that of the input; the norms mix those of all gates
template <class T, class I8, class Family, int Own> constexpr CellKernels<T> normed(const char* row, CellNames of) {
  using Cell = typename Family::template With<Full<T>>;
  constexpr int G = Cell::G, GS = Cell::GS;
  return kernels_of<T, NormedOf<T, Family, Own>, I8>({row, of.cell, of.states, of.saved, ""}, false, Own + GS + G, GS + G,
                                                     2, {B::kIH, B::kX, 0, G, GS, 0}, {B::kHH, B::kH, 0, GS, 0, 0});
}

template <class T, class I8 = Int8<false>> constexpr Kernels<T> kernels() {
  constexpr auto rnn_tanh = rnn<T, I8, Tanh<T>, false>("rnn tanh"), rnn_relu = rnn<T, I8, Relu<T>, false>("rnn relu");
  constexpr auto gru_after = gru<T, I8, false>("gru"), lstm_usual = lstm<T, I8, false>("lstm");
  return {{rnn_tanh, rnn_relu, rnn<T, I8, Tanh<T>, true>("rnn general"), gru_after, gru<T, I8, true>("gru general"),
           gru_before<T, I8, false>("gru reset before"), gru_before<T, I8, true>("gru reset before general"), lstm_usual,
           lstm<T, I8, true>("lstm general"),
           normed<T, I8, RnnOf<T, Tanh<T>, false>, 0>("rnn tanh layer norm", rnn_tanh.names),
           normed<T, I8, RnnOf<T, Relu<T>, false>, 0>("rnn relu layer norm", rnn_relu.names),
           normed<T, I8, GruOf<T, false>, 4>("gru layer norm", gru_after.names),
           normed<T, I8, LstmOf<T, false>, 4>("lstm layer norm", lstm_usual.names)},
          weight_gradient<T, Full<T>>, pack_input_gradient<T, Full<T>>, input_gradient<T, Full<T>>,
          softmax_cross_entropy<T>, softmax<T>, squared_error<T>, sgd<T>, adam<T>, rmsprop<T>, sum_of_squares<T>, sum_rows<T>, affine_size<T>,
          pack_affine<T>, affine<T>, affine_rows<T>, map<T, exp<T>>, map<T, tanh<T>>, map<T, sigmoid<T>>};
}

// Whether the gradient blocks of a cell lie within its dgates and saved columns and are, of W_ih as of W_hh if there is
// one, as many as its gates
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
const KernelTable table = {FASTRNN_STRING(FASTRNN_ISA), kernels<float>(), kernels<double>()};
#if FASTRNN_VECTOR_BYTES == 64
extern const KernelTable with_vnni;
const KernelTable with_vnni = {FASTRNN_STRING(FASTRNN_ISA) "vnni", kernels<float, Int8<true>>(), kernels<double>()};
#endif

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

// One instruction set's kernels: included by each isa_*.cpp, which has set the compiler's target and defined
//   FASTRNN_ISA           namespace and name
//   FASTRNN_VECTOR_BYTES  width of a vector
//   FASTRNN_REGISTERS     number of vector registers
#include "affine.hpp"
#include "elementwise.hpp"
#include "gradients.hpp"
#include "gru.hpp"
#include "layer_norm.hpp"
#include "loss.hpp"
#include "lstm.hpp"
#include "noise.hpp"
#include "rnn.hpp"
#include "table.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T, class Cell>
constexpr CellKernels<T> kernels_of(int tape_width, int dgates_width, int n_blocks,
                                    GradientBlock b0, GradientBlock b1, GradientBlock b2 = {}) {
  static_assert(Cell::kLinesOn <= kMostLines && Cell::kLinesBack + 1 <= kMostLines, "Wanted is too small for this cell");
  return {Cell::G, tape_width, dgates_width, tile_rows(Cell::G * panel_vectors(Cell::G)), n_blocks, Cell::kHasC,
          {b0, b1, b2}, Cell::pack_forward, start_width<T, Cell>, start_rows<T, Cell>, Cell::pack_backward,
          forward_step<T, Cell>, Cell::backward};
}

using B = GradientBlock;

template <class T, class F, bool General> constexpr CellKernels<T> rnn() {
  return kernels_of<T, Rnn<T, F, General>>(General, 1, 2, {B::kIH, B::kX, 0, 1, 0, 0}, {B::kHH, B::kH, 0, 1, 0, 0});
}

template <class T, bool General> constexpr CellKernels<T> gru() {  // dgates: r z hn n
  return kernels_of<T, Gru<T, General>>(General ? 7 : 4, 4, 3, {B::kIH, B::kX, 0, 2, 0, 0},
                                        {B::kIH, B::kX, 2, 1, 3, 0}, {B::kHH, B::kH, 0, 3, 0, 0});
}

template <class T, bool General> constexpr CellKernels<T> gru_before() {  // dgates: r z n; tape column 3: r h(t-1)
  return kernels_of<T, GruResetBefore<T, General>>(General ? 7 : 4, 3, 3, {B::kIH, B::kX, 0, 3, 0, 0},
                                                   {B::kHH, B::kH, 0, 2, 0, 0}, {B::kHH, B::kTape, 2, 1, 2, 3});
}

template <class T, bool General> constexpr CellKernels<T> lstm() {
  return kernels_of<T, Lstm<T, General>>(General ? 8 : 4, 4, 2, {B::kIH, B::kX, 0, 4, 0, 0},
                                         {B::kHH, B::kH, 0, 4, 0, 0});
}

// dgates: gradients of the product of the state, then of that of the input
template <class T, class Cell, int Kept> constexpr CellKernels<T> normed() {
  constexpr int G = Cell::G, GS = Cell::GS;
  return kernels_of<T, Normed<T, Cell, Kept>>(Kept + GS + G, GS + G, 2, {B::kIH, B::kX, 0, G, GS, 0},
                                              {B::kHH, B::kH, 0, GS, 0, 0});
}

template <class T> constexpr Kernels<T> kernels() {
  return {{rnn<T, Tanh<T>, false>(), rnn<T, Relu<T>, false>(), rnn<T, Tanh<T>, true>(), gru<T, false>(), gru<T, true>(),
           gru_before<T, false>(), gru_before<T, true>(), lstm<T, false>(), lstm<T, true>(),
           normed<T, Rnn<T, Tanh<T>, false>, 0>(), normed<T, Rnn<T, Relu<T>, false>, 0>(),
           normed<T, Gru<T, false>, 4>(), normed<T, Lstm<T, false>, 4>()},
          weight_gradient<T>, pack_input_gradient<T>, input_gradient<T>, softmax_cross_entropy<T>, sgd<T>, adam<T>,
          rmsprop<T>, sum_of_squares<T>, sum_rows<T>, affine_size<T>, pack_affine<T>, affine<T>,
          map<T, exp<T>>, map<T, tanh<T>>, map<T, sigmoid<T>>};
}

// Whether the gradient blocks of a cell lie within its dgates and tape and are, of W_ih as of W_hh, as many as its gates
template <class T> constexpr bool blocks_fit(const CellKernels<T>& cell) {
  int gates[] = {0, 0};
  for (int i = 0; i < cell.n_blocks; ++i) {
    const GradientBlock& b = cell.blocks[i];
    if (b.gate != gates[b.weight] || b.column + b.gates > cell.dgates_width) return false;
    if (b.source == GradientBlock::kTape && b.tape_column >= cell.tape_width) return false;
    gates[b.weight] += b.gates;
  }
  return gates[0] == cell.gates && gates[1] == cell.gates;
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
extern const KernelTable with_dots;
const KernelTable with_dots = {FASTRNN_STRING(FASTRNN_ISA) "vnni", true, kernels<float>(), kernels<double>()};
#endif

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

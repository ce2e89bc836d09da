// Weights in bfloat16, a float's upper half, for streams: half the bytes to read; arithmetic and state stay float32.
//
// A word of 32 bits holds two rows of a panel: (ceil(K / 2), G, units) words.
//
//   k, even    the lower half, which a shift makes a float: the weight rounded to bfloat16
//   k + 1      the whole word, read as a float with no instruction. The lower half ends its mantissa; the upper is
//              chosen with regard to that, such that the word is nearest to the weight
//
// Either is within half a step of bfloat16 of the weight, that is 2^-8 of it; a weight smaller than 2^-126 may become
// 2^-126. Weights are finite.
#pragma once

#include "products/product.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

constexpr Index bf16_rows(Index K) { return (K + 1) / 2; }

// The upper half of a word, held within finite numbers: the word is nearest to x if its lower half is `lower`.  Ties to
// even
inline uint32_t bfloat16_before(uint32_t lower, float x, int32_t least) {
  int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const int32_t magnitude = (bits & 0x7fffffff) - int32_t(lower);
  const int32_t half = (magnitude + 0x7fff + (magnitude >> 16 & 1)) >> 16;
  return (half < least ? least : half > 0x7f7f ? 0x7f7f : half) | (bits < 0 ? 0x8000 : 0);
}

// A word whose upper half is a normal number, whatever the lower is: others slow some processors down
inline uint32_t word_of(float lower, float upper) {
  const uint32_t half = bfloat16_before(0, lower, 0);
  return bfloat16_before(half, upper, 0x0080) << 16 | half;
}

// Panels of G*H x K weights w
template <int G> void pack_bf16(const float* w, Index H, Index K, float* panels) {
  pack_words<G>(w, H, K, bf16_rows(K), panels, [K](const float* row, float* column, Index width) {
    for (Index k = 0; k < K; k += 2) {
      const uint32_t word = word_of(row[k], k + 1 < K ? row[k + 1] : 0);
      __builtin_memcpy(column + k / 2 * width, &word, sizeof word);
    }
  });
}

// The two floats of each word
FASTRNN_INLINE Vec<float> lower(Bits<float> words) { return (Vec<float>)(words << 16); }
FASTRNN_INLINE Vec<float> upper(Bits<float> words) { return (Vec<float>)words; }

// Vector v of row k of a panel that is `vectors` wide
inline Vec<float> bf16_column(const float* panel, Index k, Index vectors, int v) {
  const Bits<float> words = load_words(panel + (k / 2 * vectors + v) * kLanes<float>);
  return k % 2 ? upper(words) : lower(words);
}

// Vector v of acc (MR, ld), at slot[v], += a (MR, K) . panel (K, NV vectors).  Few accumulators are two sets, one for
// each half, so that enough independent multiply-adds are in flight.
template <int NV, int MR>
__attribute__((noinline)) void bf16_product(const float* const* a, Index K, const float* panel, float* acc, Index ld,
                                              const int* slot) {
  constexpr int L = kLanes<float>, S = MR * NV >= 8 ? 1 : 2;
  Vec<float> c[S][MR][NV] = {};
  Index k = 0;
  for (; k + 2 <= K; k += 2, panel += NV * L)
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) {
      const Bits<float> words = load_words(panel + v * L);
      FASTRNN_UNROLL
      for (int r = 0; r < MR; ++r) {
        c[0][r][v] += splat(a[r][k]) * lower(words);
        c[S - 1][r][v] += splat(a[r][k + 1]) * upper(words);
      }
    }
  FASTRNN_UNROLL
  for (int r = 0; r < MR; ++r)
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) {
      if (k < K) c[0][r][v] += splat(a[r][k]) * lower(load_words(panel + v * L));
      if (S == 2) c[0][r][v] += c[S - 1][r][v];
      float* to = acc + r * ld + slot[v];
      store(to, load<float>(to) + c[0][r][v]);
    }
}

template <int NV, int MR = tile_rows(NV)>
FASTRNN_INLINE void bf16_product_of_rows(int rows, const float* const* a, Index K, const float* panel, float* acc,
                                           Index ld, const int* slot) {
  if (rows == MR) return bf16_product<NV, MR>(a, K, panel, acc, ld, slot);
  if constexpr (MR > 1) bf16_product_of_rows<NV, MR - 1>(rows, a, K, panel, acc, ld, slot);
}

// The product of G gates of a tile; vector v of it goes to slot[v] of a row of accumulators
template <int G, int V = panel_vectors(G), int A, bool M>
FASTRNN_INLINE void multiply_bf16(const Tile<float, A, M>& t, const float* const* a, Index K, const float* panel,
                                    const int* slot) {
  FASTRNN_ASSERT(a && K > 0 && panel && slot && t.vectors >= 1 && t.vectors <= V);
  if (t.vectors == V) return bf16_product_of_rows<G * V>(t.rows, a, K, panel, t.acc, t.ld(), slot);
  if constexpr (V > 1) multiply_bf16<G, V - 1>(t, a, K, panel, slot);
}

// The policy, see full.hpp
struct Bf16 {
  static constexpr Storage kStorage = kBfloat16;
  static constexpr bool kIsFull = false;

  static constexpr Index panel_rows(Index K) { return bf16_rows(K); }
  template <int G> static void pack(const float* w, Index H, Index K, float* panels) { pack_bf16<G>(w, H, K, panels); }
  static Vec<float> column(const float* panel, Index k, Index vectors, int v) {
    return bf16_column(panel, k, vectors, v);
  }
  static void prepare(int, const float* const*, Index, float*, Index) {}

  template <int G, int A, bool M>
  static FASTRNN_INLINE void multiply(const Tile<float, A, M>& t, const float* const* a, Index K, const float* panel,
                                      const float*, const int* slot) {
    multiply_bf16<G>(t, a, K, panel, slot);
  }
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

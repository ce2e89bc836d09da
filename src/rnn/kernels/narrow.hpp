// Weights in bfloat16, a float's upper half, for streams: half the bytes to read; arithmetic and state stay float32.
//
// A word of 32 bits holds two rows of a panel, k in its lower half and k + 1 in the upper: (ceil(K / 2), G, units) words.
// A shift and a mask make two floats of it, in every instruction set.
#pragma once

#include "product.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

constexpr long words_of(long K) { return (K + 1) / 2; }

// To the nearest, ties to even; NaN stays NaN
inline uint32_t bfloat16_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if (x != x) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Panels (K, G, units) become panels of words, in their own place: a word lies before what has yet to be read
template <int G> void narrow_panels(float* panels, long K, long H) {
  const Panels<float, G> all{H};
  const float* from = panels;
  float* to = panels;
  for (long p = 0; p < all.count(); ++p) {
    const long width = long(G) * all.vectors(p) * kLanes<float>;
    for (long k = 0; k < K; k += 2) {
      const bool pair = k + 1 < K;
      for (long i = 0; i < width; ++i) {
        const uint32_t word = bfloat16_bits(from[i]) | (pair ? bfloat16_bits(from[i + width]) << 16 : 0);
        __builtin_memcpy(to++, &word, sizeof word);
      }
      from += pair ? 2 * width : width;
    }
  }
}

// The two floats of each word
FASTRNN_INLINE Vec<float> lower(Bits<float> words) { return (Vec<float>)(words << 16); }
FASTRNN_INLINE Vec<float> upper(Bits<float> words) { return (Vec<float>)(words & int32_t(0xffff0000)); }

FASTRNN_INLINE Bits<float> load_words(const float* p) {
  Bits<float> words;
  __builtin_memcpy(&words, p, sizeof words);
#if defined(__x86_64__)
  __asm__("" : "+x"(words));  // in a register: else they are read from memory twice
#endif
  return words;
}

// Vector v of acc (MR, ld), at slot[v], += a (MR, K) . panel (K, NV vectors).  Few accumulators are two sets, one for
// each half, so that enough independent multiply-adds are in flight.
template <int NV, int MR>
__attribute__((noinline)) void narrow_product(const float* const* a, long K, const float* panel, float* acc, long ld,
                                              const int* slot) {
  constexpr int L = kLanes<float>, S = MR * NV >= 8 ? 1 : 2;
  Vec<float> c[S][MR][NV] = {};
  long k = 0;
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
FASTRNN_INLINE void narrow_product_of_rows(int rows, const float* const* a, long K, const float* panel, float* acc,
                                           long ld, const int* slot) {
  if (rows == MR) return narrow_product<NV, MR>(a, K, panel, acc, ld, slot);
  if constexpr (MR > 1) narrow_product_of_rows<NV, MR - 1>(rows, a, K, panel, acc, ld, slot);
}

// The product of G gates of a tile; `slot_of(gate)` is the accumulator that a gate goes to
template <int G, int V = panel_vectors(G), int A, class Slot>
FASTRNN_INLINE void multiply_narrow(const Tile<float, A>& t, const float* const* a, long K, const float* panel,
                                    Slot slot_of) {
  if (t.vectors == V) {
    int slot[G * V];
    for (int g = 0; g < G; ++g)
      for (int v = 0; v < V; ++v) slot[g * V + v] = (slot_of(g) * V + v) * kLanes<float>;
    return narrow_product_of_rows<G * V>(t.rows, a, K, panel, t.acc, t.ld(), slot);
  }
  if constexpr (V > 1) multiply_narrow<G, V - 1>(t, a, K, panel, slot_of);
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

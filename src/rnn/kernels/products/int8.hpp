// Weights in int8, for streams: a quarter of the bytes to read; sums, state and all else stay float32.
//
//   W ~ scale q        scale = max |w| / 127, of each row;  q = w / scale to the nearest, ties to even
//
// A word of 32 bits holds four rows of a panel, the first in its lowest byte.  A panel is (2 + ceil(K / 4), G, units):
// a row of scales, a row of offsets -128 (sum of q), rows of words.
//
// Where there is an instruction for the four products of two words (VNNI), x and h are taken in fixed point.  A row
// a (K,) is  step n,  step = max |a| / 2^23 (a little more),  n whole: as good as float32 for what is added up.  n has
// three digits to the base 256, each from -128 to 127; they are stored as d + 128, which the offset makes good:
//
//   a . W^T = scale step (256 (256 D2 + D1) + D0)        Dj = sum of (dj + 128) q + offset,  exact for K <= kMostTerms
//
// Elsewhere the bytes become floats.  Weights are finite; a row a that is not gives NaN, or what float32 gives.
#pragma once

#include "products/product.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

constexpr Index kMostTerms = 1 << 17;  // K: of more, a sum may exceed 32 bits
constexpr Index int8_rows(Index K) { return 2 + (K + 3) / 4; }
constexpr float kLeast = 0x1p-100f;  // the least maximum of a row, for rows of zeros: beside it values count as zero

// Panels of G*H x K weights w
template <int G> void pack_int8(const float* w, Index H, Index K, float* panels) {
  pack_words<G>(w, H, K, int8_rows(K), panels, [K](const float* row, float* column, Index width) {
    float largest = kLeast;
    for (Index k = 0; k < K; ++k) largest = __builtin_fmaxf(largest, __builtin_fabsf(row[k]));
    const float scale = largest / 127;
    int32_t offset = 0;
    for (Index k = 0; k < K; ++k) {
      const int q = int(__builtin_lrintf(row[k] / scale));
      reinterpret_cast<int8_t*>(column + (2 + k / 4) * width)[k % 4] = int8_t(q);
      offset -= 128 * q;
    }
    *column = scale;
    __builtin_memcpy(column + width, &offset, sizeof offset);
  });
}

FASTRNN_INLINE Vec<float> as_floats(Bits<float> whole) { return __builtin_convertvector(whole, Vec<float>); }
FASTRNN_INLINE Vec<float> byte_of(Bits<float> words, int i) { return as_floats(words << (24 - 8 * i) >> 24); }

// Vector v of row k of a panel that is `vectors` wide.  Not inlined, so that the product is not fused with a sum: it is
// rounded alike in every instruction set
__attribute__((noinline)) inline Vec<float> int8_column(const float* panel, Index k, Index vectors, int v) {
  constexpr int L = kLanes<float>;
  return load(panel + v * L) * byte_of(load_words(panel + ((2 + k / 4) * vectors + v) * L), int(k % 4));
}

// Vector v of acc, at slot[v], += a (K,) . panel (K, NV vectors)
template <int NV>
__attribute__((noinline)) void int8_product(const float* a, Index K, const float* panel, float* acc, const int* slot) {
  constexpr int L = kLanes<float>;
  const float* words = panel + 2 * NV * L;
  Vec<float> c[NV] = {};
  Index k = 0;
  for (; k + 4 <= K; k += 4, words += NV * L)
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) {
      const Bits<float> w = load_words(words + v * L);
      FASTRNN_UNROLL
      for (int i = 0; i < 4; ++i) c[v] += splat(a[k + i]) * byte_of(w, i);
    }
  for (int i = 0; k + i < K; ++i)
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) c[v] += splat(a[k + i]) * byte_of(load_words(words + v * L), i);
  FASTRNN_UNROLL
  for (int v = 0; v < NV; ++v) store(acc + slot[v], load(acc + slot[v]) + load(panel + v * L) * c[v]);
}

#if FASTRNN_VECTOR_BYTES == 64

// sums += the four products of bytes in each word, those of `digits` without a sign.  In assembler, since no compile
// target of this file has the instruction (AVX512_VNNI).
FASTRNN_INLINE void add_dot_products4(Bits<float>& sums, Bits<float> digits, Bits<float> weights) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(digits), "v"(weights));
}

constexpr Index fixed_digits(Index K) { return (K + 15) / 16 * 16; }  // bytes; those from K on meet words that are zero

// A row in fixed point: the step and, from word 16 on, the lowest digit of every value, then the next digit, then the
// highest.  The step is NaN if a value is not finite.
inline void to_fixed(const float* a, Index K, float* fixed) {
  constexpr int L = kLanes<float>;
  constexpr float kMost = 0x7f7f00;  // of |n|: n + 0x808080 has 24 bits
  const auto at = [&](Index k) { return load(a + k, int(K - k < L ? K - k : L)); };
  Vec<float> largest = splat(kLeast), zero_or_nan{};
  for (Index k = 0; k < K; k += L) {
    const Vec<float> x = at(k), magnitude = (Vec<float>)((Bits<float>)x & 0x7fffffff);
    largest = select<float>(magnitude > largest, magnitude, largest);
    zero_or_nan += x * 0.0f;
  }
  float most = 0, sum = 0;
  for (int l = 0; l < L; ++l) most = largest[l] > most ? largest[l] : most, sum += zero_or_nan[l];
  fixed[0] = most / kMost + sum;
  const float per_step = kMost / most;
  uint8_t* digits = reinterpret_cast<uint8_t*>(fixed + 16);
  for (Index k = 0; k < K; k += L) {
    const Vec<float> x = at(k) * per_step, half = select<float>(x < 0.0f, splat(-0.5f), splat(0.5f));
    const Bits<float> n = __builtin_convertvector(x + half, Bits<float>) + 0x808080;
    FASTRNN_UNROLL
    for (int j = 0; j < 3; ++j) {
      const auto bytes = __builtin_convertvector(n >> 8 * j & 255, VecOf<float>::bytes);
      __builtin_memcpy(digits + j * fixed_digits(K) + k, &bytes, sizeof bytes);
    }
  }
}

// As int8_product, for a row in fixed point
template <int NV>
__attribute__((noinline)) void fixed_product(const float* fixed, Index K, const float* panel, float* acc,
                                             const int* slot) {
  constexpr int L = kLanes<float>;
  const float* words = panel + 2 * NV * L;
  const uint8_t* digits = reinterpret_cast<const uint8_t*>(fixed + 16);
  Bits<float> sums[3][NV];
  FASTRNN_UNROLL
  for (int v = 0; v < NV; ++v) sums[0][v] = sums[1][v] = sums[2][v] = load_words(panel + (NV + v) * L);
  for (Index k = 0; k < K; k += 4, digits += 4, words += NV * L) {
    Bits<float> w[NV];
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) w[v] = load_words(words + v * L);
    FASTRNN_UNROLL
    for (int j = 0; j < 3; ++j) {
      int32_t four;
      __builtin_memcpy(&four, digits + j * fixed_digits(K), sizeof four);
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) add_dot_products4(sums[j][v], Bits<float>{} + four, w[v]);
    }
  }
  FASTRNN_UNROLL
  for (int v = 0; v < NV; ++v) {
    const Vec<float> sum = (as_floats(sums[2][v]) * 256.0f + as_floats(sums[1][v])) * 256.0f + as_floats(sums[0][v]);
    store(acc + slot[v], load(acc + slot[v]) + load(panel + v * L) * fixed[0] * sum);
  }
}

#endif

// The product of G gates of a tile, row by row; vector v of it goes to slot[v] of a row of accumulators
template <int G, int V = panel_vectors(G), int A, bool M>
FASTRNN_INLINE void multiply_int8(const Tile<float, A, M>& t, const float* const* a, Index K, const float* panel,
                                  const int* slot) {
  if (t.vectors == V) {
    FASTRNN_ASSERT(a && K > 0 && panel && slot);
    for (int r = 0; r < t.rows; ++r) int8_product<G * V>(a[r], K, panel, t.acc + r * t.ld(), slot);
    return;
  }
  if constexpr (V > 1) multiply_int8<G, V - 1>(t, a, K, panel, slot);
}

// The policies, see full.hpp
template <bool Vnni> struct Int8 {
  static constexpr Storage kStorage = kInt8;
  static constexpr bool kIsFull = false;

  static constexpr Index panel_rows(Index K) { return int8_rows(K); }
  template <int G> static void pack(const float* w, Index H, Index K, float* panels) { pack_int8<G>(w, H, K, panels); }
  static Vec<float> column(const float* panel, Index k, Index vectors, int v) {
    return int8_column(panel, k, vectors, v);
  }
  static void prepare(int, const float* const*, Index, float*, Index) {}

  template <int G, int A, bool M>
  static FASTRNN_INLINE void multiply(const Tile<float, A, M>& t, const float* const* a, Index K, const float* panel,
                                      const float*, const int* slot) {
    multiply_int8<G>(t, a, K, panel, slot);
  }
};

#if FASTRNN_VECTOR_BYTES == 64

// As multiply_int8, of rows in fixed point (rows, fixed_size(K))
template <int G, int V = panel_vectors(G), int A, bool M>
FASTRNN_INLINE void multiply_fixed(const Tile<float, A, M>& t, Index K, const float* panel, const float* fixed,
                                   const int* slot) {
  if (t.vectors == V) {
    FASTRNN_ASSERT(fixed && K > 0 && K <= kMostTerms && panel && slot);
    for (int r = 0; r < t.rows; ++r)
      fixed_product<G * V>(fixed + r * fixed_size(K), K, panel, t.acc + r * t.ld(), slot);
    return;
  }
  if constexpr (V > 1) multiply_fixed<G, V - 1>(t, K, panel, fixed, slot);
}

template <> struct Int8<true> : Int8<false> {
  // Rows a (K,) in fixed point: rows first, first+1, ... of fixed (B, fixed_size(K))
  static void prepare(int rows, const float* const* a, Index K, float* fixed, Index first) {
    FASTRNN_ASSERT(fixed);
    for (int r = 0; r < rows; ++r) to_fixed(a[r], K, fixed + (first + r) * fixed_size(K));
  }

  template <int G, int A, bool M>
  static FASTRNN_INLINE void multiply(const Tile<float, A, M>& t, const float* const*, Index K, const float* panel,
                                      const float* fixed, const int* slot) {
    multiply_fixed<G>(t, K, panel, fixed + t.row * fixed_size(K), slot);
  }
};

#endif

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

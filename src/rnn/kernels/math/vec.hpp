// Vectors of the compiler (GCC and Clang vector extensions), as wide as the instruction set of this translation unit.
//
//   Vec<T>            kLanes<T> values of T; + - * / compare lane by lane
//   load, store       whole vectors, unaligned; with a count of lanes, the first of them (the rest reads as zero)
//   load_bytes        bytes as values of T
//   load_words        as many words of 32 bits as a vector of float has lanes
//   splat             one value in every lane
//   select(m, a, b)   lane by lane, m ? a : b
//   lookup(table, at)  AVX-512 only: lane l is table[at[l] mod 16], one instruction
//   shuffle<T, At>(a, b)  lane l is lane At::at(l) of a and b laid end to end
//   transpose(v)       of as many vectors as lanes, in place
#pragma once

#include "runtime/assert.hpp"

#include <cstdint>
#include <type_traits>
#include <utility>

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T> struct VecOf;
template <> struct VecOf<float> {
  typedef float type __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
  typedef int32_t bits __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
  typedef uint32_t wrapping __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
  typedef uint8_t bytes __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 4)));
  typedef uint16_t halves __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 2)));
  typedef int32_t words __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
};
template <> struct VecOf<double> {
  typedef double type __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
  typedef int64_t bits __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
  typedef uint64_t wrapping __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
  typedef uint8_t bytes __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 8)));
  typedef uint16_t halves __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 4)));
  typedef int32_t words __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 2)));
};

template <class T> using Vec = typename VecOf<T>::type;
template <class T> using Bits = typename VecOf<T>::bits;  // integer lanes of the same width; a mask is 0 or -1
template <class T> constexpr int kLanes = FASTRNN_VECTOR_BYTES / int(sizeof(T));

#define FASTRNN_INLINE inline __attribute__((always_inline))
// Before a loop over an array that is to live in registers: it is unrolled early enough for that
#define FASTRNN_UNROLL _Pragma("GCC unroll 16")

template <class T> FASTRNN_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T> FASTRNN_INLINE void store(T* p, Vec<T> v) { __builtin_memcpy(p, &v, sizeof v); }

// The first lanes of a vector in memory, by one instruction where there is one; no other byte is touched
#if FASTRNN_VECTOR_BYTES == 64
template <class T> FASTRNN_INLINE auto mask_of(int lanes) {
  using Mask = std::conditional_t<sizeof(T) == sizeof(float), uint16_t, uint8_t>;
  return Mask((1u << lanes) - 1);
}
FASTRNN_INLINE Vec<float> load_first(const float* p, int lanes) {
  return __builtin_ia32_loadups512_mask(p, Vec<float>{}, mask_of<float>(lanes));
}
FASTRNN_INLINE Vec<double> load_first(const double* p, int lanes) {
  return __builtin_ia32_loadupd512_mask(p, Vec<double>{}, mask_of<double>(lanes));
}
FASTRNN_INLINE void store_first(float* p, Vec<float> v, int lanes) {
  __builtin_ia32_storeups512_mask(p, v, mask_of<float>(lanes));
}
FASTRNN_INLINE void store_first(double* p, Vec<double> v, int lanes) {
  __builtin_ia32_storeupd512_mask(p, v, mask_of<double>(lanes));
}
#elif FASTRNN_VECTOR_BYTES == 32
template <class T> FASTRNN_INLINE Bits<T> mask_of(int lanes) {
  Bits<T> number;
  for (int l = 0; l < kLanes<T>; ++l) number[l] = l;
  return number < lanes;
}
typedef long long Mask64 __attribute__((vector_size(32)));
FASTRNN_INLINE Vec<float> load_first(const float* p, int lanes) {
  return __builtin_ia32_maskloadps256((const Vec<float>*)p, mask_of<float>(lanes));
}
FASTRNN_INLINE Vec<double> load_first(const double* p, int lanes) {
  return __builtin_ia32_maskloadpd256((const Vec<double>*)p, (Mask64)mask_of<double>(lanes));
}
FASTRNN_INLINE void store_first(float* p, Vec<float> v, int lanes) {
  __builtin_ia32_maskstoreps256((Vec<float>*)p, mask_of<float>(lanes), v);
}
FASTRNN_INLINE void store_first(double* p, Vec<double> v, int lanes) {
  __builtin_ia32_maskstorepd256((Vec<double>*)p, (Mask64)mask_of<double>(lanes), v);
}
#else
template <class T> FASTRNN_INLINE Vec<T> load_first(const T* p, int lanes) {
  T v[kLanes<T>] = {};
  for (int i = 0; i < lanes; ++i) v[i] = p[i];
  return load(v);
}
template <class T> FASTRNN_INLINE void store_first(T* p, Vec<T> v, int lanes) {
  for (int i = 0; i < lanes; ++i) p[i] = v[i];
}
#endif

template <class T> FASTRNN_INLINE Vec<T> load(const T* p, int lanes) {
  FASTRNN_ASSERT(p && lanes > 0 && lanes <= kLanes<T>);
  return __builtin_expect(lanes == kLanes<T>, 1) ? load(p) : load_first(p, lanes);
}

template <class T> FASTRNN_INLINE void store(T* p, Vec<T> v, int lanes) {
  FASTRNN_ASSERT(p && lanes > 0 && lanes <= kLanes<T>);
  if (__builtin_expect(lanes == kLanes<T>, 1)) return store(p, v);
  store_first(p, v, lanes);
}

// Bytes as numbers; one doubling of the width at a time, which the compiler has instructions for
template <class T> FASTRNN_INLINE Vec<T> load_bytes(const uint8_t* p, int lanes) {
  FASTRNN_ASSERT(p && lanes > 0 && lanes <= kLanes<T>);
  typename VecOf<T>::bytes bytes{};
  if (__builtin_expect(lanes == kLanes<T>, 1)) __builtin_memcpy(&bytes, p, sizeof bytes);
  else
    for (int i = 0; i < lanes; ++i) bytes[i] = p[i];
  const auto halves = __builtin_convertvector(bytes, typename VecOf<T>::halves);
  const auto words = __builtin_convertvector(halves, typename VecOf<T>::words);
  return __builtin_convertvector(words, Vec<T>);
}

FASTRNN_INLINE Bits<float> load_words(const float* p) {
  Bits<float> words;
  __builtin_memcpy(&words, p, sizeof words);
#if defined(__x86_64__) && !defined(__clang__)
  __asm__("" : "+v"(words));  // in a register: else words of several uses are read from memory as often
#endif
  return words;
}

// x - 0 is x for every x, also -0: the compiler drops the subtraction and broadcasts.
template <class T> FASTRNN_INLINE Vec<T> splat(T x) { return x - Vec<T>{}; }

template <class T> FASTRNN_INLINE Vec<T> select(Bits<T> mask, Vec<T> a, Vec<T> b) {
  return mask ? a : b;
}

#if FASTRNN_VECTOR_BYTES == 64
FASTRNN_INLINE Vec<float> lookup(const float* table, Bits<float> at) {
#if defined(__clang__)
  return __builtin_ia32_permvarsf512(load(table), at);
#else
  return __builtin_shuffle(load(table), at);
#endif
}
#endif

template <class T, class At, int... L>
FASTRNN_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, std::integer_sequence<int, L...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, At::at(L)...);
#else
  return __builtin_shuffle(a, b, Bits<T>{At::at(L)...});
#endif
}
template <class T, class At> FASTRNN_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b) {
  return shuffle<T, At>(a, b, std::make_integer_sequence<int, kLanes<T>>());
}

// Each round swaps, in all blocks of 2M x 2M, the upper right M x M with the lower left
template <int L, int M> struct UpperRows { static constexpr int at(int l) { return l & M ? L + l - M : l; } };
template <int L, int M> struct LowerRows { static constexpr int at(int l) { return l & M ? L + l : l + M; } };

template <class T, int M = kLanes<T> / 2> FASTRNN_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  if constexpr (M > 0) {
    FASTRNN_UNROLL
    for (int i = 0; i < L; ++i)
      if (!(i & M)) {
        const Vec<T> a = v[i], b = v[i + M];
        v[i] = shuffle<T, UpperRows<L, M>>(a, b), v[i + M] = shuffle<T, LowerRows<L, M>>(a, b);
      }
    transpose<T, M / 2>(v);
  }
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

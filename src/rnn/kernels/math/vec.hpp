// Vectors of the compiler (GCC and Clang vector extensions), as wide as the instruction set of this translation unit.
//
//   Vec<T>            kLanes<T> values of T; + - * / compare lane by lane
//   load, store       whole vectors, unaligned; with a count of lanes, the first of them (the rest reads as zero)
//   load_bytes        bytes as values of T
//   load_words        as many words of 32 bits as a vector of float has lanes
//   splat             one value in every lane
//   select(m, a, b)   lane by lane, m ? a : b
//   lookup(table, at)  AVX-512 only: lane l is table[at[l] mod 16], one instruction
//   shuffle(a, b, at)  lane l is lane at[l] of a and b laid end to end
//   transpose(v)       of as many vectors as lanes, in place
#pragma once

#include "runtime/assert.hpp"

#include <cstdint>

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

template <class T> FASTRNN_INLINE Vec<T> load(const T* p, int lanes) {
  FASTRNN_ASSERT(p && lanes > 0 && lanes <= kLanes<T>);
  if (__builtin_expect(lanes == kLanes<T>, 1)) return load(p);
  T v[kLanes<T>] = {};
  for (int i = 0; i < lanes; ++i) v[i] = p[i];
  return load(v);
}

template <class T> FASTRNN_INLINE void store(T* p, Vec<T> v, int lanes) {
  FASTRNN_ASSERT(p && lanes > 0 && lanes <= kLanes<T>);
  if (__builtin_expect(lanes == kLanes<T>, 1)) return store(p, v);
  for (int i = 0; i < lanes; ++i) p[i] = v[i];
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

template <class T> FASTRNN_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, Bits<T> at) {
#if defined(__clang__)
  Vec<T> out;
  for (int l = 0; l < kLanes<T>; ++l) out[l] = at[l] < kLanes<T> ? a[at[l]] : b[at[l] - kLanes<T>];
  return out;
#else
  return __builtin_shuffle(a, b, at);
#endif
}

// Each round swaps, in all blocks of 2m x 2m, the upper right m x m with the lower left
template <class T> FASTRNN_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  FASTRNN_UNROLL
  for (int m = L / 2; m > 0; m /= 2) {
    Bits<T> upper, lower;
    for (int l = 0; l < L; ++l) upper[l] = l & m ? L + l - m : l, lower[l] = l & m ? L + l : l + m;
    FASTRNN_UNROLL
    for (int i = 0; i < L; ++i)
      if (!(i & m)) {
        const Vec<T> a = v[i], b = v[i + m];
        v[i] = shuffle<T>(a, b, upper), v[i + m] = shuffle<T>(a, b, lower);
      }
  }
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

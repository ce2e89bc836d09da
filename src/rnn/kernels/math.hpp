// exp, tanh and the logistic sigmoid on vectors.  Largest errors over all inputs, found by sweeping (tests/test_math.py):
//
//   function   float32          float64 (sampled)
//   exp        <= 1 ULP         <= 1 ULP       inf above log(max), 0 below log(min normal)
//   tanh       <= 2 ULP         <= 2 ULP       odd, tanh(-0) = -0
//   sigmoid    <= 2 ULP         <= 2 ULP       the least normal number where the true value is below it
//
// NaN gives NaN.  All three rest on  e^x = 2^n e^r,  n = round(x / ln 2),  |r| <= ln(2) / 2,  and
// e^r - 1 = r + r^2 q(r)  with q a Chebyshev interpolant of (e^r - 1 - r) / r^2 (relative error of e^r - 1: 6e-10 and
// 7e-19).
#pragma once

#include "vec.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T> struct ExpConstants;

template <> struct ExpConstants<float> {
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  static constexpr int kMantissa = 23;
  static constexpr float kLog2e = 1.44269504f;
  static constexpr float kLn2High = 0.693145752f, kLn2Low = 1.42860677e-6f;  // n * high is exact
  static constexpr float kMin = -87.336540f, kMax = 88.722839f;              // log of the least normal, of the largest
  static constexpr float kTanhOne = 9.02f;                                   // from here on tanh rounds to 1
  static constexpr float q[] = {0.50000000142862234f, 0.16666666682534356f, 0.041666456809677876f,
                                0.0083333100242252924f, 0.0013934541928270264f, 0.00019891981313977690f};
};

template <> struct ExpConstants<double> {
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissa = 52;
  static constexpr double kLog2e = 1.4426950408889634074;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kMin = -708.39641853226410, kMax = 709.78271289338397;
  static constexpr double kTanhOne = 19.1;
  static constexpr double q[] = {0.5, 0.16666666666666671438, 0.041666666666666670074, 0.0083333333333255446996,
                                 0.0013888888888883326674, 0.00019841269876864354929, 0.000024801587327007186731,
                                 2.7557252833516909748e-6, 2.7557271810219799569e-7, 2.5106274733573294687e-8,
                                 2.0915442297780115216e-9};
};

// x = n ln 2 + r:  expm1 = e^r - 1
template <class T> struct Reduced {
  Vec<T> expm1;
  Bits<T> n;  // n in its low bits
};

template <class T> FASTRNN_INLINE Reduced<T> reduce(Vec<T> x) {
  using C = ExpConstants<T>;
  Vec<T> shifted = x * C::kLog2e + C::kMagic;
  Vec<T> n = shifted - C::kMagic;
  Vec<T> r = x - n * C::kLn2High;
  r = r - n * C::kLn2Low;
  constexpr int degree = int(sizeof(C::q) / sizeof(T)) - 1;
  Vec<T> q = splat(C::q[degree]);
#pragma GCC unroll 16
  for (int i = degree - 1; i >= 0; --i) q = q * r + C::q[i];
  return {r * r * q + r, (Bits<T>)shifted};
}

// 2^n for normal 2^n
template <class T> FASTRNN_INLINE Vec<T> power_of_two(Bits<T> n) {
  constexpr int bits = ExpConstants<T>::kMantissa;
  return (Vec<T>)((n << bits) + (Bits<T>)splat(T(1)));
}

template <class T> FASTRNN_INLINE Vec<T> exp(Vec<T> x) {
  using C = ExpConstants<T>;
  Reduced<T> e = reduce<T>(x);
  Vec<T> half = power_of_two<T>(e.n - 1);  // in two steps, since 2^n overflows for the largest x
  Vec<T> y = (half * e.expm1 + half) * T(2);
  y = select<T>(x < C::kMin, Vec<T>{}, y);
  return select<T>(x > C::kMax, splat(T(__builtin_inf())), y);
}

// With z = -2|x|:  tanh|x| = -expm1(z) / (expm1(z) + 2), which keeps full relative precision near zero.
template <class T> FASTRNN_INLINE Vec<T> tanh(Vec<T> x) {
  using C = ExpConstants<T>;
  const Bits<T> sign_bit = (Bits<T>)splat(T(-0.0));
  Bits<T> sign = (Bits<T>)x & sign_bit;
  Vec<T> magnitude = (Vec<T>)((Bits<T>)x & ~sign_bit);
  magnitude = select<T>(magnitude > C::kTanhOne, splat(C::kTanhOne), magnitude);
  Reduced<T> e = reduce<T>(magnitude * T(-2));
  Vec<T> scale = power_of_two<T>(e.n);
  Vec<T> expm1 = scale * e.expm1 + (scale - T(1));
  return (Vec<T>)((Bits<T>)(-expm1 / (expm1 + T(2))) | sign);
}

// 1 / (1 + e^-x), with x held within +-log(min normal) so that neither 2^n nor the result leaves the normal numbers
template <class T> FASTRNN_INLINE Vec<T> sigmoid(Vec<T> x) {
  using C = ExpConstants<T>;
  Vec<T> z = -x;
  z = select<T>(z > -C::kMin, splat(-C::kMin), z);
  z = select<T>(z < C::kMin, splat(C::kMin), z);
  Reduced<T> e = reduce<T>(z);
  Vec<T> scale = power_of_two<T>(e.n);
  return T(1) / (scale * e.expm1 + (scale + T(1)));
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

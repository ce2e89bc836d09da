// exp, tanh and the logistic sigmoid on vectors.  Largest errors over all inputs, found by sweeping over them
// (tests/test_math.py):
//
//   function   float32          float64 (sampled)
//   exp        <= 1.5 ULP       <= 1.5 ULP     0 below log(min normal), inf above log(max / sqrt 2)
//   tanh       <= 2 ULP         <= 2 ULP       odd, tanh(-0) = -0; float32 with AVX-512, see tanh.hpp: <= 1.1 ULP
//   sigmoid    <= 2.5 ULP       <= 2.5 ULP     the least normal number where the true value is below it
//
// NaN gives NaN.  All three rest on  e^x = 2^n e^r,  n = round(x / ln 2),  |r| <= ln(2) / 2,  and
// e^r - 1 = r + r^2 q(r)  with q a Chebyshev interpolant of (e^r - 1 - r) / r^2 (relative error of e^r - 1: 2^-30 and
// 2^-60).
#pragma once

#include "math/tanh.hpp"
#include "math/vec.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T> struct ExpConstants;

template <> struct ExpConstants<float> {
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  static constexpr int kMantissa = 23;
  static constexpr float kLog2e = 1.44269504f;
  static constexpr float kLn2High = 0.693145752f, kLn2Low = 1.42860677e-6f;  // n * high is exact
  // log of the least normal number; of 2^127.5, up to which n <= 127
  static constexpr float kMin = -87.336540f, kMax = 88.376252f;
  static constexpr float kTanhOne = 9.02f;    // from here on tanh rounds to 1
  static constexpr float q[] = {0.50000000142862234f, 0.16666666682534356f, 0.041666456809677876f,
                                0.0083333100242252924f, 0.0013934541928270264f, 0.00019891981313977690f};
  static constexpr float p[] = {-0.33333332631743683f, 0.13333113802224680f, -0.053860310159023872f,
                                0.020153020561978128f};
};

template <> struct ExpConstants<double> {
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissa = 52;
  static constexpr double kLog2e = 1.4426950408889634074;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  // log of the least normal number; of 2^1023.5
  static constexpr double kMin = -708.39641853226410, kMax = 709.43613930310391;
  static constexpr double kTanhOne = 19.1;
  static constexpr double q[] = {0.5, 0.16666666666666671438, 0.041666666666666670074, 0.0083333333333255446996,
                                 0.0013888888888883326674, 0.00019841269876864354929, 0.000024801587327007186731,
                                 2.7557252833516909748e-6, 2.7557271810219799569e-7, 2.5106274733573294687e-8,
                                 2.0915442297780115216e-9};
  static constexpr double p[] = {-0.33333333333333333257, 0.1333333333333321282, -0.053968253967939722856,
                                 0.021869488504570438961, -0.0088632339372093818467, 0.0035920828194727168939,
                                 -0.0014550774219523773611, 0.00058258664689702178176, -0.00019895718416221429454};
};

// c[0] + c[1] x + ... in pairs, pairs by Horner's rule in x^2: half as long a chain of dependent operations
template <class T, int N> FASTRNN_INLINE Vec<T> polynomial(const T (&c)[N], Vec<T> x, Vec<T> x2) {
  constexpr int last = (N - 1) / 2 * 2;
  Vec<T> y = last + 1 < N ? x * c[N - 1] + c[last] : splat(c[last]);
  FASTRNN_UNROLL
  for (int i = last - 2; i >= 0; i -= 2) y = y * x2 + (x * c[i + 1] + c[i]);
  return y;
}

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
  const Vec<T> r2 = r * r;
  return {r2 * polynomial<T>(C::q, r, r2) + r, (Bits<T>)shifted};
}

// 2^n for normal 2^n; any number for other n
template <class T> FASTRNN_INLINE Vec<T> power_of_two(Bits<T> n) {
  using Wrapping = typename VecOf<T>::wrapping;
  constexpr int bits = ExpConstants<T>::kMantissa;
  return (Vec<T>)(((Wrapping)n << bits) + (Wrapping)splat(T(1)));
}

template <class T> FASTRNN_INLINE Vec<T> exp(Vec<T> x) {
  using C = ExpConstants<T>;
  Reduced<T> e = reduce<T>(x);
  Vec<T> scale = power_of_two<T>(e.n);
  Vec<T> y = scale * e.expm1 + scale;
  y = select<T>(x < C::kMin, Vec<T>{}, y);
  return select<T>(x > C::kMax, splat(T(__builtin_inf())), y);
}

// Where a vector has sixteen lanes, see tanh.hpp.  Else:
// |x| < 0.32:  tanh x = x + x s p(s),  s = x^2,  with p a Chebyshev interpolant (relative error 2^-30 and 2^-63)
// else, with E = e^(2|x|) - 1:  tanh|x| = E / (E + 2); the larger E, the more of its own error cancels
template <class T> FASTRNN_INLINE Vec<T> tanh(Vec<T> x) {
  if constexpr (kLanes<T> == 16) return tanh_by_pieces(x);
  using C = ExpConstants<T>;
  const Bits<T> sign_bit = (Bits<T>)splat(T(-0.0));
  const Bits<T> sign = (Bits<T>)x & sign_bit;
  Vec<T> magnitude = (Vec<T>)((Bits<T>)x & ~sign_bit);
  const Vec<T> s = x * x;
  const Vec<T> small = magnitude * (s * polynomial<T>(C::p, s, s * s)) + magnitude;
  const Bits<T> is_small = magnitude < T(0.32);
  magnitude = select<T>(magnitude > C::kTanhOne, splat(C::kTanhOne), magnitude);
  const Reduced<T> e = reduce<T>(magnitude * T(2));
  const Vec<T> scale = power_of_two<T>(e.n);
  const Vec<T> expm1 = scale * e.expm1 + (scale - T(1));
  const Vec<T> y = select<T>(is_small, small, expm1 / (expm1 + T(2)));
  return (Vec<T>)((Bits<T>)y | sign);
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

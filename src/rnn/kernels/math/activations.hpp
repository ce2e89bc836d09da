// Activations of the cells: value and slope.
//
//   Common    sigmoid and tanh (or, for the RNN, tanh or relu), vectorised; the slope follows from the value
//   General   any of ONNX's list, chosen at run time, after the clip; slopes are among the saved activations,
//             where a clamped pre-activation has slope zero
#pragma once

#include "math/math.hpp"
#include "sequence.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T> struct Sigmoid {
  static FASTRNN_INLINE Vec<T> value(Vec<T> a) { return sigmoid<T>(a); }
  static FASTRNN_INLINE Vec<T> slope(Vec<T> y) { return y * (T(1) - y); }
};

template <class T> struct Tanh {
  static FASTRNN_INLINE Vec<T> value(Vec<T> a) { return tanh<T>(a); }
  static FASTRNN_INLINE Vec<T> slope(Vec<T> y) { return T(1) - y * y; }
};

template <class T> struct Relu {
  static FASTRNN_INLINE Vec<T> value(Vec<T> a) { return select<T>(a <= T(0), Vec<T>{}, a); }  // NaN stays NaN
  static FASTRNN_INLINE Vec<T> slope(Vec<T> y) { return select<T>(y > T(0), splat(T(1)), Vec<T>{}); }
};

// f of each lane, one after the other
template <class T, class F> inline Vec<T> each_lane(Vec<T> x, F f) {
  Vec<T> y;
  for (int i = 0; i < kLanes<T>; ++i) y[i] = f(x[i]);
  return y;
}

// f(x) and f'(x)
template <class T> inline Vec<T> activate(const Activation& f, Vec<T> x, Vec<T>* slope) {
  const Vec<T> a = splat(T(f.alpha)), b = splat(T(f.beta)), zero{}, one = splat(T(1));
  Vec<T> y;
  FASTRNN_ASSERT(f.kind >= kTanh && f.kind <= kIdentity);
  switch (f.kind) {
    case kTanh: y = tanh<T>(x); *slope = one - y * y; return y;
    case kRelu: *slope = select<T>(x > zero, one, zero); return select<T>(x <= zero, zero, x);
    case kSigmoid: y = sigmoid<T>(x); *slope = y * (one - y); return y;
    case kAffine: *slope = a; return a * x + b;
    case kLeakyRelu: *slope = select<T>(x > zero, one, a); return select<T>(x > zero, x, a * x);
    case kThresholdedRelu: *slope = select<T>(x >= a, one, zero); return select<T>(x < a, zero, x);
    case kScaledTanh: y = tanh<T>(b * x); *slope = a * b * (one - y * y); return a * y;
    case kHardSigmoid:
      y = a * x + b;
      *slope = select<T>(y > zero, select<T>(y < one, a, zero), zero);
      return select<T>(y <= zero, zero, select<T>(y >= one, one, y));
    case kElu:
      y = a * each_lane<T>(x, [](T v) { return v < 0 ? T(__builtin_expm1(v)) : v; });
      *slope = select<T>(x > zero, one, y + a);
      return select<T>(x >= zero, x, y);
    case kSoftsign: y = one + select<T>(x < zero, -x, x); *slope = one / (y * y); return x / y;
    case kSoftplus:  // log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)
      *slope = sigmoid<T>(x);
      y = exp<T>(select<T>(x < zero, x, -x));
      return select<T>(x > zero, x, zero) + each_lane<T>(y, [](T v) { return T(__builtin_log1p(v)); });
    default: *slope = one; return x;
  }
}

// The same after the clip
template <class T>
inline Vec<T> activate(const Activation& f, T clip, Vec<T> x, Vec<T>* slope) {
  const Vec<T> most = splat(clip);
  const Vec<T> clamped = select<T>(x > most, most, select<T>(x < -most, -most, x));
  Vec<T> d;
  const Vec<T> y = activate<T>(f, clamped, &d);
  *slope = select<T>(clamped != x, select<T>(x != x, d, Vec<T>{}), d);  // NaN is not clamped
  return y;
}

// A gate of a cell: `Fast` vectorised if the cell is Common, else activation `index` of the sequence
template <class T, bool General, class Fast>
FASTRNN_INLINE Vec<T> gate(const Sequence<T>& q, int index, Vec<T> a, Vec<T>* slope) {
  if constexpr (General) return activate<T>(q.activation[index], q.clip, a, slope);
  return Fast::value(a);
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

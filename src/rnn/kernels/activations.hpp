// Activations of the cells: value and slope.
//
//   Common    sigmoid and tanh (or, for the RNN, tanh or relu), vectorised; the slope follows from the value
//   General   any of ONNX's list, chosen at run time, a lane at a time, after the clip; slopes are kept on the tape,
//             where a clamped pre-activation has slope zero
#pragma once

#include "math.hpp"
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

enum ActivationKind {  // the order of ACTIVATIONS in activations.py
  kTanh, kRelu, kSigmoid, kAffine, kLeakyRelu, kThresholdedRelu, kScaledTanh, kHardSigmoid, kElu, kSoftsign, kSoftplus,
  kIdentity
};

// f(x) and f'(x) of one value
template <class T> inline T activate(const Activation& f, T x, T* slope) {
  const T a = T(f.alpha), b = T(f.beta), one = T(1);
  const auto scalar = [](Vec<T> v) { return v[0]; };
  T y;
  switch (f.kind) {
    case kTanh: y = scalar(tanh<T>(splat(x))); *slope = one - y * y; return y;
    case kRelu: *slope = x > 0 ? one : T(0); return x <= 0 ? T(0) : x;
    case kSigmoid: y = scalar(sigmoid<T>(splat(x))); *slope = y * (one - y); return y;
    case kAffine: *slope = a; return a * x + b;
    case kLeakyRelu: *slope = x > 0 ? one : a; return x > 0 ? x : a * x;
    case kThresholdedRelu: *slope = x >= a ? one : T(0); return x < a ? T(0) : x;
    case kScaledTanh: y = scalar(tanh<T>(splat(b * x))); *slope = a * b * (one - y * y); return a * y;
    case kHardSigmoid:
      y = a * x + b;
      *slope = y > 0 && y < one ? a : T(0);
      return y <= 0 ? T(0) : y >= one ? one : y;
    case kElu:
      if (x >= 0) { *slope = one; return x; }
      y = a * T(__builtin_expm1(x));
      *slope = y + a;
      return y;
    case kSoftsign: y = one + (x < 0 ? -x : x); *slope = one / (y * y); return x / y;
    case kSoftplus:  // log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)
      *slope = scalar(sigmoid<T>(splat(x)));
      return (x > 0 ? x : T(0)) + T(__builtin_log1p(scalar(exp<T>(splat(x < 0 ? x : -x)))));
    default: *slope = one; return x;
  }
}

// The same for a vector of pre-activations, after the clip
template <class T>
inline Vec<T> activate(const Activation& f, T clip, Vec<T> x, Vec<T>* slope) {
  Vec<T> y, d;
  for (int i = 0; i < kLanes<T>; ++i) {
    const T clamped = x[i] > clip ? clip : x[i] < -clip ? -clip : x[i];
    T s;
    y[i] = activate<T>(f, clamped, &s);
    d[i] = clamped == x[i] || x[i] != x[i] ? s : T(0);
  }
  *slope = d;
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

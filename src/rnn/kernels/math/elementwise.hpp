// Functions over flat arrays: the updates of the optimisers, the gradient norm, sums over rows, and the math functions
// by themselves (for the tests of their error bounds).
#pragma once

#include "math/math.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

// The optimisers, by torch's formulas, each in one pass over its arrays.  They all see the gradient
//   g = scale grad + l2 param          scale: the factor of clipping;  l2: the weight decay by way of the gradient
// Where grad, param and state are zero, as between the parameters of a module, they stay zero.
FASTRNN_INLINE float root_of(float x) { return __builtin_sqrtf(x); }
FASTRNN_INLINE double root_of(double x) { return __builtin_sqrt(x); }

// Stochastic gradient descent, with a buffer for momentum or null:
//   b = momentum b + damping g         param -= lr b,  or with Nesterov's momentum  lr (g + momentum b)
template <class T>
void sgd(Index n, T scale, T l2, T lr, T momentum, T damping, bool nesterov, const T* __restrict grad,
         T* __restrict buffer, T* __restrict param) {
  for (Index i = 0; i < n; ++i) {
    T g = scale * grad[i] + l2 * param[i];
    if (buffer) {
      const T b = momentum * buffer[i] + damping * g;
      buffer[i] = b;
      g = nesterov ? g + momentum * b : b;
    }
    param[i] -= lr * g;
  }
}

// Adam (Kingma and Ba 2015), and with keep < 1 AdamW (Loshchilov and Hutter 2019):
//   m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
//   param = keep param - rate m / (sqrt(v) / root + eps)          rate = lr / (1 - b1^t),  root = sqrt(1 - b2^t)
template <class T>
void adam(Index n, T scale, T l2, T keep, T b1, T b2, T rate, T root, T eps, const T* __restrict grad, T* __restrict m,
          T* __restrict v, T* __restrict param) {
  for (Index i = 0; i < n; ++i) {
    const T g = scale * grad[i] + l2 * param[i];
    m[i] = b1 * m[i] + (T(1) - b1) * g;
    v[i] = b2 * v[i] + (T(1) - b2) * g * g;
    param[i] = keep * param[i] - rate * m[i] / (root_of(v[i]) / root + eps);
  }
}

// RMSprop (Hinton 2012), with a mean of the gradients (Graves 2013) and a buffer for momentum, or null for either:
//   v = alpha v + (1 - alpha) g^2      m = alpha m + (1 - alpha) g      d = g / (sqrt(v - m^2) + eps)
//   b = momentum b + d                 param -= lr b
template <class T>
void rmsprop(Index n, T scale, T l2, T lr, T alpha, T eps, T momentum, const T* __restrict grad, T* __restrict v,
             T* __restrict m, T* __restrict buffer, T* __restrict param) {
  for (Index i = 0; i < n; ++i) {
    const T g = scale * grad[i] + l2 * param[i];
    v[i] = alpha * v[i] + (T(1) - alpha) * g * g;
    T variance = v[i];
    if (m) {
      m[i] = alpha * m[i] + (T(1) - alpha) * g;
      variance -= m[i] * m[i];
      variance = variance > 0 ? variance : 0;  // rounding can take it below
    }
    T d = g / (root_of(variance) + eps);
    if (buffer) {
      d += momentum * buffer[i];
      buffer[i] = d;
    }
    param[i] -= lr * d;
  }
}

template <class T> double sum_of_squares(Index n, const T* x) {
  double part[16] = {}, sum = 0;
  Index i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) part[j] += double(x[i + j]) * double(x[i + j]);
  for (; i < n; ++i) sum += double(x[i]) * double(x[i]);
  for (int j = 0; j < 16; ++j) sum += part[j];
  return sum;
}

// d = scale (y - target); returns the sum of (y - target)^2
template <class T> double squared_error(Index n, T scale, const T* y, const T* target, T* d) {
  for (Index i = 0; i < n; ++i) d[i] = y[i] - target[i];
  const double sum = sum_of_squares(n, d);
  for (Index i = 0; i < n; ++i) d[i] *= scale;
  return sum;
}

// out (n,) += sum over rows of a (rows, n), whose rows are ld apart
template <class T> void sum_rows(Index rows, Index n, const T* a, Index ld, T* out) {
  constexpr int L = kLanes<T>;
  Index j = 0;
  for (; j + 4 * L <= n; j += 4 * L) {
    Vec<T> sum[4];
    for (int v = 0; v < 4; ++v) sum[v] = load(out + j + v * L);
    for (Index r = 0; r < rows; ++r)
      for (int v = 0; v < 4; ++v) sum[v] += load(a + r * ld + j + v * L);
    for (int v = 0; v < 4; ++v) store(out + j + v * L, sum[v]);
  }
  for (; j < n; ++j)
    for (Index r = 0; r < rows; ++r) out[j] += a[r * ld + j];
}

template <class T, Vec<T> (*F)(Vec<T>)> void map(Index n, const T* x, T* y) {
  for (Index i = 0; i < n; i += kLanes<T>) {
    const int lanes = n - i < kLanes<T> ? int(n - i) : kLanes<T>;
    store(y + i, F(load(x + i, lanes)), lanes);
  }
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

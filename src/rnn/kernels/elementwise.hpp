// Passes over flat arrays: the optimiser's step, the gradient norm, sums over rows, and the math functions by themselves
// (for the tests of their error bounds).
#pragma once

#include "math.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

// Adam (Kingma and Ba 2015), in one pass:
//   m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
//   param -= rate m / (sqrt(v) / root + eps)          rate = lr / (1 - b1^t),  root = sqrt(1 - b2^t)
template <class T>
void adam(long n, T b1, T b2, T rate, T root, T eps, const T* grad, T* m, T* v, T* param) {
  for (long i = 0; i < n; ++i) {
    const T g = grad[i];
    m[i] = b1 * m[i] + (T(1) - b1) * g;
    v[i] = b2 * v[i] + (T(1) - b2) * g * g;
    if constexpr (sizeof(T) == 4) param[i] -= rate * m[i] / (__builtin_sqrtf(v[i]) / root + eps);
    else param[i] -= rate * m[i] / (__builtin_sqrt(v[i]) / root + eps);
  }
}

template <class T> double sum_of_squares(long n, const T* x) {
  double part[16] = {}, sum = 0;
  long i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) part[j] += double(x[i + j]) * double(x[i + j]);
  for (; i < n; ++i) sum += double(x[i]) * double(x[i]);
  for (int j = 0; j < 16; ++j) sum += part[j];
  return sum;
}

// out (n,) += sum over rows of a (rows, n), whose rows are ld apart
template <class T> void sum_rows(long rows, long n, const T* a, long ld, T* out) {
  constexpr int L = kLanes<T>;
  long j = 0;
  for (; j + 4 * L <= n; j += 4 * L) {
    Vec<T> sum[4];
    for (int v = 0; v < 4; ++v) sum[v] = load(out + j + v * L);
    for (long r = 0; r < rows; ++r)
      for (int v = 0; v < 4; ++v) sum[v] += load(a + r * ld + j + v * L);
    for (int v = 0; v < 4; ++v) store(out + j + v * L, sum[v]);
  }
  for (; j < n; ++j)
    for (long r = 0; r < rows; ++r) out[j] += a[r * ld + j];
}

template <class T, Vec<T> (*F)(Vec<T>)> void map(long n, const T* x, T* y) {
  for (long i = 0; i < n; i += kLanes<T>) {
    const int lanes = n - i < kLanes<T> ? int(n - i) : kLanes<T>;
    store(y + i, F(load(x + i, lanes)), lanes);
  }
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

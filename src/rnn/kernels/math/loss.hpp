// Softmax and cross-entropy (equation 6.4 of the post), fused, a row of logits at a time
//
//   p = exp(o - max o) / sum exp(o - max o)      loss = -log p[y]      dL/do = p - onehot(y)
#pragma once

#include "math/math.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

// logits (rows, K), targets (rows,) in [0, K), or negative: not counted.  dlogits (rows, K) = scale (p - onehot), may
// be logits itself.  Returns the sum of the losses.
template <class T>
double softmax_cross_entropy(Index rows, Index K, const T* logits, const int64_t* targets, T scale, T* dlogits) {
  constexpr int L = kLanes<T>;
  double loss = 0;
  for (Index row = 0; row < rows; ++row, logits += K, dlogits += K) {
    const int64_t target = targets[row];
    FASTRNN_ASSERT(target < K);
    if (target < 0) {
      __builtin_memset(dlogits, 0, K * sizeof(T));
      continue;
    }
    T max = logits[0];
    Vec<T> highest = splat(max);
    Index k = 0;
    for (; k + L <= K; k += L) {
      const Vec<T> o = load(logits + k);
      highest = select<T>(o > highest, o, highest);
    }
    for (int i = 0; i < L; ++i) max = highest[i] > max ? highest[i] : max;
    for (; k < K; ++k) max = logits[k] > max ? logits[k] : max;

    const T at_target = logits[target];
    Vec<T> total{};
    for (k = 0; k < K; k += L) {
      const int lanes = K - k < L ? int(K - k) : L;
      const Vec<T> e = exp<T>(load(logits + k, lanes) - max);
      store(dlogits + k, e, lanes);
      for (int i = 0; lanes < L && i < lanes; ++i) total[0] += e[i];
      if (lanes == L) total += e;
    }
    T sum = 0;
    for (int i = 0; i < L; ++i) sum += total[i];
    loss += __builtin_log(double(sum)) - (double(at_target) - double(max));
    const T factor = scale / sum;
    for (k = 0; k + L <= K; k += L) store(dlogits + k, load<T>(dlogits + k) * factor);
    for (; k < K; ++k) dlogits[k] *= factor;
    dlogits[target] -= scale;
  }
  return loss;
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

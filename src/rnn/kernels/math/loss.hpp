// Softmax and cross-entropy (equation 6.4 of the post), fused, a row of logits at a time
//
//   p = exp(o - max o) / sum exp(o - max o)      loss = -log p[y]      dL/do = p - onehot(y)
#pragma once

#include "math/math.hpp"

namespace fastrnn {
namespace FASTRNN_ISA {

// e (K,) = exp(o - max o), may be o itself
template <class T> struct Exponentials {
  T max, sum;  // of o, of e

  FASTRNN_INLINE Exponentials(Index K, const T* o, T* e) : max(o[0]), sum(0) {
    constexpr int L = kLanes<T>;
    Vec<T> highest = splat(max), total{};
    Index k = 0;
    for (; k + L <= K; k += L) {
      const Vec<T> each = load(o + k);
      highest = select<T>(each > highest, each, highest);
    }
    for (int i = 0; i < L; ++i) max = highest[i] > max ? highest[i] : max;
    for (; k < K; ++k) max = o[k] > max ? o[k] : max;
    for (k = 0; k < K; k += L) {
      const int lanes = K - k < L ? int(K - k) : L;
      const Vec<T> each = exp<T>(load(o + k, lanes) - max);
      store(e + k, each, lanes);
      for (int i = 0; lanes < L && i < lanes; ++i) total[0] += each[i];
      if (lanes == L) total += each;
    }
    for (int i = 0; i < L; ++i) sum += total[i];
  }
};

// p (rows, K) = softmax of each row of logits
template <class T> void softmax(Index rows, Index K, const T* logits, T* p) {
  constexpr int L = kLanes<T>;
  for (Index row = 0; row < rows; ++row, logits += K, p += K) {
    const T sum = Exponentials<T>(K, logits, p).sum;
    Index k = 0;
    for (; k + L <= K; k += L) store(p + k, load<T>(p + k) / sum);
    for (; k < K; ++k) p[k] /= sum;
  }
}

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
    const T at_target = logits[target];
    const Exponentials<T> of(K, logits, dlogits);
    loss += __builtin_log(double(of.sum)) - (double(at_target) - double(of.max));
    const T factor = scale / of.sum;
    Index k = 0;
    for (; k + L <= K; k += L) store(dlogits + k, load<T>(dlogits + k) * factor);
    for (; k < K; ++k) dlogits[k] *= factor;
    dlogits[target] -= scale;
  }
  return loss;
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn

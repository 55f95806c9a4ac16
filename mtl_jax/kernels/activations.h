// Activations and their derivatives on vectors of floats, in the order in which callers count them, and what follows a
// convolution once the statistics of batch norm are fixed.

#ifndef MTL_JAX_ACTIVATIONS_H_
#define MTL_JAX_ACTIVATIONS_H_

#include "kernels.h"

// e^z to one part in 10^7, z cut off where floats end: 2^n times a polynomial in r = z - n ln 2, |r| <= ln 2 / 2.
template <class V>
inline V Exp(V z) {
  typedef int32_t Integers __attribute__((vector_size(sizeof(V))));
  constexpr float kRound = 12582912;  // 1.5 * 2^23: what is added to it loses its fraction
  z = z < 87 ? z : V{} + 87;
  z = z > -87 ? z : V{} - 87;
  const V n = (z * 1.44269504f + kRound) - kRound;
  const V r = z - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact times n
  V sum = r * (1.0f / 5040) + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1;
  sum = sum * r + 1;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;  // the bits of 2^n
  return sum * (V)power;
}

template <class V>
inline V Sigmoid(V z) {
  return 1 / (1 + Exp(-z));
}
template <class V>
inline V HardSigmoid(V z) {  // relu6(z + 3) / 6
  const V gate = z * (1.0f / 6) + 0.5f, low = gate > 0 ? gate : V{};
  return low < 1 ? low : V{} + 1;
}

struct Identity {
  template <class V>
  static V Value(V z) { return z; }
  template <class V>
  static V Slope(V z) { return z * 0 + 1; }
};
struct Relu {
  template <class V>
  static V Value(V z) { return z < 0 ? V{} : z; }  // NaN stays NaN
  template <class V>
  static V Slope(V z) { return z > 0 ? V{} + 1 : V{}; }
};
struct HardSwish {
  template <class V>
  static V Value(V z) { return z * HardSigmoid(z); }
  template <class V>
  static V Slope(V z) {
    const V inner = z * (1.0f / 3) + 0.5f, low = z > -3 ? inner : V{};
    return z < 3 ? low : V{} + 1;
  }
};
struct Silu {  // z * sigmoid(z)
  template <class V>
  static V Value(V z) { return z * Sigmoid(z); }
  template <class V>
  static V Slope(V z) {
    const V gate = Sigmoid(z);
    return gate * (1 + z * (1 - gate));
  }
};

constexpr int64_t kActivations = 4;

// Calls with the activation of this number, which is below kActivations.
template <class Body>
__attribute__((always_inline)) inline void WithActivation(int64_t activation, const Body& body) {
  if (activation == 0) body(Identity{});
  if (activation == 1) body(Relu{});
  if (activation == 2) body(HardSwish{});
  if (activation == 3) body(Silu{});
}

struct Norm {  // what follows a convolution in inference: activation(factor * result + shift), where there is a factor
  const float *factor = nullptr, *shift = nullptr;
  int64_t activation = 0;

  // Applies it to `count` results of the channels from c on.
  template <class V, int kCount>
  __attribute__((always_inline)) inline void Apply(V (&results)[kCount], int64_t c) const {
    if (!factor) return;
    const V a = LoadAs<V>(factor + c), b = LoadAs<V>(shift + c);
    WithActivation(activation, [&](auto act) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int n = 0; n < kCount; ++n) results[n] = act.Value(results[n] * a + b);
    });
  }
};

#endif  // MTL_JAX_ACTIVATIONS_H_

// Batch norm and activation on a CPU for XLA's FFI, each in as few passes over memory as there can be: activations
// [batch, cells, channels] in float32, channels a multiple of 8. With z = a * x + b per channel, y = activation(z).

#include "activations.h"

namespace norm {

constexpr int kLanes = 8;
using Vec = Vector<kLanes>;
inline Vec Load(const float* from) { return LoadAs<Vec>(from); }

// Calls with the activation of this number, once the shape is known to fit.
template <class Body>
ffi::Error Checked(int64_t activation, int64_t channels, const Body& body) {
  if (channels % kLanes) return ffi::Error::InvalidArgument("norm: channels not in eights");
  WithActivation(activation, body);
  return ffi::Error::Success();
}

// Cells whose rows fit into half of the first-level cache, of which every column is then read in turn.
inline int64_t BlockOf(int64_t channels) { return std::max<int64_t>(8, 4096 / channels); }

// Adds up two vectors per cell and column, over all cells of each example: out [batch, 2, channels].
template <class Terms>
void SumPairs(ffi::ThreadPool& pool, int64_t batch, int64_t cells, int64_t channels, float* out, const Terms& terms) {
  Parallel(pool, batch, [&](int64_t b) {
    float* sums = out + b * 2 * channels;
    std::fill(sums, sums + 2 * channels, 0.0f);
    const int64_t block = BlockOf(channels);
    for (int64_t first = 0; first < cells; first += block)
      for (int64_t c = 0; c < channels; c += kLanes) {
        Vec one[2] = {}, two[2] = {};  // two chains hide the latency of the additions
        const auto column = terms(c);
        const int64_t last = std::min(cells, first + block);
        int64_t cell = first;
        for (; cell + 1 < last; cell += 2) {
          column((b * cells + cell) * channels + c, one[0], two[0]);
          column((b * cells + cell + 1) * channels + c, one[1], two[1]);
        }
        if (cell < last) column((b * cells + cell) * channels + c, one[0], two[0]);
        Store(sums + c, Load(sums + c) + one[0] + one[1]);
        Store(sums + channels + c, Load(sums + channels + c) + two[0] + two[1]);
      }
  });
}

// x -> the sums of x and of x * x over the cells of each example [batch, 2, channels].
ffi::Error Moments(ffi::ThreadPool pool, Tensor x, ffi::Result<Tensor> out) {
  const auto shape = x.dimensions();
  const float* from = x.typed_data();
  if (shape[2] % kLanes) return ffi::Error::InvalidArgument("norm: channels not in eights");
  SumPairs(pool, shape[0], shape[1], shape[2], out->typed_data(), [&](int64_t) {
    return [from](int64_t at, Vec& sum, Vec& squares) __attribute__((always_inline)) {
      const Vec value = Load(from + at);
      sum += value;
      squares += value * value;
    };
  });
  return ffi::Error::Success();
}

// x, coefficients [2, channels] = a, b -> y.
ffi::Error Apply(ffi::ThreadPool pool, Tensor x, Tensor coefficients, ffi::Result<Tensor> out, int64_t activation) {
  const auto shape = x.dimensions();
  const int64_t channels = shape[2], rows = shape[0] * shape[1], chunk = std::max<int64_t>(1, 65536 / channels);
  const float *from = x.typed_data(), *a = coefficients.typed_data(), *b = a + channels;
  float* to = out->typed_data();
  return Checked(activation, channels, [&](auto act) {
    Parallel(pool, (rows + chunk - 1) / chunk, [&](int64_t unit) {
      for (int64_t row = unit * chunk; row < std::min(rows, (unit + 1) * chunk); ++row)
        for (int64_t c = 0; c < channels; c += kLanes)
          Store(to + row * channels + c, act.Value(Load(a + c) * Load(from + row * channels + c) + Load(b + c)));
    });
  });
}

// x, cotangent, coefficients -> the sums of dz and of dz * x over the cells of each example [batch, 2, channels], where
// dz = cotangent * slope of the activation.
ffi::Error GradientSums(ffi::ThreadPool pool, Tensor x, Tensor cotangent, Tensor coefficients, ffi::Result<Tensor> out,
                        int64_t activation) {
  const auto shape = x.dimensions();
  const int64_t channels = shape[2];
  const float *from = x.typed_data(), *g = cotangent.typed_data(), *a = coefficients.typed_data(), *b = a + channels;
  return Checked(activation, channels, [&](auto act) {
    SumPairs(pool, shape[0], shape[1], channels, out->typed_data(), [&](int64_t c) {
      const Vec scale = Load(a + c), shift = Load(b + c);
      return [=](int64_t at, Vec& sum, Vec& weighted) __attribute__((always_inline)) {
        const Vec value = Load(from + at), dz = Load(g + at) * act.Slope(scale * value + shift);
        sum += dz;
        weighted += dz * value;
      };
    });
  });
}

// x, cotangent, coefficients [5, channels] = a, b, p, q, r -> p * dz + q * x + r, the gradient of x.
ffi::Error InputGradient(ffi::ThreadPool pool, Tensor x, Tensor cotangent, Tensor coefficients, ffi::Result<Tensor> out,
                         int64_t activation) {
  const auto shape = x.dimensions();
  const int64_t channels = shape[2], rows = shape[0] * shape[1], chunk = std::max<int64_t>(1, 65536 / channels);
  const float *from = x.typed_data(), *g = cotangent.typed_data(), *each = coefficients.typed_data();
  float* to = out->typed_data();
  return Checked(activation, channels, [&](auto act) {
    Parallel(pool, (rows + chunk - 1) / chunk, [&](int64_t unit) {
      for (int64_t row = unit * chunk; row < std::min(rows, (unit + 1) * chunk); ++row)
        for (int64_t c = 0; c < channels; c += kLanes) {
          const float* k = each + c;
          const Vec value = Load(from + row * channels + c);
          const Vec dz = Load(g + row * channels + c) * act.Slope(Load(k) * value + Load(k + channels));
          Store(to + row * channels + c,
                Load(k + 2 * channels) * dz + Load(k + 3 * channels) * value + Load(k + 4 * channels));
        }
    });
  });
}

#define INPUT ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>()
XLA_FFI_DEFINE_HANDLER_SYMBOL(norm_moments, Moments, INPUT.Ret<Tensor>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(norm_apply, Apply, INPUT.Arg<Tensor>().Ret<Tensor>().Attr<int64_t>("activation"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(norm_gradient_sums, GradientSums,
                              INPUT.Arg<Tensor>().Arg<Tensor>().Ret<Tensor>().Attr<int64_t>("activation"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(norm_input_gradient, InputGradient,
                              INPUT.Arg<Tensor>().Arg<Tensor>().Ret<Tensor>().Attr<int64_t>("activation"));

#undef INPUT
}  // namespace norm

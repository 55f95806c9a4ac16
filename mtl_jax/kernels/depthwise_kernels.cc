// Depthwise convolution on a CPU for XLA's FFI: NHWC, float32, square kernels of 3 or 5 taps, channels a multiple of 8.

#include "activations.h"

constexpr int kLanes = 8;  // one AVX2 register
constexpr int kTile = 8;   // outputs of a row held in registers: 8 + 5 taps + 1 input fit into AVX2's 16
using Vec = Vector<kLanes>;

inline Vec Load(const float* from) { return LoadAs<Vec>(from); }

struct Shape {
  int64_t batch, in_height, in_width, out_height, out_width, channels, padding;
};

struct Row {  // a row of input and the row of the kernel that it meets
  const float *input, *taps;
};

// The output of a tile that input r meets through tap j, or -1: r = output * S + j * D in the forward sum. The
// transposed sum (gradient of the input) swaps the roles of input and output, so that no zero is ever multiplied.
template <int S, int D, bool kTransposed>
constexpr int Meets(int r, int j) {
  const int t = kTransposed ? r * S + j * D : (r - j * D) % S ? -1 : (r - j * D) / S;
  return t < kTile && (kTransposed || r >= j * D) ? t : -1;
}

// First and last input that a tile meets, relative to the tile's own.
template <int K, int S, int D, bool kTransposed>
constexpr int kFirst = kTransposed ? -((K - 1) * D / S) : 0;
template <int K, int S, int D, bool kTransposed>
constexpr int kLast = kTransposed ? (kTile - 1) / S : (kTile - 1) * S + (K - 1) * D;

// kTile outputs of a vector of channels; every input is loaded once per kernel row. Only tiles at an edge need to check columns.
template <class V, int K, int S, int D, bool kTransposed, bool kEdge>
void Tile(const Shape& s, const Row* rows, int row_count, int64_t c, int64_t in_column, int64_t out_column, float* out,
          const Norm& norm) {
  V sums[kTile] = {};
  for (int row = 0; row < row_count; ++row) {
    const float* input = rows[row].input + in_column * s.channels + c;
    V taps[K];
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j) taps[j] = LoadAs<V>(rows[row].taps + j * s.channels + c);
#pragma GCC unroll 32
    for (int r = kFirst<K, S, D, kTransposed>; r <= kLast<K, S, D, kTransposed>; ++r) {
      if (kEdge && (in_column + r < 0 || in_column + r >= s.in_width)) continue;
      const V x = LoadAs<V>(input + r * s.channels);
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) {
        const int t = Meets<S, D, kTransposed>(r, j);
        if (t >= 0) sums[t] += x * taps[j];
      }
    }
  }
  norm.Apply(sums, c);
#pragma GCC unroll 8
  for (int t = 0; t < kTile; ++t)
    if (!kEdge || (out_column + t >= 0 && out_column + t < s.out_width))
      Store(out + (out_column + t) * s.channels + c, sums[t]);
}

// The forward sum, or the transposed one: there the input is the cotangent and the output the gradient of x.
template <class V, int K, int S, int D, bool kTransposed>
void ConvolveIn(ffi::ThreadPool& pool, const Shape& s, const float* input, const float* kernel, float* out,
                const Norm& norm) {
  const int64_t rows_total = s.batch * s.out_height;
  const int64_t chunk = std::max<int64_t>(1, rows_total / (8 * std::max<int64_t>(1, pool.num_threads())));
  const int64_t start = kTransposed ? -s.padding : 0;  // transposed tiles have to begin at a whole stride
  auto row_of_output = [&](int64_t n) {
    const int64_t b = n / s.out_height, y = n % s.out_height;
    Row rows[K];
    int count = 0;
    for (int i = 0; i < K; ++i) {
      const int64_t reach = kTransposed ? y + s.padding - i * D : y * S - s.padding + i * D;
      const int64_t from = kTransposed ? reach / S : reach;
      if (reach < 0 || from >= s.in_height || (kTransposed && reach % S)) continue;
      rows[count++] = {input + (b * s.in_height + from) * s.in_width * s.channels, kernel + i * K * s.channels};
    }
    for (int64_t column = start; column < s.out_width; column += kTile) {
      const int64_t from = kTransposed ? (column - start) / S : column * S - s.padding;
      const bool edge = column < 0 || column + kTile > s.out_width || from + kFirst<K, S, D, kTransposed> < 0 ||
                        from + kLast<K, S, D, kTransposed> >= s.in_width;
      auto tile = edge ? Tile<V, K, S, D, kTransposed, true> : Tile<V, K, S, D, kTransposed, false>;
      for (int64_t c = 0; c < s.channels; c += sizeof(V) / sizeof(float))
        tile(s, rows, count, c, from, column, out + n * s.out_width * s.channels, norm);
    }
  };
  Parallel(pool, (rows_total + chunk - 1) / chunk, [&](int64_t unit) {
    for (int64_t n = unit * chunk; n < std::min(rows_total, (unit + 1) * chunk); ++n) row_of_output(n);
  });
}

template <int K, int S, int D, bool kTransposed>
void Convolve(ffi::ThreadPool& pool, const Shape& s, const float* input, const float* kernel, float* out,
              const Norm& norm) {
#if defined(__AVX512F__)
  if (s.channels % 16 == 0) return ConvolveIn<Vector<16>, K, S, D, kTransposed>(pool, s, input, kernel, out, norm);
#endif
  ConvolveIn<Vec, K, S, D, kTransposed>(pool, s, input, kernel, out, norm);
}

// Adds what one row of x and one row of the cotangent share to the gradients of one kernel row, for 8 channels.
template <int K, int S, int D>
void GradientRow(const Shape& s, const float* x, const float* g, Vec* sums) {
  constexpr int kStep = 4, kChains = K == 3 ? 3 : 2;  // some ten independent sums hide the latency of multiply-add
  Vec chains[kChains][K] = {};
  auto step = [&](int64_t column, auto edge) __attribute__((always_inline)) {
    const int64_t first = column * S - s.padding;
#pragma GCC unroll 4
    for (int t = 0; t < kStep; ++t) {
      if (edge && column + t >= s.out_width) continue;
      const Vec cotangent = Load(g + (column + t) * s.channels);
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) {
        const int64_t from = first + t * S + j * D;
        if (edge && (from < 0 || from >= s.in_width)) continue;
        chains[t % kChains][j] += Load(x + from * s.channels) * cotangent;
      }
    }
  };
  for (int64_t column = 0; column < s.out_width; column += kStep) {
    const int64_t first = column * S - s.padding, last = first + (kStep - 1) * S + (K - 1) * D;
    if (first < 0 || last >= s.in_width || column + kStep > s.out_width)
      step(column, std::true_type{});
    else
      step(column, std::false_type{});
  }
  for (int j = 0; j < K; ++j)
    for (int chain = 0; chain < kChains; ++chain) sums[j] += chains[chain][j];
}

// One kernel gradient for each example; the caller adds them up. A unit covers one cache line of channels (16 floats),
// so that the rows that the taps share stay in the first-level cache.
template <int K, int S, int D>
void KernelGradient(ffi::ThreadPool& pool, const Shape& s, const float* x, const float* g, float* out) {
  constexpr int kBlocks = 2;
  const int64_t units = (s.channels + kBlocks * kLanes - 1) / (kBlocks * kLanes);
  Parallel(pool, s.batch * units, [&](int64_t unit) {
    const int64_t b = unit / units, begin = unit % units * kBlocks * kLanes;
    const int blocks = std::min<int64_t>(kBlocks, (s.channels - begin) / kLanes);
    Vec sums[kBlocks][K][K] = {};
    for (int64_t y = 0; y < s.out_height; ++y)
      for (int block = 0; block < blocks; ++block)
        for (int i = 0; i < K; ++i) {
          const int64_t from = y * S - s.padding + i * D, c = begin + block * kLanes;
          if (from < 0 || from >= s.in_height) continue;
          GradientRow<K, S, D>(s, x + (b * s.in_height + from) * s.in_width * s.channels + c,
                               g + (b * s.out_height + y) * s.out_width * s.channels + c, sums[block][i]);
        }
    for (int block = 0; block < blocks; ++block)
      for (int tap = 0; tap < K * K; ++tap)
        Store(out + (b * K * K + tap) * s.channels + begin + block * kLanes, sums[block][tap / K][tap % K]);
  });
}

enum class Part { kForward, kInputGradient, kKernelGradient };

template <Part kPart, int K, int S, int D>
void Run(ffi::ThreadPool& pool, const Shape& s, Tensor& first, Tensor& second, Tensor& out, const Norm& norm) {
  if constexpr (kPart == Part::kKernelGradient)
    KernelGradient<K, S, D>(pool, s, first.typed_data(), second.typed_data(), out.typed_data());
  else
    Convolve<K, S, D, kPart == Part::kInputGradient>(pool, s, first.typed_data(), second.typed_data(),
                                                     out.typed_data(), norm);
}

template <Part kPart, int K>
ffi::Error WithStride(ffi::ThreadPool& pool, const Shape& s, int64_t stride, int64_t dilation, Tensor& first,
                      Tensor& second, Tensor& out, const Norm& norm = {}) {
  if (stride == 2 && dilation == 1) {
    Run<kPart, K, 2, 1>(pool, s, first, second, out, norm);
    return ffi::Error::Success();
  }
  // At stride 1 the input gradient is the forward sum with a flipped kernel: the caller asks for that instead.
  if constexpr (kPart != Part::kInputGradient) {
    if (stride == 1 && dilation <= 2) {
      dilation == 1 ? Run<kPart, K, 1, 1>(pool, s, first, second, out, norm)
                    : Run<kPart, K, 1, 2>(pool, s, first, second, out, norm);
      return ffi::Error::Success();
    }
  }
  return ffi::Error::InvalidArgument("depthwise: no kernel was compiled for this stride and dilation");
}

template <Part kPart>
ffi::Error Call(ffi::ThreadPool pool, Tensor first, Tensor second, ffi::Result<Tensor> out, int64_t k, int64_t stride,
                int64_t dilation) {
  const auto in = first.dimensions(), result = (kPart == Part::kKernelGradient ? second : *out).dimensions();
  const Shape s{in[0], in[1], in[2], result[1], result[2], in[3], dilation * (k - 1) / 2};
  if (s.channels % kLanes == 0 && k == 3) return WithStride<kPart, 3>(pool, s, stride, dilation, first, second, *out);
  if (s.channels % kLanes == 0 && k == 5) return WithStride<kPart, 5>(pool, s, stride, dilation, first, second, *out);
  return ffi::Error::InvalidArgument("depthwise: expected 3 or 5 taps and a multiple of 8 channels");
}

ffi::Error WithNorm(ffi::ThreadPool pool, Tensor x, Tensor kernel, Tensor factor, Tensor shift, ffi::Result<Tensor> out,
                    int64_t k, int64_t stride, int64_t dilation, int64_t activation) {
  const auto in = x.dimensions(), result = out->dimensions();
  const Shape s{in[0], in[1], in[2], result[1], result[2], in[3], dilation * (k - 1) / 2};
  const Norm norm{factor.typed_data(), shift.typed_data(), activation};
  constexpr Part kPart = Part::kForward;
  if (s.channels % kLanes == 0 && k == 3) return WithStride<kPart, 3>(pool, s, stride, dilation, x, kernel, *out, norm);
  if (s.channels % kLanes == 0 && k == 5) return WithStride<kPart, 5>(pool, s, stride, dilation, x, kernel, *out, norm);
  return ffi::Error::InvalidArgument("depthwise: expected 3 or 5 taps and a multiple of 8 channels");
}

#define BINDING                                                                                                  \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>().Arg<Tensor>().Ret<Tensor>().Attr<int64_t>("kernel_size") \
      .Attr<int64_t>("stride").Attr<int64_t>("dilation")
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_forward, Call<Part::kForward>, BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_input_gradient, Call<Part::kInputGradient>, BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_kernel_gradient, Call<Part::kKernelGradient>, BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_norm, WithNorm,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>().Arg<Tensor>().Arg<Tensor>()
                                  .Arg<Tensor>().Ret<Tensor>().Attr<int64_t>("kernel_size").Attr<int64_t>("stride")
                                  .Attr<int64_t>("dilation").Attr<int64_t>("activation"));

// Dense convolutions on a CPU for XLA's FFI: NHWC, float32, channels a multiple of 8.
//
// 3x3 at stride 1 by Winograd's F(4x4, 3x3): tiles of 6x6 inputs and the kernel are transformed, multiplied in 36
// matrix products, and transformed back to 4x4 outputs, with a quarter of the multiplications of the plain sum
// (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016). 1x1: the gradient of the kernel.

#include "activations.h"
#include "matrix_product.h"

namespace dense {

constexpr int kIn = 6, kOut = 4, kPositions = kIn * kIn;
constexpr int kTiles = 24;  // tiles transformed at once: their 36 matrices stay in the second-level cache

// The one-dimensional transforms of F(4, 3) at the points 0, 1, -1, 2, -2 and infinity.
template <class V>
inline void TransformInput(const V* d, int step, V* out, int out_step) {  // 6 inputs -> 6
  const V d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const V even = d4 - 4 * d2, odd = d3 - 4 * d1, even2 = d4 - d2, odd2 = 2 * (d3 - d1);
  out[0] = 4 * d0 - 5 * d2 + d4;
  out[out_step] = even + odd;
  out[2 * out_step] = even - odd;
  out[3 * out_step] = even2 + odd2;
  out[4 * out_step] = even2 - odd2;
  out[5 * out_step] = 4 * d1 - 5 * d3 + d5;
}
template <class V>
inline void TransformOutput(const V* m, int step, V* out, int out_step) {  // 6 products -> 4 outputs
  const V sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
  const V sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
  out[0] = m[0] + sum1 + sum2;
  out[out_step] = difference1 + 2 * difference2;
  out[2 * out_step] = sum1 + 4 * sum2;
  out[3 * out_step] = difference1 + 8 * difference2 + m[5 * step];
}
template <class V>
inline void TransformCotangent(const V* y, int step, V* out, int out_step) {  // its transpose: 4 -> 6
  const V y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
  const V even1 = y0 + y2, odd1 = y1 + y3, even2 = y0 + 4 * y2, odd2 = 2 * y1 + 8 * y3;
  out[0] = y0;
  out[out_step] = even1 + odd1;
  out[2 * out_step] = even1 - odd1;
  out[3 * out_step] = even2 + odd2;
  out[4 * out_step] = even2 - odd2;
  out[5 * out_step] = y3;
}
template <class V>
inline void TransformKernel(const V* u, int step, V* out, int out_step) {  // 6 products -> gradients of 3 taps
  const V sum1 = (u[step] + u[2 * step]) * (-1.0f / 6), difference1 = (u[2 * step] - u[step]) * (1.0f / 6);
  const V sum2 = u[3 * step] + u[4 * step], difference2 = u[3 * step] - u[4 * step];
  out[0] = u[0] * 0.25f + sum1 + sum2 * (1.0f / 24);
  out[out_step] = difference1 + difference2 * (1.0f / 12);
  out[2 * out_step] = sum1 + sum2 * (1.0f / 6) + u[5 * step];
}

struct Map {
  int64_t batch, height, width, channels;
  int64_t down() const { return (height + kOut - 1) / kOut; }
  int64_t across() const { return (width + kOut - 1) / kOut; }
  int64_t tiles() const { return down() * across(); }  // of one image
};

// Transforms kSize x kSize cells of each of kTiles tiles, from `offset` before the tile's first output, into 36
// matrices [kTiles, channels]. Cells outside the image, and tiles past the last, are zero.
template <int kSize, class V, class Transform>
void Gather(const Map& map, const float* from, int64_t first, int64_t last, int64_t c, Transform transform, float* to) {
  static const float zeros[16] = {};
  constexpr int kOffset = kSize == kIn ? 1 : 0;
  for (int64_t tile = first; tile < first + kTiles; ++tile) {
    float* target = to + (tile - first) * map.channels + c;
    if (tile >= last) {
      for (int p = 0; p < kPositions; ++p) Store(target + p * kTiles * map.channels, V{});
      continue;
    }
    const int64_t b = tile / map.tiles(), y = tile % map.tiles() / map.across() * kOut - kOffset;
    const int64_t x = tile % map.across() * kOut - kOffset;
    V cells[kSize][kSize], half[kIn][kSize], out[kIn];
    for (int i = 0; i < kSize; ++i)
      for (int j = 0; j < kSize; ++j) {
        const bool inside = y + i >= 0 && y + i < map.height && x + j >= 0 && x + j < map.width;
        const float* cell = from + (((b * map.height + y + i) * map.width) + x + j) * map.channels + c;
        cells[i][j] = LoadAs<V>(inside ? cell : zeros);
      }
    for (int j = 0; j < kSize; ++j) transform(&cells[0][j], kSize, &half[0][j], kSize);
    for (int i = 0; i < kIn; ++i) {
      transform(half[i], 1, out, 1);
      for (int j = 0; j < kIn; ++j) Store(target + (i * kIn + j) * kTiles * map.channels, out[j]);
    }
  }
}

template <int kSize, class Transform>
void GatherAll(const Map& map, const float* from, int64_t first, int64_t last, Transform transform, float* to) {
  int64_t c = 0;
  for (; c + kLanes <= map.channels; c += kLanes)
    Gather<kSize, Vector<kLanes>>(map, from, first, last, c, transform, to);
  for (; c < map.channels; c += 8) Gather<kSize, Vector<8>>(map, from, first, last, c, transform, to);
}

template <class V>
void Scatter(const Map& map, const float* products, int64_t first, int64_t last, int64_t c, float* out,
             const Norm& norm) {
  for (int64_t tile = first; tile < std::min(last, first + kTiles); ++tile) {
    const float* source = products + (tile - first) * map.channels + c;
    const int64_t b = tile / map.tiles(), y = tile % map.tiles() / map.across() * kOut;
    const int64_t x = tile % map.across() * kOut;
    V cells[kIn], half[kIn][kOut], columns[kOut];
    for (int i = 0; i < kIn; ++i) {
      for (int j = 0; j < kIn; ++j) cells[j] = LoadAs<V>(source + (i * kIn + j) * kTiles * map.channels);
      TransformOutput(cells, 1, half[i], 1);
    }
    for (int j = 0; j < kOut && x + j < map.width; ++j) {
      TransformOutput(&half[0][j], kOut, columns, 1);
      norm.Apply(columns, c);
      for (int i = 0; i < kOut && y + i < map.height; ++i)
        Store(out + ((b * map.height + y + i) * map.width + x + j) * map.channels + c, columns[i]);
    }
  }
}

float* ThreadScratch(int which, int64_t size) {  // of each thread
  thread_local std::vector<float> buffers[2];
  return Scratch(buffers[which], size);
}

ffi::Error Winograd(ffi::ThreadPool& pool, Tensor x, Tensor kernel, Tensor result, const Norm& norm) {
  const auto shape = x.dimensions(), made_shape = result.dimensions();
  const Map in{shape[0], shape[1], shape[2], shape[3]};
  const Map made{made_shape[0], made_shape[1], made_shape[2], made_shape[3]};
  if (in.channels % 8 || made.channels % 8) return ffi::Error::InvalidArgument("winograd: channels not in eights");
  const int64_t count = in.batch * in.tiles();
  Parallel(pool, (count + kTiles - 1) / kTiles, [&](int64_t unit) {
    const int64_t first = unit * kTiles;
    float* inputs = ThreadScratch(0, kPositions * kTiles * in.channels);
    float* products = ThreadScratch(1, kPositions * kTiles * made.channels);
    auto transform = [](auto... arguments) { TransformInput(arguments...); };
    GatherAll<kIn>(in, x.typed_data(), first, count, transform, inputs);
    for (int p = 0; p < kPositions; ++p)
      Product({inputs + p * kTiles * in.channels, in.channels, 1},
              kernel.typed_data() + p * in.channels * made.channels, made.channels, kTiles, in.channels, made.channels,
              Into<false>(products + p * kTiles * made.channels, made.channels));
    int64_t c = 0;
    for (; c + kLanes <= made.channels; c += kLanes)
      Scatter<Vector<kLanes>>(made, products, first, count, c, result.typed_data(), norm);
    for (; c < made.channels; c += 8) Scatter<Vector<8>>(made, products, first, count, c, result.typed_data(), norm);
  });
  return ffi::Error::Success();
}

// x [batch, height, width, channels], transformed kernel [36, channels, features] -> [batch, height, width, features].
ffi::Error WinogradForward(ffi::ThreadPool pool, Tensor x, Tensor kernel, ffi::Result<Tensor> out) {
  return Winograd(pool, x, kernel, *out, {});
}

// The same in inference, with batch norm by factor and shift [features], and the activation.
ffi::Error WinogradNorm(ffi::ThreadPool pool, Tensor x, Tensor kernel, Tensor factor, Tensor shift,
                        ffi::Result<Tensor> out, int64_t activation) {
  return Winograd(pool, x, kernel, *out, {factor.typed_data(), shift.typed_data(), activation});
}

// x [batch, height, width, channels], cotangent [batch, height, width, features] -> the gradient of the kernel of each
// example [batch, 3, 3, channels, features]; the caller adds them up.
ffi::Error WinogradKernelGradient(ffi::ThreadPool pool, Tensor x, Tensor cotangent, ffi::Result<Tensor> out) {
  const auto shape = x.dimensions(), other = cotangent.dimensions();
  const Map in{shape[0], shape[1], shape[2], shape[3]}, made{other[0], other[1], other[2], other[3]};
  if (in.channels % 8 || made.channels % 8) return ffi::Error::InvalidArgument("winograd: channels not in eights");
  const int64_t size = in.channels * made.channels;
  Parallel(pool, in.batch, [&](int64_t b) {
    std::vector<float> sums(kPositions * size);
    float* inputs = ThreadScratch(0, kPositions * kTiles * in.channels);
    float* cotangents = ThreadScratch(1, kPositions * kTiles * made.channels);
    auto of_input = [](auto... arguments) { TransformInput(arguments...); };
    auto of_cotangent = [](auto... arguments) { TransformCotangent(arguments...); };
    const int64_t end = (b + 1) * in.tiles();
    for (int64_t first = b * in.tiles(); first < end; first += kTiles) {
      GatherAll<kIn>(in, x.typed_data(), first, end, of_input, inputs);
      GatherAll<kOut>(made, cotangent.typed_data(), first, end, of_cotangent, cotangents);
      for (int p = 0; p < kPositions; ++p)
        Product({inputs + p * kTiles * in.channels, 1, in.channels}, cotangents + p * kTiles * made.channels,
                made.channels, in.channels, kTiles, made.channels, Into<true>(sums.data() + p * size, made.channels));
    }
    using V = Vector<8>;
    for (int64_t n = 0; n < size; n += 8) {
      V products[kIn], half[kIn][3], taps[3];
      for (int i = 0; i < kIn; ++i) {
        for (int j = 0; j < kIn; ++j) products[j] = LoadAs<V>(sums.data() + (i * kIn + j) * size + n);
        TransformKernel(products, 1, half[i], 1);
      }
      for (int j = 0; j < 3; ++j) {
        TransformKernel(&half[0][j], 3, taps, 1);
        for (int i = 0; i < 3; ++i) Store(out->typed_data() + ((b * 3 + i) * 3 + j) * size + n, taps[i]);
      }
    }
  });
  return ffi::Error::Success();
}

// x [batch, cells, channels], cotangent [batch, cells, features] -> the gradient of a 1x1 kernel for each example
// [batch, channels, features], without the transposed copy of x that a matrix product of XLA makes first.
ffi::Error PointwiseKernelGradient(ffi::ThreadPool pool, Tensor x, Tensor cotangent, ffi::Result<Tensor> out) {
  constexpr int64_t kDepth = 128;  // cells at a time: both operands' rows stay in the first-level cache
  const auto shape = x.dimensions(), other = cotangent.dimensions();
  const int64_t cells = shape[1], channels = shape[2], features = other[2];
  if (channels % 8 || features % 8) return ffi::Error::InvalidArgument("pointwise: channels not in eights");
  Parallel(pool, shape[0], [&](int64_t b) {
    float* sums = out->typed_data() + b * channels * features;
    std::fill(sums, sums + channels * features, 0.0f);
    for (int64_t k = 0; k < cells; k += kDepth)
      Product({x.typed_data() + (b * cells + k) * channels, 1, channels},
              cotangent.typed_data() + (b * cells + k) * features, features, channels, std::min(kDepth, cells - k),
              features, Into<true>(sums, features));
  });
  return ffi::Error::Success();
}

#define BINDING ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>().Arg<Tensor>().Ret<Tensor>()
XLA_FFI_DEFINE_HANDLER_SYMBOL(winograd_forward, WinogradForward, BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(winograd_norm, WinogradNorm,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>().Arg<Tensor>().Arg<Tensor>()
                                  .Arg<Tensor>().Ret<Tensor>().Attr<int64_t>("activation"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(winograd_kernel_gradient, WinogradKernelGradient, BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(pointwise_kernel_gradient, PointwiseKernelGradient, BINDING);

#undef BINDING
}  // namespace dense

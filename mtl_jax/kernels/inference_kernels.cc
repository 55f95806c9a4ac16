// Convolutions of inference on a CPU for XLA's FFI: NHWC, float32. What follows a convolution once the statistics of
// batch norm are fixed (a factor and a shift per channel, the activation, the sum with the block's input) is applied
// while its results are in registers.

#include "activations.h"
#include "matrix_product.h"

namespace inference {

constexpr int64_t kCells = 64;  // cells of a 1x1 convolution computed at once: they stay in the second-level cache

struct Window {
  int64_t in_height, in_width, in_channels, out_height, out_width, features, size, stride;

  int64_t padding() const { return (size - 1) / 2; }
  int64_t row() const { return (in_width + 2 * padding()) * in_channels; }  // floats of a padded row
};

struct Operands {
  const float *x, *kernel, *factor, *shift, *gate, *residual;  // the last two may be missing
  float* out;
  int64_t activation;
};

// Computes `rows` results, which lie one after another from `at` on, from what they read.
void Convolve(const Window& w, const Operands& each, const Left& left, int64_t depth, int64_t at, int64_t rows) {
  float* out = each.out + at;
  const float* residual = each.residual ? each.residual + at : nullptr;
  Product(left, each.kernel, w.features, rows, depth, w.features,
          [&](int64_t row, int64_t column, auto sum) __attribute__((always_inline)) {
            using V = decltype(sum);
            V y = sum * LoadAs<V>(each.factor + column) + LoadAs<V>(each.shift + column);
            WithActivation(each.activation, [&](auto act) __attribute__((always_inline)) { y = act.Value(y); });
            if (residual) y += LoadAs<V>(residual + row * w.features + column);
            Store(out + row * w.features + column, y);
          });
}

void Pointwise(ffi::ThreadPool& pool, int64_t batch, const Window& w, const Operands& each) {
  const int64_t cells = w.in_height * w.in_width, units = (cells + kCells - 1) / kCells, channels = w.in_channels;
  Parallel(pool, batch * units, [&](int64_t unit) {
    thread_local std::vector<float> buffer;
    const int64_t b = unit / units, first = unit % units * kCells, count = std::min(kCells, cells - first);
    const float* from = each.x + (b * cells + first) * channels;
    if (each.gate) {
      const float* gate = each.gate + b * channels;
      float* gated = Scratch(buffer, kCells * channels);
      for (int64_t cell = 0; cell < count; ++cell)
        for (int64_t c = 0; c < channels; ++c) gated[cell * channels + c] = from[cell * channels + c] * gate[c];
      from = gated;
    }
    Convolve(w, each, {from, channels, 1}, channels, (b * cells + first) * w.features, count);
  });
}

// One row of results at a time: the rows that it reads are copied with zeros around them, and then lie so that what a
// result reads of one row is in one piece.
void Rows(ffi::ThreadPool& pool, int64_t batch, const Window& w, const Operands& each) {
  Parallel(pool, batch * w.out_height, [&](int64_t unit) {
    thread_local std::vector<float> buffer;
    const int64_t b = unit / w.out_height, y = unit % w.out_height * w.stride - w.padding();
    float* rows = Scratch(buffer, w.size * w.row());
    for (int64_t i = 0; i < w.size; ++i) {
      float *to = rows + i * w.row(), *inner = to + w.padding() * w.in_channels, *end = to + w.row();
      const bool inside = y + i >= 0 && y + i < w.in_height;
      const float* from = each.x + (b * w.in_height + (inside ? y + i : 0)) * w.in_width * w.in_channels;
      std::fill(to, inside ? inner : end, 0.0f);
      if (inside) std::fill(std::copy(from, from + w.in_width * w.in_channels, inner), end, 0.0f);
    }
    const Left left{rows, w.stride * w.in_channels, 1, w.size, w.row()};
    Convolve(w, each, left, w.size * w.in_channels, unit * w.out_width * w.features, w.out_width);
  });
}

// x [batch, height, width, channels], kernel [size, size, channels, features], factor and shift [features], then, where
// they are announced, gate [batch, channels], which x is multiplied by, and residual, which has the result's shape:
// activation(factor * convolution + shift) + residual.
ffi::Error ConvolutionNorm(ffi::ThreadPool pool, ffi::RemainingArgs operands, ffi::Result<Tensor> out, int64_t size,
                           int64_t stride, int64_t activation, int64_t gated, int64_t residual) {
  const float* data[6] = {};
  for (size_t n = 0, at = 0; n < 6; ++n) {
    if ((n == 4 && !gated) || (n == 5 && !residual)) continue;
    auto operand = operands.get<Tensor>(at++);
    if (operand.has_error()) return operand.error();
    data[n] = operand->typed_data();
  }
  const auto in = operands.get<Tensor>(0)->dimensions(), made = out->dimensions();
  const Window w{in[1], in[2], in[3], made[1], made[2], made[3], size, stride};
  const bool pointwise = size == 1 && stride == 1;
  if (w.features % 8 || (gated && !pointwise)) return ffi::Error::InvalidArgument("convolution: no kernel for it");
  const Operands each{data[0], data[1], data[2], data[3], data[4], data[5], out->typed_data(), activation};
  (pointwise ? Pointwise : Rows)(pool, in[0], w, each);
  return ffi::Error::Success();
}

// x [batch, cells, channels] -> the channel weights of squeeze-and-excitation [batch, channels]:
// gate(activation(mean of x * reduce + reduce_bias) * expand + expand_bias); gate 0 is the hard sigmoid, 1 the sigmoid.
ffi::Error Excitation(ffi::ThreadPool pool, Tensor x, Tensor reduce, Tensor reduce_bias, Tensor expand,
                      Tensor expand_bias, ffi::Result<Tensor> out, int64_t activation, int64_t gate) {
  using V = Vector<8>;
  const int64_t batch = x.dimensions()[0], cells = x.dimensions()[1], channels = x.dimensions()[2];
  const int64_t squeezed = reduce.dimensions()[1];
  if (channels % 8 || squeezed % 8) return ffi::Error::InvalidArgument("excitation: channels not in eights");
  const Tensor weights[2] = {reduce, expand};
  auto dense = [&](const float* input, int64_t inputs, Tensor kernel, Tensor bias, int64_t outputs, float* to,
                   auto last) __attribute__((always_inline)) {
    for (int64_t c = 0; c < outputs; c += 8) {
      V sum = LoadAs<V>(bias.typed_data() + c);
      for (int64_t i = 0; i < inputs; ++i) sum += input[i] * LoadAs<V>(kernel.typed_data() + i * outputs + c);
      Store(to + c, last(sum));
    }
  };
  WithActivation(activation, [&](auto act) {
    Parallel(pool, batch, [&](int64_t b) {
      thread_local std::vector<float> buffer;
      float* mean = Scratch(buffer, channels + squeezed);
      float* hidden = mean + channels;
      std::fill(mean, mean + channels, 0.0f);
      const float* from = x.typed_data() + b * cells * channels;
      for (int64_t cell = 0; cell < cells; cell += 4)  // four rows at once: the sums are read and written less often
        for (int64_t c = 0; c < channels; c += 8) {
          V sum = LoadAs<V>(from + cell * channels + c);
          for (int64_t more = cell + 1; more < std::min(cells, cell + 4); ++more)
            sum += LoadAs<V>(from + more * channels + c);
          Store(mean + c, LoadAs<V>(mean + c) + sum);
        }
      for (int64_t c = 0; c < channels; ++c) mean[c] *= 1.0f / cells;
      dense(mean, channels, weights[0], reduce_bias, squeezed, hidden, [&](V z) { return act.Value(z); });
      float* to = out->typed_data() + b * channels;
      if (gate == 0) dense(hidden, squeezed, weights[1], expand_bias, channels, to, [](V z) { return HardSigmoid(z); });
      if (gate == 1) dense(hidden, squeezed, weights[1], expand_bias, channels, to, [](V z) { return Sigmoid(z); });
    });
  });
  return ffi::Error::Success();
}

// Between the centres of two cells lie `factor` pixels; pixel t of them is (t + 0.5) / factor on its way.
std::vector<float> Ways(int64_t factor) {
  std::vector<float> ways(factor);
  for (int64_t t = 0; t < factor; ++t) ways[t] = (t + 0.5f) / factor;
  return ways;
}

// The lines of pixels that lie between row gap - 1 of the cells and row gap, in the image alone.
struct Gap {
  int64_t above, below, first, last;  // rows of cells, and numbers of lines, of which 0 is the first below row gap - 1

  Gap(int64_t gap, int64_t rows, int64_t factor)
      : above(std::max<int64_t>(gap - 1, 0)), below(std::min(gap, rows - 1)),
        first(std::max<int64_t>(0, factor / 2 - gap * factor)),
        last(std::min(factor, rows * factor + factor / 2 - gap * factor)) {}
};

// Cells [batch, rows, columns, channels] -> [batch, rows * factor, columns * factor, channels]: bilinear enlargement,
// corners not aligned: a cell's value sits at its centre.
ffi::Error Enlarge(ffi::ThreadPool pool, Tensor cells, ffi::Result<Tensor> out, int64_t factor) {
  using V = Vector<8>;
  const auto shape = cells.dimensions();
  const int64_t batch = shape[0], rows = shape[1], columns = shape[2], channels = shape[3], width = columns * factor;
  if (factor % 2) return ffi::Error::InvalidArgument("enlarge: expected an even factor");
  const std::vector<float> way = Ways(factor);
  Parallel(pool, batch * (rows + 1), [&](int64_t unit) {
    thread_local std::vector<float> buffer;
    const int64_t b = unit / (rows + 1), size = columns * channels;
    const Gap gap(unit % (rows + 1), rows, factor);
    const float *above = cells.typed_data() + (b * rows + gap.above) * size;
    const float *below = cells.typed_data() + (b * rows + gap.below) * size;
    float* line = Scratch(buffer, size + 8);
    for (int64_t t = gap.first; t < gap.last; ++t) {
      for (int64_t n = 0; n < size; ++n) line[n] = above[n] + way[t] * (below[n] - above[n]);
      float* to = out->typed_data() + (b * rows * factor + unit % (rows + 1) * factor - factor / 2 + t) * width * channels;
      for (int64_t x = 0; x < width; ++x, to += channels) {
        const int64_t across = (x + factor / 2) / factor;
        const float* left = line + std::max<int64_t>(across - 1, 0) * channels;
        const float* right = line + std::min(across, columns - 1) * channels;
        const float part = way[(x + factor / 2) % factor];
        if (x + 1 == width || channels < 8) {
          for (int64_t c = 0; c < channels; ++c) to[c] = left[c] + part * (right[c] - left[c]);
          continue;
        }
        for (int64_t c = 0; c < channels; c += 8) {
          // The last vector may reach into the next pixel, which is written after this one.
          const V value = LoadAs<V>(left + c);
          Store(to + c, value + part * (LoadAs<V>(right + c) - value));
        }
      }
    }
  });
  return ffi::Error::Success();
}

// Logits [batch, rows, columns, classes] -> the best class [batch, rows * factor, columns * factor] of each pixel of the
// same enlargement, the first of equals.
ffi::Error EnlargedArgmax(ffi::ThreadPool pool, Tensor logits, ffi::Result<Tensor> out, int64_t factor) {
  using V = Vector<8>;
  const auto shape = logits.dimensions();
  const int64_t batch = shape[0], rows = shape[1], columns = shape[2], classes = shape[3];
  const int64_t width = columns * factor;
  if (factor % 8) return ffi::Error::InvalidArgument("enlarged_argmax: factor not in eights");
  const std::vector<float> way = Ways(factor);
  const float* from = logits.typed_data();
  Parallel(pool, batch * (rows + 1), [&](int64_t unit) {
    thread_local std::vector<float> buffer;
    thread_local std::vector<int64_t> likely;
    const int64_t b = unit / (rows + 1);
    const Gap gap(unit % (rows + 1), rows, factor);
    const float* above = from + (b * rows + gap.above) * columns * classes;
    const float* below = from + (b * rows + gap.below) * columns * classes;
    float* low = Scratch(buffer, 2 * columns * classes + factor * (width + factor));
    float *high = low + columns * classes, *mask = high + columns * classes;
    for (int64_t n = 0; n < columns * classes; ++n) {
      low[n] = std::min(above[n], below[n]);
      high[n] = std::max(above[n], below[n]);
    }
    for (int64_t across = 0; across <= columns; ++across) {
      const int64_t left = std::max<int64_t>(across - 1, 0) * classes;
      const int64_t right = std::min(across, columns - 1) * classes;
      // A class whose four cells are all below the least of another's cannot be the best between them.
      float bound = std::min(low[left], low[right]);
      for (int64_t c = 1; c < classes; ++c) bound = std::max(bound, std::min(low[left + c], low[right + c]));
      bound -= 1e-6f * std::abs(bound);  // which rounding may have added
      likely.clear();
      for (int64_t c = 1; c < classes; ++c)
        if (std::max(high[left + c], high[right + c]) >= bound) likely.push_back(c);
      for (int64_t t = gap.first; t < gap.last; ++t)
        for (int64_t s = 0; s < factor; s += 8) {
          const V part = LoadAs<V>(&way[s]);
          auto value_of = [&](int64_t c) __attribute__((always_inline)) {
            const float l = above[left + c] + way[t] * (below[left + c] - above[left + c]);
            const float r = above[right + c] + way[t] * (below[right + c] - above[right + c]);
            return l + part * (r - l);
          };
          V best = value_of(0), index = {};
          for (const int64_t c : likely) {
            const V value = value_of(c);
            index = value > best ? V{} + static_cast<float>(c) : index;
            best = value > best ? value : best;
          }
          Store(mask + t * (width + factor) + across * factor + s, index);
        }
    }
    for (int64_t t = gap.first; t < gap.last; ++t) {
      const float* line = mask + t * (width + factor) + factor / 2;
      const int64_t y = unit % (rows + 1) * factor - factor / 2 + t;
      std::copy(line, line + width, out->typed_data() + (b * rows * factor + y) * width);
    }
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution_norm, ConvolutionNorm,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<Tensor>()
                                  .Attr<int64_t>("size").Attr<int64_t>("stride").Attr<int64_t>("activation")
                                  .Attr<int64_t>("gated").Attr<int64_t>("residual"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(excitation, Excitation,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>().Arg<Tensor>().Arg<Tensor>()
                                  .Arg<Tensor>().Arg<Tensor>().Ret<Tensor>().Attr<int64_t>("activation")
                                  .Attr<int64_t>("gate"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(enlarge, Enlarge,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>().Ret<Tensor>()
                                  .Attr<int64_t>("factor"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(enlarged_argmax, EnlargedArgmax,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>().Ret<Tensor>()
                                  .Attr<int64_t>("factor"));

}  // namespace inference

// Matrix products whose sums stay in registers until the caller takes them: small ones, of which many are computed.

#ifndef MTL_JAX_MATRIX_PRODUCT_H_
#define MTL_JAX_MATRIX_PRODUCT_H_

#include "kernels.h"

constexpr int kRows = 8;  // rows of a product held in registers
#if defined(__AVX512F__)
constexpr int kLanes = 16, kWide = 2;  // 8 x 2 sums of 16 lanes in 32 registers
#else
constexpr int kLanes = 8, kWide = 1;  // 8 sums of 8 lanes in 16 registers
#endif

// A matrix of any layout, element [row, k] at data[row * row_step + k * depth_step]; or several, one beside the other,
// each `segment_step` after the one before.
struct Left {
  const float* data;
  int64_t row_step, depth_step, segments = 1, segment_step = 0;
};

// kRowCount rows from `row` on and kCount vectors of columns from `column` on; right [depth, columns], rows one after
// another, as often as the left one has segments. take(row, column, sum) receives every vector.
template <class V, int kRowCount, int kCount, class Take>
inline void Block(const Left& left, const float* right, int64_t right_step, int64_t depth, int64_t row, int64_t column,
                  const Take& take) {
  constexpr int kWidth = sizeof(V) / sizeof(float);
  const float* b = right + column;
  V sums[kRowCount][kCount] = {};
  for (int64_t segment = 0; segment < left.segments; ++segment) {
    const float* a = left.data + segment * left.segment_step + row * left.row_step;
    for (int64_t k = 0; k < depth; ++k, b += right_step) {
      V columns[kCount];
#pragma GCC unroll 2
      for (int n = 0; n < kCount; ++n) columns[n] = LoadAs<V>(b + n * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < kRowCount; ++r) {
        const float value = a[r * left.row_step + k * left.depth_step];
#pragma GCC unroll 2
        for (int n = 0; n < kCount; ++n) sums[r][n] += value * columns[n];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRowCount; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < kCount; ++n) take(row + r, column + n * kWidth, sums[r][n]);
}

// Any number of rows; columns a multiple of 8.
template <class Take>
void Product(const Left& left, const float* right, int64_t right_step, int64_t rows, int64_t depth, int64_t columns,
             const Take& take) {
  using Wide = Vector<kLanes>;
  using Narrow = Vector<8>;
  auto each_row = [&](int64_t column, auto vector, auto count) {
    using V = decltype(vector);
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows)
      Block<V, kRows, decltype(count)::value>(left, right, right_step, depth, row, column, take);
    for (; row < rows; ++row) Block<V, 1, decltype(count)::value>(left, right, right_step, depth, row, column, take);
  };
  int64_t column = 0;
  for (; column + kWide * kLanes <= columns; column += kWide * kLanes)
    each_row(column, Wide{}, std::integral_constant<int, kWide>{});
  for (; column + kLanes <= columns; column += kLanes) each_row(column, Wide{}, std::integral_constant<int, 1>{});
  for (; column < columns; column += 8) each_row(column, Narrow{}, std::integral_constant<int, 1>{});
}

// What takes the sums into a matrix, rows one after another, or adds them to it.
template <bool kAdd>
inline auto Into(float* out, int64_t step) {
  return [=](int64_t row, int64_t column, auto sum) __attribute__((always_inline)) {
    float* to = out + row * step + column;
    Store(to, kAdd ? LoadAs<decltype(sum)>(to) + sum : sum);
  };
}

inline float* Scratch(std::vector<float>& buffer, int64_t size) {  // grows, and is kept from call to call
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}

#endif  // MTL_JAX_MATRIX_PRODUCT_H_

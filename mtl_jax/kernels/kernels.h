// What the CPU kernels share: vectors of floats, and work split over XLA's threads.
//
// One thread computes each result, in an order that the shapes alone fix: results are the same bit for bit however many
// threads there are.

#ifndef MTL_JAX_KERNELS_H_
#define MTL_JAX_KERNELS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Tensor = ffi::Buffer<ffi::F32>;

template <int kLanes>
struct VectorOf {  // compilers split it where the registers are shorter
  typedef float type __attribute__((vector_size(kLanes * sizeof(float))));
};
template <int kLanes>
using Vector = typename VectorOf<kLanes>::type;

template <class V>
inline V LoadAs(const float* from) {  // memcpy: XLA's buffers need not be aligned to a vector
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
template <class V>
inline void Store(float* to, V v) {
  std::memcpy(to, &v, sizeof(v));
}

// Runs units 0 .. count-1 on XLA's threads. The caller works too, and then waits only for units that some thread has
// begun: waiting for queued tasks could deadlock, because the caller itself occupies a thread of the same pool.
template <class Unit>
void Parallel(ffi::ThreadPool& pool, int64_t count, const Unit& unit) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto state = std::make_shared<State>();  // helpers that start too late still look at it
  std::function<void()> work = [state, count, &unit] {
    for (int64_t i; (i = state->next.fetch_add(1)) < count; state->done.fetch_add(1)) unit(i);
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(work));
  work();
  while (state->done.load() < count) std::this_thread::yield();
}

#endif  // MTL_JAX_KERNELS_H_

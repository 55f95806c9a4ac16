// Which boxes of a detector's cells are detections: the best scores, non-maximum suppression within each class, voting.

#include <cmath>
#include <numeric>

#include "activations.h"

namespace detection {

constexpr int64_t kBox = 4, kFields = 6;  // channels of a cell's box; fields of a detection: corners, score, class + 1
constexpr float kEpsilon = 1e-7f;         // px², keeps divisions by the area of an empty box finite

struct Limits {
  int64_t candidates, detections;
  float least_score, suppression_iou, voting_iou;
};

// One detector's columns of an image's cells: box, objectness, classes.
struct Cells {
  const float *from, *end;  // of the first cell, and of what may be read
  int64_t count, step, classes;
  const float* grid;  // centre and stride of every cell, where the box is relative to them
  float prior_logit, max_log_size, prior_size;

  float objectness(int64_t cell) const { return from[cell * step + kBox] + prior_logit; }

  // Centre, width and height, px.
  void Box(int64_t cell, float* box) const {
    std::copy_n(from + cell * step, kBox, box);
    if (!grid) return;
    const float* place = grid + 3 * cell;
    Vector<8> log_size = {};
    for (int64_t n = 0; n < 2; ++n) {
      box[n] = place[n] + box[n] * place[2];
      log_size[n] = std::min(std::max(box[2 + n], -max_log_size), max_log_size);
    }
    const Vector<8> size = Exp(log_size);
    for (int64_t n = 0; n < 2; ++n) box[2 + n] = prior_size * place[2] * size[n];
  }
};

// Boxes of one class lie one after another, best first. The fields have room for a vector more than there are.
struct Boxes {
  std::vector<float> x0, y0, x1, y1, area, score, present;  // 1 where no better box suppresses it

  void Clear(size_t count) {
    for (std::vector<float>* field : {&x0, &y0, &x1, &y1, &area, &score, &present}) field->assign(count + 8, 0.0f);
  }

  // Suppresses what overlaps box i among those from `first` to `last`, which are of its class, and writes into `corners`
  // the mean, weighted by score, of those that vote.
  void Settle(int64_t i, int64_t first, int64_t last, float suppression_iou, float voting_iou, float* corners) {
    using V = Vector<8>;
    auto least = [](V a, V b) __attribute__((always_inline)) { return a < b ? a : b; };
    auto most = [](V a, V b) __attribute__((always_inline)) { return a > b ? a : b; };
    const V lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const float* fields[4] = {x0.data(), y0.data(), x1.data(), y1.data()};
    V sums[5] = {};
    for (int64_t j = first; j < last; j += 8) {
      const V width = least(LoadAs<V>(&x1[j]), V{} + x1[i]) - most(LoadAs<V>(&x0[j]), V{} + x0[i]);
      const V height = least(LoadAs<V>(&y1[j]), V{} + y1[i]) - most(LoadAs<V>(&y0[j]), V{} + y0[i]);
      const V common = most(width, V{}) * most(height, V{});
      const V overlap = common / most(LoadAs<V>(&area[j]) + area[i] - common, V{} + kEpsilon);
      const V iou = lane < static_cast<float>(last - j) ? overlap : V{};  // those behind are of another class
      Store(&present[j], iou > suppression_iou ? V{} : LoadAs<V>(&present[j]));
      const V weight = iou > voting_iou ? LoadAs<V>(&score[j]) : V{};
      for (int64_t n = 0; n < 4; ++n) sums[n] += weight * LoadAs<V>(fields[n] + j);
      sums[4] += weight;
    }
    float totals[5];
    for (int64_t n = 0; n < 5; ++n) {
      totals[n] = 0;
      for (int64_t m = 0; m < 8; ++m) totals[n] += sums[n][m];
    }
    for (int64_t n = 0; n < 4; ++n) corners[n] = totals[4] > 0 ? totals[n] / totals[4] : fields[n][i];
  }
};

// A score that is not negative and the place that its box has among equals, as one number: the larger, the better.
uint64_t Key(float score, int64_t place) {
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(place));
}
int64_t Place(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }
float Squared(uint64_t key) {
  const uint32_t bits = key >> 32;
  float score;
  std::memcpy(&score, &bits, sizeof(score));
  return score;
}

// Whether any of eight comparisons holds.
typedef int32_t Mask __attribute__((vector_size(32)));
bool Any(Mask mask) {
  uint64_t pairs[4];
  std::memcpy(pairs, &mask, sizeof(pairs));
  return pairs[0] | pairs[1] | pairs[2] | pairs[3];
}

// The keys of the best pairs of cell and class, best first; place = class * cells + cell. A key's score is the square.
void Best(const Cells& cells, const Limits& limits, std::vector<uint64_t>& keys) {
  using V = Vector<8>;
  const V lane = {0, 1, 2, 3, 4, 5, 6, 7};
  const size_t count = limits.candidates, room = 4 * count;
  uint64_t bar = 0;  // what a key has to exceed
  float least = 0.999f * limits.least_score * limits.least_score;  // and its square to reach, but for rounding
  float log_least = std::log(least);
  keys.clear();
  auto shorten = [&] {
    std::nth_element(keys.begin(), keys.begin() + count - 1, keys.end(), std::greater<>());
    keys.resize(count);
    bar = keys[count - 1];
    least = Squared(bar), log_least = std::log(least) - 1e-3f;
  };
  for (int64_t cell = 0; cell < cells.count; ++cell) {
    const float objectness = cells.objectness(cell);
    // sigmoid(a) * sigmoid(b) is below sigmoid(a) and below exp(a + b): most cells are told apart without an exponential.
    if (!(objectness >= log_least)) continue;
    for (int64_t c = 0; c < cells.classes; c += 8) {
      const float* at = cells.from + cell * cells.step + kBox + 1 + c;
      const int64_t some = std::min<int64_t>(8, cells.classes - c);
      float copied[8] = {};
      if (at + 8 > cells.end) std::copy(at, at + some, copied);
      const V logits = LoadAs<V>(at + 8 > cells.end ? copied : at), bound = logits + objectness;
      if (!Any((bound >= log_least) & (logits >= log_least) & (lane < static_cast<float>(some)))) continue;
      const V squares = Sigmoid(logits) * Sigmoid(V{} + objectness);
      if (!Any((squares >= least) & (lane < static_cast<float>(some)))) continue;
      for (int64_t n = 0; n < some; ++n) {
        const uint64_t key = Key(squares[n], (c + n) * cells.count + cell);
        if (!(squares[n] >= least) || key <= bar) continue;
        keys.push_back(key);
        if (keys.size() == room) shorten();
      }
    }
  }
  if (keys.size() > count) shorten();
  std::sort(keys.begin(), keys.end(), std::greater<>());
  while (!keys.empty() && !(std::sqrt(Squared(keys.back())) >= limits.least_score)) keys.pop_back();
}

// One detector's detections of one image, best first, and zeros.
void Detect(const Cells& cells, int64_t first_class, const Limits& limits, float* out) {
  thread_local std::vector<uint64_t> keys;
  thread_local std::vector<int64_t> starts, places;
  thread_local Boxes boxes;
  Best(cells, limits, keys);
  const int64_t count = keys.size();
  boxes.Clear(count);
  starts.assign(cells.classes + 1, 0);
  places.resize(count);
  for (const uint64_t key : keys) ++starts[Place(key) / cells.count + 1];
  for (int64_t c = 0; c < cells.classes; ++c) starts[c + 1] += starts[c];
  std::vector<int64_t> next(starts.begin(), starts.end() - 1);
  for (int64_t n = 0; n < count; ++n) {
    const int64_t label = Place(keys[n]) / cells.count, at = places[n] = next[label]++;
    float box[kBox];
    cells.Box(Place(keys[n]) % cells.count, box);
    boxes.x0[at] = box[0] - 0.5f * box[2], boxes.x1[at] = box[0] + 0.5f * box[2];
    boxes.y0[at] = box[1] - 0.5f * box[3], boxes.y1[at] = box[1] + 0.5f * box[3];
    boxes.area[at] = (boxes.x1[at] - boxes.x0[at]) * (boxes.y1[at] - boxes.y0[at]);
    boxes.score[at] = std::sqrt(Squared(keys[n])), boxes.present[at] = 1;
  }
  std::fill(out, out + limits.detections * kFields, 0.0f);
  const float* end = out + limits.detections * kFields;
  for (int64_t n = 0; n < count && out < end; ++n) {
    const int64_t i = places[n], label = Place(keys[n]) / cells.count;
    if (!boxes.present[i]) continue;
    boxes.Settle(i, starts[label], starts[label + 1], limits.suppression_iou, limits.voting_iou, out);
    out[kBox] = boxes.score[i], out[kBox + 1] = first_class + label + 1;
    out += kFields;
  }
}

// Cells [batch, cells, columns], the columns of each detector (box, objectness, classes) one after another; grid [cells,
// 3], the centre and stride that boxes are relative to, or [0, 3] where boxes are centre, width and height; settings
// (least score, overlaps that suppress and that vote, then of relative boxes what is added to the objectness, the
// largest log-size, and the size in strides of log-size 0); classes of each detector -> detections [batch, detectors *
// detections, corners score class+1], best first, and then zeros.
ffi::Error Detections(ffi::ThreadPool pool, Tensor cells, Tensor grid, Tensor settings, Tensor class_counts,
                      ffi::Result<Tensor> out, int64_t candidates, int64_t detections) {
  const auto shape = cells.dimensions();
  const int64_t batch = shape[0], parts = class_counts.dimensions()[0], count = shape[1], channels = shape[2];
  const float* values = settings.typed_data();
  const Limits limits{candidates, detections, values[0], values[1], values[2]};
  const bool relative = grid.dimensions()[0] > 0;
  std::vector<int64_t> firsts(parts + 1, 0);
  for (int64_t p = 0; p < parts; ++p) firsts[p + 1] = firsts[p] + static_cast<int64_t>(class_counts.typed_data()[p]);
  if (parts * (kBox + 1) + firsts[parts] != channels || candidates < 1 || (relative && grid.dimensions()[0] != count))
    return ffi::Error::InvalidArgument("detections: other columns or cells than announced, or no candidates");
  const int64_t size = detections * kFields;
  Parallel(pool, batch * parts, [&](int64_t unit) {
    const int64_t part = unit % parts;
    const float* image = cells.typed_data() + unit / parts * count * channels;
    const Cells own{image + part * (kBox + 1) + firsts[part],
                    image + count * channels,
                    count,
                    channels,
                    firsts[part + 1] - firsts[part],
                    relative ? grid.typed_data() : nullptr,
                    relative ? values[3] : 0.0f,
                    values[4],
                    values[5]};
    Detect(own, firsts[part], limits, out->typed_data() + unit * size);
  });
  if (parts == 1) return ffi::Error::Success();
  std::vector<int64_t> order(parts * detections);
  std::vector<float> found(parts * size);
  for (int64_t b = 0; b < batch; ++b) {
    float* all = out->typed_data() + b * parts * size;
    std::copy(all, all + parts * size, found.begin());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t i, int64_t j) { return found[i * kFields + 4] > found[j * kFields + 4]; });
    for (int64_t n = 0; n < parts * detections; ++n)
      std::copy_n(&found[order[n] * kFields], kFields, all + n * kFields);
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(detections, Detections,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Tensor>().Arg<Tensor>().Arg<Tensor>()
                                  .Arg<Tensor>().Ret<Tensor>().Attr<int64_t>("candidates").Attr<int64_t>("detections"));

}  // namespace detection

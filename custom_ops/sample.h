// Attention calls without onnxruntime, for the programs that test and time the kernels.
#pragma once

#include <cmath>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "attention.h"
#include "shapes.h"

namespace onnx_attnq {

// Memory of exactly the size asked for, so that sanitizers see every overrun, and as many threads as wanted.
class SampleHost final : public Host {
 public:
  explicit SampleHost(int threads = 1) : threads_(threads) {}
  void parallel_for(Index count, void (*task)(void*, std::size_t), void* user) override {
    std::vector<std::thread> others;
    const auto run = [=](int first) {
      for (Index i = first; i < count; i += threads_) task(user, static_cast<std::size_t>(i));
    };
    for (int t = 1; t < threads_; ++t) others.emplace_back(run, t);
    run(0);
    for (std::thread& other : others) other.join();
  }
  void* allocate(std::size_t bytes) override { return std::malloc(bytes); }
  void release(void* memory) override { std::free(memory); }

 private:
  const int threads_;
};

struct Sample {
  std::vector<float> query, key, value, mask, context;
  Storage storage = Storage::kFloat;  // of keys and values, if it is not that of the floats above
  std::vector<char> stored_key, stored_value;
  Table table;
  Attention attention;
};

// Queries, keys and values of shape (1, L, H, D), as exports have them, whose scores have the given spread.
inline Sample make_sample(const Form& form, const Table& table, Index heads, Index queries, Index keys, Index depth,
                          float spread, bool causal) {
  Sample s;
  s.table = table;
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, std::sqrt(spread));
  const auto fill = [&](std::vector<float>& tensor, Index length) {
    tensor.resize(static_cast<std::size_t>(length * heads * depth));
    for (float& x : tensor) x = normal(random);
  };
  fill(s.query, queries);
  fill(s.key, keys);
  fill(s.value, keys);
  s.context.assign(s.query.size(), 0.0f);
  Shape mask_shape;
  if (causal) {
    mask_shape = {queries, keys};
    for (Index i = 0; i < queries; ++i) {
      for (Index j = 0; j < keys; ++j) s.mask.push_back(j <= i ? 0.0f : -INFINITY);
    }
  }
  const AttentionShape shape =
      attention_shape(permuted({1, queries, heads, depth}, {0, 2, 1, 3}, "query"),
                      permuted({1, keys, heads, depth}, {0, 2, 3, 1}, "key"),
                      permuted({1, keys, heads, depth}, {0, 2, 1, 3}, "value"), whole(mask_shape), {0, 2, 1, 3});
  s.attention = shape.attention;
  s.attention.form = form;
  s.attention.scale = 1.0f / std::sqrt(static_cast<float>(depth));
  s.attention.row_max_floor = -INFINITY;
  s.attention.int16_products = false;
  s.attention.rough_scores = RoughScores::kWhereFaster;
  return s;
}

// Stores keys and values otherwise.
inline void store(Sample& s, Storage storage) {
  const auto stored = [storage](const std::vector<float>& numbers) {
    const auto count = static_cast<Index>(numbers.size());
    std::vector<char> bytes(static_cast<std::size_t>(bytes_of(storage, count)));
    std::vector<float> scaled = numbers;
    for (float& x : scaled) x *= storage == Storage::kInt8 ? 30 : storage == Storage::kInt4 ? 2 : 1;
    narrow(scaled.data(), count, storage, bytes.data());
    return bytes;
  };
  s.storage = storage;
  s.stored_key = stored(s.key);
  s.stored_value = stored(s.value);
  const float depth = static_cast<float>(s.attention.depth);
  s.attention.scale = (storage == Storage::kInt8   ? 1.0f / 30
                       : storage == Storage::kInt4 ? 0.5f
                                                   : 1.0f) /
                      std::sqrt(depth);
}

// Points the call at the sample's own memory, which may have moved.
inline Attention call(Sample& s) {
  Attention a = s.attention;
  a.tables = {&s.table, {0, 0, 0}};
  a.query = s.query.data();
  const bool floats = s.storage == Storage::kFloat;
  a.key = {floats ? static_cast<const void*>(s.key.data()) : s.stored_key.data(), s.storage};
  a.value = {floats ? static_cast<const void*>(s.value.data()) : s.stored_value.data(), s.storage};
  a.mask = s.mask.empty() ? nullptr : s.mask.data();
  a.context = s.context.data();
  join_groups(a);
  return a;
}

// A table with rounding `nearest`.
inline Table sample_table(const Form& form, float threshold, int bits) {
  const float levels = static_cast<float>((1 << bits) - 1), bins = levels - 0.5f;
  if (form.spacing != Spacing::kLinear) return make_table(form, threshold, -std::log(threshold) / bins, bins, levels);
  const float step = (1 - threshold) / bins;
  return make_table(form, threshold, step, -threshold / step, levels);
}

}  // namespace onnx_attnq

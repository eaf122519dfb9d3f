// The sum of the values of a sample: of a row's unmasked keys, those whose index is a multiple of the stride. Rows that
// come one after the other most often have nearly the same: all keys, all but padding, or, under a causal mask, one
// more from time to time. So the sum of the row before is continued; it starts again only where that row had a key
// more.
#pragma once

#include "vector_products.h"

namespace onnx_attnq {
namespace {

// out += in * factor
static inline void add_scaled(const float* in, float factor, Index length, float* out) {
  for (Index d = 0; d < length; d += kLanes) {
    Simd::store(out + d, Simd::fma(Simd::load(in + d), Simd::set1(factor), Simd::load(out + d)));
  }
}

class SampledValues {
 public:
  static Index scratch(const Attention& a) { return value_row(a) + KeySet::integers(panel_count(a) * kTileKeys); }

  SampledValues(const Task& task, float* scratch)
      : stride_(sample_stride(task.a.row_length)),
        width_(value_row(task.a)),
        sum_(scratch),
        members_(reinterpret_cast<std::int32_t*>(scratch + width_)),
        in_register_(pattern(stride_)),
        index_(task.a.first_index + task.first_key) {}

  const float* sum() const { return sum_; }
  Index stride() const { return stride_; }

  // Makes it the sum of a row's unmasked keys, of the first `keys`, and returns how many are summed.
  Index take(const Shared& row, Index keys, const VectorProducts& products) {
    return row.count == row.end ? take_first(row.end, products) : take_any(row.unmasked.bits(), keys, products);
  }

 private:
  static constexpr Index kMost = 256;  // keys of a sample, by sample_stride

  // Of a row whose unmasked keys are the first so many.
  Index take_first(Index end, const VectorProducts& products) {
    if (first_keys_ < 0 || end < first_keys_) restart();
    std::int32_t more[kMost];
    Index count = 0;
    for (Index key = round_up(index_ + first_keys_, stride_) - index_; key < end; key += stride_) {
      more[count++] = static_cast<std::int32_t>(key);
    }
    first_keys_ = end;
    end_ = 0;
    return add(more, count, products);
  }

  // Of a row whose unmasked keys are anywhere.
  Index take_any(const std::int32_t* bits, Index keys, const VectorProducts& products) {
    const Index step = larger(1, stride_ / kLanes), registers = (keys + kLanes - 1) / kLanes;
    std::int32_t lost = end_ == 0 || end_ > registers ? in_register_ : 0;
    for (Index i = 0; i < smaller(end_, registers); ++i) lost |= members_[i] & ~bits[i];
    if ((lost & in_register_) != 0) restart();
    first_keys_ = -1;
    std::int32_t more[kMost];
    Index count = 0;
    // The first key's index is a multiple of kLanes.
    for (Index i = (round_up(index_, stride_) - index_) / kLanes; i < registers; i += step) {
      const std::int32_t known = i < end_ ? members_[i] : 0;
      for (auto left = static_cast<unsigned>(bits[i] & in_register_ & ~known); left != 0; left &= left - 1) {
        more[count++] = static_cast<std::int32_t>(i * kLanes + __builtin_ctz(left));
      }
    }
    for (Index i = 0; i < registers; ++i) members_[i] = bits[i];
    end_ = registers;
    return add(more, count, products);
  }

  void restart() {
    for (Index d = 0; d < width_; d += kLanes) Simd::store(sum_ + d, Simd::set1(0.0f));
    first_keys_ = end_ = size_ = 0;
  }

  Index add(const std::int32_t* keys, Index count, const VectorProducts& products) {
    if (count != 0) products.add_values(keys, count, sum_);
    return size_ += count;
  }

  // The lanes of a register whose keys are in the sample, of those registers that have any.
  static std::int32_t pattern(Index stride) {
    std::int32_t lanes = 0;
    for (Index lane = 0; lane < kLanes; lane += stride) lanes |= 1 << lane;
    return lanes;
  }

  const Index stride_, width_;
  float* const sum_;
  std::int32_t* const members_;  // the unmasked keys of the row before, if they were not the first ones
  const std::int32_t in_register_;
  const Index index_;         // of the first key
  Index first_keys_ = -1;     // how many the row before had, if they were the first ones
  Index end_ = 0, size_ = 0;  // registers in `members_`, and keys that are summed
};

}  // namespace
}  // namespace onnx_attnq

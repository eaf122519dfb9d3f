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
        // The first key's index is a multiple of kLanes.
        first_((round_up(index_of(task), stride_) - index_of(task)) / kLanes) {}

  const float* sum() const { return sum_; }
  Index stride() const { return stride_; }

  // Makes it the sum of a row with these unmasked keys, of the first `keys`, and returns how many are summed.
  Index take(const KeySet& unmasked, Index keys, const VectorProducts& products) {
    const Index step = larger(1, stride_ / kLanes), registers = (keys + kLanes - 1) / kLanes;
    const std::int32_t* const bits = unmasked.bits();
    std::int32_t lost = end_ > registers ? 1 : 0, gained = 0;
    const Index common = smaller(end_, registers);
    for (Index i = 0; i < common; ++i) {
      lost |= members_[i] & ~bits[i];
      gained |= bits[i] & ~members_[i];
    }
    if ((lost & in_register_) != 0) end_ = size_ = 0;
    if (size_ == 0) {
      for (Index d = 0; d < width_; d += kLanes) Simd::store(sum_ + d, Simd::set1(0.0f));
      end_ = 0;
    }
    const bool only_longer = end_ != 0 && (gained & in_register_) == 0;
    const Index first = first_ + (only_longer && end_ > first_ ? round_up(end_ - first_, step) : 0);
    for (Index i = first; i < registers; i += step) {
      const std::int32_t known = i < end_ ? members_[i] : 0;
      for (auto left = static_cast<unsigned>(bits[i] & in_register_ & ~known); left != 0; left &= left - 1) {
        products.add_value(i * kLanes + __builtin_ctz(left), sum_);
        ++size_;
      }
    }
    for (Index i = 0; i < registers; ++i) members_[i] = bits[i];
    end_ = registers;
    return size_;
  }

 private:
  static Index index_of(const Task& task) { return task.a.first_index + task.first_key; }

  // The lanes of a register whose keys are in the sample, of those registers that have any.
  static std::int32_t pattern(Index stride) {
    std::int32_t lanes = 0;
    for (Index lane = 0; lane < kLanes; lane += stride) lanes |= 1 << lane;
    return lanes;
  }

  const Index stride_, width_;
  float* const sum_;
  std::int32_t* const members_;  // the unmasked keys of the row before
  const std::int32_t in_register_;
  const Index first_;         // register that has a key of the sample
  Index end_ = 0, size_ = 0;  // registers that were looked at, and keys that are summed
};

}  // namespace
}  // namespace onnx_attnq

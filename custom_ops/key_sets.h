// Which keys of a row have a property (unmasked, near an edge, of the maximum), a bit for each.
#pragma once

#include "vector_math.h"

namespace onnx_attnq {
namespace {

// Long rows are taken in blocks of so many scores: sums of blocks lose less than one sum, and the values of a block's
// keys stay in the first-level cache.
constexpr Index kBlock = 128;

// Some of a row's keys: a bit for each, kLanes bits to an integer.
class KeySet {
 public:
  static Index integers(Index padded) { return round_up(padded / kLanes, kLanes); }

  static constexpr std::int32_t kAll = (1 << kLanes) - 1;

  explicit KeySet(std::int32_t* memory = nullptr) : bits_(memory) {}
  bool has(Index key) const { return bits_[key / kLanes] >> key % kLanes & 1; }
  void set(Index key, Mask lanes) { Simd::store_bits(bits_ + key / kLanes, lanes); }
  // Every key of so many integers.
  void set_all(Index key, Index integers) {
    for (Index i = 0; i < integers; ++i) bits_[key / kLanes + i] = kAll;
  }
  const std::int32_t* bits() const { return bits_; }
  // To be called when all are set.
  void end(Index padded) {
    for (Index i = padded / kLanes; i % kLanes != 0; ++i) bits_[i] = 0;
  }
  // Lists which of the integers are not zero, each plus `base`, and returns how many; kLanes entries more are
  // overwritten.
  Index list(Index padded, Index base, std::int32_t* places) const {
    Index count = 0;
    Int indices = Simd::add_int(Simd::first_indices(), static_cast<std::int32_t>(base));
    for (Index i = 0; i < padded / kLanes; i += kLanes) {
      const Float bits = Simd::to_float(Simd::load_int(bits_ + i));
      count += Simd::append(places + count, indices, Simd::at_least(bits, Simd::set1(1.0f)));
      indices = Simd::next_indices(indices);
    }
    return count;
  }

 private:
  std::int32_t* bits_;
};

// A row of rough scores on its way to weights. A position is a code and how far the score is past that code's lower
// edge; keys just below the lowest edge are listed too. The sets are filled when the row is weighed.
struct Rough {
  float near;       // how far positions may be off
  KeySet doubtful;  // keys that may be beyond an edge
  KeySet highest;   // keys of which one has the maximum
};

// A row whose pruned keys share what they summed to, on its way to weights. All are filled when the row is weighed.
struct Shared {
  KeySet unmasked;
  float tail;         // what the pruned keys sum to
  bool sink;          // whether the sink is unmasked
  bool all_unmasked;  // whether the set has every key of the row, padding too
};

// Which scores are not further below the peak than `masked`. Most often all of a block are, so their least is looked at
// first; a NaN may be passed over, its row is NaN whatever is in the set.
static inline void find_unmasked(const float* scores, Index count, float peak, float masked, Shared& shared) {
  constexpr Index kRegisters = kBlock / kLanes;
  const Float shift = Simd::set1(peak), lowest = Simd::set1(masked), zero = Simd::set1(0.0f);
  shared.all_unmasked = true;
  for (Index block = 0; block < count; block += kBlock) {
    const Index registers = smaller(kRegisters, (count - block) / kLanes);
    if (registers == kRegisters) {
      Float least[2] = {Simd::load(scores + block), Simd::load(scores + block + kLanes)};
      for (Index i = 2; i < kRegisters; ++i) {
        least[i % 2] = Simd::min(Simd::load(scores + block + i * kLanes), least[i % 2]);
      }
      if (-Simd::largest(Simd::sub(zero, Simd::min(least[0], least[1]))) - peak >= masked) {
        shared.unmasked.set_all(block, kRegisters);
        continue;
      }
    }
    for (Index i = 0; i < registers; ++i) {
      const Index key = block + i * kLanes;
      const Mask own = Simd::at_least(Simd::sub(Simd::load(scores + key), shift), lowest);
      shared.unmasked.set(key, own);
      shared.all_unmasked = shared.all_unmasked && shared.unmasked.bits()[key / kLanes] == KeySet::kAll;
    }
  }
  shared.unmasked.end(count);
}

}  // namespace
}  // namespace onnx_attnq

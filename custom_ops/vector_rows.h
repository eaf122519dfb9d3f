// Rows of scores or probabilities to weights.
#pragma once

#include "vector_math.h"

namespace onnx_attnq {
namespace {

// Long rows are taken in blocks of so many scores: sums of blocks lose less than one sum, and the values of a block's
// keys stay in the first-level cache.
constexpr Index kBlock = 128;

// How the level of a code is found; kFactored: as the product of two numbers of a register each.
enum class Levels { kPermuted, kFactored, kGathered };

// What weigh notes of the numbers it went over, in lanes.
struct Sums {
  Float weights, kept, all;  // `kept` and `all`, of exponentials, only where a scheme needs them
  Float distances;           // from the maximum, so never above 0: NaN where one of them is
};

// The keys that a row keeps; and of rough scores, some that a second look prunes, whose weight is 0.
struct Listed {
  std::int32_t* keys;    // room for kLanes more than there are keys
  std::int32_t* starts;  // how many lie before each block, and in all: one more than there are blocks
};

// Some of a row's keys: a bit for each, kLanes bits to an integer.
class KeySet {
 public:
  static Index integers(Index padded) { return round_up(padded / kLanes, kLanes); }

  static constexpr unsigned kAll = (1u << kLanes) - 1;

  explicit KeySet(std::int32_t* memory = nullptr) : bits_(memory) {}
  bool has(Index key) const { return bits_[key / kLanes] >> key % kLanes & 1; }
  void set(Index key, Mask lanes) { bits_[key / kLanes] = static_cast<std::int32_t>(Simd::bits(lanes)); }
  // Every key of so many registers.
  template <int kRegisters>
  void set_all(Index key) {
    for (int i = 0; i < kRegisters; ++i) bits_[key / kLanes + i] = kAll;
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

// A row whose pruned keys share what they summed to, on its way to weights, which fills all of it.
struct Shared {
  KeySet unmasked;
  Index count = 0, end = 0;  // how many these are, and up to where they lie: the same where they are the first keys
  float tail = 0.0f;         // what the pruned keys sum to
  bool sink = false;         // whether the sink is unmasked

  explicit Shared(KeySet empty = KeySet()) : unmasked(empty) {}
};

// Finds the unmasked keys of a row: those not further below the peak than `masked`.
class FindUnmasked {
 public:
  FindUnmasked(const float* scores, Float peak, Float masked, Shared& row)
      : scores_(scores), peak_(peak), masked_(masked), row_(row) {}

  // Adds those of a block. Most often all are, or all of some registers: only their least is looked at then.
  void add(Index begin, Index end) {
    constexpr int kSome = 4;
    if (end - begin == kBlock && add_all<kBlock / kLanes>(begin)) return;
    for (Index j = begin; j < end; j += kLanes) {
      if (end - j >= kSome * kLanes && add_all<kSome>(j)) {
        j += (kSome - 1) * kLanes;
        continue;
      }
      const Mask own = unmasked(Simd::load(scores_ + j));
      const unsigned bits = Simd::bits(own);
      row_.unmasked.set(j, own);
      row_.count += __builtin_popcount(bits);
      if (bits != 0) row_.end = j + 32 - __builtin_clz(bits);
    }
  }

 private:
  Mask unmasked(Float score) const { return Simd::at_least(Simd::sub(score, peak_), masked_); }

  // Adds the keys of so many registers if all are unmasked. A NaN may be passed over: its row is NaN, whatever is
  // in the set.
  template <int kRegisters>
  bool add_all(Index begin) {
    Float least[2] = {Simd::load(scores_ + begin), Simd::load(scores_ + begin + kLanes)};
#pragma GCC unroll 16
    for (int i = 2; i < kRegisters; ++i) {
      least[i % 2] = Simd::min(least[i % 2], Simd::load(scores_ + begin + i * kLanes));
    }
    if (Simd::bits(unmasked(Simd::min(least[0], least[1]))) != KeySet::kAll) return false;
    row_.unmasked.set_all<kRegisters>(begin);
    row_.count += kRegisters * kLanes;
    row_.end = begin + kRegisters * kLanes;
    return true;
  }

  const float* const scores_;
  const Float peak_, masked_;
  Shared& row_;
};

// Scores to weights, in place: level of the score's code, or the exponential itself; 0 where it is pruned. `count` is a
// multiple of kLanes. With a list, the keys that are kept are listed on the way.
//
// kExp: whether x itself is needed, which costs an exponential; log spacing works on the exponent.
// kQuantize: levels, or values kept as they are.
// kShares: what pruned keys sum to is noted as well, and which keys are unmasked: not further below the maximum than
// `masked`.
//
// Where levels are in registers, a position is never above `start`, that of the maximum, which is held to the highest
// code: nothing has to be done to each. Others may be above by rounding, or by an attribute that a table cannot have.
template <bool kExp, bool kQuantize, Levels kLevels, bool kRough = false, bool kShares = false>
static inline Sums weigh(float* numbers, Index count, float peak, float factor, float offset, const Table& table,
                         bool sum_kept, const Listed* list, Rough* rough, Shared* shared = nullptr, float masked = 0) {
  constexpr bool kHeld = kQuantize && !kExp && !kRough && kLevels != Levels::kGathered;
  const float deepest = kShares && kQuantize ? static_cast<float>(table.deepest) : 0.0f;
  const float end_of_codes = (table.levels + 1 + deepest) * (1 - 0x1p-23f), lifted = offset + deepest;
  const Float shift = Simd::set1(peak), slope = Simd::set1(factor), highest = Simd::set1(offset);
  const Float start = Simd::set1(kRough                           ? offset + (kShares ? 0 : rough->near)
                                 : kHeld && lifted > end_of_codes ? end_of_codes
                                                                  : lifted);
  const Float near = Simd::set1(kRough ? rough->near : 0.0f);
  const Float zero = Simd::set1(0.0f), first = Simd::set1(1.0f);
  const Float top = Simd::set1(table.levels + deepest), below = Simd::set1(deepest), lowest = Simd::set1(masked);
  const Float lowest_kept = Simd::set1(1.0f + deepest);
  const Float two_near = Simd::add(near, near), half = Simd::set1(0.5f);
  const float* const all_levels = kShares ? table.continued : table.level;
  const Float levels = Simd::load(kLevels == Levels::kFactored ? table.low : all_levels);
  const Float high = Simd::load(kLevels == Levels::kFactored ? table.high : all_levels);
  const auto level_of = [&](Int code) {
    if (kLevels == Levels::kGathered) return Simd::gather(all_levels, code);
    const Float level = Simd::permute(levels, code);
    return kLevels == Levels::kPermuted ? level : Simd::mul(level, Simd::permute(high, Simd::eighth(code)));
  };
  // Of positions that were raised by `near`: what is in doubt about an edge is just past it. Returns what may be kept.
  const auto note_doubt = [&](Float raised, Index j) {
    const Float least = Simd::max(raised, half);  // of what is pruned the middle of code 0, away from edges
    const Float past_edge = Simd::sub(least, Simd::to_float(Simd::truncate(least)));
    rough->doubtful.set(j, Simd::at_least(two_near, past_edge));
    rough->highest.set(j, Simd::at_least(raised, highest));
    return Simd::at_least(raised, first);
  };
  std::int32_t* const keys = list == nullptr ? nullptr : list->keys;
  Float weights = zero, kept_sum = zero, all = zero, distances = zero;
  Int indices = Simd::first_indices();
  std::int32_t listed = 0;
  for (Index block = 0; block < count; block += kBlock) {
    if (list != nullptr) list->starts[block / kBlock] = listed;
    const Index end = smaller(block + kBlock, count);
    if (kShares) FindUnmasked(numbers, shift, lowest, *shared).add(block, end);
    for (Index j = block; j < end; j += kLanes) {
      // The difference is exact where it matters, near the maximum; folding -peak into the offset would not be.
      const Float distance = Simd::sub(Simd::load(numbers + j), shift);
      distances = Simd::add(distances, distance);
      Float weight;
      Mask kept;
      if (kQuantize && kShares) {
        // A NaN becomes index 0; its row is NaN by the sum of distances.
        const Float position = Simd::fma(distance, slope, start);
        const Float from_zero = Simd::max(kRough ? Simd::add(position, below) : position, zero);
        const Float index = kHeld ? from_zero : Simd::min(from_zero, top);
        const Float level = level_of(Simd::truncate(index));
        // Of the index, which is rounded: what is pruned has its own level. What is pruned sums to what rough scores
        // make of it; only codes of keys that may be kept are in doubt.
        kept = kRough ? note_doubt(Simd::add(position, near), j) : Simd::at_least(index, lowest_kept);
        weight = Simd::keep(kept, level);
        all = Simd::add(all, level);
      } else if (kQuantize) {
        const Float x = kExp ? exp_negative(distance) : distance;
        const Float position = Simd::fma(x, slope, start);
        // A NaN becomes code 0; its row is NaN by the sum of distances. A rough position is never above the top, and
        // what is pruned is brought to the middle of code 0: away from edges.
        const Float least = Simd::max(position, kRough ? half : zero);
        weight = level_of(Simd::truncate(kRough || kHeld ? least : Simd::min(least, top)));
        kept = kRough ? note_doubt(position, j) : Simd::at_least(position, first);
      } else {
        kept = Simd::at_least(distance, start);
        const Float x = exp_negative(distance);
        all = Simd::add(all, x);
        weight = Simd::keep(kept, x);
      }
      if (!kShares && sum_kept) kept_sum = Simd::add(kept_sum, Simd::keep(kept, exp_negative(distance)));
      weights = Simd::add(weights, weight);
      Simd::store(numbers + j, weight);
      if (list != nullptr) listed += Simd::append(keys + listed, indices, kept);
      indices = Simd::next_indices(indices);
    }
  }
  if (list != nullptr) list->starts[(count + kBlock - 1) / kBlock] = listed;
  if (kShares) {
    shared->unmasked.end(count);
    shared->tail = Simd::sum(Simd::sub(all, weights));
  }
  if (kRough) {
    rough->doubtful.end(count);
    rough->highest.end(count);
  }
  return {weights, kept_sum, all, distances};
}

// Sum of exp(score - peak). Blocks are summed apart, so that the error does not grow with the length.
static inline float exp_sum(const float* row, Index padded, float peak) {
  const Float shift = Simd::set1(peak);
  Float total = Simd::set1(0.0f);
  for (Index block = 0; block < padded; block += kBlock) {
    const Index end = smaller(block + kBlock, padded);
    Float sum = Simd::set1(0.0f);
    for (Index j = block; j < end; j += kLanes)
      sum = Simd::add(sum, exp_negative(Simd::sub(Simd::load(row + j), shift)));
    total = Simd::add(total, sum);
  }
  return Simd::sum(total);
}

// What a row was weighed to: its probabilities are its weights times a factor.
struct Weighed {
  float numerator, divisor;
  bool to_one;  // whether the row is made to sum to 1, so that what pruned keys share is part of the divisor

  float factor(float shared = 0.0f) const { return ratio(numerator, to_one ? divisor + shared : divisor); }
};

// A row of scores, of which `peak` is the largest, on its way to weights: what is known before the first weight.
class ScoreRow {
 public:
  // `scores` are padded with -inf to a multiple of kLanes; `peak` may be higher than all of them. `sink` is the score
  // of one key more, which has no value; -inf for none.
  ScoreRow(const float* scores, Index padded, float peak, const Form& form, const Table& table, float sink = -kInfinity)
      : form_(form), table_(&table), peak_(peak), sink_(sink) {
    const bool absolute = form.reference == Reference::kAbsolute;
    // The default scheme, and every row-max scheme that is normalized to 1, never needs the sum.
    // Where values are kept as they are it comes with them, unless an absolute threshold has to be known before.
    const bool sum_first =
        quantizes(form) ? absolute || form.normalize != Normalize::kUnit : absolute && table.threshold > 0;
    sum_ = sum_first ? exp_sum(scores, padded, peak) : 1.0f;
    if (sum_first && sink != -kInfinity) sum_ += __builtin_expf(sink - peak);
    log_sum_ = sum_first && absolute ? __builtin_logf(sum_) : 0.0f;
  }

  // Turns scores into weights, in place, and lists those that are kept if there is a list; fills `shared` where the
  // form shares.
  Weighed weigh_scores(float* numbers, Index count, const Listed* list, Shared* shared) const {
    Sums sums = weigh_numbers(numbers, count, list, shared);
    if (sink_ != -kInfinity) add_sink(sums, shared);
    return weighed(sums);
  }
  // The same for rough scores, of a row-max scheme with log spacing that is normalized to 1.
  Weighed weigh_rough(float* numbers, Index count, const Listed& list, Rough& rough, Shared* shared) const {
    if (form_.shares) return weighed(weigh_shared(numbers, count, &list, shared, &rough));
    constexpr auto kPermuted = Levels::kPermuted, kGathered = Levels::kGathered;
    const auto run = levels() == kPermuted ? weigh<false, true, kPermuted, true> : weigh<false, true, kGathered, true>;
    return weighed(
        run(numbers, count, peak_, table_->inverse_step, table_->offset, *table_, false, &list, &rough, nullptr, 0.0f));
  }

 private:
  Sums weigh_numbers(float* numbers, Index count, const Listed* list, Shared* shared) const {
    return form_.shares ? weigh_shared(numbers, count, list, shared) : weigh_by_form(numbers, count, list);
  }

  // The sink, weighed as a row of its own, belongs to all sums.
  void add_sink(Sums& sums, Shared* shared) const {
    alignas(64) float row[kLanes];
    alignas(64) std::int32_t bits[kLanes];
    for (int i = 0; i < kLanes; ++i) row[i] = i == 0 ? sink_ : -kInfinity;
    Shared own{KeySet(bits)};
    const Sums more = weigh_numbers(row, kLanes, nullptr, &own);
    sums.weights = Simd::add(sums.weights, more.weights);
    sums.kept = Simd::add(sums.kept, more.kept);
    sums.all = Simd::add(sums.all, more.all);
    sums.distances = Simd::add(sums.distances, more.distances);
    if (!form_.shares) return;
    shared->tail += own.tail;
    shared->sink = own.unmasked.has(0);
  }

  bool is_nan(const Sums& sums) const { return Simd::any(Simd::is_nan(sums.distances)) || peak_ == -kInfinity; }

  Weighed weighed(const Sums& sums) const {
    if (is_nan(sums)) return {kNaN, 1.0f, false};
    if (form_.normalize == Normalize::kUnit) return {1.0f, Simd::sum(sums.weights), true};
    if (!quantizes(form_)) return {1.0f, Simd::sum(sums.all), false};
    if (form_.normalize == Normalize::kMass) {
      return {ratio(Simd::sum(sums.kept), sum_), Simd::sum(sums.weights), false};
    }
    // 1 / sum is the row's largest probability.
    return {1.0f, form_.reference == Reference::kAbsolute ? 1.0f : sum_, false};
  }

  // How levels are found, of a table that has as many.
  Levels levels() const {
    if (table_->offset > table_->levels + 1) return Levels::kGathered;  // no scheme's: each code is held to the highest
    const int count = form_.shares ? table_->continued_size : static_cast<int>(table_->levels) + 1;
    if (count <= Simd::kPermuted) return Levels::kPermuted;
    const bool factors = form_.shares && Simd::kPermuted != 0 && count <= Table::kLow * Simd::kPermuted;
    return factors ? Levels::kFactored : Levels::kGathered;
  }

  Sums weigh_shared(float* numbers, Index count, const Listed* list, Shared* shared, Rough* rough = nullptr) const {
    constexpr auto kPermuted = Levels::kPermuted, kFactored = Levels::kFactored, kGathered = Levels::kGathered;
    const bool absolute = form_.reference == Reference::kAbsolute;
    const float masked = absolute ? kMaskedNats + log_sum_ : kMaskedNats;
    if (!quantizes(form_)) {
      return weigh<true, false, kGathered, false, true>(numbers, count, peak_, 0, table_->log_threshold + log_sum_,
                                                        *table_, false, list, nullptr, shared, masked);
    }
    const float slope = table_->inverse_step, offset = absolute ? table_->offset - log_sum_ * slope : table_->offset;
    const auto how = levels();
    const auto exact = how == kPermuted   ? weigh<false, true, kPermuted, false, true>
                       : how == kFactored ? weigh<false, true, kFactored, false, true>
                                          : weigh<false, true, kGathered, false, true>;
    const auto roughly = how == kPermuted   ? weigh<false, true, kPermuted, true, true>
                         : how == kFactored ? weigh<false, true, kFactored, true, true>
                                            : weigh<false, true, kGathered, true, true>;
    const auto run = rough == nullptr ? exact : roughly;
    return run(numbers, count, peak_, slope, offset, *table_, false, list, rough, shared, masked);
  }

  Sums weigh_by_form(float* numbers, Index count, const Listed* list) const {
    const bool absolute = form_.reference == Reference::kAbsolute, mass = form_.normalize == Normalize::kMass;
    const bool permuted = levels() == Levels::kPermuted;
    constexpr auto kPermuted = Levels::kPermuted, kGathered = Levels::kGathered;
    if (!quantizes(form_)) {
      const float lowest = table_->log_threshold + log_sum_;  // x >= threshold, in logarithms
      return weigh<true, false, kGathered>(numbers, count, peak_, 0, lowest < kLowest ? kLowest : lowest, *table_,
                                           false, list, nullptr);
    }
    if (form_.spacing == Spacing::kLog) {
      const float slope = table_->inverse_step, offset = absolute ? table_->offset - log_sum_ * slope : table_->offset;
      const auto run = permuted ? weigh<false, true, kPermuted> : weigh<false, true, kGathered>;
      return run(numbers, count, peak_, slope, offset, *table_, mass, list, nullptr, nullptr, 0.0f);
    }
    const float slope = absolute ? table_->inverse_step / sum_ : table_->inverse_step;
    const auto run = permuted ? weigh<true, true, kPermuted> : weigh<true, true, kGathered>;
    return run(numbers, count, peak_, slope, table_->offset, *table_, mass, list, nullptr, nullptr, 0.0f);
  }

  Form form_;
  const Table* table_;
  float peak_, sink_, sum_, log_sum_;
};

}  // namespace
}  // namespace onnx_attnq

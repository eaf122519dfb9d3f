// The ops that give probabilities: QuantizedSoftmax and QuantizeProbabilities.
#pragma once

#include "vector_rows.h"

namespace onnx_attnq {
namespace {

// The sample of a row's keys that shares what the pruned ones sum to; calls function(key) for each.
template <class Function>
static inline Index for_sample(Index keys, const KeySet& unmasked, const Function& function) {
  const Index stride = sample_stride(keys);
  Index count = 0;
  for (Index key = 0; key < keys; key += stride) {
    if (!unmasked.has(key)) continue;
    function(key);
    ++count;
  }
  return count;
}

// Makes probabilities of a row of weights.
static inline void finish_row(float* row, Index length, const Form& form, const Weighed& weighed,
                              const Shared& shared) {
  if (!form.shares) return scale_row(row, 1, length, weighed.factor(), row, 1);
  const Index size = for_sample(length, shared.unmasked, [](Index) {});
  const float tail = size == 0 ? 0.0f : shared.tail, factor = weighed.factor(tail);
  scale_row(row, 1, length, factor, row, 1);
  const float each = size == 0 ? 0.0f : tail / static_cast<float>(size) * factor;
  for_sample(length, shared.unmasked, [&](Index key) { row[key] += each; });
}

static inline float largest_of(const float* row, Index length, float floor) {
  Float peak = Simd::set1(floor);
  Index j = 0;
  for (; j + kLanes <= length; j += kLanes) peak = Simd::max(Simd::load(row + j), peak);
  float result = Simd::largest(peak);
  for (; j < length; ++j) result = row[j] > result ? row[j] : result;
  return result;
}

// One row of op QuantizeProbabilities, from input to output. `unmasked` has room for a set of the row's keys.
static inline void quantize_probabilities(const float* input, float* output, Index length, const Form& form,
                                          const Table& table, KeySet unmasked) {
  const bool absolute = form.reference == Reference::kAbsolute;
  const float peak = absolute ? 1.0f : largest_of(input, length, 0.0f);
  const float unit = peak == 0 ? 1.0f : peak;
  const float deepest = form.shares ? static_cast<float>(table.deepest) : 0.0f;
  const float* const levels = form.shares ? table.continued : table.level;
  const Float divisor = Simd::set1(unit), zero = Simd::set1(0.0f), lowest_kept = Simd::set1(1.0f + deepest);
  const Float slope = Simd::set1(table.inverse_step), start = Simd::set1(table.offset);
  const Float top = Simd::set1(table.levels + deepest), below = Simd::set1(deepest);
  const Float threshold = Simd::set1(table.threshold), lowest = Simd::set1(kLowestUnmasked);
  Float all = zero, kept_sum = zero, total = zero, pruned = zero;
  Mask nan = Simd::none();
  for (Index j = 0; j < length; j += kLanes) {
    const int lanes = static_cast<int>(smaller(kLanes, length - j));
    const Float p = lanes == kLanes ? Simd::load(input + j) : Simd::load_first(input + j, lanes);
    nan = Simd::either(nan, Simd::is_nan(p));
    const Float x = Simd::div(p, divisor);
    Float level;
    Mask kept;
    if (!quantizes(form)) {
      kept = Simd::at_least(x, threshold);
      level = x;
    } else {
      const Float scaled = form.spacing == Spacing::kLog ? log_positive(x) : x;
      const Float position = Simd::fma(scaled, slope, start);
      const Float index = Simd::min(Simd::max(Simd::add(position, below), zero), top);
      kept = Simd::at_least(index, lowest_kept);  // of the index, which is rounded: what is pruned has its own level
      level = Simd::gather(levels, Simd::truncate(index));
    }
    const Float weight = Simd::keep(kept, level);
    if (form.shares) {
      unmasked.set(j, Simd::at_least(x, lowest));
      pruned = Simd::add(pruned, Simd::sub(level, weight));
    }
    all = Simd::add(all, p);
    kept_sum = Simd::add(kept_sum, Simd::keep(kept, p));
    total = Simd::add(total, weight);
    lanes == kLanes ? Simd::store(output + j, weight) : Simd::store_first(output + j, weight, lanes);
  }
  Weighed weighed{unit, 1.0f, false};
  if (form.normalize == Normalize::kUnit) weighed = {Simd::sum(all), Simd::sum(total), true};
  if (form.normalize == Normalize::kMass) weighed = {Simd::sum(kept_sum), Simd::sum(total), false};
  if (Simd::any(nan)) weighed = {kNaN, 1.0f, false};  // not by their sum, which is 0 where no other key is kept
  Shared shared{unmasked};
  shared.tail = Simd::sum(pruned);
  finish_row(output, length, form, weighed, shared);
}

// Rows of QuantizedSoftmax and QuantizeProbabilities. `scratch` has room for a padded row and a set of its keys.
void quantize_rows(const Rows& rows, Index first, Index last, float* scratch) {
  const Index length = rows.length, padded = round_up(length, kLanes);
  const KeySet unmasked(reinterpret_cast<std::int32_t*>(scratch + padded));
  for (Index r = first; r < last; ++r) {
    const float* input = rows.input + r * length;
    float* output = rows.output + r * length;
    const Table& table = rows.tables.first[batch_offset(rows.batch, rows.tables.stride, r / rows.rows_per_matrix)];
    if (!rows.are_scores) {
      quantize_probabilities(input, output, length, rows.form, table, unmasked);
      continue;
    }
    for (Index j = 0; j < padded; ++j) scratch[j] = j < length ? input[j] : -kInfinity;
    const float peak = largest_of(scratch, padded, -kInfinity);
    Shared shared{unmasked};
    const ScoreRow scored(scratch, padded, peak, rows.form, table);
    const Weighed weighed = scored.weigh_scores(scratch, padded, nullptr, &shared);
    for (Index j = 0; j < length; ++j) output[j] = scratch[j];
    finish_row(output, length, rows.form, weighed, shared);
  }
}

}  // namespace
}  // namespace onnx_attnq

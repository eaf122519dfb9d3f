// QuantizedAttention in four steps for each block of rows:
//   1. scores: queries times keys, the mask added, the maximum of each row noted;
//   2. weights: code and level of each score, and a list of those that are not pruned;
//   3. context: the values of the listed keys, weighted;
//   4. the row's factor, on the few numbers of the context instead of the many weights.
// `Products` multiplies matrices, in steps 1 and 3. Rough scores (screening.h) are looked at again in step 2.
#pragma once

#include "vector_scores.h"

namespace onnx_attnq {
namespace {

template <class Products>
class Block : private ScoredBlock<Products> {
  using Base = ScoredBlock<Products>;
  using Base::a_, Base::layout_, Base::panels_, Base::products_, Base::scratch_, Base::t_;
  using Base::ceilings, Base::extents, Base::finish_scores, Base::leave_out, Base::noted_peak, Base::panel_of,
      Base::peaks;
  using Base::score_rows, Base::scores, Base::sees;
  using typename Base::Seen;

 public:
  using Base::kBand, Base::kContextRows;

  Block(const Task& task, float* scratch) : Base(task, scratch), sampled_(task, scratch + layout_.sampled) {}

  void run() {
    score_rows();
    for (Index row = 0; row < t_.rows; row += kContextRows) {
      finish(row, smaller(kContextRows, t_.rows - row), nullptr);
    }
  }

  // The same in two steps, for a part of the keys of up to kContextRows rows. Between them the maxima of the rows
  // become those over all parts.
  void run_scores(float* peaks_of_rows) {
    score_rows();
    for (Index row = 0; row < t_.rows; ++row) peaks_of_rows[row] = noted_peak(row);
  }
  void run_rest(const float* peaks_of_rows, float* results) {
    for (Index row = 0; row < t_.rows; ++row) Simd::store(peaks(row), Simd::set1(peaks_of_rows[row]));
    finish(0, t_.rows, results);
  }

  // What a part gives of a row: these numbers, then its context, then the sum of its sample's values.
  struct PartSums {
    float numerator, divisor, tail, sampled;
  };
  static Index part_results(const Attention& a) { return round_up(4, kLanes) + (a.form.shares ? 2 : 1) * value_row(a); }
  // Writes the context of a row, of what all parts gave of it; the first of these takes in the others.
  static void end_parts(const Task& task, float* results, Index part_stride, Index parts) {
    const Attention& a = task.a;
    const Index width = value_row(a), sums = round_up(4, kLanes), all_sums = a.form.shares ? 2 * width : width;
    PartSums& all = *reinterpret_cast<PartSums*>(results);
    for (Index part = 1; part < parts; ++part) {
      const float* const more = results + part * part_stride;
      const PartSums& own = *reinterpret_cast<const PartSums*>(more);
      all.numerator = all.numerator * own.numerator;  // each is 1, or NaN
      all.divisor += own.divisor;
      all.tail += own.tail;
      all.sampled += own.sampled;
      add_scaled(more + sums, 1, all_sums, results + sums);
    }
    float* const context = results + sums;
    const float tail = all.sampled == 0 ? 0 : all.tail;
    if (tail != 0) add_scaled(context + width, tail / all.sampled, width, context);
    const float factor = Weighed{all.numerator, all.divisor, true}.factor(tail);
    scale_row(context, 1, a.value_depth, factor, task.context_of(0), a.context_strides.column);
  }

 private:
  std::int32_t* unmasked(Index r) {
    return reinterpret_cast<std::int32_t*>(scratch_ + layout_.unmasked + r * layout_.unmasked_row);
  }

  // --- steps 2 to 4: a band of rows from scores to context

  // With `results`, what a part gives; else the rows' context is written.
  void finish(Index row, Index count, float* results) {
    float extent = 0;  // in panels
    for (Index r = row / kBand * kBand; r < row + count; r += kBand) {
      const float own = extents()[r / kBand];
      extent = own > extent ? own : extent;
    }
    const Index padded = static_cast<Index>(extent) * kTileKeys, keys = smaller(padded, t_.keys);
    Weighed weighed[kContextRows];
    Shared shared[kContextRows];
    for (Index r = 0; r < count; ++r) shared[r] = Shared{KeySet(unmasked(r))};
    float share;
    {
      const Timed timed(Phase::kWeights);
      const Index kept = weigh_rows(row, count, padded, weighed, shared);
      share = static_cast<float>(kept) / static_cast<float>(larger(count * padded, 1));
    }
    const Timed timed(Phase::kContext);
    float* const context = scratch_ + layout_.context;
    if (products_.multiplies_all(share)) {
      products_.add_all(count, scores(row), layout_.score_row, keys, context);
    } else {
      products_.add_listed(count, scores(row), layout_.score_row, padded, share, context);
    }
    for (Index r = 0; r < count; ++r) {
      float* const own = context + r * value_row(a_);
      if (results != nullptr) {
        note_part(own, weighed[r], shared[r], keys, results + r * part_results(a_));
        continue;
      }
      const Index sampled = a_.form.shares && shared[r].tail != 0 ? take_sample(shared[r], keys) : 0;
      const float tail = sampled == 0 ? 0.0f : shared[r].tail;
      const float factor = a_.keys == 0 ? 0.0f : weighed[r].factor(tail);
      if (tail == 0) {
        scale_row(own, 1, a_.value_depth, factor, t_.context_of(row + r), a_.context_strides.column);
      } else {
        const float each = tail / static_cast<float>(sampled) * factor;
        add_rows({own, factor}, {sampled_.sum(), each}, a_.value_depth, t_.context_of(row + r),
                 a_.context_strides.column);
      }
    }
  }

  // Makes the values of a row's sample those of `sampled_`, and returns how many there are.
  Index take_sample(const Shared& shared, Index keys) {
    const bool with_sink = shared.sink && (a_.row_length - 1) % sampled_.stride() == 0;
    return sampled_.take(shared, keys, products_) + (with_sink ? 1 : 0);
  }

  void note_part(const float* context, const Weighed& weighed, const Shared& shared, Index keys, float* results) {
    PartSums sums{weighed.numerator, weighed.divisor, 0, 0};
    float* const out = results + round_up(4, kLanes);
    const Index width = value_row(a_);
    scale_row(context, 1, width, 1, out, 1);
    if (a_.form.shares) {
      sums.tail = shared.tail;
      sums.sampled = static_cast<float>(take_sample(shared, keys));
      scale_row(sampled_.sum(), 1, width, 1, out + width, 1);
    }
    *reinterpret_cast<PartSums*>(results) = sums;
  }

  // Whether no key of these rows can be pruned, so that there is nothing to list.
  bool keeps_all(Index row, Index count) const {
    const bool masks = t_.mask != nullptr || (a_.bounds.causal && a_.queries > 1);
    if (masks || quantizes(a_.form) || !products_.multiplies_all(1)) return false;
    for (Index r = row; r < row + count; ++r) {
      if (t_.table_of(r).threshold != 0) return false;
    }
    return true;
  }

  // Scores of a context band to weights, in place; lists the keys that the rows keep and returns how many.
  Index weigh_rows(Index row, Index count, Index padded, Weighed* weighed, Shared* shared) {
    if (padded > 0 && keeps_all(row, count)) {
      for (Index r = 0; r < count; ++r) {
        const ScoreRow scored = score_row(row + r, padded, noted_peak(row + r));
        weighed[r] = scored.weigh_scores(scores(row + r), padded, nullptr, &shared[r]);
      }
      return count * padded;
    }
    Screening* const screening = products_.screening();
    const bool settled = screening != nullptr && weigh_rough_rows(*screening, row, count, padded, weighed, shared);
    if (screening != nullptr && !settled) score_again(row, count, padded);
    for (Index r = 0; !settled && r < count; ++r) {
      const Listed list = products_.listed(r);
      const ScoreRow scored = score_row(row + r, padded, noted_peak(row + r));
      weighed[r] = scored.weigh_scores(scores(row + r), padded, &list, &shared[r]);
    }
    const Index blocks = (padded + kBlock - 1) / kBlock;
    Index kept = 0;
    for (Index r = 0; r < count; ++r) kept += products_.listed(r).starts[blocks];
    return kept;
  }

  // The same for rough scores: those so near an edge that they may be beyond it are computed again. False if these are
  // so many that all scores are better computed again.
  bool weigh_rough_rows(Screening& screening, Index row, Index count, Index padded, Weighed* weighed, Shared* shared) {
    Rough rough[kContextRows];
    for (Index r = 0; r < count; ++r) {
      const Listed list = products_.listed(r);
      const float peak = noted_peak(row + r);
      rough[r] = screening.rough(r, row + r, peak);
      const ScoreRow scored = score_row(row + r, padded, peak);
      if (rough[r].near != 0) {
        weighed[r] = scored.weigh_rough(scores(row + r), padded, list, rough[r], &shared[r]);
        if (weighed[r].numerator != weighed[r].numerator) rough[r].near = 0;  // a row with a NaN stays NaN
      } else {
        weighed[r] = scored.weigh_scores(scores(row + r), padded, &list, &shared[r]);
      }
    }
    return screening.settle({row, count, padded, rough, scores(row), layout_.score_row}, weighed, shared);
  }

  // The float32 scores of a context band, of rough ones that were weighed already.
  void score_again(Index row, Index count, Index padded) {
    for (Index r = row; r < row + count; ++r) Simd::store(peaks(r), Simd::set1(-kInfinity));
    for (Index panel = 0; panel < padded / kTileKeys; ++panel) {
      const float* const keys = panel_of(panel);
      for (Index r = row, some; r < row + count; r += some) {
        some = smaller(smaller(kTileRows, row + count - r), kBand - r % kBand);  // of one band
        if (sees(r, some, panel) == Seen::kNone ||
            (t_.mask != nullptr && ceilings()[r / kBand * panels_ + panel] == -kInfinity)) {
          leave_out(r, some, panel);
          continue;
        }
        products_.VectorProducts::score(r, some, panel, keys, false, scores(r) + panel * kTileKeys, layout_.score_row,
                                        peaks(r));
        for (Index i = r; i < r + some; ++i) finish_scores(i, panel);
      }
    }
  }

  ScoreRow score_row(Index row, Index padded, float peak) {
    return ScoreRow(scores(row), padded, peak, a_.form, t_.table_of(row), t_.sink_of(row));
  }

  SampledValues sampled_;
};

}  // namespace
}  // namespace onnx_attnq

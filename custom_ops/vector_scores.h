// Scores of a block of rows: queries times keys, capped, the mask added, -inf where a row does not see a key, and the
// maximum of each row noted. The first of the steps of vector_attention.h.
#pragma once

#include "phases.h"
#include "sampled_values.h"
#include "screening.h"

namespace onnx_attnq {
namespace {

// A mask below this is looked at again when the rows' maxima are known: most often its keys cannot matter.
constexpr float kLowMask = -1e4f;
// exp of less than this is zero in float32.
constexpr float kNegligible = -110.0f;

// Scratch memory of a block, in floats from its start.
struct Layout {
  Index rows, score_row;
  Index scores, peaks, seen, ceilings, norms, limits, extents, context, panel, unmasked, unmasked_row, sampled,
      products, total;
};

template <class Products>
static Layout layout_of(const Attention& a) {
  Layout l;
  Room room;
  l.rows = round_up(smaller(Products::rows_per_block(a), a.groups * a.queries), Products::kBand);
  // Pad each row by one vector against cache-set conflicts.
  l.score_row = panel_count(a) * kTileKeys + kLanes;
  l.scores = room.take(l.rows * l.score_row);
  l.peaks = room.take(l.rows * kLanes);
  l.seen = room.take(2 * l.rows);
  l.ceilings = room.take(l.rows / Products::kBand * panel_count(a));
  l.norms = room.take(a.mask == nullptr ? 0 : panel_count(a));
  l.limits = room.take(a.mask == nullptr ? 0 : 2 * (l.rows / Products::kBand));
  l.extents = room.take(l.rows / Products::kBand);
  l.context = room.take(Products::kContextRows * value_row(a));
  l.panel = room.take(Products::panel_floats(a));
  l.unmasked_row = KeySet::integers(panel_count(a) * kTileKeys);
  l.unmasked = room.take(a.form.shares ? Products::kContextRows * l.unmasked_row : 0);
  l.sampled = room.take(a.form.shares ? SampledValues::scratch(a) : 0);
  l.products = room.take(Products::scratch(a, l.rows));
  l.total = room.total();
  return l;
}

template <class Products>
class ScoredBlock {
 public:
  static constexpr Index kBand = Products::kBand, kContextRows = Products::kContextRows;

  ScoredBlock(const Task& task, float* scratch)
      : t_(task),
        a_(task.a),
        layout_(layout_of<Products>(task.a)),
        scratch_(scratch),
        products_(task, layout_.rows, scratch + layout_.products),
        panels_(task.panels()),
        direct_(Products::direct(task)) {}

 protected:
  void score_rows() {
    const Timed timed(Phase::kScores);
    products_.copy_queries();
    score();
  }

  float* scores(Index row) { return scratch_ + layout_.scores + row * layout_.score_row; }
  float* peaks(Index row) { return scratch_ + layout_.peaks + row * kLanes; }

  void score() {
    for (Index row = 0; row < t_.rows; ++row) {
      Simd::store(peaks(row), Simd::set1(-kInfinity));
      seen()[row] = t_.seen(row);
    }
    for (Index row = 0; row < t_.rows; row += kBand) extents()[row / kBand] = 0;
    bool deferred = false;
    for (Index panel = 0; panel < panels_; ++panel) {
      const float* keys = nullptr;
      for (Index row = 0; row < t_.rows; row += kBand) {
        const Index count = smaller(kBand, t_.rows - row);
        const Seen seen = sees(row, count, panel);
        if (seen == Seen::kNone) {
          if (t_.mask != nullptr) ceilings()[row / kBand * panels_ + panel] = -kInfinity;
          leave_out(row, count, panel);
          continue;
        }
        bool adds = t_.mask != nullptr;
        if (adds) {
          const auto [highest, nothing] = ceiling(row, count, panel);
          adds = !nothing;
          ceilings()[row / kBand * panels_ + panel] = highest;
          if (highest == -kInfinity) {
            leave_out(row, count, panel);
            continue;
          }
          if (highest < kLowMask && !direct_) {
            deferred = true;
            continue;
          }
        }
        if (keys == nullptr && !direct_) keys = panel_of(panel);
        score_band(row, count, panel, keys, seen == Seen::kAll, adds);
      }
      if (t_.mask != nullptr) norms()[panel] = keys == nullptr ? kUnknown : keys[panel_norms(a_)];
    }
    if (deferred) score_deferred();
  }

  // How much of a panel the rows of a band see.
  enum class Seen { kNone, kSome, kAll };
  Seen sees(Index row, Index count, Index panel) {
    if (!a_.bounds.causal) return Seen::kAll;
    const Index first = panel * kTileKeys, last = smaller(first + kTileKeys, t_.keys);
    bool none = true, all = true;
    for (Index r = row; r < row + count; ++r) {
      const auto [begin, end] = seen()[r];
      none = none && (end <= first || begin >= last);
      all = all && begin <= first && end >= last;
    }
    return all ? Seen::kAll : none ? Seen::kNone : Seen::kSome;
  }

  Range* seen() { return reinterpret_cast<Range*>(scratch_ + layout_.seen); }
  float* ceilings() { return scratch_ + layout_.ceilings; }
  // The largest norm of a key of each panel that was packed; kUnknown of the others.
  static constexpr float kUnknown = -1;
  float* norms() { return scratch_ + layout_.norms; }
  // How many panels of each band there are up to the last that was not left out.
  float* extents() { return scratch_ + layout_.extents; }

  // Keys behind a low mask, after all others: left out where a bound (Cauchy and Schwarz) says that no key of the panel
  // comes near enough to any row's maximum to count. So causal masks and padding cost nothing, whatever finite number
  // stands for minus infinity, while rows in which everything is masked are still computed.
  //
  // Panel by panel, so that each is packed at most once more: not at all where every band leaves it out and its norm is
  // known.
  void score_deferred() {
    for (Index row = 0; row < t_.rows; row += kBand) limits()[row / kBand] = limit(row, smaller(kBand, t_.rows - row));
    for (Index panel = 0; panel < panels_; ++panel) {
      const float* keys = nullptr;
      const auto packed = [&] { return keys = keys == nullptr ? panel_of(panel) : keys; };
      for (Index row = 0; row < t_.rows; row += kBand) {
        const Index count = smaller(kBand, t_.rows - row);
        const float highest = ceilings()[row / kBand * panels_ + panel];
        if (!(highest < kLowMask) || highest == -kInfinity) continue;
        float& norm = norms()[panel];
        if (norm == kUnknown) norm = packed()[panel_norms(a_)];
        const Limit own = limits()[row / kBand];
        if (highest + own.norm * norm * 1.001f < own.negligible) {
          ceilings()[row / kBand * panels_ + panel] = -kInfinity;
          leave_out(row, count, panel);
        } else {
          score_band(row, count, panel, packed(), sees(row, count, panel) == Seen::kAll, true);
        }
      }
    }
  }

  // Of a band: the largest norm of its queries, times the scale, and below which score a key counts for none of them.
  struct Limit {
    float norm, negligible;
  };
  Limit* limits() { return reinterpret_cast<Limit*>(scratch_ + layout_.limits); }

  Limit limit(Index row, Index count) {
    float lowest_peak = kInfinity, norm = 0, negligible = 0;
    for (Index r = row; r < row + count; ++r) {
      const float peak = Simd::largest(Simd::load(peaks(r)));
      lowest_peak = peak < lowest_peak ? peak : lowest_peak;
      const float own = query_norm(r);
      norm = own <= norm ? norm : own;  // NaN stays
      const float threshold = t_.table_of(r).log_threshold;
      if (threshold > kLowest && threshold < negligible) negligible = threshold;
    }
    return {norm, lowest_peak + negligible + kNegligible};
  }

  float query_norm(Index row) {
    const float* in = t_.query_of(row);
    if (a_.query_strides.column == 1) {
      Float squares = Simd::set1(0);
      for (Index d = 0; d < a_.depth; d += kLanes) {
        const Float x = Simd::load_first(in + d, static_cast<int>(smaller(kLanes, a_.depth - d)));
        squares = Simd::fma(x, x, squares);
      }
      return __builtin_sqrtf(Simd::sum(squares)) * __builtin_fabsf(a_.scale);
    }
    float squares = 0;
    for (Index d = 0; d < a_.depth; ++d) {
      const float x = in[d * a_.query_strides.column] * a_.scale;
      squares += x * x;
    }
    return __builtin_sqrtf(squares);
  }

  const float* panel_of(Index panel) {
    if (t_.packed_keys != nullptr) return t_.packed_keys + panel * Products::panel_floats(a_);
    float* out = scratch_ + layout_.panel;
    const Numbers first = t_.key + -t_.first_key * a_.key_strides.column;
    Products::pack_panel(a_, first, t_.first_key / kTileKeys + panel, out);
    return out;
  }

  // The mask of kLanes keys; what is past the last key does not matter.
  Float mask_of(const float* row, Index key) const {
    const Index stride = a_.mask_strides.column;
    if (stride == 0) return Simd::set1(*row);
    const Index count = t_.keys - key;
    if (stride == 1)
      return count >= kLanes ? Simd::load(row + key) : Simd::load_first(row + key, static_cast<int>(larger(count, 0)));
    alignas(64) float lanes[kLanes] = {};
    for (Index i = 0; i < smaller(kLanes, count); ++i) lanes[i] = row[(key + i) * stride];
    return Simd::load(lanes);
  }

  // The largest mask of a band and a panel, and whether all of a whole panel is 0, so that it need not be added.
  struct Ceiling {
    float highest;
    bool nothing;
  };
  Ceiling ceiling(Index row, Index count, Index panel) const {
    const bool same = a_.mask_strides.row == 0 && a_.mask_group == 0;
    const Index rows = same ? 1 : count, first = panel * kTileKeys;
    Float highest = Simd::set1(-kInfinity), lowest = Simd::set1(kInfinity);
    Mask nan = Simd::none();
    if (a_.mask_strides.column == 1 && first + kTileKeys <= t_.keys) {
      for (Index r = row; r < row + rows; ++r) {
        const float* m = t_.mask_of(r) + first;
        for (int v = 0; v < kTileVectors; ++v) {
          const Float lanes = Simd::load(m + v * kLanes);
          nan = Simd::either(nan, Simd::is_nan(lanes));
          highest = Simd::max(lanes, highest), lowest = Simd::min(lanes, lowest);
        }
      }
      if (Simd::any(nan)) return {kInfinity, false};
      const float most = Simd::largest(highest);
      return {most, most == 0 && Simd::largest(Simd::sub(Simd::set1(0), lowest)) == 0};
    }
    for (Index r = row; r < row + rows; ++r) {
      const float* m = t_.mask_of(r);
      for (int v = 0; v < kTileVectors; ++v) {
        const Index key = first + v * kLanes;
        const Float lanes = mask_of(m, key);
        nan = Simd::either(nan, Simd::is_nan(lanes));
        const Index rest = t_.keys - key;
        if (rest >= kLanes) {
          highest = Simd::max(lanes, highest);
        } else if (rest > 0) {
          highest = Simd::max(Simd::where(Simd::first_lanes(static_cast<int>(rest)), lanes, highest), highest);
        }
      }
    }
    return {Simd::any(nan) ? kInfinity : Simd::largest(highest), false};
  }

  void leave_out(Index row, Index count, Index panel) {
    for (Index r = row; r < row + count; ++r) {
      for (int v = 0; v < kTileVectors; ++v) {
        Simd::store(scores(r) + panel * kTileKeys + v * kLanes, Simd::set1(-kInfinity));
      }
    }
  }

  void score_band(Index row, Index count, Index panel, const float* keys, bool all_seen, bool adds) {
    const bool whole = !adds && all_seen && a_.softcap == 0 && (panel + 1) * kTileKeys <= t_.keys;
    float* out = scores(row) + panel * kTileKeys;
    float& extent = extents()[row / kBand];
    extent = extent > static_cast<float>(panel + 1) ? extent : static_cast<float>(panel + 1);
    if (products_.score(row, count, panel, keys, whole, out, layout_.score_row, peaks(row))) return;
    for (Index r = row; r < row + count; ++r) finish_scores(r, panel);
  }

  // Caps the scores, adds the mask, notes the maximum, and puts -inf where the row sees no key.
  void finish_scores(Index row, Index panel) {
    float* out = scores(row) + panel * kTileKeys;
    const auto [begin, end] = seen()[row];
    const Index before = begin - panel * kTileKeys, rest = smaller(end, t_.keys) - panel * kTileKeys;
    Float peak = Simd::load(peaks(row));
    const float* m = t_.mask == nullptr ? nullptr : t_.mask_of(row);
    if (m != nullptr && a_.mask_strides.column == 1 && a_.softcap == 0 && before <= 0 && rest >= kTileKeys) {
      for (int v = 0; v < kTileVectors; ++v) {
        const Float lanes = Simd::add(Simd::load(out + v * kLanes), Simd::load(m + panel * kTileKeys + v * kLanes));
        peak = Simd::max(lanes, peak);
        Simd::store(out + v * kLanes, lanes);
      }
      Simd::store(peaks(row), peak);
      return;
    }
    for (int v = 0; v < kTileVectors; ++v) {
      const auto lanes_of = [v](Index n) { return static_cast<int>(larger(0, smaller(kLanes, n - v * kLanes))); };
      Float lanes = Simd::load(out + v * kLanes);
      if (a_.softcap != 0) lanes = capped(lanes, a_.softcap);
      if (m != nullptr) lanes = Simd::add(lanes, mask_of(m, panel * kTileKeys + v * kLanes));
      lanes = Simd::where(Simd::first_lanes(lanes_of(rest)), lanes, Simd::set1(-kInfinity));
      if (before > 0) lanes = Simd::where(Simd::first_lanes(lanes_of(before)), Simd::set1(-kInfinity), lanes);
      peak = Simd::max(lanes, peak);  // a NaN is passed over here and found in step 2
      Simd::store(out + v * kLanes, lanes);
    }
    Simd::store(peaks(row), peak);
  }

  float noted_peak(Index row) {
    const float of_keys = Simd::largest(Simd::load(peaks(row))), sink = t_.sink_of(row);
    const float highest = of_keys > sink ? of_keys : sink;
    return highest > a_.row_max_floor ? highest : a_.row_max_floor;
  }

  const Task& t_;
  const Attention& a_;
  const Layout layout_;
  float* const scratch_;
  Products products_;
  const Index panels_;
  const bool direct_;
};

}  // namespace
}  // namespace onnx_attnq

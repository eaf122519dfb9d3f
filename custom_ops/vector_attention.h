// QuantizedAttention in four steps for each block of rows:
//   1. scores: register tiles of queries times keys, the mask added, the maximum of each row noted;
//   2. weights: code and level of every score, and a list of the keys that were not pruned;
//   3. context: the values of the kept keys, weighted; where most are kept, a dense product instead;
//   4. the row's factor, on the few numbers of the context instead of the many weights.
#pragma once

#include "phases.h"
#include "vector_tile.h"

namespace onnx_attnq {
namespace {

// A mask below this is looked at again when the rows' maxima are known: most often its keys cannot matter.
constexpr float kLowMask = -1e4f;
// exp of less than this is zero in float32.
constexpr float kNegligible = -110.0f;
// Up to so many rows, packing the keys would cost more than it saves.
constexpr Index kDirectRows = 4;

// Scratch memory of a block, in floats from its start.
struct Layout {
  Index query_row, score_row, list_row, starts_row;
  Index scores, peaks, ceilings, queries, query_scales, context, lists, starts, panel, total;
};

static Index rows_per_block(const Attention& a) {
  // Scores of a block stay in the second-level cache.
  const Index budget = 512 * 1024 / 4 / larger(a.keys, 1) / kTileRows * kTileRows;
  return larger(kTileRows, smaller(a.keys <= 512 ? 24 : 48, budget));
}

static Layout layout_of(const Attention& a) {
  const Index rows = round_up(smaller(rows_per_block(a), a.groups * a.queries), kTileRows);
  const Index padded = panel_count(a) * kTileKeys;
  Layout l;
  // A row more of registers keeps rows from falling on the same lines of a cache.
  l.query_row = round_up(a.depth, kLanes) + kLanes;
  l.score_row = padded + kLanes;
  l.list_row = padded + kLanes;
  l.starts_row = padded / kListBlock + 2;
  Index at = 0;
  const auto take = [&at](Index floats) {
    const Index start = at;
    at += round_up(floats, 16);
    return start;
  };
  l.scores = take(rows * l.score_row);
  l.peaks = take(rows * kLanes);
  l.ceilings = take(rows / kTileRows * panel_count(a));
  l.queries = take(rows * l.query_row);
  l.query_scales = take(rows);
  l.context = take(kTileRows * value_row(a));
  l.lists = take(kTileRows * l.list_row);
  l.starts = take(kTileRows * l.starts_row);
  l.panel = take(panel_floats(a));
  l.total = at;
  return l;
}

static std::size_t attend_scratch(const Attention& a) { return static_cast<std::size_t>(layout_of(a).total); }

// One task: rows first to last - 1 of one matrix.
class Block {
 public:
  Block(const Attention& a, Index batch, Index first, Index last, const float* packed_keys, const float* packed_values,
        float* scratch)
      : a_(a), layout_(layout_of(a)), rows_(last - first), first_(first), packed_keys_(packed_keys), scratch_(scratch) {
    query_ = a.query + batch_offset(a.batch, a.query_strides.batch, batch);
    key_ = a.key + batch_offset(a.batch, a.key_strides.batch, batch);
    mask_ = a.mask == nullptr ? nullptr : a.mask + batch_offset(a.batch, a.mask_strides.batch, batch);
    context_ = a.context + batch_offset(a.batch, a.context_strides.batch, batch);
    table_ = a.tables.first + batch_offset(a.batch, a.tables.stride, batch);
    const bool packed = packed_values != nullptr;
    value_ = packed ? packed_values : a.value + batch_offset(a.batch, a.value_strides.batch, batch);
    value_row_ = packed ? value_row(a) : a.value_strides.row;
    value_column_ = packed ? 1 : a.value_strides.column;
    value_tail_ = packed ? 0 : static_cast<int>(a.value_depth % kLanes);
    direct_ = packed_keys == nullptr && rows_ <= kDirectRows && a.key_strides.row == 1 && !a.int16_products;
  }

  void run() {
    {
      const Timed timed(Phase::kScores);
      copy_queries();
      score();
    }
    for (Index row = 0; row < rows_; row += kTileRows) finish(row, smaller(kTileRows, rows_ - row));
  }

 private:
  struct Place {
    Index group, query;
  };
  Place place(Index row) const { return {(first_ + row) / a_.queries, (first_ + row) % a_.queries}; }

  float* scores(Index row) { return scratch_ + layout_.scores + row * layout_.score_row; }
  float* peaks(Index row) { return scratch_ + layout_.peaks + row * kLanes; }
  float* query(Index row) { return scratch_ + layout_.queries + row * layout_.query_row; }
  const float* mask(Index row) const {
    const Place p = place(row);
    return mask_ + p.group * a_.mask_group + p.query * a_.mask_strides.row;
  }

  // --- step 1: scores

  // Queries, times the scale, row by row; in 16 bits where asked for.
  void copy_queries() {
    for (Index row = 0; row < rows_; ++row) {
      const Place p = place(row);
      const float* in = query_ + p.group * a_.query_group + p.query * a_.query_strides.row;
      float* out = query(row);
      for (Index d = 0; d < a_.depth; ++d) out[d] = in[d * a_.query_strides.column] * a_.scale;
      if (a_.int16_products) round_query(out, scratch_ + layout_.query_scales + row);
    }
  }

  void round_query(float* row, float* scale) {
    float peak = kSmallestNormal, poison = 0;
    for (Index d = 0; d < a_.depth; ++d) {
      const float magnitude = __builtin_fabsf(row[d]);
      peak = magnitude > peak ? magnitude : peak;
      poison += row[d] * 0.0f;
    }
    const float range = int16_range(a_.depth), inverse = range / peak;
    *scale = peak / range + poison;
    // The rounded numbers take half the room of those that they replace, from the front.
    auto* out = reinterpret_cast<std::int16_t*>(row);
    for (Index d = 0; d < a_.depth; d += kLanes) {
      alignas(64) std::int32_t rounded[kLanes];
      Simd::store_int(rounded, Simd::round(Simd::mul(Simd::load(row + d), Simd::set1(inverse))));
      for (int i = 0; i < kLanes; ++i) out[d + i] = static_cast<std::int16_t>(d + i < a_.depth ? rounded[i] : 0);
    }
  }

  void score() {
    const Index panels = panel_count(a_);
    for (Index row = 0; row < rows_; ++row) Simd::store(peaks(row), Simd::set1(-kInfinity));
    bool deferred = false;
    for (Index panel = 0; panel < panels; ++panel) {
      const float* keys = nullptr;
      for (Index row = 0; row < rows_; row += kTileRows) {
        const Index count = smaller(kTileRows, rows_ - row);
        if (mask_ != nullptr) {
          const float highest = ceiling(row, count, panel);
          ceilings()[row / kTileRows * panels + panel] = highest;
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
        score_tile(row, count, panel, keys);
      }
    }
    if (deferred) score_deferred();
  }

  float* ceilings() { return scratch_ + layout_.ceilings; }

  // Keys behind a low mask, after all others: left out where a bound (Cauchy and Schwarz) says that no key of the panel
  // comes near enough to any row's maximum to count. So causal masks and padding cost nothing, whatever finite number
  // stands for minus infinity, while rows in which everything is masked are still computed.
  void score_deferred() {
    const Index panels = panel_count(a_);
    for (Index row = 0; row < rows_; row += kTileRows) {
      const Index count = smaller(kTileRows, rows_ - row);
      float lowest_peak = kInfinity, norm = 0;
      float negligible = 0;
      for (Index r = row; r < row + count; ++r) {
        const float peak = Simd::largest(Simd::load(peaks(r)));
        lowest_peak = peak < lowest_peak ? peak : lowest_peak;
        const float own = query_norm(r);
        norm = own <= norm ? norm : own;  // NaN stays
        const float threshold = table_[place(r).group * a_.table_group].log_threshold;
        if (threshold > kLowest && threshold < negligible) negligible = threshold;
      }
      negligible += kNegligible;
      for (Index panel = 0; panel < panels; ++panel) {
        const float highest = ceilings()[row / kTileRows * panels + panel];
        if (!(highest < kLowMask) || highest == -kInfinity) continue;
        const float* keys = panel_of(panel);
        const float bound = highest + norm * keys[panel_norm(a_)] * 1.001f;
        if (bound - lowest_peak < negligible) {
          leave_out(row, count, panel);
        } else {
          score_tile(row, count, panel, keys);
        }
      }
    }
  }

  float query_norm(Index row) {
    const Place p = place(row);
    const float* in = query_ + p.group * a_.query_group + p.query * a_.query_strides.row;
    float squares = 0;
    for (Index d = 0; d < a_.depth; ++d) {
      const float x = in[d * a_.query_strides.column] * a_.scale;
      squares += x * x;
    }
    return __builtin_sqrtf(squares);
  }

  const float* panel_of(Index panel) {
    if (packed_keys_ != nullptr) return packed_keys_ + panel * panel_floats(a_);
    float* out = scratch_ + layout_.panel;
    pack_panel(a_, key_, panel, out);
    return out;
  }

  // The mask of kLanes keys; what stands past the last key does not matter.
  Float mask_of(const float* row, Index key) const {
    const Index stride = a_.mask_strides.column;
    if (stride == 0) return Simd::set1(*row);
    const Index count = a_.keys - key;
    if (stride == 1) return count >= kLanes ? Simd::load(row + key) : Simd::load_first(row + key, static_cast<int>(larger(count, 0)));
    alignas(64) float lanes[kLanes] = {};
    for (Index i = 0; i < smaller(kLanes, count); ++i) lanes[i] = row[(key + i) * stride];
    return Simd::load(lanes);
  }

  // The largest mask of a tile.
  float ceiling(Index row, Index count, Index panel) const {
    const bool same = a_.mask_strides.row == 0 && a_.mask_group == 0;
    Float highest = Simd::set1(-kInfinity);
    Mask nan = Simd::none();
    for (Index r = row; r < row + (same ? 1 : count); ++r) {
      const float* m = mask(r);
      for (int v = 0; v < kTileVectors; ++v) {
        const Index key = panel * kTileKeys + v * kLanes;
        const Float lanes = mask_of(m, key);
        nan = Simd::either(nan, Simd::is_nan(lanes));
        const Index rest = a_.keys - key;
        if (rest >= kLanes) {
          highest = Simd::max(lanes, highest);
        } else if (rest > 0) {
          highest = Simd::max(Simd::where(Simd::first_lanes(static_cast<int>(rest)), lanes, highest), highest);
        }
      }
    }
    return Simd::any(nan) ? kInfinity : Simd::largest(highest);
  }

  void leave_out(Index row, Index count, Index panel) {
    for (Index r = row; r < row + count; ++r) {
      for (int v = 0; v < kTileVectors; ++v) {
        Simd::store(scores(r) + panel * kTileKeys + v * kLanes, Simd::set1(-kInfinity));
      }
    }
  }

  void score_tile(Index row, Index count, Index panel, const float* keys) {
    float* out = scores(row) + panel * kTileKeys;
    if (direct_) {
      with_rows<kDirectRows>(count, [&](auto n) { score_direct<n()>(row, panel); });
    } else if (a_.int16_products) {
      const auto* pairs = reinterpret_cast<const std::int32_t*>(query(row));
      with_rows(count, [&](auto n) {
        multiply_tile_int16<n()>((a_.depth + 1) / 2, pairs, layout_.query_row, reinterpret_cast<const std::int32_t*>(keys),
                                 out, layout_.score_row);
      });
      for (Index r = row; r < row + count; ++r) rescale(r, panel, keys + panel_scales(a_));
    } else {
      const bool whole = mask_ == nullptr && (panel + 1) * kTileKeys <= a_.keys;
      with_rows(count, [&](auto n) {
        const auto multiply = whole ? multiply_tile<n(), kTileVectors, false, true> : multiply_tile<n(), kTileVectors, false, false>;
        multiply(a_.depth, query(row), layout_.query_row, keys, kTileKeys, out, layout_.score_row, peaks(row));
      });
      if (whole) return;
    }
    for (Index r = row; r < row + count; ++r) finish_scores(r, panel);
  }

  // Sums of 16-bit products to scores.
  void rescale(Index row, Index panel, const float* key_scales) {
    const Float query_scale = Simd::set1(scratch_[layout_.query_scales + row]);
    float* out = scores(row) + panel * kTileKeys;
    for (int v = 0; v < kTileVectors; ++v) {
      const Float scale = Simd::mul(query_scale, Simd::load(key_scales + v * kLanes));
      Simd::store(out + v * kLanes, Simd::mul(Simd::load(out + v * kLanes), scale));
    }
  }

  // Few rows, keys in place: a dot product for each key.
  template <int kRows>
  void score_direct(Index row, Index panel) {
    const Index count = smaller(kTileKeys, a_.keys - panel * kTileKeys);
    const Index whole = a_.depth / kLanes * kLanes;
    const int rest = static_cast<int>(a_.depth - whole);
    for (Index j = 0; j < count; ++j) {
      const float* k = key_ + (panel * kTileKeys + j) * a_.key_strides.column;
      Float sums[kRows];
      for (Float& s : sums) s = Simd::set1(0.0f);
      for (Index d = 0; d < whole; d += kLanes) {
        const Float lanes = Simd::load(k + d);
        for (int r = 0; r < kRows; ++r) sums[r] = Simd::fma(Simd::load(query(row + r) + d), lanes, sums[r]);
      }
      if (rest != 0) {
        const Float lanes = Simd::load_first(k + whole, rest);
        for (int r = 0; r < kRows; ++r) {
          sums[r] = Simd::fma(Simd::load_first(query(row + r) + whole, rest), lanes, sums[r]);
        }
      }
      for (int r = 0; r < kRows; ++r) scores(row + r)[panel * kTileKeys + j] = Simd::sum(sums[r]);
    }
  }

  // Adds the mask, notes the maximum, and puts -inf past the last key.
  void finish_scores(Index row, Index panel) {
    float* out = scores(row) + panel * kTileKeys;
    const Index rest = a_.keys - panel * kTileKeys;
    Float peak = Simd::load(peaks(row));
    const float* m = mask_ == nullptr ? nullptr : mask(row);
    for (int v = 0; v < kTileVectors; ++v) {
      const int count = static_cast<int>(larger(0, smaller(kLanes, rest - v * kLanes)));
      Float lanes = Simd::load(out + v * kLanes);
      if (m != nullptr) lanes = Simd::add(lanes, mask_of(m, panel * kTileKeys + v * kLanes));
      lanes = Simd::where(Simd::first_lanes(count), lanes, Simd::set1(-kInfinity));
      peak = Simd::max(lanes, peak);  // a NaN is passed over here and found in step 2
      Simd::store(out + v * kLanes, lanes);
    }
    Simd::store(peaks(row), peak);
  }

  // --- steps 2 to 4: a tile of rows from scores to context

  void finish(Index row, Index count) {
    float factors[kTileRows];
    {
      const Timed timed(Phase::kWeights);
      weigh_rows(row, count, factors);
    }
    const Timed timed(Phase::kContext);
    for (Index block = 0; block * kListBlock < a_.keys; ++block) {
      const Index keys = smaller(kListBlock, a_.keys - block * kListBlock);
      Index kept = 0;
      for (Index r = 0; r < count; ++r) kept += kept_keys(r).starts[block + 1] - kept_keys(r).starts[block];
      const bool dense = static_cast<float>(kept) > Simd::kDenseShare * static_cast<float>(count * keys);
      if (dense && value_tail_ == 0 && value_column_ == 1) {
        with_rows(count, [&](auto rows) { add_dense<rows()>(row, block * kListBlock, keys); });
      } else {
        for (Index r = 0; r < count; ++r) add_kept(row, r, block);
      }
    }
    for (Index r = 0; r < count; ++r) write(row + r, context(r), factors[r]);
  }

  void weigh_rows(Index row, Index count, float (&factors)[kTileRows]) {
    const Index padded = panel_count(a_) * kTileKeys;
    for (Index r = 0; r < count; ++r) {
      const float highest = Simd::largest(Simd::load(peaks(row + r)));
      const float peak = highest > a_.row_max_floor ? highest : a_.row_max_floor;
      const Table& table = table_[place(row + r).group * a_.table_group];
      const KeptKeys kept = kept_keys(r);
      factors[r] = weights_of_scores(scores(row + r), padded, peak, a_.form, table, &kept).factor;
      for (Index d = 0; d < value_row(a_); d += kLanes) Simd::store(context(r) + d, Simd::set1(0.0f));
    }
  }

  float* context(Index r) { return scratch_ + layout_.context + r * value_row(a_); }
  KeptKeys kept_keys(Index r) {
    return {reinterpret_cast<std::int32_t*>(scratch_ + layout_.lists + r * layout_.list_row),
            reinterpret_cast<std::int32_t*>(scratch_ + layout_.starts + r * layout_.starts_row)};
  }

  // Every key of a block, times its weight, zero or not.
  template <int kRows>
  void add_dense(Index row, Index first, Index keys) {
    const float *weights = scores(row) + first, *value = value_ + first * value_row_;
    const Index width = value_row(a_);
    Index d = 0;
    for (; d + kTileKeys <= width; d += kTileKeys) {
      multiply_tile<kRows, kTileVectors, true, false>(keys, weights, layout_.score_row, value + d, value_row_, context(0) + d,
                                               width);
    }
    for (; d < width; d += kLanes) {
      multiply_tile<kRows, 1, true, false>(keys, weights, layout_.score_row, value + d, value_row_, context(0) + d, width);
    }
  }

  // The kept keys of one row in a block.
  void add_kept(Index row, Index r, Index block) {
    const KeptKeys kept = kept_keys(r);
    const std::int32_t* first = kept.indices + kept.starts[block];
    const Index count = kept.starts[block + 1] - kept.starts[block];
    if (count == 0) return;
    if (value_column_ != 1) {
      add_strided(scores(row + r), first, count, context(r));
      return;
    }
    const Index vectors = value_row(a_) / kLanes;
    for (Index v = 0; v < vectors; v += Simd::kContextVectors) {
      const Index some = smaller(Simd::kContextVectors, vectors - v);
      const int tail = v + some == vectors ? value_tail_ : 0;
      with_rows<Simd::kContextVectors>(some, [&](auto n) {
        tail == 0 ? add_columns<n(), false>(scores(row + r), first, count, v * kLanes, context(r))
                  : add_columns<n(), true>(scores(row + r), first, count, v * kLanes, context(r));
      });
    }
  }

  // The sum of a context row stays in registers. Where there are enough, two keys are added at a time in sums of their
  // own: one sum alone would wait for its last addition.
  template <int kVectors, bool kTail>
  void add_columns(const float* weights, const std::int32_t* list, Index count, Index d, float* out) {
    constexpr int kChains = 2 * kVectors <= Simd::kContextVectors ? 2 : 1;
    Float sums[kChains][kVectors];
    for (int v = 0; v < kVectors; ++v) {
      sums[0][v] = Simd::load(out + d + v * kLanes);
      if (kChains == 2) sums[kChains - 1][v] = Simd::set1(0.0f);
    }
    const float* const values = value_ + d;
    const Index value_row = value_row_;
    const int tail = value_tail_;
    const auto add = [&](Float(&sum)[kVectors], std::int32_t key) {
      const float* value = values + key * value_row;
      const Float weight = Simd::set1(weights[key]);
      for (int v = 0; v < kVectors; ++v) {
        const bool partial = kTail && v == kVectors - 1;
        const Float lanes = partial ? Simd::load_first(value + v * kLanes, tail) : Simd::load(value + v * kLanes);
        sum[v] = Simd::fma(weight, lanes, sum[v]);
      }
    };
    Index i = 0;
    for (; i + kChains <= count; i += kChains) {
      for (int chain = 0; chain < kChains; ++chain) add(sums[chain], list[i + chain]);
    }
    for (; i < count; ++i) add(sums[0], list[i]);
    for (int v = 0; v < kVectors; ++v) {
      Simd::store(out + d + v * kLanes, kChains == 2 ? Simd::add(sums[0][v], sums[kChains - 1][v]) : sums[0][v]);
    }
  }

  void add_strided(const float* weights, const std::int32_t* list, Index count, float* out) {
    for (Index i = 0; i < count; ++i) {
      const float* value = value_ + list[i] * value_row_;
      for (Index d = 0; d < a_.value_depth; ++d) out[d] += weights[list[i]] * value[d * value_column_];
    }
  }

  void write(Index row, const float* in, float factor) {
    const Place p = place(row);
    float* out = context_ + p.group * a_.context_group + p.query * a_.context_strides.row;
    for (Index d = 0; d < a_.value_depth; ++d) out[d * a_.context_strides.column] = in[d] * factor;
  }

  const Attention& a_;
  const Layout layout_;
  const Index rows_, first_;
  const float* const packed_keys_;
  float* const scratch_;
  const float *query_, *key_, *value_, *mask_;
  float* context_;
  const Table* table_;
  Index value_row_, value_column_;
  int value_tail_;  // numbers in the last register of a row of values, 0 for all
  bool direct_;
};

static void attend_block(const Attention& a, Index batch, Index first, Index last, const float* packed_keys,
                         const float* packed_values, float* scratch) {
  Block(a, batch, first, last, packed_keys, packed_values, scratch).run();
}

static std::size_t quantize_scratch(const Rows& rows) { return static_cast<std::size_t>(round_up(rows.length, kLanes)); }

constexpr Kernels vector_kernels(const char* name, bool (*supported)()) {
  return {name,      supported,   rows_per_block, packed_keys,      packed_values, pieces,
          pack_keys, pack_values, attend_scratch, attend_block,     quantize_scratch, quantize_rows};
}

}  // namespace
}  // namespace onnx_attnq

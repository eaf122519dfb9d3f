// Both products of attention with the float32 vectors of one instruction set: scores from queries and keys, context
// from weights and values. vector_attention.h says when. rounded_products.h and amx_products.h have other scores.
#pragma once

#include "vector_tile.h"

namespace onnx_attnq {
namespace {

// Up to so many rows, packing the keys would cost more than it saves.
constexpr Index kDirectRows = 4;
// Of rows that keep more than this share of their keys, the values are read block by block.
constexpr float kDensePart = 0.2f;

// How many keys ahead few rows ask for: memory is all they wait for.
constexpr Index kAhead = 16;

// The bounds of some keys: begin may be below 0, and end above their number.
struct Range {
  std::int32_t begin, end;
};

// One task: rows first to first + rows - 1 of one matrix of the batch, and of its keys those that any of these rows may
// see: `keys` of them, from first_key on, which is a multiple of kTileKeys. Keys are counted from there everywhere.
struct Task {
  const Attention& a;
  Index first, rows;
  Index first_key, keys;
  const float *query, *mask;  // of this matrix; mask may be null
  Numbers key, value;
  float* context;
  const Table* table;
  const float* sink;                         // or null
  const float *packed_keys, *packed_values;  // null where a kernel reads the original

  struct Place {
    Index group, query;
  };
  Place place(Index row) const {
    if (a.groups == 1)
      return {0, first + row};  // a division costs more than everything else that is done for a row here
    return {(first + row) / a.queries, (first + row) % a.queries};
  }
  const float* query_of(Index row) const {
    const Place p = place(row);
    return query + p.group * a.query_group + p.query * a.query_strides.row;
  }
  const float* mask_of(Index row) const {
    const Place p = place(row);
    return mask + p.group * a.mask_group + p.query * a.mask_strides.row;
  }
  float* context_of(Index row) const {
    const Place p = place(row);
    return context + p.group * a.context_group + p.query * a.context_strides.row;
  }
  const Table& table_of(Index row) const { return table[place(row).group * a.table_group]; }
  float sink_of(Index row) const { return sink == nullptr ? -kInfinity : sink[place(row).group * a.sink_group]; }

  Index panels() const { return (keys + kTileKeys - 1) / kTileKeys; }

  Range seen(Index row) const {
    if (!a.bounds.causal) return {0, static_cast<std::int32_t>(keys)};
    const Index i = place(row).query;
    return {static_cast<std::int32_t>(a.bounds.begin(i) - first_key),
            static_cast<std::int32_t>(a.bounds.end(i, a.keys) - first_key)};
  }
};

// Which keys any of some rows may see, from the first row on up to before the last.
static inline Range seen_by_any(const Attention& a, Index first, Index last) {
  if (!a.bounds.causal) return {0, static_cast<std::int32_t>(a.keys)};
  const bool one_group = first / a.queries == (last - 1) / a.queries;
  const Index lowest = one_group ? first % a.queries : 0, highest = one_group ? (last - 1) % a.queries : a.queries - 1;
  const Index end = a.bounds.end(highest, a.keys);
  const Index begin = smaller(a.bounds.begin(lowest), end) / kTileKeys * kTileKeys;
  return {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)};
}

// Cuts scratch memory into pieces that start on a cache line.
class Room {
 public:
  Index take(Index floats) {
    const Index start = total_;
    total_ += round_up(floats, 16);
    return start;
  }
  Index total() const { return total_; }

 private:
  Index total_ = 0;
};

class VectorProducts {
 public:
  // Rows whose scores are computed together, and rows whose context is: a key's value serves several of them while it
  // is in the first-level cache.
  static constexpr Index kBand = kTileRows;
  static constexpr Index kContextRows = 4 * kTileRows;

  static bool pays(const Attention&) { return true; }

  static Index rows_per_block(const Attention& a) {
    // Scores of a block stay in the second-level cache, but for less than the rows of a context band, values would be
    // read too often.
    const Index budget = 512 * 1024 / 4 / larger(a.keys, 1) / kTileRows * kTileRows;
    // Long blocks read packed keys less often; short ones leave work for every thread.
    const Index most = a.batch[0] * a.batch[1] * a.batch[2] >= 8 ? 144 : 48;
    return larger(kContextRows, smaller(most, budget));
  }
  static Index panel_floats(const Attention& a) { return key_panel_floats(a); }
  static void pack_panel(const Attention& a, Numbers key, Index panel, float* out) {
    pack_key_panel(a, key, panel, out);
    if (a.mask != nullptr) out[panel_norms(a)] = panel_largest_norm(a, out);
  }
  static Index scratch(const Attention& a, Index rows) { return layout_of(a, rows).total; }

  VectorProducts(const Task& task, Index rows, float* scratch)
      : t_(task), a_(task.a), layout_(layout_of(task.a, rows)), scratch_(scratch) {
    const bool packed = t_.packed_values != nullptr;
    value_ = packed ? Numbers{t_.packed_values, Storage::kFloat} : t_.value;
    value_row_ = packed ? value_row(a_) : a_.value_strides.row;
    value_column_ = packed ? 1 : a_.value_strides.column;
    value_tail_ = packed ? 0 : static_cast<int>(a_.value_depth % kLanes);
  }

  // Whether values can be read as they are stored.
  static bool reads_in_place(const Attention& a) {
    return a.value.storage == Storage::kFloat || a.value_depth % kLanes == 0;
  }
  // Few rows, keys in place: no panels are read.
  static bool direct(const Task& t) {
    return t.packed_keys == nullptr && t.rows <= kDirectRows && t.a.key_strides.row == 1;
  }

  // Queries, times the scale, row by row.
  void copy_queries() {
    for (Index row = 0; row < t_.rows; ++row) {
      const float* in = t_.query_of(row);
      prefetch(in + 8 * a_.query_strides.row, a_.depth);
      scale_row(in, a_.query_strides.column, a_.depth, a_.scale, query(row), 1);
    }
  }

  float* query(Index row) { return scratch_ + layout_.queries + row * layout_.query_row; }
  Index query_row() const { return layout_.query_row; }

  // The scores of `count` rows and one panel of keys. True if their maxima were noted in `peaks` on the way, which is
  // so only where `whole` says that nothing is left to be done to them.
  bool score(Index row, Index count, Index panel, const float* keys, bool whole, float* out, Index out_row,
             float* peaks) {
    if (keys == nullptr) {
      with_storage(t_.key.storage, [&](auto storage) {
        with_rows<kDirectRows>(count, [&](auto n) { score_direct<n(), storage()>(row, panel, out, out_row); });
      });
      if (whole) note_peaks(count, out, out_row, peaks);
      return whole;
    }
    with_rows(count, [&](auto n) {
      const auto multiply =
          whole ? multiply_tile<n(), kTileVectors, false, true> : multiply_tile<n(), kTileVectors, false, false>;
      multiply(a_.depth, query(row), layout_.query_row, keys, kTileKeys, out, out_row, peaks);
    });
    return whole;
  }

  // sums += the values of these keys; `sums` are value_row(a) numbers.
  void add_values(const std::int32_t* keys, Index count, float* sums) const {
    constexpr int kAtOnce = 8;
    Index d = 0;
    if (value_column_ == 1) {
      with_storage(value_.storage, [&](auto storage) {
        for (; d + kAtOnce * kLanes <= a_.value_depth; d += kAtOnce * kLanes) {
          sum_columns<kAtOnce, storage()>(keys, count, value_ + d, sums + d);
        }
        for (; d + kLanes <= a_.value_depth; d += kLanes) sum_columns<1, storage()>(keys, count, value_ + d, sums + d);
      });
    }
    for (; d < a_.value_depth; ++d) {
      for (Index i = 0; i < count; ++i) sums[d] += value_[keys[i] * value_row_ + d * value_column_];
    }
  }

  void prefetch_value(Index key) const {
    if (value_column_ == 1) prefetch(value_ + key * value_row_, a_.value_depth);
  }

  // Where row r of a context band lists its keys.
  Listed listed(Index r) {
    return {reinterpret_cast<std::int32_t*>(scratch_ + layout_.lists + r * layout_.list_row),
            reinterpret_cast<std::int32_t*>(scratch_ + layout_.starts + r * layout_.starts_row)};
  }

  // Whether, of rows that keep so large a share of their keys, all keys are better multiplied than the kept ones.
  bool multiplies_all(float share) const {
    const bool whole = value_.storage == Storage::kFloat && value_tail_ == 0 && value_column_ == 1;
    return whole && share > Simd::kDenseShare;
  }

  // Weights of all keys, times their values.
  void add_all(Index count, const float* weights, Index weight_row, Index keys, float* context) {
    for (Index i = 0, size = count * value_row(a_); i < size; i += kLanes) Simd::store(context + i, Simd::set1(0.0f));
    // So many keys at a time that their values stay in the second-level cache while the rows read them; for few rows
    // in the first, while the next ones are on their way.
    const bool few = t_.rows <= kDirectRows;
    const Index at_once = few ? kAhead : 256;
    for (Index key = 0; key < keys; key += at_once) {
      for (Index k = key + at_once; few && k < smaller(key + 2 * at_once, keys); ++k) prefetch_value(k);
      for (Index r = 0; r < count; r += kTileRows) {
        with_rows(smaller(kTileRows, count - r), [&](auto rows) {
          add_tile<rows()>(weights + r * weight_row + key, weight_row, value_.floats() + key * value_row_,
                           smaller(at_once, keys - key), context + r * value_row(a_));
        });
      }
    }
  }

  // The same for the listed keys only, which are this share of all.
  void add_listed(Index count, const float* weights, Index weight_row, Index keys, float share, float* context) {
    // Values stay in the first-level cache where enough of them are read to pay for that, else in the second.
    const Index at_once = share > kDensePart ? 1 : 4, blocks = (keys + kBlock - 1) / kBlock;
    for (Index block = 0; block == 0 || block < blocks; block += at_once) {
      const ListedRows rows{count, weights, weight_row, block, smaller(block + at_once, blocks), context};
      if (value_column_ != 1) {
        add_strided(rows);
        continue;
      }
      const Index vectors = value_row(a_) / kLanes;
      for (Index v = 0; v < vectors; v += Simd::kContextVectors) {
        const Index some = smaller(Simd::kContextVectors, vectors - v);
        const bool partial = v + some == vectors && value_tail_ != 0;
        with_rows<Simd::kContextVectors>(some, [&](auto n) {
          if (partial) return add_columns<n(), true, Storage::kFloat>(rows, v * kLanes);
          with_storage(value_.storage, [&](auto storage) { add_columns<n(), false, storage()>(rows, v * kLanes); });
        });
      }
    }
  }

 protected:
  const Task& t_;
  const Attention& a_;

 private:
  struct Layout {
    Index query_row, list_row, starts_row;
    Index queries, lists, starts, total;
  };

  static Layout layout_of(const Attention& a, Index rows) {
    Layout l;
    Room room;
    // Pad each row by one vector against cache-set conflicts.
    l.query_row = round_up(a.depth, kLanes) + kLanes;
    l.list_row = panel_count(a) * kTileKeys + kLanes;
    l.starts_row = panel_count(a) * kTileKeys / kBlock + 2;
    l.queries = room.take(rows * l.query_row);
    l.lists = room.take(kContextRows * l.list_row);
    l.starts = room.take(kContextRows * l.starts_row);
    l.total = room.total();
    return l;
  }

  template <int kVectors, Storage kStorage>
  void sum_columns(const std::int32_t* keys, Index count, Numbers values, float* sums) const {
    Float columns[kVectors];
    for (int v = 0; v < kVectors; ++v) columns[v] = Simd::load(sums + v * kLanes);
    for (Index i = 0; i < count; ++i) {
      const Numbers value = Numbers{values.data, kStorage} + keys[i] * value_row_;
      for (int v = 0; v < kVectors; ++v) {
        columns[v] = Simd::add(columns[v], load_stored<kStorage>(value, v * kLanes));
      }
    }
    for (int v = 0; v < kVectors; ++v) Simd::store(sums + v * kLanes, columns[v]);
  }

  // Dot products. Several rows take as many keys at a time as make a register of scores, so that each query is read
  // once for these; past the last key come scores of that one.
  template <int kRows, Storage kStorage>
  void score_direct(Index row, Index panel, float* out, Index out_row) {
    constexpr int kKeys = kRows == 1 ? 1 : kLanes / (kRows == 3 ? 4 : kRows);
    const Index first = panel * kTileKeys, count = smaller(kTileKeys, t_.keys - first);
    for (Index j = 0; j < count; j += kKeys) {
      Numbers keys[kKeys];
      for (int k = 0; k < kKeys; ++k) {
        keys[k] = t_.key + (first + smaller(j + k, count - 1)) * a_.key_strides.column;
        prefetch(keys[k] + kAhead * a_.key_strides.column, a_.depth);
      }
      Float sums[kLanes] = {};
      multiply_vectors<kRows, kStorage>(a_.depth, query(row), layout_.query_row, keys, sums);
      if constexpr (kRows == 1) {
        out[j] = Simd::sum(sums[0]);
        continue;
      }
      alignas(64) float scores[kLanes];
      Simd::store(scores, Simd::sums(sums));
      for (int r = 0; r < kRows; ++r) {
        for (int k = 0; k < kKeys; ++k) out[r * out_row + j + k] = scores[r * kKeys + k];
      }
    }
  }

  static void note_peaks(Index count, const float* scores, Index row, float* peaks) {
    for (Index r = 0; r < count; ++r) {
      Float peak = Simd::load(peaks + r * kLanes);
      for (int v = 0; v < kTileVectors; ++v) peak = Simd::max(Simd::load(scores + r * row + v * kLanes), peak);
      Simd::store(peaks + r * kLanes, peak);
    }
  }

  template <int kRows>
  void add_tile(const float* weights, Index weight_row, const float* value, Index keys, float* context) {
    const Index width = value_row(a_);
    Index d = 0;
    for (; d + kTileKeys <= width; d += kTileKeys) {
      multiply_tile<kRows, kTileVectors, true, false>(keys, weights, weight_row, value + d, value_row_, context + d,
                                                      width);
    }
    for (; d < width; d += kLanes) {
      multiply_tile<kRows, 1, true, false>(keys, weights, weight_row, value + d, value_row_, context + d, width);
    }
  }

  // Rows and the blocks whose listed keys are added to their context; the sums of the first block start from zero.
  struct ListedRows {
    Index count;
    const float* weights;
    Index weight_row, block, last_block;
    float* context;
  };

  // The sum of a context row stays in registers. Where there are enough, two keys are added at a time in sums of their
  // own: a single sum would wait for the addition before.
  template <int kVectors, bool kTail, Storage kStorage>
  void add_columns(const ListedRows& rows, Index d) {
    constexpr int kChains = 2 * kVectors <= Simd::kContextVectors ? 2 : 1;
    const Numbers values = value_ + d;
    const Index context_row = value_row(a_), value_row = value_row_;
    const int tail = value_tail_;
    for (Index r = 0; r < rows.count; ++r) {
      const Listed list = listed(r);
      const std::int32_t* key = list.keys + list.starts[rows.block];
      const std::int32_t* const last = list.keys + list.starts[rows.last_block];
      const float* const weights = rows.weights + r * rows.weight_row;
      float* const out = rows.context + r * context_row + d;
      Float sums[kChains][kVectors];
      for (int v = 0; v < kVectors; ++v) {
        sums[0][v] = rows.block == 0 ? Simd::set1(0.0f) : Simd::load(out + v * kLanes);
        if (kChains == 2) sums[kChains - 1][v] = Simd::set1(0.0f);
      }
      // Inlined whatever its size: sums that a call could see would not stay in registers.
      const auto add = [&](Float(&sum)[kVectors], Index k) __attribute__((always_inline)) {
        const Numbers value = Numbers{values.data, kStorage} + k * value_row;
        const Float weight = Simd::set1(weights[k]);
        for (int v = 0; v < kVectors; ++v) {
          const bool partial = kTail && v == kVectors - 1;
          const Float lanes =
              partial ? load_first_stored<kStorage>(value, v * kLanes, tail) : load_stored<kStorage>(value, v * kLanes);
          sum[v] = Simd::fma(weight, lanes, sum[v]);
        }
      };
      for (; key + kChains <= last; key += kChains) {
        for (int chain = 0; chain < kChains; ++chain) add(sums[chain], key[chain]);
      }
      if (key < last) add(sums[0], *key);
      for (int v = 0; v < kVectors; ++v) {
        Simd::store(out + v * kLanes, kChains == 2 ? Simd::add(sums[0][v], sums[kChains - 1][v]) : sums[0][v]);
      }
    }
  }

  void add_strided(const ListedRows& rows) {
    for (Index r = 0; r < rows.count; ++r) {
      const Listed list = listed(r);
      float* const out = rows.context + r * value_row(a_);
      for (Index d = 0; rows.block == 0 && d < a_.value_depth; ++d) out[d] = 0.0f;
      for (Index i = list.starts[rows.block]; i < list.starts[rows.last_block]; ++i) {
        const float weight = rows.weights[r * rows.weight_row + list.keys[i]];
        const Numbers value = value_ + list.keys[i] * value_row_;
        for (Index d = 0; d < a_.value_depth; ++d) out[d] += weight * value[d * value_column_];
      }
    }
  }

  const Layout layout_;
  float* const scratch_;
  Numbers value_;
  Index value_row_, value_column_;
  int value_tail_;  // numbers in the last register of a row of values, 0 for all
};

}  // namespace
}  // namespace onnx_attnq

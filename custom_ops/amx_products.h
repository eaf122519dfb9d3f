// Scores with AMX: matrix tiles that multiply bfloat16 at many times the rate of float32 vectors. The context stays
// with the vectors, which skip pruned keys.
//
// A float32 number is split into two bfloat16 numbers, its parts, and a rest: x = x0 + x1 + r, |x1| at most 2^-8 |x|
// and |r| at most 2^-16 |x|. Of a product, x0 y0 + x0 y1 + x1 y0 are computed and summed in float32. That is enough
// where only codes are wanted: it is known how far such a score can be off, and the few scores for which that matters,
// near an edge, are computed again in float32. 16-bit products are these without the second look. Everything else is
// left to the vectors; three parts, of six products, would be as good as float32, but no faster than the vectors are.
//
// Numbers too large for this (and infinities, NaN) go to the vectors.
#pragma once

#include "amx_tiles.h"
#include "vector_products.h"

namespace onnx_attnq {
namespace {

// The largest norm of a vector that is split. Rests below 1e-19, whose squares are lost, do not matter beside it.
constexpr float kLargestSplit = 1e12f;
// With a larger error, in steps of the scheme, more than one in a hundred of the kept scores would be computed again.
constexpr float kMostSteps = 0.005f;

class AmxProducts : public VectorProducts {
 public:
  static constexpr Index kBand = 2 * kTile;
  static_assert(kTileKeys == kStep, "a panel is as wide as two tiles");

  // Smaller matrices take longer to split than tiles save; so does reading a mask of many rows in bands of 32.
  static bool pays(const Attention& a) {
    const Index fewest = a.int16_products ? 128 : 192;
    const bool one_mask = a.mask == nullptr || (a.mask_strides.row == 0 && a.mask_group == 0);
    return uses_tiles(a) && a.groups * a.queries >= 4 * kBand && a.keys >= fewest && a.depth >= kTile && one_mask;
  }

  static Index rows_per_block(const Attention& a) {
    // Scores of a block stay in the second-level cache.
    const Index budget = 1024 * 1024 / 4 / larger(a.keys, 1) / kBand * kBand;
    return larger(kBand, smaller(96, budget));
  }

  static constexpr bool kScreens = true;
  // Whether codes are all that is wanted, and the norms of the keys are known before the first score.
  static bool screens(const Attention& a) {
    const Form& f = a.form;
    return f.reference == Reference::kRowMax && f.spacing == Spacing::kLog && f.normalize == Normalize::kUnit &&
           a.depth > 0 && a.groups * a.queries > rows_per_block(a) && !a.int16_products;
  }

  static bool uses_tiles(const Attention& a) { return a.int16_products || screens(a); }

  // A panel: the keys as the vectors read them, what is known of all of them, and their parts.
  struct About {
    float in_range;
    float whole, second, rest;  // the largest norms
  };
  struct Shape {
    bool screens;
    Index steps, side_floats;
    Index about, side, panel;  // where these stand in a panel, and its size
  };
  static Shape shape_of(const Attention& a) {
    Shape s;
    s.screens = screens(a);
    s.steps = uses_tiles(a) ? (a.depth + kStep - 1) / kStep : 0;
    s.side_floats = s.steps * kSideParts / 2;
    s.about = key_panel_floats(a);
    s.side = s.about + kLanes;
    s.panel = s.side + s.side_floats;
    return s;
  }
  static Index panel_floats(const Attention& a) { return shape_of(a).panel; }

  static void pack_panel(const Attention& a, const float* key, Index panel, float* out) {
    pack_key_panel(a, key, panel, out);
    const Shape shape = shape_of(a);
    auto* side = reinterpret_cast<Part*>(out + shape.side);
    Norms norms[2];
    const auto split_row = [&](Index d, Index tile) {
      const __m512 x = d < a.depth ? Simd::load(out + d * kTileKeys + tile * kTile) : Simd::set1(0.0f);
      const Split s = split(x);
      norms[tile].add(x, s);
      return s;
    };
    for (Index step = 0; step < shape.steps; ++step, side += kSideParts) {
      for (Index d = 0; d < kStep; d += 2) {
        for (Index tile = 0; tile < 2; ++tile) {
          const Split even = split_row(step * kStep + d, tile), odd = split_row(step * kStep + d + 1, tile);
          store_right(side, d / 2, tile, even, odd);
        }
      }
    }
    const auto largest = [&](__m512 Norms::* norm) {
      return __builtin_sqrtf(Simd::largest(Simd::max(norms[0].*norm, norms[1].*norm)));
    };
    const bool nan = Simd::any(Simd::is_nan(Simd::add(norms[0].whole, norms[1].whole)));
    const float whole = largest(&Norms::whole), in_range = !nan && whole <= kLargestSplit ? 1.0f : 0.0f;
    *reinterpret_cast<About*>(out + shape.about) = {in_range, whole, largest(&Norms::second), largest(&Norms::rest)};
  }

  static Index scratch(const Attention& a, Index rows) { return layout_of(a, rows).total; }

  AmxProducts(const Task& task, Index rows, float* scratch)
      : VectorProducts(task, rows, scratch, false),
        shape_(shape_of(task.a)),
        layout_(layout_of(task.a, rows)),
        scratch_(scratch) {
    static constexpr TileConfig kConfig;
    _tile_loadconfig(&kConfig);
  }
  ~AmxProducts() { _tile_release(); }
  AmxProducts(const AmxProducts&) = delete;
  AmxProducts& operator=(const AmxProducts&) = delete;

  static bool direct(const Task&) { return false; }

  void copy_queries() {
    VectorProducts::copy_queries();
    if (shape_.steps == 0) return;
    const About keys = about_keys();
    for (Index row = 0; row < t_.rows; row += kBand) {
      bool in_tiles = true;
      for (Index tile = 0; tile < kBand; tile += kTile) in_tiles = split_queries(row, tile, keys) && in_tiles;
      scratch_[layout_.tiled + row / kBand] = in_tiles ? 1.0f : 0.0f;
    }
  }

  bool score(Index row, Index count, Index panel, const float* keys, bool whole, float* out, Index out_row,
             float* peaks) {
    if (shape_.steps == 0 || keys[shape_.about] == 0.0f || !tiled(row)) {
      for (Index r = 0; r < count; r += kTileRows) {
        const Index some = smaller(kTileRows, count - r);
        VectorProducts::score(row + r, some, panel, keys, whole, out + r * out_row, out_row, peaks + r * kLanes);
      }
      return whole;
    }
    const auto* const right = reinterpret_cast<const Part*>(keys + shape_.side);
    (count > kTile ? multiply_sides<2> : multiply_sides<1>)(shape_.steps, side(row), right, out, out_row);
    for (Index r = 0; whole && r < count; ++r) {
      const float* const s = out + r * out_row;
      const Float peak = Simd::max(Simd::load(s), Simd::load(peaks + r * kLanes));
      Simd::store(peaks + r * kLanes, Simd::max(Simd::load(s + kTile), peak));
    }
    return whole;
  }

  // How far positions of this row, with this maximum, can be from the exact ones; 0 where float32 would not do better.
  float nearness(Index row, float peak) {
    const Table& table = t_.table_of(row);
    const float apart = difference(row, peak);
    // What float32 loses of a position comes on top.
    return apart == 0 ? 0.0f : apart * table.inverse_step + table.offset * 2.5e-7f;
  }

  // The positions of a context band's listed keys, row after row.
  float* positions() { return scratch_ + layout_.positions; }

  // Calls function(r) for the rows that have some this near an edge; row r's are first[r] to first[r + 1] - 1.
  template <class Function>
  void for_each_doubtful_row(const Index* first, Index count, float near, const Function& function) {
    if (near == 0) return;
    const Index end = first[count];
    Simd::store(positions() + end, Simd::set1(0.5f));  // in the middle of a code
    for (Index i = 0, r = 0; i < end; i += kLanes) {
      for (unsigned lanes = at_edge(Simd::load(positions() + i), near); lanes != 0; lanes &= lanes - 1) {
        const Index place = i + __builtin_ctz(lanes);
        if (place < first[r]) continue;  // of a row that was seen
        while (first[r + 1] <= place) ++r;
        function(r++);
      }
    }
  }

  // Computes the scores of a row again that may be beyond an edge, and those that may be the maximum; corrects weights
  // and list. Returns how much larger the sum of the weights became.
  float settle(Index row, const Rough& rough, const Listed& list, Index blocks, float* weights) {
    const Table& table = t_.table_of(row);
    const Index listed = list.starts[blocks];
    const Float at_peak = Simd::set1(table.offset - rough.near);
    auto* const doubtful = reinterpret_cast<std::int32_t*>(scratch_ + layout_.doubtful);  // places in the list
    float peak = a_.row_max_floor;
    Int places = Simd::first_indices();
    Index count = 0;
    for (Index i = 0; i < listed; i += kLanes) {
      const Mask in_list = Simd::first_lanes(static_cast<int>(smaller(listed - i, kLanes)));
      const Float position = Simd::load(rough.positions + i);
      count += Simd::append(doubtful + count, places, Simd::both(at_edge(position, rough.near), in_list));
      places = Simd::next_indices(places);
      for (unsigned lanes = Simd::both(Simd::at_least(position, at_peak), in_list); lanes != 0; lanes &= lanes - 1) {
        const float score = exact_score(row, list.keys[i + __builtin_ctz(lanes)]);
        peak = score > peak ? score : peak;
      }
    }
    float change = 0;
    while (count-- > 0) {
      const Index key = list.keys[doubtful[count]];
      const float position = (exact_score(row, key) - peak) * table.inverse_step + table.offset;
      // Always a valid code: of keys out of range, sums in another order may differ by anything, or be NaN.
      const bool kept = position >= 1;
      const float code = position < table.levels ? position : table.levels;
      const float weight = kept ? table.level[static_cast<Index>(code)] : 0.0f;
      change += weight - weights[key];
      weights[key] = weight;
      if (!kept) drop_key(list, blocks, doubtful[count]);
    }
    return change;
  }

 private:
  struct Layout {
    Index tiled, errors, queries, positions, doubtful, total;
  };
  static Layout layout_of(const Attention& a, Index rows) {
    Layout l;
    Room room;
    room.take(VectorProducts::scratch(a, rows));
    l.tiled = room.take(rows / kBand);
    l.errors = room.take(rows);
    l.queries = room.take(rows / kBand * shape_of(a).side_floats);
    const Index list_row = panel_count(a) * kTileKeys + kLanes;
    l.positions = room.take(screens(a) ? kContextRows * list_row : 0);
    l.doubtful = room.take(screens(a) ? list_row : 0);
    l.total = room.total();
    return l;
  }

  // Splits 16 queries of the band that starts at `row` into parts. Whether their scores may come from tiles.
  bool split_queries(Index row, Index tile, const About& keys) {
    const Index count = smaller(kTile, t_.rows - row - tile);
    __m512 whole[kTile] = {}, second[kTile] = {}, rest[kTile] = {};
    for (Index i = 0; i < count; ++i) {
      Norms norms;
      const auto split_lanes = [&](Index d) {
        const __m512 x = query_lanes(row + tile + i, d);
        const Split s = split(x);
        norms.add(x, s);
        return s;
      };
      for (Index step = 0; step < shape_.steps; ++step) {
        const Split low = split_lanes(step * kStep), high = split_lanes(step * kStep + kTile);
        store_left(side(row) + step * kSideParts, tile + i, low, high);
      }
      whole[i] = norms.whole;
      second[i] = norms.second;
      rest[i] = norms.rest;
    }
    const __m512 norms = _mm512_sqrt_ps(sums_of(whole));
    if (_mm512_cmp_ps_mask(norms, Simd::set1(kLargestSplit), _CMP_NLE_UQ) != 0) return false;
    if (!shape_.screens) return true;
    // What is missing of x y is x1 y1, r y and x r' (Cauchy and Schwarz). A product is rounded in up to 18 sums of its
    // tiles' multiplication, and once in each of the three that follow for a step.
    const float roundings = static_cast<float>(18 + 3 * shape_.steps) * 0x1p-24f;
    __m512 error = Simd::mul(norms, Simd::set1(keys.rest + roundings * keys.whole));
    error = Simd::fma(_mm512_sqrt_ps(sums_of(second)), Simd::set1(keys.second), error);
    error = Simd::fma(_mm512_sqrt_ps(sums_of(rest)), Simd::set1(keys.whole), error);
    Simd::store(errors() + row + tile, Simd::mul(error, Simd::set1(1.02f)));
    for (Index r = row + tile; r < row + tile + count; ++r) {
      const Table& table = t_.table_of(r);
      if (!(errors()[r] * table.inverse_step <= kMostSteps) || peak_at_edge(table)) return false;
    }
    return true;
  }

  // The parts of the band that starts at this row.
  Part* side(Index row) {
    return reinterpret_cast<Part*>(scratch_ + layout_.queries + row / kBand * shape_.side_floats);
  }
  // Whether its scores come from tiles: its numbers are in range and its errors small.
  bool tiled(Index row) const { return scratch_[layout_.tiled + row / kBand] != 0.0f; }
  // How far the scores of each row can be off.
  float* errors() { return scratch_ + layout_.errors; }

  // The largest norms of the keys in range.
  About about_keys() const {
    About most{1, 0, 0, 0};
    if (!shape_.screens) return most;
    for (Index panel = 0; panel < panel_count(a_); ++panel) {
      const About& one = *reinterpret_cast<const About*>(t_.packed_keys + panel * shape_.panel + shape_.about);
      if (one.in_range == 0.0f) continue;
      most.whole = one.whole > most.whole ? one.whole : most.whole;
      most.second = one.second > most.second ? one.second : most.second;
      most.rest = one.rest > most.rest ? one.rest : most.rest;
    }
    return most;
  }

  // How far the difference of two scores can be from the exact one.
  float difference(Index row, float peak) {
    const float apart = tiled(row) ? 2 * errors()[row] : 0.0f;
    // Scores that float32 itself rounds more coarsely, behind a low mask, would not be better.
    return apart > __builtin_fabsf(peak) * 0x1p-24f ? apart : 0.0f;
  }

  // With rounding `floor`, the maximum is at an edge: every row would be in doubt.
  static bool peak_at_edge(const Table& table) { return table.offset > table.levels + 0.75f; }

  static Mask at_edge(Float position, float near) {
    const Float past = _mm512_reduce_ps(position, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return Simd::at_least(Simd::set1(near), Simd::abs(past));
  }

  float exact_score(Index row, Index key) {
    const float* const q = query(row);
    const float* const k = t_.key + key * a_.key_strides.column;
    float score = 0;
    if (a_.key_strides.row == 1) {
      Float sum = Simd::set1(0.0f);
      for (Index d = 0; d < a_.depth; d += kLanes) {
        const int lanes = static_cast<int>(smaller(kLanes, a_.depth - d));
        sum = Simd::fma(Simd::load_first(q + d, lanes), Simd::load_first(k + d, lanes), sum);
      }
      score = Simd::sum(sum);
    } else {
      for (Index d = 0; d < a_.depth; ++d) score += q[d] * k[d * a_.key_strides.row];
    }
    return t_.mask == nullptr ? score : score + t_.mask_of(row)[key * a_.mask_strides.column];
  }

  __m512 query_lanes(Index row, Index d) {
    if (d + kTile <= a_.depth) return Simd::load(query(row) + d);
    return d < a_.depth ? Simd::load_first(query(row) + d, static_cast<int>(a_.depth - d)) : Simd::set1(0.0f);
  }

  const Shape shape_;
  const Layout layout_;
  float* const scratch_;
};

}  // namespace
}  // namespace onnx_attnq

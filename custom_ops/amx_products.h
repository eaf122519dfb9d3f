// Scores with AMX: matrix tiles that multiply bfloat16 at many times the rate of float32 vectors. The context stays
// with the vectors, which skip pruned keys.
//
// A float32 number is split into two bfloat16 numbers, its parts, and a rest: x = x0 + x1 + r, |x1| at most 2^-8 |x|
// and |r| at most 2^-16 |x|. Of a product, x0 y0 + x0 y1 + x1 y0 are computed and summed in float32: the rough scores
// of screening.h. 16-bit products are these without the second look. Everything else is left to the vectors; three
// parts, of six products, would be as good as float32, but no faster than the vectors are.
//
// Numbers too large for this (and infinities, NaN) go to the vectors.
#pragma once

#include "amx_tiles.h"
#include "screening.h"

namespace onnx_attnq {
namespace {

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

  static bool screens(const Attention& a) {
    return a.rough_scores != RoughScores::kNever && Screening::suits(a) && a.depth > 0 && !a.int16_products;
  }

  static bool uses_tiles(const Attention& a) { return a.int16_products || screens(a); }

  // A panel: the keys and norms as the vectors read them, and the keys' parts.
  struct Shape {
    bool screens;
    Index steps, side_floats;
    Index side, panel;  // offsets of the parts in a panel, and its size
  };
  static Shape shape_of(const Attention& a) {
    Shape s;
    s.screens = screens(a);
    s.steps = uses_tiles(a) ? (a.depth + kStep - 1) / kStep : 0;
    s.side_floats = s.steps * kSideParts / 2;
    s.side = round_up(key_panel_floats(a), 16);
    s.panel = s.side + s.side_floats;
    return s;
  }
  static Index panel_floats(const Attention& a) { return shape_of(a).panel; }

  static void pack_panel(const Attention& a, Numbers key, Index panel, float* out) {
    const Shape shape = shape_of(a);
    if (shape.steps == 0) return VectorProducts::pack_panel(a, key, panel, out);
    pack_key_panel(a, key, panel, out);
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
    const float whole = nan ? kNaN : largest(&Norms::whole), in_range = whole <= kLargestRough ? 1.0f : 0.0f;
    KeyNorms{whole, largest(&Norms::second), largest(&Norms::rest), in_range}.store(a, out);
  }

  static Index scratch(const Attention& a, Index rows) { return layout_of(a, rows).total; }

  AmxProducts(const Task& task, Index rows, float* scratch)
      : VectorProducts(task, rows, scratch),
        shape_(shape_of(task.a)),
        layout_(layout_of(task.a, rows)),
        scratch_(scratch),
        screening_(task, rows, query(0), query_row(), scratch + layout_.screening) {
    static constexpr TileConfig kConfig;
    _tile_loadconfig(&kConfig);
  }
  ~AmxProducts() { _tile_release(); }
  AmxProducts(const AmxProducts&) = delete;
  AmxProducts& operator=(const AmxProducts&) = delete;

  static bool direct(const Task&) { return false; }

  Screening* screening() { return shape_.screens ? &screening_ : nullptr; }

  void copy_queries() {
    VectorProducts::copy_queries();
    if (shape_.steps == 0) return;
    const KeyNorms keys = shape_.screens ? Screening::largest(t_, shape_.panel) : KeyNorms{};
    for (Index row = 0; row < t_.rows; row += kBand) {
      bool in_tiles = true;
      for (Index tile = 0; tile < kBand; tile += kTile) in_tiles = split_queries(row, tile, keys) && in_tiles;
      scratch_[layout_.tiled + row / kBand] = in_tiles ? 1.0f : 0.0f;
      const Index end = smaller(row + kBand, t_.rows);
      for (Index r = row; shape_.screens && !in_tiles && r < end; ++r) screening_.errors()[r] = 0;
    }
  }

  bool score(Index row, Index count, Index panel, const float* keys, bool whole, float* out, Index out_row,
             float* peaks) {
    if (shape_.steps == 0 || KeyNorms::of(a_, keys).in_range == 0.0f || scratch_[layout_.tiled + row / kBand] == 0.0f) {
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

 private:
  struct Layout {
    Index tiled, queries, screening, total;
  };
  static Layout layout_of(const Attention& a, Index rows) {
    Layout l;
    Room room;
    room.take(VectorProducts::scratch(a, rows));
    l.tiled = room.take(rows / kBand);
    l.queries = room.take(rows / kBand * shape_of(a).side_floats);
    l.screening = room.take(screens(a) ? Screening::scratch(a, rows) : 0);
    l.total = room.total();
    return l;
  }

  // Splits 16 queries of the band that starts at `row` into parts. Whether their scores may come from tiles.
  bool split_queries(Index row, Index tile, const KeyNorms& keys) {
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
    const __m512 norms = _mm512_sqrt_ps(Simd::sums(whole));
    if (_mm512_cmp_ps_mask(norms, Simd::set1(kLargestRough), _CMP_NLE_UQ) != 0) return false;
    if (!shape_.screens) return true;
    // What is missing of x y is x1 y1, r y and x r' (Cauchy and Schwarz). A product is rounded in up to 18 sums of its
    // tiles' multiplication, and once in each of the three that follow for a step.
    const float roundings = static_cast<float>(18 + 3 * shape_.steps) * 0x1p-24f;
    __m512 error = Simd::mul(norms, Simd::set1(keys.rest + roundings * keys.whole));
    error = Simd::fma(_mm512_sqrt_ps(Simd::sums(second)), Simd::set1(keys.second), error);
    error = Simd::fma(_mm512_sqrt_ps(Simd::sums(rest)), Simd::set1(keys.whole), error);
    Simd::store(screening_.errors() + row + tile, Simd::mul(error, Simd::set1(1.02f)));
    bool pays = true;
    for (Index r = row + tile; r < row + tile + count; ++r) pays = screening_.pays(r) && pays;
    return pays;
  }

  // The parts of the band that starts at this row.
  Part* side(Index row) {
    return reinterpret_cast<Part*>(scratch_ + layout_.queries + row / kBand * shape_.side_floats);
  }

  __m512 query_lanes(Index row, Index d) {
    if (d + kTile <= a_.depth) return Simd::load(query(row) + d);
    return d < a_.depth ? Simd::load_first(query(row) + d, static_cast<int>(a_.depth - d)) : Simd::set1(0.0f);
  }

  const Shape shape_;
  const Layout layout_;
  float* const scratch_;
  Screening screening_;
};

}  // namespace
}  // namespace onnx_attnq

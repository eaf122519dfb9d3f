// Scores with AMX: matrix tiles that multiply bfloat16 at many times the rate of float32 vectors. The context stays
// with the vectors, which skip pruned keys.
//
// A float32 number is the exact sum of three bfloat16 numbers, its parts: x = x0 + x1 + x2, each at most 2^-8 of the
// one before. Of the nine products of two numbers' parts, six are computed and summed in float32; the other three are
// together at most 2^-23 of the product, as much as rounding it to float32. 16-bit products leave x2 out: three
// products.
//
// Tiles hold 16 rows of 64 bytes. The left operand of a product has 32 numbers in a row; the right operand has 16
// columns and 32 rows, two of them interleaved in a tile row. Numbers too large for this (and infinities, NaN) go to
// the vectors.
#pragma once

#include <immintrin.h>

#include "vector_products.h"

namespace onnx_attnq {
namespace {

using Part = std::uint16_t;  // a bfloat16 number

constexpr int kParts = 3;
constexpr Index kTile = 16;  // rows of a tile, and columns of float32
constexpr Index kStep = 32;  // numbers along the inner axis of one multiplication
constexpr Index kTileParts = kTile * kStep;
constexpr Index kSidePart = 2 * kTileParts;       // one part of a 32 x 32 operand: two tiles
constexpr Index kSideParts = kParts * kSidePart;  // all parts of it
constexpr Index kSideFloats = kSideParts / 2;     // the same in floats
constexpr float kLargestSplit = 1e18f;            // products of two such numbers, and sums of them, are finite

// Which registers hold what: four sums, two tiles of each operand.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The leading part of 16 numbers, as float32 whose low half is zero.
static inline __m512 leading_part(__m512 x) {
  const __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
  return _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

struct Split {
  __m512 part[kParts];
};

static inline Split split(__m512 x) {
  Split s;
  s.part[0] = leading_part(x);
  const __m512 rest = _mm512_sub_ps(x, s.part[0]);
  s.part[1] = leading_part(rest);
  s.part[2] = _mm512_sub_ps(rest, s.part[1]);
  return s;
}

// Row `row` of a left operand: 32 numbers of an inner step. Tile by tile, so that a tile is 1 KB in one piece.
static inline void store_left(Part* side, Index row, __m512 low, __m512 high) {
  const Split a = split(low), b = split(high);
  const __m512i high_halves = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29,
                                               27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  for (int p = 0; p < kParts; ++p) {
    const __m512i words =
        _mm512_permutex2var_epi16(_mm512_castps_si512(a.part[p]), high_halves, _mm512_castps_si512(b.part[p]));
    _mm512_store_si512(side + p * kSidePart + row * kStep, words);
  }
}

// Rows 2 * pair and 2 * pair + 1 of a right operand, 16 columns of them.
static inline void store_right(Part* side, Index pair, Index tile, __m512 even, __m512 odd) {
  const Split a = split(even), b = split(odd);
  for (int p = 0; p < kParts; ++p) {
    const __m512i words =
        _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(a.part[p]), 16), _mm512_castps_si512(b.part[p]));
    _mm512_store_si512(side + p * kSidePart + tile * kTileParts + pair * kStep, words);
  }
}

// out = left x right over `steps` inner steps; 16 * kRowTiles rows, 32 columns.
template <int kRowTiles, bool kAllParts>
static inline void multiply_sides(Index steps, const Part* left, const Part* right, float* out, Index out_row) {
  _tile_zero(0);
  _tile_zero(1);
  if (kRowTiles == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  const auto load_left = [&](int part) {
    _tile_loadd(4, left + part * kSidePart, 64);
    if (kRowTiles == 2) _tile_loadd(5, left + part * kSidePart + kTileParts, 64);
  };
  const auto load_right = [&](int part) {
    _tile_loadd(6, right + part * kSidePart, 64);
    _tile_loadd(7, right + part * kSidePart + kTileParts, 64);
  };
  const auto multiply = [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (kRowTiles == 2) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  };
  for (Index i = 0; i < steps; ++i) {
    // An operand's tiles stay for the next product where they can.
    load_left(0);
    if (kAllParts) {
      load_right(2);
      multiply();
    }
    load_right(1);
    multiply();
    load_left(1);
    if (kAllParts) multiply();
    load_right(0);
    multiply();
    if (kAllParts) {
      load_left(2);
      multiply();
    }
    load_left(0);
    multiply();
    left += kSideParts;
    right += kSideParts;
  }
  const Index stride = out_row * static_cast<Index>(sizeof(float));
  _tile_stored(0, out, stride);
  _tile_stored(1, out + kTile, stride);
  if (kRowTiles == 2) {
    _tile_stored(2, out + kTile * out_row, stride);
    _tile_stored(3, out + kTile * out_row + kTile, stride);
  }
}

// Notes numbers that the parts cannot stand for.
class Range {
 public:
  void see(__m512 x) { outside_ |= _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(kLargestSplit), _CMP_NLE_UQ); }
  float inside() const { return outside_ == 0 ? 1.0f : 0.0f; }

 private:
  __mmask16 outside_ = 0;
};

class AmxProducts : public VectorProducts {
 public:
  static constexpr Index kBand = 2 * kTile;
  static_assert(kTileKeys == kStep, "a panel is as wide as two tiles");

  // In shorter calls the tiles do not reach their speed: a core takes about a millisecond to power them up.
  static bool pays(const Attention& a) {
    constexpr Index kProducts = Index{1} << 29;
    const Index batches = a.batch[0] * a.batch[1] * a.batch[2], rows = a.groups * a.queries;
    return rows >= kBand && a.keys >= 128 && a.depth >= kTile && batches * rows * a.keys * a.depth >= kProducts;
  }

  static Index rows_per_block(const Attention& a) {
    // Scores of a block stay in the second-level cache.
    const Index budget = 1024 * 1024 / 4 / larger(a.keys, 1) / kBand * kBand;
    return larger(kBand, smaller(96, budget));
  }

  // A panel of keys as the vectors read it, whether it is in range, and its parts.
  static Index panel_range(const Attention& a) { return key_panel_floats(a); }
  static Index panel_parts(const Attention& a) { return panel_range(a) + kLanes; }
  static Index panel_floats(const Attention& a) { return panel_parts(a) + steps(a) * kSideFloats; }

  static void pack_panel(const Attention& a, const float* key, Index panel, float* out) {
    pack_key_panel(a, key, panel, out);
    auto* const parts = reinterpret_cast<Part*>(out + panel_parts(a));
    Range range;
    const auto load = [&](Index d, Index tile) {
      const __m512 x = d < a.depth ? Simd::load(out + d * kTileKeys + tile * kTile) : Simd::set1(0.0f);
      range.see(x);
      return x;
    };
    for (Index d = 0; d < steps(a) * kStep; d += 2) {
      for (Index tile = 0; tile < 2; ++tile) {
        store_right(parts + d / kStep * kSideParts, d % kStep / 2, tile, load(d, tile), load(d + 1, tile));
      }
    }
    out[panel_range(a)] = range.inside();
  }

  static Index scratch(const Attention& a, Index rows) { return layout_of(a, rows).total; }

  AmxProducts(const Task& task, Index rows, float* scratch)
      : VectorProducts(task, rows, scratch, false), layout_(layout_of(task.a, rows)), scratch_(scratch) {
    static constexpr TileConfig kConfig;
    _tile_loadconfig(&kConfig);
  }
  ~AmxProducts() { _tile_release(); }
  AmxProducts(const AmxProducts&) = delete;
  AmxProducts& operator=(const AmxProducts&) = delete;

  static bool direct(const Task&) { return false; }

  void copy_queries() {
    VectorProducts::copy_queries();
    for (Index row = 0; row < t_.rows; row += kBand) {
      Range range;
      for (Index r = 0; r < smaller(kBand, t_.rows - row); ++r) {
        for (Index d = 0; d < steps(a_) * kStep; d += kStep) {
          const __m512 low = query_lanes(row + r, d), high = query_lanes(row + r, d + kTile);
          range.see(low);
          range.see(high);
          store_left(parts(row) + d / kStep * kSideParts, r, low, high);
        }
      }
      scratch_[layout_.ranges + row / kBand] = range.inside();
    }
  }

  bool score(Index row, Index count, Index panel, const float* keys, bool whole, float* out, Index out_row,
             float* peaks) {
    if (keys[panel_range(a_)] == 0.0f || scratch_[layout_.ranges + row / kBand] == 0.0f) {
      for (Index r = 0; r < count; r += kTileRows) {
        const Index some = smaller(kTileRows, count - r);
        VectorProducts::score(row + r, some, panel, keys, whole, out + r * out_row, out_row, peaks + r * kLanes);
      }
      return whole;
    }
    const auto* const right = reinterpret_cast<const Part*>(keys + panel_parts(a_));
    const auto multiply = a_.int16_products ? count > kTile ? multiply_sides<2, false> : multiply_sides<1, false>
                          : count > kTile ? multiply_sides<2, true>
                                            : multiply_sides<1, true>;
    multiply(steps(a_), parts(row), right, out, out_row);
    for (Index r = 0; whole && r < count; ++r) {
      const float* const s = out + r * out_row;
      const Float peak = Simd::max(Simd::load(s), Simd::load(peaks + r * kLanes));
      Simd::store(peaks + r * kLanes, Simd::max(Simd::load(s + kTile), peak));
    }
    return whole;
  }

 private:
  struct Layout {
    Index ranges, queries, total;
  };
  static Layout layout_of(const Attention& a, Index rows) {
    Layout l;
    Room room;
    room.take(VectorProducts::scratch(a, rows));
    l.ranges = room.take(rows / kBand);
    l.queries = room.take(rows / kBand * steps(a) * kSideFloats);
    l.total = room.total();
    return l;
  }

  static Index steps(const Attention& a) { return (a.depth + kStep - 1) / kStep; }

  // The parts of the band that starts at this row.
  Part* parts(Index row) {
    return reinterpret_cast<Part*>(scratch_ + layout_.queries + row / kBand * steps(a_) * kSideFloats);
  }

  __m512 query_lanes(Index row, Index d) {
    return d < a_.depth ? Simd::load_first(query(row) + d, static_cast<int>(smaller(kTile, a_.depth - d)))
                        : Simd::set1(0.0f);
  }

  const Layout layout_;
  float* const scratch_;
};

}  // namespace
}  // namespace onnx_attnq

// Float32 numbers in two bfloat16 parts, and products of parts in AMX tiles.
//
// Tiles hold 16 rows of 64 bytes. The left operand of a product has 32 numbers in a row; the right operand has 16
// columns and 32 rows, two of them interleaved in a tile row.
#pragma once

#include <immintrin.h>

#include "vector_tile.h"

namespace onnx_attnq {
namespace {

using Part = std::uint16_t;  // a bfloat16 number

constexpr Index kTile = 16;  // rows of a tile, and columns of float32
constexpr Index kStep = 32;  // numbers along the inner axis of one multiplication
constexpr Index kTileParts = kTile * kStep;
constexpr Index kSidePart = 2 * kTileParts;  // one part of a 32 x 32 operand: two tiles
constexpr Index kSideParts = 2 * kSidePart;  // both parts of it

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
  __m512 part[2], rest;
};

static inline Split split(__m512 x) {
  Split s;
  s.part[0] = leading_part(x);
  const __m512 left = _mm512_sub_ps(x, s.part[0]);
  s.part[1] = leading_part(left);
  s.rest = _mm512_sub_ps(left, s.part[1]);
  return s;
}

// Euclidean norms, squared, of vectors that are in lanes: of a vector itself, of its second part, and of its rest.
struct Norms {
  __m512 whole = Simd::set1(0.0f), second = Simd::set1(0.0f), rest = Simd::set1(0.0f);
  void add(__m512 x, const Split& s) {
    whole = Simd::fma(x, x, whole);
    second = Simd::fma(s.part[1], s.part[1], second);
    rest = Simd::fma(s.rest, s.rest, rest);
  }
};

// Row `row` of a left operand: 32 numbers of an inner step. Tile by tile, so that a tile is 1 KB in one piece.
static inline void store_left(Part* side, Index row, const Split& a, const Split& b) {
  const __m512i high_halves = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29,
                                               27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  for (int p = 0; p < 2; ++p) {
    const __m512i words =
        _mm512_permutex2var_epi16(_mm512_castps_si512(a.part[p]), high_halves, _mm512_castps_si512(b.part[p]));
    _mm512_store_si512(side + p * kSidePart + row * kStep, words);
  }
}

// Rows 2 * pair and 2 * pair + 1 of a right operand, 16 columns of them.
static inline void store_right(Part* side, Index pair, Index tile, const Split& a, const Split& b) {
  for (int p = 0; p < 2; ++p) {
    const __m512i words =
        _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(a.part[p]), 16), _mm512_castps_si512(b.part[p]));
    _mm512_store_si512(side + p * kSidePart + tile * kTileParts + pair * kStep, words);
  }
}

// out = left x right over `steps` inner steps; 16 * kRowTiles rows, 32 columns.
template <int kRowTiles>
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
    load_right(1);
    multiply();
    load_right(0);
    multiply();
    load_left(1);
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

}  // namespace
}  // namespace onnx_attnq

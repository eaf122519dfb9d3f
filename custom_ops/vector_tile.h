// Queries times keys: packing, and the register tile that multiplies. The same tile multiplies dense weights by values.
#pragma once

#include <type_traits>

#include "vector_rows.h"

namespace onnx_attnq {
namespace {

constexpr int kTileRows = Simd::kTileRows;
constexpr int kTileVectors = Simd::kTileVectors;
constexpr int kTileKeys = kTileVectors * kLanes;

// Calls function with the number of rows as a constant, which a tile needs to stay in registers.
template <int kRows = kTileRows, class Function>
static inline void with_rows(Index rows, const Function& function) {
  if (rows == kRows) {
    function(std::integral_constant<int, kRows>());
  } else if constexpr (kRows > 1) {
    with_rows<kRows - 1>(rows, function);
  }
}

// out[r][v] (+)= sum over k < depth of a[r][k] * b[k][v]: a tile whose sums stay in registers until they are complete.
// Rows of a lie a_row apart, rows of b, of kVectors registers each, b_row apart, rows of out out_row. With kPeaks, the
// maximum of each row goes to its register of `peaks`, if it is larger; a NaN is passed over.
template <int kRows, int kVectors, bool kAdd, bool kPeaks>
static inline void multiply_tile(Index depth, const float* a, Index a_row, const float* b, Index b_row, float* out,
                                 Index out_row, float* peaks = nullptr) {
  Float sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = kAdd ? Simd::load(out + r * out_row + v * kLanes) : Simd::set1(0.0f);
  }
  for (Index k = 0; k < depth; ++k) {
    Float right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) right[v] = Simd::load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Float left = Simd::set1(a[r * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Simd::fma(left, right[v], sums[r][v]);
    }
    ++a;
    b += b_row;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    Float peak = kPeaks ? Simd::load(peaks + r * kLanes) : Simd::set1(0.0f);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Simd::store(out + r * out_row + v * kLanes, sums[r][v]);
      if (kPeaks) peak = Simd::max(sums[r][v], peak);
    }
    if (kPeaks) Simd::store(peaks + r * kLanes, peak);
  }
}

// kLanes numbers of a vector, from number d on, or the first `count` of these.
template <Storage kStorage>
static inline Float load_stored(Numbers numbers, Index d) {
  const void* const p = static_cast<const char*>(numbers.data) + bytes_of(kStorage, d);
  if constexpr (kStorage == Storage::kHalf) return Simd::load_half(p);
  if constexpr (kStorage == Storage::kInt8) return Simd::load_int8(p);
  if constexpr (kStorage == Storage::kInt4) return Simd::load_int4(p);
  return Simd::load(static_cast<const float*>(p));
}
template <Storage kStorage>
static inline Float load_first_stored(Numbers numbers, Index d, int count) {
  if constexpr (kStorage == Storage::kFloat) return Simd::load_first(numbers.floats() + d, count);
  alignas(64) float lanes[kLanes] = {};
  for (int i = 0; i < count; ++i) lanes[i] = numbers[d + i];
  return Simd::load(lanes);
}

// Calls function with how numbers are stored as a constant.
template <class Function>
static inline void with_storage(Storage storage, const Function& function) {
  switch (storage) {
    case Storage::kFloat:
      return function(std::integral_constant<Storage, Storage::kFloat>());
    case Storage::kHalf:
      return function(std::integral_constant<Storage, Storage::kHalf>());
    case Storage::kInt8:
      return function(std::integral_constant<Storage, Storage::kInt8>());
    case Storage::kInt4:
      return function(std::integral_constant<Storage, Storage::kInt4>());
  }
}

// Adds to sums[r * kKeys + k] the products of row r of a and of vector b[k], in lanes.
template <int kRows, Storage kStorage, int kKeys, int kSums>
static inline void multiply_vectors(Index depth, const float* a, Index a_row, const Numbers (&b)[kKeys],
                                    Float (&sums)[kSums]) {
  static_assert(kRows * kKeys <= kSums);
  const Index whole = depth / kLanes * kLanes;
  const auto add = [&](int r, Float left, const Float(&right)[kKeys]) {
    for (int k = 0; k < kKeys; ++k) sums[r * kKeys + k] = Simd::fma(left, right[k], sums[r * kKeys + k]);
  };
  Float right[kKeys];
  for (Index d = 0; d < whole; d += kLanes) {
    for (int k = 0; k < kKeys; ++k) right[k] = load_stored<kStorage>(b[k], d);
    for (int r = 0; r < kRows; ++r) add(r, Simd::load(a + r * a_row + d), right);
  }
  if (whole == depth) return;
  const int rest = static_cast<int>(depth - whole);
  for (int k = 0; k < kKeys; ++k) right[k] = load_first_stored<kStorage>(b[k], whole, rest);
  for (int r = 0; r < kRows; ++r) add(r, Simd::load_first(a + r * a_row + whole, rest), right);
}

// A panel is kTileKeys keys with the depth as its slow axis, as the tile reads them, then a register of norms: its
// first number is the largest norm of a key, which every pack_panel has to fill where there is a mask. (With rough
// scores it is a KeyNorms, of screening.h, whose first field this is.)
static inline Index panel_norms(const Attention& a) { return a.depth * kTileKeys; }
static inline Index key_panel_floats(const Attention& a) { return panel_norms(a) + kLanes; }
static inline Index panel_count(const Attention& a) { return (a.keys + kTileKeys - 1) / kTileKeys; }

// The Euclidean norms of a panel's keys, squared; zeros are given.
static inline void square_panel(const Attention& a, const float* panel, Float (&squares)[kTileVectors]) {
  for (Index d = 0; d < a.depth; ++d) {
    for (int v = 0; v < kTileVectors; ++v) {
      const Float x = Simd::load(panel + d * kTileKeys + v * kLanes);
      squares[v] = Simd::fma(x, x, squares[v]);
    }
  }
}

// The largest norm of a panel's keys: bounds what a masked score can be.
static inline float panel_largest_norm(const Attention& a, const float* panel) {
  Float norms[kTileVectors] = {}, largest = Simd::set1(0.0f);
  square_panel(a, panel, norms);
  Mask nan = Simd::none();
  for (const Float& squares : norms) {
    nan = Simd::either(nan, Simd::is_nan(squares));
    largest = Simd::max(squares, largest);
  }
  return Simd::any(nan) ? kNaN : __builtin_sqrtf(Simd::largest(largest));
}

// Prefetches numbers that are needed soon: rows are so far apart that the processor does not prefetch the next one.
static inline void prefetch(const float* numbers, Index count) {
  for (Index i = 0; i < count; i += 16) __builtin_prefetch(numbers + i);
}
static inline void prefetch(Numbers numbers, Index count) {
  const auto* const bytes = static_cast<const char*>(numbers.data);
  for (Index i = 0, size = bytes_of(numbers.storage, count); i < size; i += 64) __builtin_prefetch(bytes + i);
}

// Some numbers as floats.
static inline void widen_row(Numbers in, Index count, float* out) {
  with_storage(in.storage, [&](auto storage) {
    Index d = 0;
    for (; d + kLanes <= count; d += kLanes) Simd::store(out + d, load_stored<storage()>(in, d));
    for (; d < count; ++d) out[d] = in[d];
  });
}

// The same as pack_key_panel for keys that are no floats: these are made of so many numbers of so many keys at a time
// as are transposed while they are in the first-level cache.
static inline void pack_stored_panel(const Attention& a, Numbers in, Index count, float* out) {
  constexpr Index kDepth = 128;
  alignas(64) float rows[kTransposed * kDepth];
  for (Index j = 0; j < count; j += kTransposed) {
    const Index some = smaller(kTransposed, count - j);
    for (Index first = 0; first < a.depth; first += kDepth) {
      const Index depth = smaller(kDepth, a.depth - first);
      for (Index i = 0; i < some; ++i) widen_row(in + (j + i) * a.key_strides.column + first, depth, rows + i * kDepth);
      float* const to = out + first * kTileKeys + j;
      Index d = 0;
      for (; some == kTransposed && d + kTransposed <= depth; d += kTransposed) {
        transpose_block(rows + d, kDepth, to + d * kTileKeys, kTileKeys);
      }
      for (; d < depth; ++d) {
        for (Index i = 0; i < some; ++i) to[d * kTileKeys + i] = rows[i * kDepth + d];
      }
    }
  }
}

// Packs the keys of one panel; zeros follow the last key.
static inline void pack_key_panel(const Attention& a, Numbers key, Index panel, float* out) {
  const Index first = panel * kTileKeys;
  const Index count = smaller(kTileKeys, a.keys - first);
  const Index key_step = a.key_strides.column, depth_step = a.key_strides.row;
  if (count < kTileKeys) {
    for (Index i = 0; i < a.depth * kTileKeys; ++i) out[i] = 0.0f;
  }
  if (key.storage != Storage::kFloat) return pack_stored_panel(a, key + first * key_step, count, out);
  const float* in = key.floats() + first * key_step;
  if (depth_step == 1 && key_step != 1) {
    // Keys are rows: whole blocks are transposed in registers, the rest number by number.
    const Index whole_keys = count / kTransposed * kTransposed, whole_depth = a.depth / kTransposed * kTransposed;
    for (Index j = 0; j < whole_keys; j += kTransposed) {
      for (Index i = j; i < j + kTransposed; ++i) prefetch(in + (i + 2 * kTransposed) * key_step, a.depth);
      for (Index d = 0; d < whole_depth; d += kTransposed) {
        transpose_block(in + j * key_step + d, key_step, out + d * kTileKeys + j, kTileKeys);
      }
      for (Index d = whole_depth; d < a.depth; ++d) {
        for (Index i = j; i < j + kTransposed; ++i) out[d * kTileKeys + i] = in[i * key_step + d];
      }
    }
    for (Index j = whole_keys; j < count; ++j) {
      for (Index d = 0; d < a.depth; ++d) out[d * kTileKeys + j] = in[j * key_step + d];
    }
  } else if (key_step == 1 && count == kTileKeys) {
    for (Index d = 0; d < a.depth; ++d) {
      for (int v = 0; v < kTileVectors; ++v) {
        Simd::store(out + d * kTileKeys + v * kLanes, Simd::load(in + d * depth_step + v * kLanes));
      }
    }
  } else {
    for (Index d = 0; d < a.depth; ++d) {
      for (Index j = 0; j < count; ++j) out[d * kTileKeys + j] = in[j * key_step + d * depth_step];
    }
  }
}

// Rows of values, each padded to whole registers, unless they lie like that already.
static inline Index value_row(const Attention& a) { return round_up(a.value_depth, kLanes); }

static inline bool values_are_rows(const Attention& a) {
  return a.value.storage == Storage::kFloat && a.value_strides.column == 1 && a.value_strides.row == a.value_depth &&
         a.value_depth % kLanes == 0;
}

static inline void pack_value_rows(const Attention& a, Numbers value, Index first, Index last, float* packed) {
  for (Index j = first; j < last; ++j) {
    float* out = packed + j * value_row(a);
    Index d = 0;
    if (value.storage != Storage::kFloat) {
      widen_row(value + j * a.value_strides.row, a.value_depth, out);
      d = a.value_depth;
    }
    const float* in = value.floats() + j * a.value_strides.row;
    if (d == 0 && a.value_strides.column == 1) {
      prefetch(in + 8 * a.value_strides.row, a.value_depth);
      for (; d + kLanes <= a.value_depth; d += kLanes) Simd::store(out + d, Simd::load(in + d));
    }
    for (; d < a.value_depth; ++d) out[d] = in[d * a.value_strides.column];
    for (; d < value_row(a); ++d) out[d] = 0.0f;
  }
}

}  // namespace
}  // namespace onnx_attnq

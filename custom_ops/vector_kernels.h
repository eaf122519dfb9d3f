// The table of functions that a kernel is (attention.h), for one instruction set and one way to multiply.
#pragma once

#include "vector_attention.h"

namespace onnx_attnq {
namespace {

// A piece of the packing work: the panels, or rows of values, of kPieceKeys keys.
constexpr Index kPieceKeys = 8 * kTileKeys;

// A kernel's functions, for one way to multiply.
template <class Products>
struct Attend {
  static bool one_block(const Attention& a) { return a.groups * a.queries <= Products::rows_per_block(a); }
  static Index pieces(const Attention& a) { return (a.keys + kPieceKeys - 1) / kPieceKeys; }

  static std::size_t packed_keys(const Attention& a) {
    // How far rough scores are off is known when all keys are.
    return one_block(a) && !Products::screens(a) ? 0
                                                 : static_cast<std::size_t>(panel_count(a) * Products::panel_floats(a));
  }
  static void pack_keys(const Attention& a, Numbers key, Index piece, float* packed) {
    const Index first = piece * (kPieceKeys / kTileKeys);
    const Index last = smaller(first + kPieceKeys / kTileKeys, panel_count(a));
    for (Index p = first; p < last; ++p) Products::pack_panel(a, key, p, packed + p * Products::panel_floats(a));
  }

  static std::size_t packed_values(const Attention& a) {
    const bool few = a.groups * a.queries <= kTileRows && VectorProducts::reads_in_place(a);
    return few || values_are_rows(a) ? 0 : static_cast<std::size_t>(a.keys * value_row(a));
  }
  static void pack_values(const Attention& a, Numbers value, Index piece, float* packed) {
    pack_value_rows(a, value, piece * kPieceKeys, smaller((piece + 1) * kPieceKeys, a.keys), packed);
  }

  static std::size_t scratch(const Attention& a) { return static_cast<std::size_t>(layout_of<Products>(a).total); }

  static void attend(const Attention& a, Index batch, Index first, Index last, const float* packed_keys,
                     const float* packed_values, float* scratch) {
    const auto of_batch = [&](const Index(&strides)[kBatchAxes]) { return batch_offset(a.batch, strides, batch); };
    const auto [begin, end] = seen_by_any(a, first, last);
    const float* const mask = a.mask == nullptr ? nullptr : a.mask + of_batch(a.mask_strides.batch);
    const Task task{a,
                    first,
                    last - first,
                    begin,
                    end - begin,
                    a.query + of_batch(a.query_strides.batch),
                    mask == nullptr ? nullptr : mask + begin * a.mask_strides.column,
                    a.key + (of_batch(a.key_strides.batch) + begin * a.key_strides.column),
                    a.value + (of_batch(a.value_strides.batch) + begin * a.value_strides.row),
                    a.context + of_batch(a.context_strides.batch),
                    a.tables.first + of_batch(a.tables.stride),
                    a.sinks == nullptr ? nullptr : a.sinks + of_batch(a.sink_batch),
                    packed_keys == nullptr ? nullptr : packed_keys + begin / kTileKeys * Products::panel_floats(a),
                    packed_values == nullptr ? nullptr : packed_values + begin * value_row(a)};
    Block<Products>(task, scratch).run();
  }
};

static std::size_t quantize_scratch(const Rows& rows) {
  const Index padded = round_up(rows.length, kLanes);
  return static_cast<std::size_t>(padded + KeySet::integers(padded));
}

template <class Products>
constexpr Kernels vector_kernels(const char* name, bool (*supported)()) {
  using Functions = Attend<Products>;
  return {name,
          supported,
          Products::pays,
          Products::rows_per_block,
          Functions::packed_keys,
          Functions::packed_values,
          Functions::pieces,
          Functions::pack_keys,
          Functions::pack_values,
          Functions::scratch,
          Functions::attend,
          quantize_scratch,
          quantize_rows};
}

}  // namespace
}  // namespace onnx_attnq

// The table of functions that a kernel is (attention.h), for one instruction set and one way to multiply.
#pragma once

#include "quantize_rows.h"
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
    const Index most = a.value.storage == Storage::kFloat ? kTileRows : VectorProducts::kContextRows;
    const bool few = a.groups * a.queries <= most && VectorProducts::reads_in_place(a);
    return few || values_are_rows(a) ? 0 : static_cast<std::size_t>(a.keys * value_row(a));
  }
  static void pack_values(const Attention& a, Numbers value, Index piece, float* packed) {
    pack_value_rows(a, value, piece * kPieceKeys, smaller((piece + 1) * kPieceKeys, a.keys), packed);
  }

  static std::size_t scratch(const Attention& a) { return static_cast<std::size_t>(layout_of<Products>(a).total); }

  static void attend(const Attention& a, Index batch, Index first, Index last, const float* packed_keys,
                     const float* packed_values, float* scratch) {
    const Task task = task_of(a, batch, first, last, packed_keys, packed_values);
    Block<Products>(task, scratch).run();
  }

  // So many keys are worth a task of their own, until there are so many tasks.
  static constexpr Index kPartKeys = 1024, kPartTasks = 8;

  static Index parts(const Attention& a) {
    const Index matrices = a.batch[0] * a.batch[1] * a.batch[2];
    const bool few = a.queries == 1 && a.groups <= Block<Products>::kContextRows && matrices < kPartTasks;
    // With the maximum of a row all parts know what its scores count for.
    const bool by_maximum = a.form.reference == Reference::kRowMax && a.form.normalize == Normalize::kUnit;
    const bool in_place = VectorProducts::reads_in_place(a) && !a.int16_products && !Products::screens(a);
    if (!few || !by_maximum || !in_place) return 1;
    const auto [begin, end] = seen_by_any(a, 0, a.groups);
    return larger(1, smaller((end - begin) / kPartKeys, kPartTasks / matrices));
  }

  // A call with the keys of a part only.
  static Attention part_of(const Attention& a, Index part) {
    const auto [begin, end] = seen_by_any(a, 0, a.groups);
    const Index size = round_up((end - begin + parts(a) - 1) / parts(a), 64);
    const Index first = smaller(begin + part * size, end);
    Attention own = a;
    own.bounds.first = a.bounds.first - first;
    own.keys = smaller(size, end - first);
    own.first_index = a.first_index + first;
    own.key = a.key + first * a.key_strides.column;
    own.value = a.value + first * a.value_strides.row;
    own.mask = a.mask == nullptr ? nullptr : a.mask + first * a.mask_strides.column;
    own.sinks = part == 0 ? a.sinks : nullptr;
    return own;
  }
  static std::size_t part_scratch(const Attention& a) { return scratch(part_of(a, 0)); }

  static void score_part(const Attention& a, Index batch, Index part, float* scratch, float* peaks) {
    const Attention own = part_of(a, part);
    const Task task = task_of(own, batch, 0, a.groups, nullptr, nullptr);
    Block<Products>(task, scratch).run_scores(peaks);
  }
  static void finish_part(const Attention& a, Index batch, Index part, float* scratch, const float* peaks,
                          float* results) {
    const Attention own = part_of(a, part);
    const Task task = task_of(own, batch, 0, a.groups, nullptr, nullptr);
    Block<Products>(task, scratch).run_rest(peaks, results);
  }
  static void end_parts(const Attention& a, Index batch, Index row, float* results, Index part_stride) {
    const Task task = task_of(a, batch, row, row + 1, nullptr, nullptr);
    Block<Products>::end_parts(task, results, part_stride, parts(a));
  }

 private:
  static Task task_of(const Attention& a, Index batch, Index first, Index last, const float* packed_keys,
                      const float* packed_values) {
    const auto of_batch = [&](const Index(&strides)[kBatchAxes]) { return batch_offset(a.batch, strides, batch); };
    const auto [begin, end] = seen_by_any(a, first, last);
    const float* const mask = a.mask == nullptr ? nullptr : a.mask + of_batch(a.mask_strides.batch);
    return {a,
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
          Functions::parts,
          Functions::part_scratch,
          Block<Products>::part_results,
          Functions::score_part,
          Functions::finish_part,
          Functions::end_parts,
          quantize_scratch,
          quantize_rows};
}

}  // namespace
}  // namespace onnx_attnq

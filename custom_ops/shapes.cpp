#include "shapes.h"

#include <algorithm>
#include <stdexcept>

namespace onnx_attnq {
namespace {

std::string text(const Shape& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

[[noreturn]] void misfit(const char* what, const Shape& a, const Shape& b) {
  throw std::invalid_argument(std::string(what) + ": shapes " + text(a) + " and " + text(b) + " do not fit");
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size());
  Index stride = 1;
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
  return strides;
}

// The extent of axis `axis` of `rank`, where the view's own axes are the last ones.
Index extent(const View& view, std::size_t rank, std::size_t axis) {
  const std::size_t missing = rank - view.shape.size();
  return axis < missing ? 1 : view.shape[axis - missing];
}

Index stride(const View& view, std::size_t rank, std::size_t axis) {
  const std::size_t missing = rank - view.shape.size();
  return axis < missing || view.shape[axis - missing] == 1 ? 0 : view.strides[axis - missing];
}

constexpr std::size_t kRank = kBatchAxes + 2;

Strides strides_of(const View& view) {
  Strides strides;
  for (std::size_t axis = 0; axis < kBatchAxes; ++axis) strides.batch[axis] = stride(view, kRank, axis);
  strides.row = stride(view, kRank, kBatchAxes);
  strides.column = stride(view, kRank, kBatchAxes + 1);
  return strides;
}

}  // namespace

Index element_count(const Shape& shape) {
  Index count = 1;
  for (Index extent : shape) count *= extent;
  return count;
}

Shape broadcast(const Shape& a, const Shape& b, const char* what) {
  const std::size_t rank = std::max(a.size(), b.size());
  Shape result(rank);
  for (std::size_t i = 0; i < rank; ++i) {  // from the last axis
    const Index left = i < a.size() ? a[a.size() - 1 - i] : 1;
    const Index right = i < b.size() ? b[b.size() - 1 - i] : 1;
    if (left != right && left != 1 && right != 1) misfit(what, a, b);
    result[rank - 1 - i] = left == 1 ? right : left;
  }
  return result;
}

Index broadcast_index(const Shape& to, const Shape& from, Index index) {
  const View view = whole(from);
  Index offset = 0;
  for (std::size_t axis = to.size(); axis-- > 0;) {
    offset += index % to[axis] * stride(view, to.size(), axis);
    index /= to[axis];
  }
  return offset;
}

void check_permutation(const Permutation& permutation, const char* name) {
  std::vector<bool> seen(permutation.size(), false);
  for (Index axis : permutation) {
    if (axis < 0 || axis >= static_cast<Index>(seen.size()) || seen[static_cast<std::size_t>(axis)]) {
      throw std::invalid_argument(std::string("attribute ") + name + " is not a permutation");
    }
    seen[static_cast<std::size_t>(axis)] = true;
  }
}

View whole(const Shape& shape) { return {shape, contiguous_strides(shape)}; }

View permuted(const Shape& shape, const Permutation& permutation, const char* what) {
  if (shape.size() != permutation.size() || shape.size() < 2 || shape.size() > kRank) {
    throw std::invalid_argument(std::string(what) + ": a permutation of " + std::to_string(permutation.size()) +
                                " axes does not fit shape " + text(shape) + "; the rank must be 2 to 5");
  }
  const Shape strides = contiguous_strides(shape);
  View view;
  for (Index axis : permutation) {
    view.shape.push_back(shape[static_cast<std::size_t>(axis)]);
    view.strides.push_back(strides[static_cast<std::size_t>(axis)]);
  }
  return view;
}

AttentionShape attention_shape(const View& query, const View& key, const View& value, const View& mask,
                               const Permutation& context_perm) {
  const auto batch_of = [](const View& view) { return Shape(view.shape.begin(), view.shape.end() - 2); };
  const auto from_end = [](const View& view, std::size_t i) { return view.shape[view.shape.size() - i]; };

  AttentionShape result{};
  Attention& a = result.attention;
  a.queries = from_end(query, 2);
  a.depth = from_end(query, 1);
  a.keys = from_end(key, 1);
  a.value_depth = from_end(value, 1);
  if (from_end(key, 2) != a.depth) misfit("query and key", query.shape, key.shape);
  if (from_end(value, 2) != a.keys) misfit("key and value", key.shape, value.shape);

  Shape scores = broadcast(batch_of(query), batch_of(key), "query and key");
  scores.insert(scores.end(), {a.queries, a.keys});
  if (mask.shape.size() > kRank || broadcast(scores, mask.shape, "scores and mask").back() != a.keys) {
    misfit("scores and mask", scores, mask.shape);
  }
  scores = broadcast(scores, mask.shape, "scores and mask");
  if (scores[scores.size() - 2] != a.queries) misfit("scores and mask", scores, mask.shape);

  Shape context = broadcast(Shape(scores.begin(), scores.end() - 2), batch_of(value), "scores and value");
  context.insert(context.end(), {a.queries, a.value_depth});
  if (context.size() != context_perm.size()) {
    throw std::invalid_argument("attribute out_perm does not fit a context of shape " + text(context));
  }
  for (Index axis : context_perm) result.output.push_back(context[static_cast<std::size_t>(axis)]);
  const Shape output_strides = contiguous_strides(result.output);
  View out{context, Shape(context.size())};
  for (std::size_t i = 0; i < context_perm.size(); ++i) {
    out.strides[static_cast<std::size_t>(context_perm[i])] = output_strides[i];
  }

  for (std::size_t axis = 0; axis < kBatchAxes; ++axis) a.batch[axis] = extent(out, kRank, axis);
  a.query_strides = strides_of(query);
  a.key_strides = strides_of(key);
  a.value_strides = strides_of(value);
  a.mask_strides = strides_of(mask);
  a.context_strides = strides_of(out);
  a.groups = 1;
  a.row_length = a.keys;
  return result;
}

void join_groups(Attention& a) {
  constexpr int last = kBatchAxes - 1;
  if (a.batch[last] == 1 || a.key_strides.batch[last] != 0 || a.value_strides.batch[last] != 0) return;
  a.groups = a.batch[last];
  a.query_group = a.query_strides.batch[last];
  a.mask_group = a.mask_strides.batch[last];
  a.context_group = a.context_strides.batch[last];
  a.table_group = a.tables.stride[last];
  a.sink_group = a.sink_batch[last];
  a.batch[last] = 1;
}

Rows rows_of(const Shape& shape) {
  if (shape.empty()) throw std::invalid_argument("scores must have at least one axis");
  Shape padded = shape;
  while (padded.size() < kRank) padded.insert(padded.begin(), 1);
  Rows rows{};
  rows.length = padded.back();
  rows.rows_per_matrix = std::max<Index>(1, padded[padded.size() - 2]);
  rows.rows = element_count(Shape(padded.begin(), padded.end() - 1));
  for (std::size_t axis = 0; axis < kBatchAxes; ++axis) rows.batch[axis] = padded[padded.size() - kRank + axis];
  return rows;
}

Tables tables_of(const Table* first, const Shape& shape, const Index (&batch)[kBatchAxes]) {
  Tables tables{first, {}};
  Index stride = 1;
  for (int axis = kBatchAxes; axis-- > 0;) {
    const Index tables_there = shape[static_cast<std::size_t>(axis)];
    if (tables_there != 1 && tables_there != batch[axis]) {
      throw std::invalid_argument("the scheme's attributes have tables for " + std::to_string(tables_there) +
                                  " heads, the scores have " + std::to_string(batch[axis]));
    }
    tables.stride[axis] = tables_there == 1 ? 0 : stride;
    stride *= tables_there;
  }
  return tables;
}

}  // namespace onnx_attnq

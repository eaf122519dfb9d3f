// From shapes and permutations, as the nodes of a model have them, to the strides that kernels use.
#pragma once

#include <string>
#include <vector>

#include "attention.h"

namespace onnx_attnq {

using Shape = std::vector<Index>;
using Permutation = std::vector<Index>;

// Every function here throws std::invalid_argument, naming what does not fit.

Index element_count(const Shape& shape);

// NumPy's broadcasting.
Shape broadcast(const Shape& a, const Shape& b, const char* what);

// The index into a tensor of shape `from` of element `index` of the shape `to` it is broadcast to.
Index broadcast_index(const Shape& to, const Shape& from, Index index);

void check_permutation(const Permutation& permutation, const char* name);

// A contiguous tensor after a permutation of its axes.
struct View {
  Shape shape, strides;
};
View whole(const Shape& shape);
View permuted(const Shape& shape, const Permutation& permutation, const char* what);

struct AttentionShape {
  Attention attention;  // extents and strides; the rest is the caller's to fill in
  Shape output;
};
AttentionShape attention_shape(const View& query, const View& key, const View& value, const View& mask,
                               const Permutation& context_perm);

// Makes rows of the last batch axis where keys and values do not differ along it. Needs the tables' strides.
void join_groups(Attention& attention);

Rows rows_of(const Shape& shape);

// Strides of the batch axes in tables of shape (..., 1, 1), which has rank kBatchAxes + 2.
Tables tables_of(const Table* first, const Shape& shape, const Index (&batch)[kBatchAxes]);

}  // namespace onnx_attnq

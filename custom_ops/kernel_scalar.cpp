// The reference kernel: plain loops, one row at a time, the order of numerics.py. Read this one first.
#include <algorithm>
#include <bitset>
#include <cmath>
#include <limits>

#include "kernels.h"

namespace onnx_attnq {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int code_of(float scaled, const Table& table) {
  const float position = scaled * table.inverse_step + table.offset;
  // Written so that a NaN, which has been dealt with before, would still be a valid code.
  return position >= 1.0f ? static_cast<int>(std::min(position, table.levels)) : 0;
}

// What x stands for; `kept` tells a value that was pruned from one that is zero.
float value_of(float x, float log_x, const Form& form, const Table& table, bool& kept) {
  if (!quantizes(form)) {
    kept = x >= table.threshold;
    return kept ? x : 0.0f;
  }
  const int code =
      x > 0 || form.spacing == Spacing::kLog ? code_of(form.spacing == Spacing::kLog ? log_x : x, table) : 0;
  kept = code > 0;
  return table.level[code];
}

// What x counts for in the sum of pruned values: the level of its code, continued below the lowest edge, or x itself.
double continued_level(float x, float log_x, const Form& form, const Table& table) {
  if (!quantizes(form)) return x;
  const double step = 1.0 / table.inverse_step;
  const double code = std::floor(log_x * table.inverse_step + table.offset);
  return std::exp((code + 0.5 - table.offset) * step);  // table.offset is the attribute's plus one
}

// What the pruned keys of a row sum to, and the sample of keys that shares it; neither unless the form says so.
class Shared {
 public:
  Shared(Index row_length, const Form& form, const Table& table)
      : stride_(sample_stride(row_length)), form_(form), table_(table) {}

  void add(Index key, float x, float log_x, bool kept) {
    if (!form_.shares || !(log_x >= kMaskedNats)) return;
    if (key % stride_ == 0) sample_.set(static_cast<std::size_t>(key / stride_));
    if (!kept) tail_ += continued_level(x, log_x, form_, table_);
  }
  // Adds its part to the weight of each sampled key, of which the last may have an index further on (a sink), and
  // returns what that is in all.
  double give_to(float* weights, Index count) const {
    if (sample_.none()) return 0;
    const auto each = static_cast<float>(tail_ / static_cast<double>(sample_.count()));
    for (std::size_t i = 0; i < sample_.size(); ++i) {
      if (sample_[i]) weights[std::min(static_cast<Index>(i) * stride_, count - 1)] += each;
    }
    return tail_;
  }

 private:
  const Index stride_;
  const Form& form_;
  const Table& table_;
  std::bitset<256> sample_;
  double tail_ = 0;
};

float ratio(double numerator, double denominator) {
  return denominator == 0 ? 0.0f : static_cast<float>(numerator / denominator);
}

// Replaces scores by weights and returns the factor that makes probabilities of them; NaN for a NaN row. `sink_index`
// is the index that the last score counts as.
float weights_of_scores(float* row, Index length, Index sink_index, const Form& form, const Table& table,
                        float row_max_floor) {
  float peak = row_max_floor;
  for (Index j = 0; j < length; ++j) {
    if (std::isnan(row[j])) return kNaN;
    peak = std::max(peak, row[j]);
  }
  // All at -inf without a guard, or one at +inf: softmax divides NaN by NaN.
  if (std::isinf(peak)) return kNaN;

  double sum = 0;
  for (Index j = 0; j < length; ++j) sum += std::exp(row[j] - peak);
  const float log_sum = static_cast<float>(std::log(sum));
  const bool absolute = form.reference == Reference::kAbsolute;

  double kept_sum = 0, total = 0;
  Shared shared(sink_index + 1, form, table);
  for (Index j = 0; j < length; ++j) {
    const float relative = std::exp(row[j] - peak);
    const float x = absolute ? ratio(relative, sum) : relative;
    const float log_x = row[j] - peak - (absolute ? log_sum : 0.0f);
    bool kept;
    row[j] = value_of(x, log_x, form, table, kept);
    total += row[j];
    if (kept) kept_sum += relative;
    shared.add(j == length - 1 ? sink_index : j, x, log_x, kept);
  }
  total += shared.give_to(row, length);
  switch (form.normalize) {
    case Normalize::kUnit:
      return ratio(1, total);
    case Normalize::kMass:
      return ratio(ratio(kept_sum, sum), total);
    case Normalize::kNone:
      break;
  }
  return absolute ? 1.0f : ratio(1, sum);  // 1 / sum is the row's largest probability
}

// The same for probabilities.
float weights_of_probabilities(float* row, Index length, const Form& form, const Table& table) {
  const bool absolute = form.reference == Reference::kAbsolute;
  float peak = 0;
  for (Index j = 0; j < length; ++j) {
    if (std::isnan(row[j])) return kNaN;
    peak = std::max(peak, row[j]);
  }
  const float unit = absolute || peak == 0 ? 1.0f : peak;

  double sum = 0, kept_sum = 0, total = 0;
  Shared shared(length, form, table);
  for (Index j = 0; j < length; ++j) {
    const float p = row[j];
    sum += p;
    const float x = p / unit, log_x = x > 0 ? std::log(x) : -kInfinity;
    bool kept;
    row[j] = value_of(x, log_x, form, table, kept);
    total += row[j];
    if (kept) kept_sum += p;
    shared.add(j, x, log_x, kept);
  }
  total += shared.give_to(row, length);
  switch (form.normalize) {
    case Normalize::kUnit:
      return ratio(sum, total);
    case Normalize::kMass:
      return ratio(kept_sum, total);
    case Normalize::kNone:
      break;
  }
  return unit;
}

void quantize_rows(const Rows& rows, Index first, Index last, float*) {
  for (Index r = first; r < last; ++r) {
    const float* input = rows.input + r * rows.length;
    float* output = rows.output + r * rows.length;
    const Table& table = rows.tables.first[batch_offset(rows.batch, rows.tables.stride, r / rows.rows_per_matrix)];
    if (output != input) std::copy_n(input, rows.length, output);
    const float factor = rows.are_scores
                             ? weights_of_scores(output, rows.length, rows.length - 1, rows.form, table, -kInfinity)
                             : weights_of_probabilities(output, rows.length, rows.form, table);
    for (Index j = 0; j < rows.length; ++j) output[j] = std::isnan(factor) ? kNaN : output[j] * factor;
  }
}

void attend_rows(const Attention& a, Index batch, Index first, Index last, const float*, const float*, float* scores) {
  const float* query = a.query + batch_offset(a.batch, a.query_strides.batch, batch);
  const Numbers key = a.key + batch_offset(a.batch, a.key_strides.batch, batch);
  const Numbers value = a.value + batch_offset(a.batch, a.value_strides.batch, batch);
  const float* mask = a.mask == nullptr ? nullptr : a.mask + batch_offset(a.batch, a.mask_strides.batch, batch);
  float* context = a.context + batch_offset(a.batch, a.context_strides.batch, batch);
  const Table* table = a.tables.first + batch_offset(a.batch, a.tables.stride, batch);
  const float* sink = a.sinks == nullptr ? nullptr : a.sinks + batch_offset(a.batch, a.sink_batch, batch);

  for (Index r = first; r < last; ++r) {
    const Index group = r / a.queries, i = r % a.queries;
    const float* q = query + group * a.query_group + i * a.query_strides.row;
    const float* m = mask == nullptr ? nullptr : mask + group * a.mask_group + i * a.mask_strides.row;
    float* c = context + group * a.context_group + i * a.context_strides.row;

    for (Index j = 0; j < a.keys; ++j) {
      scores[j] = -kInfinity;
      if (j < a.bounds.begin(i) || j >= a.bounds.end(i, a.keys)) continue;
      const Numbers k = key + j * a.key_strides.column;
      float dot = 0;
      for (Index d = 0; d < a.depth; ++d) dot += q[d * a.query_strides.column] * a.scale * k[d * a.key_strides.row];
      if (a.softcap != 0) dot = a.softcap * std::tanh(dot / a.softcap);
      scores[j] = m == nullptr ? dot : dot + m[j * a.mask_strides.column];
    }
    Index length = a.keys, last = a.keys - 1;
    if (sink != nullptr) {
      scores[length++] = sink[group * a.sink_group];
      last = a.row_length - 1;
    } else if (a.row_length > a.keys) {
      scores[length++] = -kInfinity;  // stands for all that no row sees
      last = a.row_length - 1;
    }
    const float factor =
        a.keys == 0 ? 0.0f
                    : weights_of_scores(scores, length, last, a.form, table[group * a.table_group], a.row_max_floor);
    for (Index d = 0; d < a.value_depth; ++d) {
      double sum = 0;
      for (Index j = 0; j < a.keys; ++j) {
        // Pruned keys are not read, here and in every kernel.
        if (scores[j] != 0) sum += scores[j] * value[j * a.value_strides.row + d * a.value_strides.column];
      }
      c[d * a.context_strides.column] = static_cast<float>(sum * factor);
    }
  }
}

}  // namespace

const Kernels kScalarKernels = {
    "scalar",
    [] { return true; },
    [](const Attention&) { return true; },
    [](const Attention&) -> Index { return 8; },
    nullptr,  // nothing is packed
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    [](const Attention& attention) { return static_cast<std::size_t>(attention.keys + 1); },
    attend_rows,
    nullptr,  // nor cut into parts
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    [](const Rows&) -> std::size_t { return 0; },
    quantize_rows,
};

}  // namespace onnx_attnq

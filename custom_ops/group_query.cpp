#include "group_query.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "shapes.h"

namespace onnx_attnq {
namespace {

// Memory of the host's for the length of a call.
class Scratch {
 public:
  Scratch(Host& host, Index floats)
      : host_(host),
        memory_(floats == 0 ? nullptr : host.allocate(static_cast<std::size_t>(floats) * sizeof(float))),
        enough_(floats == 0 || memory_ != nullptr) {}
  ~Scratch() {
    if (memory_ != nullptr) host_.release(memory_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const { return static_cast<float*>(memory_); }
  bool enough() const { return enough_; }

 private:
  Host& host_;
  void* const memory_;
  const bool enough_;
};

// Where one batch entry stands.
struct Entry {
  Index keys;    // cached and new
  Index cached;  // keys before the new ones
  Index first;   // position of the first query
};

Entry entry_of(const GroupQuery& c, Index b) {
  const Index keys = static_cast<Index>(c.last_key[b]) + 1;
  return {keys, std::max<Index>(keys - c.new_rows, 0), std::max<Index>(keys - c.queries, 0)};
}

void check_lengths(const GroupQuery& c) {
  for (Index b = 0; b < c.batch; ++b) {
    const Entry e = entry_of(c, b);
    if (e.keys < 0 || e.keys > c.capacity || e.cached > c.past_rows || e.cached + c.new_rows > c.capacity) {
      throw std::invalid_argument("seqlens_k[" + std::to_string(b) + "] is " + std::to_string(e.keys - 1) +
                                  ", which does not fit a cache of " + std::to_string(c.past_rows) + " and " +
                                  std::to_string(c.new_rows) + " new rows");
    }
  }
}

Index position_of(const GroupQuery& c, Index b, Index i) {
  Index position = entry_of(c, b).first + i;
  if (c.positions != nullptr) position = c.prompt ? c.positions[0] + i : c.positions[b * c.queries + i];
  if (position < 0 || position >= c.table_rows) {
    throw std::invalid_argument("position " + std::to_string(position) + " is not in a cos_cache of " +
                                std::to_string(c.table_rows) + " rows");
  }
  return position;
}

void check_positions(const GroupQuery& c) {
  if (c.cos == nullptr) return;
  for (Index b = 0; b < c.batch; ++b) {
    for (Index i = 0; i < c.queries; ++i) position_of(c, b, i);
  }
}

// (x, y) becomes (x cos - y sin, x sin + y cos); pairs are neighbours, or lie `columns` apart.
void rotate(const GroupQuery& c, Index position, const float* in, float* out) {
  const float* const cos = c.cos + position * c.columns;
  const float* const sin = c.sin + position * c.columns;
  if (c.interleaved) {
    for (Index i = 0; i < c.columns; ++i) {
      const float x = in[2 * i], y = in[2 * i + 1];
      out[2 * i] = x * cos[i] - y * sin[i];
      out[2 * i + 1] = x * sin[i] + y * cos[i];
    }
  } else {
    for (Index i = 0; i < c.columns; ++i) {
      const float x = in[i], y = in[c.columns + i];
      out[i] = x * cos[i] - y * sin[i];
      out[c.columns + i] = x * sin[i] + y * cos[i];
    }
  }
  std::copy(in + 2 * c.columns, in + c.depth, out + 2 * c.columns);
}

void rotate_queries(const GroupQuery& c, Index b, Index head, float* rotated) {
  float* out = rotated + (b * c.heads + head) * c.queries * c.depth;
  const float* in = c.query + b * c.queries * c.query_row + head * c.depth;
  for (Index i = 0; i < c.queries; ++i) {
    rotate(c, position_of(c, b, i), in + i * c.query_row, out + i * c.depth);
  }
}

// What was cached, unless it is there already, then the new rows, then zeros.
void write_cache(const GroupQuery& c, Index b, Index head, const float* past, float* present, const float* rows,
                 bool rotates) {
  const Entry e = entry_of(c, b);
  const Index matrix = b * c.kv_heads + head;
  float* const out = present + matrix * c.capacity * c.depth;
  float* next = out + e.cached * c.depth;
  if (present != past) {
    if (past != nullptr) std::copy_n(past + matrix * c.past_rows * c.depth, e.cached * c.depth, out);
    float* const end = next + c.new_rows * c.depth;
    std::fill(end, std::max(end, out + c.capacity * c.depth), 0.0f);
  }
  const float* in = rows + b * c.new_rows * c.key_row + head * c.depth;
  for (Index i = 0; i < c.new_rows; ++i, next += c.depth, in += c.key_row) {
    if (rotates) {
      rotate(c, position_of(c, b, i), in, next);
    } else {
      std::copy_n(in, c.depth, next);
    }
  }
}

template <class Function>
void parallel_for(Host& host, Index count, Function function) {
  host.parallel_for(
      count, [](void* user, std::size_t i) { (*static_cast<Function*>(user))(static_cast<Index>(i)); }, &function);
}

// The attention of `count` batch entries of equal lengths, from entry b on.
bool attend_entries(const GroupQuery& c, Index b, Index count, const float* rotated, const Selection& kernels,
                    Host& host) {
  const Entry e = entry_of(c, b);
  const Index group = c.heads / c.kv_heads, depth = c.depth;
  Attention a{};
  a.form = c.form;
  a.tables = c.tables;
  a.batch[0] = count, a.batch[1] = c.kv_heads, a.batch[2] = group;
  a.queries = c.queries, a.keys = e.keys, a.depth = depth, a.value_depth = depth;
  if (rotated != nullptr) {
    const Index matrix = c.queries * depth;
    a.query = rotated + b * c.heads * matrix;
    a.query_strides = {{c.heads * matrix, group * matrix, matrix}, depth, 1};
  } else {
    a.query = c.query + b * c.queries * c.query_row;
    a.query_strides = {{c.queries * c.query_row, group * depth, depth}, c.query_row, 1};
  }
  const Index cache = c.capacity * depth, offset = b * c.kv_heads * cache;
  a.key = c.present_key + offset;
  a.key_strides = {{c.kv_heads * cache, cache, 0}, 1, depth};
  a.value = c.present_value + offset;
  a.value_strides = {{c.kv_heads * cache, cache, 0}, depth, 1};
  if (c.bias != nullptr) {
    a.mask = c.bias + b * c.bias_batch;
    a.mask_strides = {{c.bias_batch, group * c.bias_head, c.bias_head}, c.total, 1};
  }
  a.bounds = {c.causal, e.first, c.window};
  a.softcap = c.softcap;
  const bool sink = c.sinks != nullptr || c.smooth;
  static constexpr float kSmooth = 0;
  a.sinks = c.sinks != nullptr ? c.sinks : c.smooth ? &kSmooth : nullptr;
  if (c.sinks != nullptr) a.sink_batch[1] = group, a.sink_batch[2] = 1;
  a.row_length = c.total + (sink ? 1 : 0);
  a.context = c.context + b * c.queries * c.heads * depth;
  a.context_strides = {{c.queries * c.heads * depth, group * depth, depth}, c.heads * depth, 1};
  a.groups = 1;
  a.scale = c.scale;
  a.row_max_floor = -std::numeric_limits<float>::infinity();
  a.rough_scores = kernels.rough_scores;
  join_groups(a);
  return attend(a, kernels.of(a), host);
}

}  // namespace

bool attend(const GroupQuery& c, const Selection& kernels, Host& host) {
  if (c.batch == 0) return true;
  check_lengths(c);
  check_positions(c);
  const bool rotates = c.cos != nullptr;
  const Scratch rotated(host, rotates ? c.batch * c.heads * c.queries * c.depth : 0);
  if (!rotated.enough()) return false;

  const Index query_heads = rotates ? c.heads : 0, per_entry = query_heads + 2 * c.kv_heads;
  parallel_for(host, c.batch * per_entry, [&](Index i) {
    const Index b = i / per_entry, head = i % per_entry;
    if (head < query_heads) return rotate_queries(c, b, head, rotated.data());
    const Index kv_head = head - query_heads;
    if (kv_head < c.kv_heads) {
      write_cache(c, b, kv_head, c.past_key, c.present_key, c.key, rotates);
    } else {
      write_cache(c, b, kv_head - c.kv_heads, c.past_value, c.present_value, c.value, false);
    }
  });
  for (Index b = 0; b < c.batch;) {
    Index count = 1;
    while (b + count < c.batch && c.last_key[b + count] == c.last_key[b]) ++count;
    if (!attend_entries(c, b, count, rotated.data(), kernels, host)) return false;
    b += count;
  }
  return true;
}

}  // namespace onnx_attnq

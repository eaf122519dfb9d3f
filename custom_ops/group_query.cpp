#include "group_query.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "shapes.h"

namespace onnx_attnq {
namespace {

template <class Function>
void parallel_for(Host& host, Index count, Function function) {
  host.parallel_for(
      count, [](void* user, std::size_t i) { (*static_cast<Function*>(user))(static_cast<Index>(i)); }, &function);
}

// The position of one batch entry.
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
    // A bias has columns for the total length only.
    if (e.keys < 0 || e.keys > c.total || e.cached > c.past_rows || e.cached + c.new_rows > c.capacity) {
      throw std::invalid_argument("seqlens_k[" + std::to_string(b) + "] is " + std::to_string(e.keys - 1) +
                                  ", which does not fit a cache of " + std::to_string(c.past_rows) + " and " +
                                  std::to_string(c.new_rows) + " new rows, or total_sequence_length " +
                                  std::to_string(c.total));
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
  if (!c.rotates) return;
  for (Index b = 0; b < c.batch; ++b) {
    for (Index i = 0; i < c.queries; ++i) position_of(c, b, i);
  }
}

// A call with what it needs in between.
class Call {
 public:
  Call(const GroupQuery& call, Host& host)
      : c(call),
        host_(host),
        group_(call.heads / call.kv_heads),
        prepares_(call.rotates || call.type != Storage::kFloat || call.key_steps.steps != nullptr),
        prepared_(host, prepares_ ? call.batch * call.heads * call.queries * call.depth : 0),
        angles_(host, call.rotates && call.type != Storage::kFloat ? 2 * call.batch * call.queries * call.columns : 0),
        rows_(host, call.cache != Storage::kFloat ? 2 * call.batch * call.kv_heads * call.depth : 0),
        bias_(host, call.type != Storage::kFloat ? call.bias_floats : 0),
        sinks_(host, call.sinks.data != nullptr && call.type != Storage::kFloat ? call.heads : 0),
        context_(host, call.type != Storage::kFloat ? call.batch * call.queries * call.heads * call.depth : 0) {}

  bool run(const Selection& kernels) {
    for (const Scratch* scratch : {&prepared_, &angles_, &rows_, &bias_, &sinks_, &context_}) {
      if (!scratch->enough()) return false;
    }
    widen_what_is_shared();
    prepare();
    for (Index b = 0; b < c.batch;) {
      Index count = 1;
      while (b + count < c.batch && c.last_key[b + count] == c.last_key[b]) ++count;
      if (!attend_entries(b, count, kernels)) return false;
      b += count;
    }
    finish_context();
    return true;
  }

 private:
  // All of small numbers that more than one task reads: angles of all positions, bias and sinks.
  void widen_what_is_shared() {
    if (angles_.data() != nullptr) {
      parallel_for(host_, c.batch * c.queries, [&](Index i) {
        const Index from = position_of(c, i / c.queries, i % c.queries) * c.columns;
        widen(c.cos + from, c.columns, angles_.data() + 2 * i * c.columns);
        widen(c.sin + from, c.columns, angles_.data() + (2 * i + 1) * c.columns);
      });
    }
    if (bias_.data() != nullptr) {
      parallel_for(host_, c.bias_floats / std::max<Index>(c.total, 1),
                   [&](Index i) { widen(c.bias + i * c.total, c.total, bias_.data() + i * c.total); });
    }
    if (sinks_.data() != nullptr) widen(c.sinks, c.heads, sinks_.data());
  }

  // Queries as the attention takes them, and the rows of the caches.
  void prepare() {
    const Index query_heads = prepares_ ? c.heads : 0, per_entry = query_heads + 2 * c.kv_heads;
    parallel_for(host_, c.batch * per_entry, [&](Index i) {
      const Index b = i / per_entry, head = i % per_entry;
      if (head < query_heads) return prepare_queries(b, head);
      const Index kv_head = (head - query_heads) % c.kv_heads;
      if (head - query_heads < c.kv_heads) {
        write_cache(b, kv_head, c.past_key, c.present_key, c.key, c.key_steps, c.rotates, 0);
      } else {
        write_cache(b, kv_head, c.past_value, c.present_value, c.value, c.value_steps, false, 1);
      }
    });
  }

  // (x, y) becomes (x cos - y sin, x sin + y cos); pairs are neighbours, or lie `columns` apart. In and out may be one.
  void rotate(Index b, Index i, const float* in, float* out) const {
    const float *cos, *sin;
    if (angles_.data() != nullptr) {
      cos = angles_.data() + 2 * (b * c.queries + i) * c.columns;
      sin = cos + c.columns;
    } else {
      const Index from = position_of(c, b, i) * c.columns;
      cos = c.cos.floats() + from;
      sin = c.sin.floats() + from;
    }
    if (c.interleaved) {
      for (Index k = 0; k < c.columns; ++k) {
        const float x = in[2 * k], y = in[2 * k + 1];
        out[2 * k] = x * cos[k] - y * sin[k];
        out[2 * k + 1] = x * sin[k] + y * cos[k];
      }
    } else {
      for (Index k = 0; k < c.columns; ++k) {
        const float x = in[k], y = in[c.columns + k];
        out[k] = x * cos[k] - y * sin[k];
        out[c.columns + k] = x * sin[k] + y * cos[k];
      }
    }
    if (in != out) std::copy(in + 2 * c.columns, in + c.depth, out + 2 * c.columns);
  }

  // Rotated, and times the steps of the keys, which are then left out of the products.
  void prepare_queries(Index b, Index head) {
    float* out = prepared_.data() + (b * c.heads + head) * c.queries * c.depth;
    for (Index i = 0; i < c.queries; ++i, out += c.depth) {
      const Numbers in = c.query + ((b * c.queries + i) * c.query_row + head * c.depth);
      const float* from = in.floats();
      if (in.storage != Storage::kFloat || !c.rotates) {
        widen(in, c.depth, out);
        from = out;
      }
      if (c.rotates) rotate(b, i, from, out);
      for (Index d = 0; c.key_steps.steps != nullptr && d < c.depth; ++d) out[d] *= c.key_steps.of(head / group_, d);
    }
  }

  // What was cached, unless it is there already, then the new rows, then zeros.
  void write_cache(Index b, Index head, const void* past, void* present, Numbers rows, const Steps& steps, bool rotates,
                   Index which) {
    const Entry e = entry_of(c, b);
    const Index matrix = b * c.kv_heads + head;
    const auto bytes = [&](Index some) { return bytes_of(c.cache, some * c.depth); };
    char* const out = static_cast<char*>(present) + bytes(matrix * c.capacity);
    char* next = out + bytes(e.cached);
    if (present != past) {
      const char* const from = static_cast<const char*>(past);
      if (past != nullptr) std::copy_n(from + bytes(matrix * c.past_rows), bytes(e.cached), out);
      char* const end = next + bytes(c.new_rows);
      std::fill(end, std::max(end, out + bytes(c.capacity)), '\0');
    }
    for (Index i = 0; i < c.new_rows; ++i, next += bytes(1)) {
      const Numbers in = rows + ((b * c.new_rows + i) * c.key_row + head * c.depth);
      if (!rotates && in.storage == c.cache) {
        std::memcpy(next, in.data, static_cast<std::size_t>(bytes(1)));
        continue;
      }
      float* const row =
          c.cache == Storage::kFloat ? reinterpret_cast<float*>(next) : rows_.data() + (2 * matrix + which) * c.depth;
      const float* from = in.floats();
      if (in.storage != Storage::kFloat || !rotates) {
        widen(in, c.depth, row);
        from = row;
      }
      if (rotates) rotate(b, i, from, row);
      for (Index d = 0; steps.steps != nullptr && d < c.depth; ++d) {
        // The op's definition rounds what it rotates to the type of its tensors.
        if (rotates && c.type == Storage::kHalf) row[d] = float_of_half(half_of_float(row[d]));
        row[d] /= steps.of(head, d);
      }
      if (c.cache != Storage::kFloat) narrow(row, c.depth, c.cache, next);
    }
  }

  float* context() const { return context_.data() != nullptr ? context_.data() : static_cast<float*>(c.context); }

  // The attention of `count` batch entries of equal lengths, from entry b on.
  bool attend_entries(Index b, Index count, const Selection& kernels) {
    const Entry e = entry_of(c, b);
    const Index depth = c.depth;
    Attention a{};
    a.form = c.form;
    a.tables = c.tables;
    a.batch[0] = count, a.batch[1] = c.kv_heads, a.batch[2] = group_;
    a.queries = c.queries, a.keys = e.keys, a.depth = depth, a.value_depth = depth;
    if (prepares_) {
      const Index matrix = c.queries * depth;
      a.query = prepared_.data() + b * c.heads * matrix;
      a.query_strides = {{c.heads * matrix, group_ * matrix, matrix}, depth, 1};
    } else {
      a.query = c.query.floats() + b * c.queries * c.query_row;
      a.query_strides = {{c.queries * c.query_row, group_ * depth, depth}, c.query_row, 1};
    }
    const Index cache = c.capacity * depth, offset = b * c.kv_heads * cache;
    a.key = Numbers{c.present_key, c.cache} + offset;
    a.key_strides = {{c.kv_heads * cache, cache, 0}, 1, depth};
    a.value = Numbers{c.present_value, c.cache} + offset;
    a.value_strides = {{c.kv_heads * cache, cache, 0}, depth, 1};
    if (c.bias.data != nullptr) {
      a.mask = (bias_.data() != nullptr ? bias_.data() : c.bias.floats()) + b * c.bias_batch;
      a.mask_strides = {{c.bias_batch, group_ * c.bias_head, c.bias_head}, c.total, 1};
    }
    a.bounds = {c.causal, e.first, c.window};
    a.softcap = c.softcap;
    static constexpr float kSmooth = 0;
    if (c.sinks.data != nullptr) {
      a.sinks = sinks_.data() != nullptr ? sinks_.data() : c.sinks.floats();
      a.sink_batch[1] = group_, a.sink_batch[2] = 1;
    } else if (c.smooth) {
      a.sinks = &kSmooth;
    }
    a.row_length = c.total + (a.sinks == nullptr ? 0 : 1);
    a.context = context() + b * c.queries * c.heads * depth;
    a.context_strides = {{c.queries * c.heads * depth, group_ * depth, depth}, c.heads * depth, 1};
    a.groups = 1;
    a.scale = c.scale;
    a.row_max_floor = -std::numeric_limits<float>::infinity();
    a.rough_scores = kernels.rough_scores;
    join_groups(a);
    return attend(a, kernels.of(a), host_);
  }

  // Times the steps of the values, and as the output has it.
  void finish_context() {
    if (c.value_steps.steps == nullptr && context_.data() == nullptr) return;
    const Index row = c.heads * c.depth;
    parallel_for(host_, c.batch * c.queries, [&](Index i) {
      float* const x = context() + i * row;
      for (Index k = 0; c.value_steps.steps != nullptr && k < row; ++k) {
        x[k] *= c.value_steps.of(k / c.depth / group_, k % c.depth);
      }
      if (context_.data() != nullptr) {
        narrow(x, row, c.type, static_cast<char*>(c.context) + bytes_of(c.type, i * row));
      }
    });
  }

  const GroupQuery& c;
  Host& host_;
  const Index group_;
  const bool prepares_;  // queries
  const Scratch prepared_, angles_, rows_, bias_, sinks_, context_;
};

}  // namespace

bool attend(const GroupQuery& call, const Selection& kernels, Host& host) {
  if (call.batch == 0) return true;
  check_lengths(call);
  check_positions(call);
  return Call(call, host).run(kernels);
}

}  // namespace onnx_attnq

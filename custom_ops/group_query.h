// The attention of a decoder with a cache, as com.microsoft GroupQueryAttention defines it: new keys and values are
// written behind those that are cached, and queries and keys rotated by their position.
#pragma once

#include <cstdint>
#include <string>

#include "dispatch.h"

namespace onnx_attnq {

// Tensors are contiguous but for query, key and value, whose rows lie `row` apart (they may be packed in one).
struct GroupQuery {
  Form form;
  Tables tables;

  Index batch, heads, kv_heads, queries, new_rows, depth;
  const float* query;  // (batch, queries, heads, depth)
  const float* key;    // (batch, new_rows, kv_heads, depth)
  const float* value;
  Index query_row, key_row;

  const float* past_key;  // (batch, kv_heads, past_rows, depth), or null; may be present_key
  const float* past_value;
  float* present_key;  // (batch, kv_heads, capacity, depth)
  float* present_value;
  Index past_rows, capacity;
  const std::int32_t* last_key;  // of each batch entry

  const float* cos;  // (table_rows, columns), or null for no rotation
  const float* sin;
  Index columns, table_rows;
  const std::int64_t* positions;  // (batch, queries), or null
  bool prompt;                    // positions then count on from the first
  bool interleaved;

  const float* bias;  // added to the scores, (batch or 1, heads or 1, queries, total), or null
  Index bias_batch, bias_head, total;
  const float* sinks;  // the score of one key more, without a value, for each head; or null
  bool smooth;         // such a score of 0

  float scale, softcap;
  bool causal;
  Index window;    // how many keys a query sees, the last of them at its own position; 0 for all
  float* context;  // (batch, queries, heads, depth)
};

// Runs a whole call on the host's threads; false when memory ran out. Throws std::invalid_argument for lengths and
// positions that do not fit.
bool attend(const GroupQuery& call, const Selection& kernels, Host& host);

}  // namespace onnx_attnq

// The attention of a decoder with a cache, as com.microsoft GroupQueryAttention defines it: new keys and values are
// written behind those that are cached, and queries and keys rotated by their position.
#pragma once

#include <cstdint>
#include <string>

#include "dispatch.h"

namespace onnx_attnq {

// A cache's numbers are multiples of these: one for all, or one for each number of each head's vectors. No pointer
// where the cache has the numbers themselves.
struct Steps {
  const float* steps;
  Index head;  // how far those of a head lie apart; 0 where there is one for all
  bool each;

  float of(Index h, Index d) const { return steps[each ? h * head + d : 0]; }
};

// Tensors are contiguous but for query, key and value, whose rows lie `row` apart (they may be packed in one).
struct GroupQuery {
  Form form;
  Tables tables;

  Storage type;   // of all that is not of another below
  Storage cache;  // of past and present

  Index batch, heads, kv_heads, queries, new_rows, depth;
  Numbers query;  // (batch, queries, heads, depth)
  Numbers key;    // (batch, new_rows, kv_heads, depth)
  Numbers value;
  Index query_row, key_row;

  const void* past_key;  // (batch, kv_heads, past_rows, depth), or null; may be present_key
  const void* past_value;
  void* present_key;  // (batch, kv_heads, capacity, depth)
  void* present_value;
  Index past_rows, capacity;
  Steps key_steps, value_steps;
  const std::int32_t* last_key;  // of each batch entry

  Numbers cos;  // (table_rows, columns)
  Numbers sin;
  bool rotates;
  Index columns, table_rows;
  const std::int64_t* positions;  // (batch, queries), or null
  bool prompt;                    // positions then count on from the first
  bool interleaved;

  Numbers bias;  // added to the scores, (batch or 1, heads or 1, queries, total), or null
  Index bias_floats, bias_batch, bias_head, total;
  Numbers sinks;  // the score of one key more, without a value, for each head; or null
  bool smooth;    // such a score of 0

  float scale, softcap;
  bool causal;
  Index window;   // how many keys a query sees, the last of them at its own position; 0 for all
  void* context;  // (batch, queries, heads, depth)
};

// Runs a whole call on the host's threads; false when memory ran out. Throws std::invalid_argument for lengths and
// positions that do not fit.
bool attend(const GroupQuery& call, const Selection& kernels, Host& host);

}  // namespace onnx_attnq

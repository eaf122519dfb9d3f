// A node of GroupQueryAttention: attributes, inputs and outputs of com.microsoft's op of that name.
#include <algorithm>
#include <cmath>

#include "onnxruntime_glue.h"

namespace onnx_attnq {
namespace {

void* output_of(const Kernel& kernel, KernelContext* context, std::size_t index, const Shape& shape) {
  Value* const value = output_value(kernel, context, index, shape);
  if (value == nullptr) throw std::invalid_argument("the outputs present_key and present_value must be there");
  return data_of<void>(kernel.api, value);
}

Storage storage_of(ElementType type) {
  switch (type) {
    case kFloat16:
      return Storage::kHalf;
    case kInt8:
      return Storage::kInt8;
    case kUint8:
      return Storage::kInt4;
    default:
      return Storage::kFloat;
  }
}

void demand(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(std::string(what) + " has a shape that does not fit the others");
}

// What a cache's numbers are multiples of: one number, or one for each number of each key head's vectors.
Steps steps_of(const Kernel& kernel, const Value* value, const GroupQuery& call, const char* name) {
  const bool whole = call.cache == Storage::kInt8 || call.cache == Storage::kInt4;
  demand(whole == (value != nullptr), name);
  if (!whole) return {};
  const Index count = element_count(type_of(kernel.api, value).shape);
  demand(count == 1 || count == call.kv_heads * call.depth, name);
  return {data_of<const float>(kernel.api, value), call.depth, count != 1};
}

}  // namespace

Form group_query_form(const Api* api, const KernelInfo* info) {
  const std::string fields = text_attribute(api, info, "form");
  for (const NamedForm& named : all_forms()) {
    if (named.fields == fields) return named.form;
  }
  throw std::invalid_argument("attribute form must name a scheme's fields, not '" + fields + "'");
}

// The attributes that GroupQueryAttention has; what the kernel does not do is refused.
void read_group_query(Kernel& kernel, const KernelInfo* info) {
  const auto integer = [&](const char* name, std::int64_t otherwise) {
    return integer_attribute(kernel.api, info, name, otherwise);
  };
  GroupQuery& call = kernel.group_query;
  call.heads = integer("num_heads", 0);
  call.kv_heads = integer("kv_num_heads", 0);
  if (call.kv_heads < 1 || call.heads < 1 || call.heads % call.kv_heads != 0) {
    throw std::invalid_argument("num_heads must be a multiple of kv_num_heads, and both positive");
  }
  call.interleaved = integer("rotary_interleaved", 0) != 0;
  call.rotates = integer("do_rotary", 0) != 0;
  call.causal = integer("causal", 1) != 0;
  call.window = std::max<Index>(integer("local_window_size", -1), 0);
  for (const char* name : {"qk_output", "sliding_window_cache"}) {
    if (integer(name, 0) != 0) throw std::invalid_argument(std::string("attribute ") + name + " is not supported");
  }
  const auto number = [&](const char* name) {
    float value = 0;
    Status* const status = kKernelInfoGetAttribute_float(kernel.api, info, name, &value);
    if (status != nullptr) kReleaseStatus(kernel.api, status);
    return value;
  };
  call.type = storage_of(kernel.op->type);
  call.cache = storage_of(kernel.op->cache);
  const Index bits = call.cache == Storage::kInt8 ? 8 : call.cache == Storage::kInt4 ? 4 : 0;
  if (integer("kv_cache_bit_width", 0) != bits) {
    throw std::invalid_argument("attribute kv_cache_bit_width does not fit the type of past_key");
  }
  call.scale = number("scale");  // 0 for 1 / sqrt(depth)
  call.softcap = number("softcap");
  call.smooth = integer("smooth_softmax", 0) != 0;
}

void compute_group_query(const Kernel& kernel, KernelContext* context) {
  const auto input = [&](std::size_t index) { return optional_input(kernel, context, index); };
  const auto shape = [&](const Value* value) { return type_of(kernel.api, value).shape; };
  GroupQuery call = kernel.group_query;
  const auto numbers = [&](std::size_t index) { return Numbers{data_of<void>(kernel.api, input(index)), call.type}; };
  call.form = kernel.form;
  const Shape query = shape(input(kQuery));
  demand(query.size() == 3, "query");
  call.batch = query[0], call.queries = call.new_rows = query[1];
  call.query = numbers(kQuery);
  call.query_row = call.key_row = query[2];
  if (input(kKey) == nullptr) {
    const Index heads = call.heads + 2 * call.kv_heads;
    demand(query[2] % heads == 0, "query");
    call.depth = query[2] / heads;
    call.key = call.query + call.heads * call.depth;
    call.value = call.key + call.kv_heads * call.depth;
  } else {
    const Shape key = shape(input(kKey));
    demand(query[2] % call.heads == 0, "query");
    call.depth = query[2] / call.heads;
    demand(key.size() == 3 && key[0] == call.batch && key[2] == call.kv_heads * call.depth, "key");
    demand(input(kValue) != nullptr && shape(input(kValue)) == key, "value");
    demand(key[1] == 0 || key[1] == call.queries, "key");  // none: of a layer that reads another's cache
    call.key_row = key[2], call.new_rows = key[1];
    call.key = numbers(kKey);
    call.value = numbers(kValue);
  }
  demand(element_count(shape(input(kTotal))) == 1, "total_sequence_length");
  const Index total = call.total = *data_of<const std::int32_t>(kernel.api, input(kTotal));
  if (total < 0) throw std::invalid_argument("total_sequence_length is " + std::to_string(total));
  demand(element_count(shape(input(kLastKey))) == call.batch, "seqlens_k");
  call.last_key = data_of<const std::int32_t>(kernel.api, input(kLastKey));
  const bool packs = call.cache == Storage::kInt4;  // two numbers to a byte
  demand(!packs || call.depth % 2 == 0, "query");
  Shape cache = {call.batch, call.kv_heads, 0, packs ? call.depth / 2 : call.depth};
  if (input(kPastKey) != nullptr) {
    const Shape past = shape(input(kPastKey));
    demand(past.size() == 4, "past_key");
    cache[2] = call.past_rows = past[2];
    demand(past == cache, "past_key");
    demand(input(kPastValue) != nullptr && shape(input(kPastValue)) == cache, "past_value");
    call.past_key = data_of<const void>(kernel.api, input(kPastKey));
    call.past_value = data_of<const void>(kernel.api, input(kPastValue));
  }
  cache[2] = call.capacity = std::max(call.past_rows, total);
  call.key_steps = steps_of(kernel, input(kKeySteps), call, "k_scale");
  call.value_steps = steps_of(kernel, input(kValueSteps), call, "v_scale");
  if (call.rotates) {
    demand(input(kCos) != nullptr && input(kSin) != nullptr, "cos_cache");
    const Shape table = shape(input(kCos));
    demand(table.size() == 2 && 2 * table[1] <= call.depth && shape(input(kSin)) == table, "cos_cache");
    call.table_rows = table[0], call.columns = table[1];
    call.cos = numbers(kCos);
    call.sin = numbers(kSin);
    if (const Value* positions = input(kPositions)) {
      call.positions = data_of<const std::int64_t>(kernel.api, positions);
      call.prompt = total == call.queries;
      demand(element_count(shape(positions)) >= (call.prompt ? 1 : call.batch * call.queries), "position_ids");
    }
  }
  if (const Value* bias = input(kBias)) {
    const Shape s = shape(bias);
    const auto fits = [&](std::size_t axis, Index size) { return s[axis] == 1 || s[axis] == size; };
    demand(s.size() == 4 && fits(0, call.batch) && fits(1, call.heads) && s[2] == call.queries && s[3] == total,
           "attention_bias");
    call.bias = numbers(kBias);
    call.bias_floats = element_count(s);
    call.bias_head = s[1] == 1 ? 0 : s[2] * s[3];
    call.bias_batch = s[0] == 1 ? 0 : s[1] * s[2] * s[3];
  }
  if (const Value* sinks = input(kSinks)) {
    demand(element_count(shape(sinks)) == call.heads, "head_sink");
    call.sinks = numbers(kSinks);
  }
  if (call.scale == 0) call.scale = 1.0f / std::sqrt(static_cast<float>(call.depth));
  const Index batch[kBatchAxes] = {1, call.batch, call.heads};
  // A table for each head, on one axis or, key heads first, on two.
  const Index tables = static_cast<Index>(kernel.tables.size());
  const Tables by_head = tables_of(kernel.tables.data(), {1, 1, tables, 1, 1}, batch);
  const Index group = call.heads / call.kv_heads;
  call.tables = {by_head.first, {0, by_head.stride[2] * group, by_head.stride[2]}};
  call.context = output_of(kernel, context, 0, {call.batch, call.queries, call.heads * call.depth});
  call.present_key = output_of(kernel, context, 1, cache);
  call.present_value = output_of(kernel, context, 2, cache);
  SessionHost host(kernel.api, context);
  if (!attend(call, kernel.kernels, host)) throw std::bad_alloc();
}

}  // namespace onnx_attnq

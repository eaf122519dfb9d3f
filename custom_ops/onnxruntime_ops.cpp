// The glue: the only file that knows onnxruntime. It registers the ops of README.md, reads their attributes and inputs,
// and hands plain structs to the kernels.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.h"
#include "dispatch.h"
#include "group_query.h"
#include "onnxruntime_abi.h"
#include "shapes.h"

namespace onnx_attnq {
namespace {

using namespace ort;

// A status of onnxruntime on its way out.
struct Failure {
  Status* status;
};

void check(Status* status) {
  if (status != nullptr) throw Failure{status};
}

// Runs what may throw; no exception crosses the C interface.
template <class Function>
Status* guarded(const Api* api, Function function) {
  try {
    function();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::bad_alloc&) {
    return kCreateStatus(api, kFail, "onnx_attnq: out of memory");
  } catch (const std::exception& error) {
    return kCreateStatus(api, kInvalidArgument, (std::string("onnx_attnq: ") + error.what()).c_str());
  }
}

enum class Kind { kSoftmax, kProbabilities, kAttention, kGroupQuery, kKernelName };

struct Op : CustomOp {
  Kind kind;
  Form form;
  std::string name;
};

// What one node keeps between calls. Constant after creation: any number of calls may share it.
struct Kernel {
  const Api* api;
  const Op* op;
  Selection kernels;
  std::vector<Table> tables;
  Shape table_shape;  // its last two axes are 1
  float row_max_floor = -std::numeric_limits<float>::infinity();
  float scale = 1;
  bool int16_products = false;
  Permutation query_perm, key_perm, value_perm, context_perm;
  bool rotates = false;
  GroupQuery group_query{};  // what attributes say of it
};

// --- attributes -----------------------------------------------------------------------------------------------------

struct TensorType {
  ElementType element;
  Shape shape;
};

TensorType type_of(const Api* api, const Value* value) {
  TensorInfo* info = nullptr;
  check(kGetTensorTypeAndShape(api, value, &info));
  std::size_t rank = 0;
  TensorType type{};
  Status* status = kGetTensorElementType(api, info, &type.element);
  if (status == nullptr) status = kGetDimensionsCount(api, info, &rank);
  if (status == nullptr) {
    type.shape.resize(rank);
    status = kGetDimensions(api, info, type.shape.data(), rank);
  }
  kReleaseTensorTypeAndShapeInfo(api, info);
  check(status);
  return type;
}

const float* data_of(const Api* api, const Value* value) {
  void* data = nullptr;
  check(kGetTensorMutableData(api, const_cast<Value*>(value), &data));
  return static_cast<const float*>(data);
}

struct FloatTensor {
  Shape shape;
  std::vector<float> values;
};

FloatTensor tensor_attribute(const Api* api, const KernelInfo* info, const char* name) {
  Allocator* allocator = nullptr;
  check(kGetAllocatorWithDefaultOptions(api, &allocator));
  Value* value = nullptr;
  check(kKernelInfoGetAttribute_tensor(api, info, name, allocator, &value));
  const auto release = [api](Value* v) { kReleaseValue(api, v); };
  const std::unique_ptr<Value, decltype(release)> owner(value, release);
  const TensorType type = type_of(api, value);
  const std::string attribute = std::string("attribute ") + name;
  if (type.element != kFloat) {
    throw std::invalid_argument(attribute + " must be a float32 tensor, not one of ONNX element type " +
                                std::to_string(type.element));
  }
  const Index count = element_count(type.shape);
  if (count == 0) throw std::invalid_argument(attribute + " is empty");
  const float* data = data_of(api, value);
  return {type.shape, {data, data + count}};
}

float number_attribute(const Api* api, const KernelInfo* info, const char* name) {
  const FloatTensor tensor = tensor_attribute(api, info, name);
  if (tensor.values.size() != 1) throw std::invalid_argument(std::string("attribute ") + name + " must be one number");
  return tensor.values[0];
}

Permutation permutation_attribute(const Api* api, const KernelInfo* info, const char* name) {
  std::size_t size = 0;
  check(kKernelInfoGetAttributeArray_int64(api, info, name, nullptr, &size));
  Permutation permutation(size);
  check(kKernelInfoGetAttributeArray_int64(api, info, name, permutation.data(), &size));
  check_permutation(permutation, name);
  return permutation;
}

// The attributes threshold, step, offset and levels may have a table per head each; together they broadcast.
void read_tables(Kernel& kernel, const KernelInfo* info) {
  const Form& form = kernel.op->form;
  std::vector<FloatTensor> parts = {tensor_attribute(kernel.api, info, "threshold")};
  if (quantizes(form)) {
    for (const char* name : {"step", "offset", "levels"}) parts.push_back(tensor_attribute(kernel.api, info, name));
  }
  Shape shape;
  for (const FloatTensor& part : parts) shape = broadcast(shape, part.shape, "the scheme's attributes");
  while (shape.size() < kBatchAxes + 2) shape.insert(shape.begin(), 1);
  if (shape.size() > kBatchAxes + 2 || shape[kBatchAxes] != 1 || shape[kBatchAxes + 1] != 1) {
    throw std::invalid_argument("the scheme's attributes must have shape [1], or [H, 1, 1] for a table per head");
  }
  kernel.table_shape = shape;
  for (Index i = 0; i < element_count(shape); ++i) {
    float numbers[4] = {};
    for (std::size_t part = 0; part < parts.size(); ++part) {
      numbers[part] = parts[part].values[static_cast<std::size_t>(broadcast_index(shape, parts[part].shape, i))];
    }
    const bool whole = numbers[3] == std::floor(numbers[3]);
    if (quantizes(form) && !(numbers[1] > 0 && numbers[3] >= 1 && numbers[3] < Table::kSize && whole)) {
      throw std::invalid_argument("step must be positive and levels a whole number from 1 to 255");
    }
    // So that x = 0, as which also the kernels' padding counts, is pruned.
    if (form.spacing == Spacing::kLinear && !(numbers[2] < 0)) throw std::invalid_argument("offset must be negative");
    kernel.tables.push_back(make_table(form, numbers[0], numbers[1], numbers[2], numbers[3]));
  }
}

std::int64_t integer_attribute(const Api* api, const KernelInfo* info, const char* name, std::int64_t otherwise) {
  std::int64_t value = 0;
  Status* const status = kKernelInfoGetAttribute_int64(api, info, name, &value);
  if (status == nullptr) return value;
  kReleaseStatus(api, status);
  return otherwise;
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
  kernel.rotates = integer("do_rotary", 0) != 0;
  call.causal = integer("causal", 1) != 0;
  call.window = std::max<Index>(integer("local_window_size", -1), 0);
  for (const char* name : {"smooth_softmax", "qk_output", "sliding_window_cache", "kv_cache_bit_width"}) {
    if (integer(name, 0) != 0) throw std::invalid_argument(std::string("attribute ") + name + " is not supported");
  }
  const auto number = [&](const char* name) {
    float value = 0;
    Status* const status = kKernelInfoGetAttribute_float(kernel.api, info, name, &value);
    if (status != nullptr) kReleaseStatus(kernel.api, status);
    return value;
  };
  call.scale = number("scale");  // 0 for 1 / sqrt(depth)
  if (number("softcap") != 0) throw std::invalid_argument("attribute softcap is not supported");
}

std::unique_ptr<Kernel> make_kernel(const Api* api, const Op* op, const KernelInfo* info) {
  auto kernel = std::make_unique<Kernel>();
  kernel->api = api;
  kernel->op = op;
  kernel->kernels = select_kernels();
  if (op->kind == Kind::kKernelName) return kernel;
  read_tables(*kernel, info);
  if (op->kind == Kind::kGroupQuery) read_group_query(*kernel, info);
  if (op->kind != Kind::kAttention) return kernel;
  kernel->row_max_floor = number_attribute(api, info, "row_max_floor");
  kernel->scale = number_attribute(api, info, "scale");
  std::int64_t qk = 0;
  check(kKernelInfoGetAttribute_int64(api, info, "qk", &qk));
  if (qk != 0 && qk != 1) throw std::invalid_argument("attribute qk must be 0 (float32) or 1 (int16)");
  kernel->int16_products = qk == 1;
  kernel->query_perm = permutation_attribute(api, info, "q_perm");
  kernel->key_perm = permutation_attribute(api, info, "k_perm");
  kernel->value_perm = permutation_attribute(api, info, "v_perm");
  kernel->context_perm = permutation_attribute(api, info, "out_perm");
  return kernel;
}

// --- calls ----------------------------------------------------------------------------------------------------------

// The session's own threads and memory.
class SessionHost final : public Host {
 public:
  SessionHost(const Api* api, KernelContext* context) : api_(api), context_(context) {
    MemoryInfo* info = nullptr;
    check(kCreateCpuMemoryInfo(api, kArenaAllocator, kDefaultMemory, &info));
    Status* status = kKernelContext_GetAllocator(api, context, info, &allocator_);
    kReleaseMemoryInfo(api, info);
    check(status);
  }
  ~SessionHost() override { kReleaseAllocator(api_, allocator_); }

  void parallel_for(Index count, void (*task)(void*, std::size_t), void* user) override {
    check(kKernelContext_ParallelFor(api_, context_, task, static_cast<std::size_t>(count), 0, user));
  }
  void* allocate(std::size_t bytes) override {
    void* memory = nullptr;
    if (Status* status = kAllocatorAlloc(api_, allocator_, bytes, &memory)) {
      kReleaseStatus(api_, status);
      return nullptr;
    }
    return memory;
  }
  void release(void* memory) override {
    if (Status* status = kAllocatorFree(api_, allocator_, memory)) kReleaseStatus(api_, status);
  }

 private:
  const Api* api_;
  KernelContext* context_;
  Allocator* allocator_ = nullptr;
};

struct Input {
  const float* data;
  Shape shape;
};

Input input_of(const Kernel& kernel, KernelContext* context, std::size_t index) {
  const Value* value = nullptr;
  check(kKernelContext_GetInput(kernel.api, context, index, &value));
  return {data_of(kernel.api, value), type_of(kernel.api, value).shape};
}

void* output_of(const Kernel& kernel, KernelContext* context, const Shape& shape) {
  Value* value = nullptr;
  check(kKernelContext_GetOutput(kernel.api, context, 0, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(kGetTensorMutableData(kernel.api, value, &data));
  return data;
}

void compute_rows(const Kernel& kernel, KernelContext* context) {
  const Input input = input_of(kernel, context, 0);
  auto* output = static_cast<float*>(output_of(kernel, context, input.shape));
  Rows rows = rows_of(input.shape);
  rows.form = kernel.op->form;
  rows.tables = tables_of(kernel.tables.data(), kernel.table_shape, rows.batch);
  rows.input = input.data;
  rows.output = output;
  rows.are_scores = kernel.op->kind == Kind::kSoftmax;
  SessionHost host(kernel.api, context);
  if (!quantize(rows, *kernel.kernels.best, host)) throw std::bad_alloc();
}

void compute_attention(const Kernel& kernel, KernelContext* context) {
  std::array<Input, 4> inputs;
  for (std::size_t i = 0; i < inputs.size(); ++i) inputs[i] = input_of(kernel, context, i);
  AttentionShape shape = attention_shape(
      permuted(inputs[0].shape, kernel.query_perm, "query"), permuted(inputs[1].shape, kernel.key_perm, "key"),
      permuted(inputs[2].shape, kernel.value_perm, "value"), whole(inputs[3].shape), kernel.context_perm);
  Attention& attention = shape.attention;
  attention.form = kernel.op->form;
  attention.tables = tables_of(kernel.tables.data(), kernel.table_shape, attention.batch);
  attention.query = inputs[0].data;
  attention.key = inputs[1].data;
  attention.value = inputs[2].data;
  // A scalar 0 stands for no mask.
  const bool masked = element_count(inputs[3].shape) != 1 || inputs[3].data[0] != 0;
  attention.mask = masked ? inputs[3].data : nullptr;
  attention.context = static_cast<float*>(output_of(kernel, context, shape.output));
  attention.scale = kernel.scale;
  attention.row_max_floor = kernel.row_max_floor;
  attention.int16_products = kernel.int16_products;
  attention.rough_scores = kernel.kernels.rough_scores;
  join_groups(attention);
  SessionHost host(kernel.api, context);
  if (!attend(attention, kernel.kernels.of(attention), host)) throw std::bad_alloc();
}

// Inputs of GroupQueryAttention, by place.
enum GroupQueryInput : std::size_t {
  kQuery,
  kKey,
  kValue,
  kPastKey,
  kPastValue,
  kLastKey,
  kTotal,
  kCos,
  kSin,
  kPositions,
  kFirstUnsupported,
  kInputs = 17
};

const Value* optional_input(const Kernel& kernel, KernelContext* context, std::size_t index) {
  std::size_t count = 0;
  check(kKernelContext_GetInputCount(kernel.api, context, &count));
  const Value* value = nullptr;
  if (index < count) check(kKernelContext_GetInput(kernel.api, context, index, &value));
  return value;
}

template <class Number>
Number* tensor_data(const Kernel& kernel, const Value* value) {
  void* data = nullptr;
  check(kGetTensorMutableData(kernel.api, const_cast<Value*>(value), &data));
  return static_cast<Number*>(data);
}

float* output_of(const Kernel& kernel, KernelContext* context, std::size_t index, const Shape& shape) {
  Value* value = nullptr;
  check(kKernelContext_GetOutput(kernel.api, context, index, shape.data(), shape.size(), &value));
  if (value == nullptr) throw std::invalid_argument("the outputs present_key and present_value must be there");
  return tensor_data<float>(kernel, value);
}

void demand(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(std::string(what) + " has a shape that does not fit the others");
}

void compute_group_query(const Kernel& kernel, KernelContext* context) {
  const auto input = [&](std::size_t index) { return optional_input(kernel, context, index); };
  const auto shape = [&](const Value* value) { return type_of(kernel.api, value).shape; };
  for (std::size_t i = kFirstUnsupported; i < kInputs; ++i) {
    if (input(i) != nullptr) throw std::invalid_argument("input " + std::to_string(i) + " is not supported");
  }
  GroupQuery call = kernel.group_query;
  call.form = kernel.op->form;
  const Shape query = shape(input(kQuery));
  demand(query.size() == 3, "query");
  call.batch = query[0], call.queries = call.new_rows = query[1];
  call.query = data_of(kernel.api, input(kQuery));
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
    call.key_row = key[2], call.new_rows = key[1];
    call.key = data_of(kernel.api, input(kKey));
    call.value = data_of(kernel.api, input(kValue));
  }
  const Index total = *tensor_data<const std::int32_t>(kernel, input(kTotal));
  demand(element_count(shape(input(kLastKey))) == call.batch, "seqlens_k");
  call.last_key = tensor_data<const std::int32_t>(kernel, input(kLastKey));
  Shape cache = {call.batch, call.kv_heads, 0, call.depth};
  if (input(kPastKey) != nullptr) {
    const Shape past = shape(input(kPastKey));
    demand(past.size() == 4, "past_key");
    cache[2] = call.past_rows = past[2];
    demand(past == cache, "past_key");
    demand(input(kPastValue) != nullptr && shape(input(kPastValue)) == cache, "past_value");
    call.past_key = data_of(kernel.api, input(kPastKey));
    call.past_value = data_of(kernel.api, input(kPastValue));
  }
  cache[2] = call.capacity = std::max(call.past_rows, total);
  if (kernel.rotates) {
    demand(input(kCos) != nullptr && input(kSin) != nullptr, "cos_cache");
    const Shape table = shape(input(kCos));
    demand(table.size() == 2 && 2 * table[1] <= call.depth && shape(input(kSin)) == table, "cos_cache");
    call.table_rows = table[0], call.columns = table[1];
    call.cos = data_of(kernel.api, input(kCos));
    call.sin = data_of(kernel.api, input(kSin));
    if (const Value* positions = input(kPositions)) {
      call.positions = tensor_data<const std::int64_t>(kernel, positions);
      call.prompt = total == call.queries;
      demand(element_count(shape(positions)) >= (call.prompt ? 1 : call.batch * call.queries), "position_ids");
    }
  }
  if (call.scale == 0) call.scale = 1.0f / std::sqrt(static_cast<float>(call.depth));
  const Index batch[kBatchAxes] = {1, call.batch, call.heads};
  const Tables by_head = tables_of(kernel.tables.data(), kernel.table_shape, batch);
  const Index group = call.heads / call.kv_heads;
  call.tables = {by_head.first, {0, by_head.stride[2] * group, by_head.stride[2]}};
  call.context = output_of(kernel, context, 0, {call.batch, call.queries, call.heads * call.depth});
  call.present_key = output_of(kernel, context, 1, cache);
  call.present_value = output_of(kernel, context, 2, cache);
  SessionHost host(kernel.api, context);
  if (!attend(call, kernel.kernels, host)) throw std::bad_alloc();
}

// The name of the kernels that run, as UTF-8 bytes: how a program asks which instruction set is active.
void compute_kernel_name(const Kernel& kernel, KernelContext* context) {
  const std::size_t size = std::strlen(kernel.kernels.best->name);
  std::memcpy(output_of(kernel, context, {static_cast<Index>(size)}), kernel.kernels.best->name, size);
}

Status* ORT_CALL compute(void* state, KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(state);
  return guarded(kernel.api, [&] {
    switch (kernel.op->kind) {
      case Kind::kSoftmax:
      case Kind::kProbabilities:
        return compute_rows(kernel, context);
      case Kind::kAttention:
        return compute_attention(kernel, context);
      case Kind::kGroupQuery:
        return compute_group_query(kernel, context);
      case Kind::kKernelName:
        return compute_kernel_name(kernel, context);
    }
  });
}

// --- registration ---------------------------------------------------------------------------------------------------

const Op& as_op(const CustomOp* op) { return *static_cast<const Op*>(op); }

Op make_op(Kind kind, const Form& form, std::string name) {
  Op op{};
  op.kind = kind;
  op.form = form;
  op.name = std::move(name);
  op.version = kApiVersion;
  op.GetName = [](const CustomOp* self) { return as_op(self).name.c_str(); };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
  op.GetInputType = [](const CustomOp* self, std::size_t index) {
    if (as_op(self).kind != Kind::kGroupQuery) return kFloat;
    constexpr std::size_t query_lengths = 16;
    if (index == kLastKey || index == kTotal || index == query_lengths) return kInt32;
    return index == kPositions ? kInt64 : kFloat;
  };
  op.GetInputTypeCount = [](const CustomOp* self) -> std::size_t {
    switch (as_op(self).kind) {
      case Kind::kAttention:
        return 4;
      case Kind::kGroupQuery:
        return kInputs;
      case Kind::kKernelName:
        return 0;
      default:
        return 1;
    }
  };
  op.GetOutputType = [](const CustomOp* self, std::size_t) {
    return as_op(self).kind == Kind::kKernelName ? kUint8 : kFloat;
  };
  op.GetOutputTypeCount = [](const CustomOp* self) -> std::size_t {
    return as_op(self).kind == Kind::kGroupQuery ? 3 : 1;
  };
  op.GetInputCharacteristic = [](const CustomOp* self, std::size_t index) {
    const bool required = index == kQuery || index == kLastKey || index == kTotal;
    return as_op(self).kind == Kind::kGroupQuery && !required ? kOptional : kRequired;
  };
  op.GetOutputCharacteristic = [](const CustomOp*, std::size_t) { return kRequired; };
  op.GetInputMemoryType = [](const CustomOp*, std::size_t) { return kDefaultMemory; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
  op.CreateKernelV2 = [](const CustomOp* self, const Api* api, const KernelInfo* info, void** state) {
    return guarded(api, [&] { *state = make_kernel(api, &as_op(self), info).release(); });
  };
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* state) { delete static_cast<Kernel*>(state); };
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  return op;
}

std::vector<Op> make_ops() {
  std::vector<Op> ops;
  for (const NamedForm& named : all_forms()) {
    const bool with_levels = quantizes(named.form);
    const std::string adjective = with_levels ? "Quantized" : "Pruned";
    ops.push_back(make_op(Kind::kSoftmax, named.form, adjective + "Softmax" + named.suffix));
    ops.push_back(make_op(Kind::kAttention, named.form, adjective + "Attention" + named.suffix));
    ops.push_back(make_op(Kind::kGroupQuery, named.form, adjective + "GroupQueryAttention" + named.suffix));
    ops.push_back(make_op(Kind::kProbabilities, named.form,
                          (with_levels ? "QuantizeProbabilities" : "PruneProbabilities") + named.suffix));
  }
  ops.push_back(make_op(Kind::kKernelName, {}, "KernelName"));
  return ops;
}

// onnxruntime keeps pointers to the domain and its ops in every session. One set, never changed after it was made,
// serves all sessions of one onnxruntime until the library is unloaded.
class Domain {
 public:
  explicit Domain(const Api* api) : api_(api), ops_(make_ops()) {
    check(kCreateCustomOpDomain(api, "onnx_attnq", &domain_));
    for (const Op& op : ops_) check(kCustomOpDomain_Add(api, domain_, &op));
  }
  ~Domain() { kReleaseCustomOpDomain(api_, domain_); }
  Domain(const Domain&) = delete;
  Domain& operator=(const Domain&) = delete;

  bool is_of(const Api* api) const { return api == api_; }
  void add_to(SessionOptions* options) const { check(kAddCustomOpDomain(api_, options, domain_)); }

 private:
  const Api* api_;
  const std::vector<Op> ops_;
  CustomOpDomain* domain_ = nullptr;
};

// A process may hold several onnxruntimes, such as Python's and onnxruntime-genai's.
const Domain& domain_of(const Api* api) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<Domain>> domains;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& domain : domains) {
    if (domain->is_of(api)) return *domain;
  }
  domains.push_back(std::make_unique<Domain>(api));
  return *domains.back();
}

}  // namespace
}  // namespace onnx_attnq

#if defined(_WIN32)
#define ONNX_ATTNQ_EXPORT __declspec(dllexport)
#else
#define ONNX_ATTNQ_EXPORT __attribute__((visibility("default")))
#endif

// The library's one exported symbol, by the name that onnxruntime looks for.
extern "C" ONNX_ATTNQ_EXPORT onnx_attnq::ort::Status* ORT_CALL
RegisterCustomOps(onnx_attnq::ort::SessionOptions* options, const onnx_attnq::ort::ApiBase* base) {
  using namespace onnx_attnq;
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    // Every version of the table has CreateStatus, in the same place.
    const std::string text =
        "onnx_attnq needs onnxruntime 1.20 or newer; this is " + std::string(base->GetVersionString());
    return ort::kCreateStatus(base->GetApi(1), ort::kFail, text.c_str());
  }
  return guarded(api, [&] {
    select_kernels();  // a wrong environment variable is an error here, before a session exists
    domain_of(api).add_to(options);
  });
}

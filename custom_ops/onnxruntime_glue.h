// What the files that know onnxruntime (onnxruntime_*.cpp) share: errors as statuses, tensors, attributes, the
// session's threads and memory, and what an op and a node of it keep.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
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

using namespace ort;

// A status that is returned to onnxruntime.
struct Failure {
  Status* status;
};

inline void check(Status* status) {
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
  Form form;    // not of a GroupQueryAttention
  bool capped;  // has the attribute softcap
  std::string name;
  ElementType type, cache;  // of a GroupQueryAttention: of its tensors, and of past and present
};

// What one node keeps between calls. Constant after creation: any number of calls may share it.
struct Kernel {
  const Api* api;
  const Op* op;
  Form form;
  Selection kernels;
  std::vector<Table> tables;
  Shape table_shape;  // its last two axes are 1
  float row_max_floor = -std::numeric_limits<float>::infinity();
  float scale = 1, softcap = 0;
  bool int16_products = false;
  Permutation query_perm, key_perm, value_perm, context_perm;
  GroupQuery group_query{};  // what attributes say of it
};

// --- tensors

struct TensorType {
  ElementType element;
  Shape shape;
};

TensorType type_of(const Api* api, const Value* value);

template <class Number>
Number* data_of(const Api* api, const Value* value) {
  void* data = nullptr;
  check(kGetTensorMutableData(api, const_cast<Value*>(value), &data));
  return static_cast<Number*>(data);
}

// An input that may be left out, as null.
const Value* optional_input(const Kernel& kernel, KernelContext* context, std::size_t index);

// Null for an output that the node does not name.
Value* output_value(const Kernel& kernel, KernelContext* context, std::size_t index, const Shape& shape);

// --- attributes

struct FloatTensor {
  Shape shape;
  std::vector<float> values;
};

FloatTensor tensor_attribute(const Api* api, const KernelInfo* info, const char* name);
float number_attribute(const Api* api, const KernelInfo* info, const char* name);
std::string text_attribute(const Api* api, const KernelInfo* info, const char* name);
std::int64_t integer_attribute(const Api* api, const KernelInfo* info, const char* name, std::int64_t otherwise);
Permutation permutation_attribute(const Api* api, const KernelInfo* info, const char* name);

// --- calls

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

// --- onnxruntime_group_query.cpp

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
  kBias,
  kSinks,
  kKeySteps,
  kValueSteps,
  kTokens,  // for standard ops; the kernel needs none
  kInputs
};

// The form that the attribute `form` of a node names.
Form group_query_form(const Api* api, const KernelInfo* info);
void read_group_query(Kernel& kernel, const KernelInfo* info);
void compute_group_query(const Kernel& kernel, KernelContext* context);

// --- onnxruntime_calls.cpp

std::unique_ptr<Kernel> make_kernel(const Api* api, const Op* op, const KernelInfo* info);

// Computes a node: `state` is its Kernel.
Status* ORT_CALL compute(void* state, KernelContext* context);

}  // namespace onnx_attnq

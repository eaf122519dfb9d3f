// Reading tensors and attributes through onnxruntime's C interface.
#include "onnxruntime_glue.h"

#include <memory>

namespace onnx_attnq {

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

const Value* optional_input(const Kernel& kernel, KernelContext* context, std::size_t index) {
  std::size_t count = 0;
  check(kKernelContext_GetInputCount(kernel.api, context, &count));
  const Value* value = nullptr;
  if (index < count) check(kKernelContext_GetInput(kernel.api, context, index, &value));
  return value;
}

Value* output_value(const Kernel& kernel, KernelContext* context, std::size_t index, const Shape& shape) {
  Value* value = nullptr;
  check(kKernelContext_GetOutput(kernel.api, context, index, shape.data(), shape.size(), &value));
  return value;
}

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
  const float* data = data_of<const float>(api, value);
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

std::string text_attribute(const Api* api, const KernelInfo* info, const char* name) {
  std::size_t size = 0;  // with the zero at the end
  check(kKernelInfoGetAttribute_string(api, info, name, nullptr, &size));
  std::string text(size, '\0');
  check(kKernelInfoGetAttribute_string(api, info, name, text.data(), &size));
  return text.c_str();
}

std::int64_t integer_attribute(const Api* api, const KernelInfo* info, const char* name, std::int64_t otherwise) {
  std::int64_t value = 0;
  Status* const status = kKernelInfoGetAttribute_int64(api, info, name, &value);
  if (status == nullptr) return value;
  kReleaseStatus(api, status);
  return otherwise;
}

}  // namespace onnx_attnq

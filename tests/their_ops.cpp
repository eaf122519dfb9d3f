// A library of custom ops as a user has one, for tests: my.dom.Mul multiplies by a number, and is no standard Mul.
#include "onnxruntime_abi.h"

#include <vector>

using namespace onnx_attnq::ort;

namespace {

const Api* api_of;

// A failed call leaves a status; none of these calls fails on float tensors.
Status* multiply(void*, KernelContext* context) {
  const Value *value = nullptr, *number = nullptr;
  kKernelContext_GetInput(api_of, context, 0, &value);
  kKernelContext_GetInput(api_of, context, 1, &number);
  TensorInfo* info = nullptr;
  kGetTensorTypeAndShape(api_of, value, &info);
  std::size_t rank = 0;
  kGetDimensionsCount(api_of, info, &rank);
  std::vector<std::int64_t> shape(rank);
  kGetDimensions(api_of, info, shape.data(), rank);
  kReleaseTensorTypeAndShapeInfo(api_of, info);
  Value* output = nullptr;
  kKernelContext_GetOutput(api_of, context, 0, shape.data(), rank, &output);
  void *from = nullptr, *by = nullptr, *to = nullptr;
  kGetTensorMutableData(api_of, const_cast<Value*>(value), &from);
  kGetTensorMutableData(api_of, const_cast<Value*>(number), &by);
  kGetTensorMutableData(api_of, output, &to);
  std::int64_t size = 1;
  for (std::int64_t dim : shape) size *= dim;
  for (std::int64_t i = 0; i < size; ++i) {
    static_cast<float*>(to)[i] = static_cast<float*>(from)[i] * *static_cast<float*>(by);
  }
  return nullptr;
}

CustomOp make_op() {
  CustomOp op{};
  op.version = kApiVersion;
  op.GetName = [](const CustomOp*) { return "Mul"; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const CustomOp*, std::size_t) { return kFloat; };
  op.GetInputTypeCount = [](const CustomOp*) -> std::size_t { return 2; };
  op.GetOutputType = [](const CustomOp*, std::size_t) { return kFloat; };
  op.GetOutputTypeCount = [](const CustomOp*) -> std::size_t { return 1; };
  op.GetInputCharacteristic = [](const CustomOp*, std::size_t) { return kRequired; };
  op.GetOutputCharacteristic = [](const CustomOp*, std::size_t) { return kRequired; };
  op.GetInputMemoryType = [](const CustomOp*, std::size_t) { return kDefaultMemory; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
  op.CreateKernelV2 = [](const CustomOp*, const Api*, const KernelInfo*, void** state) -> Status* {
    *state = nullptr;
    return nullptr;
  };
  op.KernelComputeV2 = multiply;
  op.KernelDestroy = [](void*) {};
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  return op;
}

}  // namespace

extern "C" Status* RegisterCustomOps(SessionOptions* options, const ApiBase* base) {
  api_of = base->GetApi(kApiVersion);
  static const CustomOp op = make_op();
  static CustomOpDomain* domain = nullptr;
  if (domain == nullptr) {
    kCreateCustomOpDomain(api_of, "my.dom", &domain);
    kCustomOpDomain_Add(api_of, domain, &op);
  }
  return kAddCustomOpDomain(api_of, options, domain);
}

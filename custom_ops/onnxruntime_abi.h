// The part of onnxruntime's C interface that a custom-op library of this kind needs, declared by hand: no package
// registry ships the headers, and a library that declares what it uses runs on every onnxruntime that has it.
//
// OrtApi is a table of function pointers that is only ever appended to, so an entry is its slot number. The numbers and
// signatures are those of onnxruntime_c_api.h; tests/test_native_abi.py compares them with the real header where
// there is one. Only onnxruntime_glue.h includes this file.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define ORT_CALL __stdcall
#else
#define ORT_CALL
#endif

namespace onnx_attnq::ort {

// Opaque to us.
struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct Value;
struct TensorInfo;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct Allocator;
struct MemoryInfo;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kFloat16 = 10 };
enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum MemoryType : int { kDefaultMemory = 0 };
enum AllocatorType : int { kDeviceAllocator = 0, kArenaAllocator = 1 };

// The oldest interface that has every entry below and every field of CustomOp: that of onnxruntime 1.20.
inline constexpr std::uint32_t kApiVersion = 20;

struct Api {
  const void* slots[1];  // some hundreds, in fact
};

struct ApiBase {
  const Api*(ORT_CALL* GetApi)(std::uint32_t version);
  const char*(ORT_CALL* GetVersionString)();
};

// One entry of the table, called as `kCreateStatus(api, code, message)`.
template <std::size_t kSlot, class Signature>
struct Entry;

template <std::size_t kSlot, class Result, class... Args>
struct Entry<kSlot, Result(Args...)> {
  static constexpr std::size_t slot = kSlot;
  Result operator()(const Api* api, Args... args) const {
    using Function = Result(ORT_CALL*)(Args...);
    return reinterpret_cast<Function>(const_cast<void*>(api->slots[kSlot]))(args...);
  }
};

struct CustomOp;
using Task = void (*)(void* user, std::size_t index);

// clang-format off
inline constexpr Entry<  0, Status*(ErrorCode, const char*)> kCreateStatus;
inline constexpr Entry< 26, Status*(const char*, CustomOpDomain**)> kCreateCustomOpDomain;
inline constexpr Entry< 27, Status*(CustomOpDomain*, const CustomOp*)> kCustomOpDomain_Add;
inline constexpr Entry< 28, Status*(SessionOptions*, CustomOpDomain*)> kAddCustomOpDomain;
inline constexpr Entry< 51, Status*(Value*, void**)> kGetTensorMutableData;
inline constexpr Entry< 60, Status*(const TensorInfo*, ElementType*)> kGetTensorElementType;
inline constexpr Entry< 61, Status*(const TensorInfo*, std::size_t*)> kGetDimensionsCount;
inline constexpr Entry< 62, Status*(const TensorInfo*, std::int64_t*, std::size_t)> kGetDimensions;
inline constexpr Entry< 65, Status*(const Value*, TensorInfo**)> kGetTensorTypeAndShape;
inline constexpr Entry< 69, Status*(AllocatorType, MemoryType, MemoryInfo**)> kCreateCpuMemoryInfo;
inline constexpr Entry< 75, Status*(Allocator*, std::size_t, void**)> kAllocatorAlloc;
inline constexpr Entry< 76, Status*(Allocator*, void*)> kAllocatorFree;
inline constexpr Entry< 78, Status*(Allocator**)> kGetAllocatorWithDefaultOptions;
inline constexpr Entry< 85, Status*(const KernelInfo*, const char*, float*)> kKernelInfoGetAttribute_float;
inline constexpr Entry< 86, Status*(const KernelInfo*, const char*, std::int64_t*)> kKernelInfoGetAttribute_int64;
inline constexpr Entry< 87, Status*(const KernelInfo*, const char*, char*, std::size_t*)> kKernelInfoGetAttribute_string;
inline constexpr Entry< 88, Status*(const KernelContext*, std::size_t*)> kKernelContext_GetInputCount;
inline constexpr Entry< 90, Status*(const KernelContext*, std::size_t, const Value**)> kKernelContext_GetInput;
inline constexpr Entry< 91, Status*(KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**)> kKernelContext_GetOutput;
inline constexpr Entry< 93, void(Status*)> kReleaseStatus;
inline constexpr Entry< 94, void(MemoryInfo*)> kReleaseMemoryInfo;
inline constexpr Entry< 96, void(Value*)> kReleaseValue;
inline constexpr Entry< 99, void(TensorInfo*)> kReleaseTensorTypeAndShapeInfo;
inline constexpr Entry<101, void(CustomOpDomain*)> kReleaseCustomOpDomain;
inline constexpr Entry<132, void(Allocator*)> kReleaseAllocator;
inline constexpr Entry<163, Status*(const KernelInfo*, const char*, std::int64_t*, std::size_t*)> kKernelInfoGetAttributeArray_int64;
inline constexpr Entry<236, Status*(const KernelInfo*, const char*, Allocator*, Value**)> kKernelInfoGetAttribute_tensor;
inline constexpr Entry<253, Status*(const KernelContext*, const MemoryInfo*, Allocator**)> kKernelContext_GetAllocator;
inline constexpr Entry<274, Status*(const KernelContext*, Task, std::size_t, std::size_t, void*)> kKernelContext_ParallelFor;
// clang-format on

// What a library fills in for each op. onnxruntime reads the fields up to the version the struct claims to have.
struct CustomOp {
  std::uint32_t version;
  void*(ORT_CALL* CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char*(ORT_CALL* GetName)(const CustomOp*);
  const char*(ORT_CALL* GetExecutionProviderType)(const CustomOp*);
  ElementType(ORT_CALL* GetInputType)(const CustomOp*, std::size_t);
  std::size_t(ORT_CALL* GetInputTypeCount)(const CustomOp*);
  ElementType(ORT_CALL* GetOutputType)(const CustomOp*, std::size_t);
  std::size_t(ORT_CALL* GetOutputTypeCount)(const CustomOp*);
  void(ORT_CALL* KernelCompute)(void*, KernelContext*);
  void(ORT_CALL* KernelDestroy)(void*);
  Characteristic(ORT_CALL* GetInputCharacteristic)(const CustomOp*, std::size_t);
  Characteristic(ORT_CALL* GetOutputCharacteristic)(const CustomOp*, std::size_t);
  MemoryType(ORT_CALL* GetInputMemoryType)(const CustomOp*, std::size_t);
  int(ORT_CALL* GetVariadicInputMinArity)(const CustomOp*);
  int(ORT_CALL* GetVariadicInputHomogeneity)(const CustomOp*);
  int(ORT_CALL* GetVariadicOutputMinArity)(const CustomOp*);
  int(ORT_CALL* GetVariadicOutputHomogeneity)(const CustomOp*);
  Status*(ORT_CALL* CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status*(ORT_CALL* KernelComputeV2)(void*, KernelContext*);
  Status*(ORT_CALL* InferOutputShapeFn)(const CustomOp*, ShapeInferContext*);
  int(ORT_CALL* GetStartVersion)(const CustomOp*);
  int(ORT_CALL* GetEndVersion)(const CustomOp*);
  std::size_t(ORT_CALL* GetMayInplace)(int**, int**);
  void(ORT_CALL* ReleaseMayInplace)(int*, int*);
  std::size_t(ORT_CALL* GetAliasMap)(int**, int**);
  void(ORT_CALL* ReleaseAliasMap)(int*, int*);
};

}  // namespace onnx_attnq::ort

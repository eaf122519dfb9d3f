// The ops of README.md as onnxruntime registers them.
#include <mutex>

#include "onnxruntime_glue.h"

namespace onnx_attnq {
namespace {

const Op& as_op(const CustomOp* op) { return *static_cast<const Op*>(op); }

ElementType group_query_input(const Op& op, std::size_t index) {
  switch (index) {
    case kPastKey:
    case kPastValue:
      return op.cache;
    case kLastKey:
    case kTotal:
      return kInt32;
    case kPositions:
    case kTokens:
      return kInt64;
    case kKeySteps:
    case kValueSteps:
      return kFloat;
    default:
      return op.type;
  }
}

Op make_op(Kind kind, const Form& form, std::string name, ElementType type = kFloat, ElementType cache = kFloat) {
  Op op{};
  op.kind = kind;
  op.form = form;
  op.name = std::move(name);
  op.type = type;
  op.cache = cache;
  op.version = kApiVersion;
  op.GetName = [](const CustomOp* self) { return as_op(self).name.c_str(); };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
  op.GetInputType = [](const CustomOp* self, std::size_t index) {
    return as_op(self).kind == Kind::kGroupQuery ? group_query_input(as_op(self), index) : kFloat;
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
  op.GetOutputType = [](const CustomOp* self, std::size_t index) {
    const Op& op = as_op(self);
    if (op.kind == Kind::kKernelName) return kUint8;
    return op.kind == Kind::kGroupQuery ? (index == 0 ? op.type : op.cache) : kFloat;
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
    ops.push_back(make_op(Kind::kAttention, named.form, adjective + "Attention" + named.suffix + "_softcap"));
    ops.back().capped = true;
    ops.push_back(make_op(Kind::kProbabilities, named.form,
                          (with_levels ? "QuantizeProbabilities" : "PruneProbabilities") + named.suffix));
  }
  // Layers of one model may differ, and a function has one body for each name: one op under several names, whatever the
  // form. A name of so many inputs takes a third of a millisecond of every session.
  for (const char* adjective : {"Quantized", "Pruned"}) {
    for (const char* variant : {"", "_2", "_3", "_4"}) {
      const std::string name = std::string(adjective) + "GroupQueryAttention" + variant;
      for (const ElementType type : {kFloat, kFloat16}) {
        for (const ElementType cache : {type, kInt8, kUint8}) {
          ops.push_back(make_op(Kind::kGroupQuery, {}, name, type, cache));
        }
      }
    }
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

#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "kernels.h"

namespace onnx_attnq {
namespace {

// Best first; the last one runs everywhere.
const Kernels* const kTable[] = {
#if defined(ONNX_ATTNQ_X86)
#if defined(ONNX_ATTNQ_AMX)
    &kAmxKernels,
#endif
    &kAvx512Kernels,
    &kAvx2Kernels,
#elif defined(ONNX_ATTNQ_NEON)
    &kNeonKernels,
#endif
    &kScalarKernels,
};

}  // namespace

Selection select_kernels() {
  const char* forced = std::getenv("ONNX_ATTNQ_ISA");
  if (forced == nullptr || *forced == '\0') {
    const Kernels* best = nullptr;
    for (const Kernels* kernels : kTable) {
      if (!kernels->supported()) continue;
      if (best != nullptr) return {best, kernels};
      best = kernels;
    }
    return {best, best};
  }
  std::string known;
  for (const Kernels* kernels : kTable) {
    if (kernels->name == std::string(forced)) {
      if (kernels->supported()) return {kernels, kernels};
      throw std::invalid_argument(std::string("ONNX_ATTNQ_ISA=") + forced + ": this processor cannot run it");
    }
    known += known.empty() ? "" : ", ";
    known += kernels->name;
  }
  throw std::invalid_argument(std::string("ONNX_ATTNQ_ISA=") + forced + " is unknown; known here: " + known);
}

}  // namespace onnx_attnq

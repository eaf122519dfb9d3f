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

RoughScores rough_scores() {
  const char* value = std::getenv("ONNX_ATTNQ_ROUGH_SCORES");
  const std::string text = value == nullptr ? "" : value;
  if (text.empty()) return RoughScores::kWhereFaster;
  if (text == "0") return RoughScores::kNever;
  if (text == "1") return RoughScores::kAlways;
  throw std::invalid_argument("ONNX_ATTNQ_ROUGH_SCORES=" + text + " must be 0 or 1");
}

}  // namespace

Selection select_kernels() {
  const RoughScores rough = rough_scores();
  const char* forced = std::getenv("ONNX_ATTNQ_ISA");
  if (forced == nullptr || *forced == '\0') {
    const Kernels* best = nullptr;
    for (const Kernels* kernels : kTable) {
      if (!kernels->supported()) continue;
      if (best != nullptr) return {best, kernels, rough};
      best = kernels;
    }
    return {best, best, rough};
  }
  std::string known;
  for (const Kernels* kernels : kTable) {
    if (kernels->name == std::string(forced)) {
      if (kernels->supported()) return {kernels, kernels, rough};
      throw std::invalid_argument(std::string("ONNX_ATTNQ_ISA=") + forced + ": this processor cannot run it");
    }
    known += known.empty() ? "" : ", ";
    known += kernels->name;
  }
  throw std::invalid_argument(std::string("ONNX_ATTNQ_ISA=") + forced + " is unknown; known here: " + known);
}

}  // namespace onnx_attnq

// NEON, which every 64-bit ARM processor has.
#include "kernels.h"
#include "simd_neon.h"
#include "vector_attention.h"

namespace onnx_attnq {

const Kernels kNeonKernels = vector_kernels<VectorProducts>("neon", [] { return true; });

}  // namespace onnx_attnq

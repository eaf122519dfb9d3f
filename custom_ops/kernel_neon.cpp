// NEON, which every 64-bit ARM processor has.
#include "kernels.h"
#include "simd_neon.h"
#include "vector_kernels.h"

// Included after its vector operations.
#include "rounded_products.h"

namespace onnx_attnq {

const Kernels kNeonKernels = vector_kernels<RoundedProducts>("neon", [] { return true; });

}  // namespace onnx_attnq

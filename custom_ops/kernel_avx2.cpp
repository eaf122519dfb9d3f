// AVX2 and FMA: Intel from Haswell, AMD from Zen on.
#include "kernels.h"
#include "processor_x86.h"
#include "simd_avx2.h"
#include "vector_kernels.h"

// Included after its vector operations.
#include "rounded_products.h"

namespace onnx_attnq {

const Kernels kAvx2Kernels = vector_kernels<RoundedProducts>("avx2", runs_avx2);

}  // namespace onnx_attnq

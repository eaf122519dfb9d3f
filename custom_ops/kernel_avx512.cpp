// AVX-512 with VNNI: Intel servers from Cascade Lake, AMD from Zen 4 on.
#include "kernels.h"
#include "processor_x86.h"
#include "simd_avx512.h"
#include "vector_kernels.h"

// Included after its vector operations.
#include "rounded_products.h"

namespace onnx_attnq {

const Kernels kAvx512Kernels = vector_kernels<RoundedProducts>("avx512", runs_avx512);

}  // namespace onnx_attnq

// AVX2 and FMA: Intel from Haswell, AMD from Zen on.
#include "kernels.h"
#include "simd_avx2.h"
#include "vector_attention.h"

namespace onnx_attnq {

const Kernels kAvx2Kernels = vector_kernels<VectorProducts>(
    "avx2", [] { return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0; });

}  // namespace onnx_attnq

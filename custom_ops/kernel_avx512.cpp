// AVX-512 with VNNI: Intel servers from Cascade Lake, AMD from Zen 4 on.
#include "kernels.h"
#include "simd_avx512.h"
#include "vector_attention.h"

namespace onnx_attnq {

const Kernels kAvx512Kernels = vector_kernels<VectorProducts>("avx512", [] {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
         __builtin_cpu_supports("avx512vnni") != 0;
});

}  // namespace onnx_attnq

// AMX with bfloat16 tiles, beside AVX-512: Intel servers from Sapphire Rapids on.
#include "kernels.h"
#include "processor_x86.h"
#include "simd_avx512.h"
#include "vector_kernels.h"

// Included after its vector operations.
#include "amx_products.h"

namespace onnx_attnq {

const Kernels kAmxKernels = vector_kernels<AmxProducts>("amx", runs_amx);

}  // namespace onnx_attnq

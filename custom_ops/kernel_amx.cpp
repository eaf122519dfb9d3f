// AMX with bfloat16 tiles, beside AVX-512: Intel servers from Sapphire Rapids on.
#include <cpuid.h>

#include "kernels.h"
#include "simd_avx512.h"
#include "vector_attention.h"

// After the vectors that it builds on.
#include "amx_products.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace onnx_attnq {
namespace {

bool has_tiles() {
  unsigned a, b, c, d;
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBfloat16) != 0 && (d & kTiles) != 0;
}

// Linux lets a process use the tiles once it has asked; elsewhere this is not tried.
bool may_use_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

const Kernels kAmxKernels =
    vector_kernels<AmxProducts>("amx", [] { return kAvx512Kernels.supported() && has_tiles() && may_use_tiles(); });

}  // namespace onnx_attnq

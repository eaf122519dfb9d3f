// The processor is asked by instruction: clang-cl leaves out the runtime library behind __builtin_cpu_supports. It is
// asked here, in a file that is compiled for any processor, because a kernel's file may use what is being asked about.
#include "processor_x86.h"

#include <cpuid.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace onnx_attnq {
namespace {

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf) {
  Registers r;
  __get_cpuid_count(leaf, 0, &r.a, &r.b, &r.c, &r.d);  // zeros where there is no such leaf
  return r;
}

bool all(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }
constexpr unsigned bit(int number) { return 1u << number; }

// Whether the system saves these registers when it changes threads.
bool saves(unsigned wanted) {
  if (!all(cpuid(1).c, bit(27))) return false;  // OSXSAVE: it says which
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return all(low, wanted);
}

constexpr unsigned kVectors = bit(1) | bit(2);
#if defined(__APPLE__)
// macOS says so only once a thread has used them.
constexpr unsigned kWideVectors = kVectors;
#else
constexpr unsigned kWideVectors = kVectors | bit(5) | bit(6) | bit(7);
#endif

}  // namespace

bool runs_avx2() {
  // With F16C, BMI and POPCNT, which all have that have AVX2.
  return saves(kVectors) && all(cpuid(1).c, bit(12) | bit(23) | bit(29)) && all(cpuid(7).b, bit(3) | bit(5));
}

bool runs_avx512() {
  return runs_avx2() && saves(kWideVectors) && all(cpuid(7).b, bit(16) | bit(17) | bit(30) | bit(31)) &&
         all(cpuid(7).c, bit(11));
}

bool is_amd() {
  static const bool amd = [] {
    const Registers vendor = cpuid(0);
    return vendor.b == 0x68747541 && vendor.d == 0x69746e65 && vendor.c == 0x444d4163;  // "AuthenticAMD"
  }();
  return amd;
}

#if defined(__linux__)
bool runs_amx() {
  if (!runs_avx512() || !all(cpuid(7).d, bit(22) | bit(24))) return false;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif

}  // namespace onnx_attnq

// Hides AVX-512 and AMX from a program, so that an AVX2 machine's ratios can be measured on a newer processor:
// onnxruntime chooses its kernels by CPUID, and nothing else switches them. Linux on x86-64 with CPUID faulting.
//
//   cc -O2 -shared -fPIC benchmarks/hide_avx512.c -o build/hide_avx512.so
//   LD_PRELOAD=build/hide_avx512.so python benchmarks/attention.py
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

// ARCH_SET_CPUID of arch_prctl(2): with 0, CPUID raises SIGSEGV in this thread and those it starts.
static int allow_cpuid(int allowed) { return (int)syscall(SYS_arch_prctl, 0x1012, allowed); }

static uint32_t without(uint32_t bits, const int* hidden, int count) {
  for (int i = 0; i < count; ++i) bits &= ~(1u << hidden[i]);
  return bits;
}
#define HIDE(bits, ...) without(bits, (const int[]){__VA_ARGS__}, sizeof((const int[]){__VA_ARGS__}) / sizeof(int))

static void answer_cpuid(int number, siginfo_t* info, void* context) {
  (void)info;
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  const uint8_t* instruction = (const uint8_t*)registers[REG_RIP];
  if (instruction[0] != 0x0f || instruction[1] != 0xa2) {  // any other fault
    signal(number, SIG_DFL);
    return;
  }
  const uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX];
  uint32_t a = leaf, b, c = subleaf, d;
  allow_cpuid(1);
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  allow_cpuid(0);
  if (leaf == 7 && subleaf == 0) {
    b = HIDE(b, 16, 17, 21, 26, 27, 28, 30, 31);  // AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL
    c = HIDE(c, 1, 6, 11, 12, 14);                // AVX-512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
    d = HIDE(d, 2, 3, 8, 22, 23, 24, 25);         // AVX-512 4VNNIW, 4FMAPS, VP2INTERSECT, FP16; AMX
  } else if (leaf == 7 && subleaf == 1) {
    a = HIDE(a, 4, 5, 21, 23);  // AVX-VNNI, AVX-512 BF16, AMX-FP16, AVX-IFMA
  }
  registers[REG_RAX] = a;
  registers[REG_RBX] = b;
  registers[REG_RCX] = c;
  registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
  struct sigaction action = {0};
  action.sa_sigaction = answer_cpuid;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, NULL);
  if (allow_cpuid(0) != 0) fprintf(stderr, "hide_avx512: this machine has no CPUID faulting\n");
}

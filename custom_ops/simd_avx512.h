// AVX-512 (F, BW, DQ, VL, VNNI) as the vector kernels see it: 16 floats to a register, 32 registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "processor_x86.h"
#include "transpose_x86.h"

namespace onnx_attnq {
namespace {

struct Simd {
  using Float = __m512;
  using Int = __m512i;
  using Mask = __mmask16;

  static constexpr int kLanes = 16;
  // 12 x 2 accumulators and 2 registers of keys; a query's number is a memory operand.
  static constexpr int kTileRows = 12;
  static constexpr int kTileVectors = 2;
  static constexpr int kContextVectors = 8;
  static constexpr int kPermuted = 16;
  static constexpr float kDenseShare = 0.6f;

  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Mask first_lanes(int n) { return static_cast<Mask>(n >= kLanes ? 0xffff : (1u << n) - 1); }
  static Float load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
  static void store_first(float* p, Float v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
  static Float set1(float x) { return _mm512_set1_ps(x); }
  // kLanes numbers that are stored otherwise (numbers.h).
  static Float load_half(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
  static Float load_int8(const void* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  static Float load_int4(const void* p) {
    const __m128i bytes = _mm_loadl_epi64(static_cast<const __m128i*>(p)), low_bits = _mm_set1_epi8(15);
    const __m128i low = _mm_and_si128(bytes, low_bits), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), low_bits);
    const Int whole = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, high));
    return _mm512_sub_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(8.0f));
  }

  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float sqrt(Float a) { return _mm512_sqrt_ps(a); }
  static Float abs(Float a) { return _mm512_abs_ps(a); }
  // If one is NaN, the second.
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }

  static Mask none() { return 0; }
  static Mask is_nan(Float a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
  static Mask at_least(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static Mask either(Mask a, Mask b) { return _kor_mask16(a, b); }
  static unsigned bits(Mask a) { return a; }
  static bool any(Mask a) { return a != 0; }
  static Float where(Mask m, Float a, Float b) { return _mm512_mask_blend_ps(m, b, a); }
  static Float keep(Mask m, Float a) { return _mm512_maskz_mov_ps(m, a); }

  static Int truncate(Float a) { return _mm512_cvttps_epi32(a); }
  static Int round(Float a) { return _mm512_cvtps_epi32(a); }
  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  // a times 2 to the power of n, for the n in the last bits of a number like 2^23 + n, where the result is normal.
  static Float times_power_of_two(Float a, Float n) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), power));
  }
  // The exponent e of a positive normal number, and the number divided by 2^e: in [1, 2).
  static Int exponent(Float a) {
    return _mm512_sub_epi32(_mm512_srli_epi32(_mm512_castps_si512(a), 23), _mm512_set1_epi32(127));
  }
  static Float mantissa(Float a) {
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffff));
    return _mm512_castsi512_ps(_mm512_or_si512(bits, _mm512_set1_epi32(0x3f800000)));
  }

  static Float permute(Float table, Int code) { return _mm512_permutexvar_ps(code, table); }
  static Int eighth(Int a) { return _mm512_srli_epi32(a, 3); }
  static Float gather(const float* table, Int code) { return _mm512_i32gather_ps(code, table, 4); }

  static float sum(Float a) { return _mm512_reduce_add_ps(a); }
  // The sums of 16 registers, one in each lane: halves of two are added at a time, in four steps.
  static Float sums(const Float (&v)[kLanes]) {
    Float pairs[8], fours[4];
    for (int i = 0; i < 8; ++i) {
      const Float a = v[2 * i], b = v[2 * i + 1];
      pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    for (int i = 0; i < 4; ++i) {
      const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
      fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      fours[i] = _mm512_add_ps(fours[i], _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const auto add_quarters = [](Float a, Float b) {
      return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    return add_quarters(add_quarters(fours[0], fours[1]), add_quarters(fours[2], fours[3]));
  }
  static float largest(Float a) { return _mm512_reduce_max_ps(a); }

  // The numbers 0, 1, 2 and so on, and those kLanes after them.
  static Int first_indices() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  static Int add_int(Int a, std::int32_t n) { return _mm512_add_epi32(a, _mm512_set1_epi32(n)); }
  static Int next_indices(Int a) { return add_int(a, kLanes); }
  // Writes the lanes in m to a list and returns how many; up to kLanes entries are overwritten. Compressing in the
  // register and storing all of it is several times faster than a compressing store.
  static int append(std::int32_t* list, Int a, Mask m) {
    _mm512_storeu_si512(list, _mm512_maskz_compress_epi32(m, a));
    return __builtin_popcount(m);
  }

  // From how many rows and keys on 16-bit products are faster than float32 ones, rounding and packing included; 0 where
  // they never are.
  static std::int64_t fewest_rounded() { return is_amd() ? 112 : 224; }  // measured on Zen 4 and on a Xeon

  // 16-bit products: each lane is a pair of 16-bit numbers.
  static Int broadcast_pair(const std::int32_t* p) {
    return _mm512_castps_si512(_mm512_set1_ps(*reinterpret_cast<const float*>(p)));
  }
  static Int load_int(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static Int pair(Int low, Int high) {
    return _mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(high, 16));
  }
  static void store_int16(std::int16_t* p, Int v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
  }
  static void store_int(std::int32_t* p, Int v) { _mm512_storeu_si512(p, v); }
  // As text: around the intrinsic, GCC copies every sum.
  using Products = int __attribute__((vector_size(64)));
  static Products add_products(Products sum, Int a, Int b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
};

}  // namespace
}  // namespace onnx_attnq

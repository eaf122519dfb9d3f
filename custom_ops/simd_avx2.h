// AVX2 and FMA as the vector kernels see them: 8 floats to a register, 16 registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "transpose_x86.h"

namespace onnx_attnq {
namespace {

// The numbers of the set bits of every byte.
struct SetLanes {
  unsigned char bytes[256][8];

  constexpr SetLanes() : bytes() {
    for (int bits = 0; bits < 256; ++bits) {
      int count = 0;
      for (int lane = 0; lane < 8; ++lane) {
        if (bits >> lane & 1) bytes[bits][count++] = static_cast<unsigned char>(lane);
      }
    }
  }
};
constexpr SetLanes kSetLanes;

struct Simd {
  using Float = __m256;
  using Int = __m256i;
  using Mask = __m256;  // all ones or all zeros in each lane

  static constexpr int kLanes = 8;
  // 6 x 2 accumulators, 2 registers of keys and 1 of a query: the largest tile that 16 registers hold.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 2;
  static constexpr int kContextVectors = 12;  // accumulators of one context row
  static constexpr int kPermuted = 8;         // levels that one permutation reaches
  // From this share of kept keys on, multiplying every key is faster than finding the kept ones.
  static constexpr float kDenseShare = 0.75f;

  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Float load_first(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static void store_first(float* p, Float v, int n) { _mm256_maskstore_ps(p, first(n), v); }
  static Mask first_lanes(int n) { return _mm256_castsi256_ps(first(n)); }
  static Float set1(float x) { return _mm256_set1_ps(x); }
  // kLanes numbers that are stored otherwise (numbers.h).
  static Float load_half(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static Float load_int8(const void* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  }
  static Float load_int4(const void* p) {
    const __m128i bytes = _mm_loadu_si32(p), low_bits = _mm_set1_epi8(15);
    const __m128i low = _mm_and_si128(bytes, low_bits), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), low_bits);
    const Int whole = _mm256_cvtepu8_epi32(_mm_unpacklo_epi8(low, high));
    return _mm256_sub_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(8.0f));
  }

  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float sqrt(Float a) { return _mm256_sqrt_ps(a); }
  static Float abs(Float a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  // If one is NaN, the second.
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }

  static Mask none() { return _mm256_setzero_ps(); }
  static Mask is_nan(Float a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
  static Mask at_least(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  static Mask either(Mask a, Mask b) { return _mm256_or_ps(a, b); }
  static unsigned bits(Mask a) { return static_cast<unsigned>(_mm256_movemask_ps(a)); }
  static bool any(Mask a) { return _mm256_movemask_ps(a) != 0; }
  static Float where(Mask m, Float a, Float b) { return _mm256_blendv_ps(b, a, m); }
  static Float keep(Mask m, Float a) { return _mm256_and_ps(m, a); }

  static Int truncate(Float a) { return _mm256_cvttps_epi32(a); }
  static Int round(Float a) { return _mm256_cvtps_epi32(a); }
  static Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  // a times 2 to the power of n, for the n in the last bits of a number like 2^23 + n, where the result is normal.
  static Float times_power_of_two(Float a, Float n) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), power));
  }
  // The exponent e of a positive normal number, and the number divided by 2^e: in [1, 2).
  static Int exponent(Float a) {
    return _mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(a), 23), _mm256_set1_epi32(127));
  }
  static Float mantissa(Float a) {
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffff));
    return _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x3f800000)));
  }

  static Float permute(Float table, Int code) { return _mm256_permutevar8x32_ps(table, code); }
  static Int eighth(Int a) { return _mm256_srli_epi32(a, 3); }
  static Float gather(const float* table, Int code) { return _mm256_i32gather_ps(table, code, 4); }

  static float sum(Float a) {
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
  }
  // The sums of 8 registers, one in each lane.
  static Float sums(const Float (&v)[kLanes]) {
    const Float low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const Float high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
  }
  static float largest(Float a) {
    __m128 v = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)));
  }

  // The numbers 0, 1, 2 and so on, and those kLanes after them.
  static Int first_indices() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static Int add_int(Int a, std::int32_t n) { return _mm256_add_epi32(a, _mm256_set1_epi32(n)); }
  static Int next_indices(Int a) { return add_int(a, kLanes); }
  // Writes the lanes in m to a list and returns how many; up to kLanes entries are overwritten.
  static int append(std::int32_t* list, Int a, Mask m) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(list), _mm256_permutevar8x32_epi32(a, set_lanes(bits(m))));
    return __builtin_popcount(bits(m));
  }
  static Int set_lanes(unsigned bits) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kSetLanes.bytes[bits][0])));
  }

  // From how many rows and keys on 16-bit products are faster than float32 ones, rounding and packing included; 0 where
  // they never are.
  static std::int64_t fewest_rounded() { return 0; }  // measured on Zen 3

  // 16-bit products: each lane is a pair of 16-bit numbers.
  static Int broadcast_pair(const std::int32_t* p) {
    return _mm256_castps_si256(_mm256_broadcast_ss(reinterpret_cast<const float*>(p)));
  }
  static Int load_int(const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Int pair(Int low, Int high) {
    return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(high, 16));
  }
  static void store_int16(std::int16_t* p, Int v) {
    const __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow);
  }
  static void store_int(std::int32_t* p, Int v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  // Unsigned, because sums of products of next to nothing may overflow.
  using Products = unsigned __attribute__((vector_size(32)));
  static Products add_products(Products sum, Int a, Int b) {
    return sum + reinterpret_cast<Products>(_mm256_madd_epi16(a, b));
  }
};

}  // namespace
}  // namespace onnx_attnq

// NEON of 64-bit ARM as the vector kernels see it: 4 floats to a register, 32 registers.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace onnx_attnq {
namespace {

constexpr int kTransposed = 4;

// out[c * out_row + r] = in[r * in_row + c]
static inline void transpose_block(const float* in, std::int64_t in_row, float* out, std::int64_t out_row) {
  const float32x4x2_t low = vtrnq_f32(vld1q_f32(in), vld1q_f32(in + in_row));
  const float32x4x2_t high = vtrnq_f32(vld1q_f32(in + 2 * in_row), vld1q_f32(in + 3 * in_row));
  vst1q_f32(out, vcombine_f32(vget_low_f32(low.val[0]), vget_low_f32(high.val[0])));
  vst1q_f32(out + out_row, vcombine_f32(vget_low_f32(low.val[1]), vget_low_f32(high.val[1])));
  vst1q_f32(out + 2 * out_row, vcombine_f32(vget_high_f32(low.val[0]), vget_high_f32(high.val[0])));
  vst1q_f32(out + 3 * out_row, vcombine_f32(vget_high_f32(low.val[1]), vget_high_f32(high.val[1])));
}

struct Simd {
  using Float = float32x4_t;
  using Int = int32x4_t;
  using Mask = uint32x4_t;  // all ones or all zeros in each lane

  static constexpr int kLanes = 4;
  // 6 x 4 accumulators, 4 registers of keys and 1 of a query.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 4;
  static constexpr int kContextVectors = 16;
  static constexpr int kPermuted = 0;  // levels are looked up one by one
  static constexpr float kDenseShare = 0.75f;

  static Float load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Float v) { vst1q_f32(p, v); }
  static Mask first_lanes(int n) {
    const std::int32_t lanes[4] = {0, 1, 2, 3};
    return vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(n));
  }
  static Float load_first(const float* p, int n) {
    float lanes[4] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return vld1q_f32(lanes);
  }
  static void store_first(float* p, Float v, int n) {
    float lanes[4];
    vst1q_f32(lanes, v);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static Float set1(float x) { return vdupq_n_f32(x); }
  // kLanes numbers that are stored otherwise (numbers.h).
  static Float load_half(const void* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<const std::uint16_t*>(p))));
  }
  static Float load_int8(const void* p) {
    std::int32_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    const int16x8_t whole = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(whole)));
  }
  static Float load_int4(const void* p) {
    std::uint16_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    const std::int32_t lanes[4] = {bytes & 15, bytes >> 4 & 15, bytes >> 8 & 15, bytes >> 12};
    return vsubq_f32(vcvtq_f32_s32(vld1q_s32(lanes)), vdupq_n_f32(8.0f));
  }

  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float div(Float a, Float b) { return vdivq_f32(a, b); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float sqrt(Float a) { return vsqrtq_f32(a); }
  static Float abs(Float a) { return vabsq_f32(a); }
  // If one is NaN, the second.
  static Float min(Float a, Float b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static Float max(Float a, Float b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

  static Mask none() { return vdupq_n_u32(0); }
  static Mask is_nan(Float a) { return vmvnq_u32(vceqq_f32(a, a)); }
  static Mask at_least(Float a, Float b) { return vcgeq_f32(a, b); }
  static Mask either(Mask a, Mask b) { return vorrq_u32(a, b); }
  static unsigned bits(Mask a) {
    const std::uint32_t places[] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(a, vld1q_u32(places)));
  }
  static bool any(Mask a) { return vmaxvq_u32(a) != 0; }
  static Float where(Mask m, Float a, Float b) { return vbslq_f32(m, a, b); }
  static Float keep(Mask m, Float a) { return vreinterpretq_f32_u32(vandq_u32(m, vreinterpretq_u32_f32(a))); }

  static Int truncate(Float a) { return vcvtq_s32_f32(a); }
  static Int round(Float a) { return vcvtnq_s32_f32(a); }
  static Float to_float(Int a) { return vcvtq_f32_s32(a); }
  // a times 2 to the power of n, for the n in the last bits of a number like 2^23 + n, where the result is normal.
  static Float times_power_of_two(Float a, Float n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vreinterpretq_s32_f32(n), 23)));
  }
  // The exponent e of a positive normal number, and the number divided by 2^e: in [1, 2).
  static Int exponent(Float a) {
    return vsubq_s32(vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_f32(a), 23)), vdupq_n_s32(127));
  }
  static Float mantissa(Float a) {
    const uint32x4_t bits = vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0x7fffff));
    return vreinterpretq_f32_u32(vorrq_u32(bits, vdupq_n_u32(0x3f800000)));
  }

  static Float permute(Float table, Int) { return table; }  // never used: kPermuted is 0
  static Int eighth(Int a) { return vshrq_n_s32(a, 3); }
  static Float gather(const float* table, Int code) {
    std::int32_t codes[4];
    vst1q_s32(codes, code);
    const float lanes[4] = {table[codes[0]], table[codes[1]], table[codes[2]], table[codes[3]]};
    return vld1q_f32(lanes);
  }

  static float sum(Float a) { return vaddvq_f32(a); }
  // The sums of 4 registers, one in each lane.
  static Float sums(const Float (&v)[kLanes]) { return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])); }
  static float largest(Float a) { return vmaxvq_f32(a); }

  // The numbers 0, 1, 2 and so on, and those kLanes after them.
  static Int first_indices() {
    const std::int32_t lanes[] = {0, 1, 2, 3};
    return vld1q_s32(lanes);
  }
  static Int add_int(Int a, std::int32_t n) { return vaddq_s32(a, vdupq_n_s32(n)); }
  static Int next_indices(Int a) { return add_int(a, kLanes); }
  // Writes the lanes in m to a list and returns how many; up to kLanes entries are overwritten.
  static int append(std::int32_t* list, Int a, Mask m) {
    std::int32_t numbers[4];
    std::uint32_t lanes[4];
    vst1q_s32(numbers, a);
    vst1q_u32(lanes, m);
    int count = 0;
    for (int lane = 0; lane < 4; ++lane) {
      list[count] = numbers[lane];
      count += static_cast<int>(lanes[lane] & 1);
    }
    return count;
  }

  // From how many rows and keys on 16-bit products are faster than float32 ones, rounding and packing included; 0 where
  // they never are.
  static std::int64_t fewest_rounded() { return 0; }

  // 16-bit products: each lane is a pair of 16-bit numbers.
  using Products = int32x4_t;
  static Int broadcast_pair(const std::int32_t* p) { return vdupq_n_s32(*p); }
  static Int load_int(const std::int32_t* p) { return vld1q_s32(p); }
  static Int pair(Int low, Int high) { return vorrq_s32(vandq_s32(low, vdupq_n_s32(0xffff)), vshlq_n_s32(high, 16)); }
  static void store_int16(std::int16_t* p, Int v) { vst1_s16(p, vmovn_s32(v)); }
  static void store_int(std::int32_t* p, Int v) { vst1q_s32(p, v); }
  static Products add_products(Products sum, Int a, Int b) {
    const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
    return vaddq_s32(sum, vpaddq_s32(low, high));
  }
};

}  // namespace
}  // namespace onnx_attnq

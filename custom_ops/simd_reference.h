// The operations that every instruction set implements (`Simd` of simd_<name>.h), one lane after the other: what each
// of them means. simd_test.cpp compares every instruction set with it; a new one has to have all of them, and three
// constants of its own besides: kContextVectors, kDenseShare and fewest_rounded().
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace onnx_attnq {
namespace {

template <int kCount>
struct ReferenceSimd {
  static constexpr int kLanes = kCount;  // a power of two

  using Float = std::array<float, kLanes>;
  using Int = std::array<std::int32_t, kLanes>;
  using Mask = std::array<bool, kLanes>;

  template <class Result, class Function>
  static Result each(const Function& function) {
    Result result{};
    for (int i = 0; i < kLanes; ++i) result[i] = function(i);
    return result;
  }

  // Memory. The first n lanes; load_first fills the others with zeros.
  static Float load(const float* p) { return load_first(p, kLanes); }
  static void store(float* p, const Float& v) { store_first(p, v, kLanes); }
  static Mask first_lanes(int n) {
    return each<Mask>([&](int i) { return i < n; });
  }
  static Float load_first(const float* p, int n) {
    return each<Float>([&](int i) { return i < n ? p[i] : 0.0f; });
  }
  static void store_first(float* p, const Float& v, int n) { std::copy_n(v.data(), n, p); }
  static Float set1(float x) {
    return each<Float>([&](int) { return x; });
  }

  // kLanes numbers that are stored otherwise.
  static Float load_half(const void* p) { return load_stored(p, Storage::kHalf); }
  static Float load_int8(const void* p) { return load_stored(p, Storage::kInt8); }
  static Float load_int4(const void* p) { return load_stored(p, Storage::kInt4); }
  static Float load_stored(const void* p, Storage storage) {
    return each<Float>([&](int i) { return Numbers{p, storage}[i]; });
  }

  // Arithmetic. min and max give the second operand if one is NaN, or if both are equal.
  static Float add(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return a[i] + b[i]; });
  }
  static Float sub(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return a[i] - b[i]; });
  }
  static Float mul(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return a[i] * b[i]; });
  }
  static Float div(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return a[i] / b[i]; });
  }
  static Float fma(const Float& a, const Float& b, const Float& c) {
    return each<Float>([&](int i) { return std::fma(a[i], b[i], c[i]); });
  }
  static Float sqrt(const Float& a) {
    return each<Float>([&](int i) { return std::sqrt(a[i]); });
  }
  static Float abs(const Float& a) {
    return each<Float>([&](int i) { return std::fabs(a[i]); });
  }
  static Float min(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
  }
  static Float max(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
  }

  // Masks.
  static Mask none() { return {}; }
  static Mask is_nan(const Float& a) {
    return each<Mask>([&](int i) { return std::isnan(a[i]); });
  }
  static Mask at_least(const Float& a, const Float& b) {
    return each<Mask>([&](int i) { return a[i] >= b[i]; });
  }
  static Mask either(const Mask& a, const Mask& b) {
    return each<Mask>([&](int i) { return a[i] || b[i]; });
  }
  // Bit i is lane i.
  static unsigned bits(const Mask& a) {
    unsigned bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= a[i] ? 1u << i : 0;
    return bits;
  }
  static bool any(const Mask& a) {
    return std::any_of(a.begin(), a.end(), [](bool lane) { return lane; });
  }
  static Float where(const Mask& m, const Float& a, const Float& b) {
    return each<Float>([&](int i) { return m[i] ? a[i] : b[i]; });
  }
  static Float keep(const Mask& m, const Float& a) { return where(m, a, Float{}); }

  // Whole numbers: of numbers below 2^31. Halves are rounded to even.
  static Int truncate(const Float& a) {
    return each<Int>([&](int i) { return static_cast<std::int32_t>(a[i]); });
  }
  static Int round(const Float& a) {
    return each<Int>([&](int i) { return static_cast<std::int32_t>(std::nearbyint(a[i])); });
  }
  static Float to_float(const Int& a) {
    return each<Float>([&](int i) { return static_cast<float>(a[i]); });
  }
  // a times 2 to the power of n, for the n in the last bits of a number like 2^23 + n, where the result is normal.
  static Float times_power_of_two(const Float& a, const Float& n) {
    return each<Float>([&](int i) {
      const int last_bits = static_cast<int>(bits_of(n[i]) & 0x1ff);
      return std::ldexp(a[i], last_bits < 256 ? last_bits : last_bits - 512);
    });
  }
  // The exponent e of a positive normal number, and the number divided by 2^e: in [1, 2).
  static Int exponent(const Float& a) {
    return each<Int>([&](int i) { return std::ilogb(a[i]); });
  }
  static Float mantissa(const Float& a) {
    return each<Float>([&](int i) { return std::ldexp(a[i], -std::ilogb(a[i])); });
  }

  // table[code]. permute has the table in a register, and looks at as many of a code's last bits as find its lanes; for
  // codes below kPermuted, which is 0 where there is no such operation.
  static Float permute(const Float& table, const Int& code) {
    return each<Float>([&](int i) { return table[code[i] & (kLanes - 1)]; });
  }
  // A whole number that is not negative, divided by 8.
  static Int eighth(const Int& a) {
    return each<Int>([&](int i) { return a[i] / 8; });
  }
  static Float gather(const float* table, const Int& code) {
    return each<Float>([&](int i) { return table[code[i]]; });
  }

  // Over all lanes, added in any order; of kLanes registers, the sum of register i in lane i.
  static float sum(const Float& a) {
    double sum = 0;
    for (float lane : a) sum += lane;
    return static_cast<float>(sum);
  }
  static Float sums(const Float (&v)[kLanes]) {
    return each<Float>([&](int i) { return sum(v[i]); });
  }
  static float largest(const Float& a) { return *std::max_element(a.begin(), a.end()); }

  // The numbers 0, 1, 2 and so on, and those kLanes after them.
  static Int first_indices() {
    return each<Int>([](int i) { return i; });
  }
  static Int add_int(const Int& a, std::int32_t n) {
    return each<Int>([&](int i) { return a[i] + n; });
  }
  static Int next_indices(const Int& a) { return add_int(a, kLanes); }
  // Writes the lanes in m to a list and returns how many; up to kLanes entries are overwritten.
  static int append(std::int32_t* list, const Int& a, const Mask& m) {
    int count = 0;
    for (int i = 0; i < kLanes; ++i) {
      if (m[i]) list[count++] = a[i];
    }
    return count;
  }

  // 16-bit products: each lane is a pair of 16-bit numbers, the first in the low half; their two products are added.
  using Products = Int;
  static Int broadcast_pair(const std::int32_t* p) {
    return each<Int>([&](int) { return *p; });
  }
  static Int load_int(const std::int32_t* p) {
    return each<Int>([&](int i) { return p[i]; });
  }
  static Int pair(const Int& low, const Int& high) {
    return each<Int>([&](int i) {
      const auto bits = (static_cast<std::uint32_t>(high[i]) << 16) | (static_cast<std::uint32_t>(low[i]) & 0xffff);
      return static_cast<std::int32_t>(bits);
    });
  }
  static void store_int16(std::int16_t* p, const Int& v) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<std::int16_t>(v[i]);
  }
  static void store_int(std::int32_t* p, const Int& v) { std::copy_n(v.data(), kLanes, p); }
  static Products add_products(const Products& sum, const Int& a, const Int& b) {
    return each<Products>([&](int i) { return sum[i] + low(a[i]) * low(b[i]) + high(a[i]) * high(b[i]); });
  }

 private:
  static std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
  }
  static std::int32_t low(std::int32_t pair) { return static_cast<std::int16_t>(pair & 0xffff); }
  static std::int32_t high(std::int32_t pair) { return static_cast<std::int16_t>((pair >> 16) & 0xffff); }
};

}  // namespace
}  // namespace onnx_attnq

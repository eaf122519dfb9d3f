// How the numbers of queries, keys and values are stored, and what they are as float32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace onnx_attnq {

using Index = std::int64_t;

// Whole numbers are multiples of a step, which the caller knows. Two numbers of 4 bits share a byte, the
// first in its low half; 8 stands for 0.
enum class Storage { kFloat, kHalf, kInt8, kInt4 };

static inline Index bytes_of(Storage storage, Index count) {
  switch (storage) {
    case Storage::kFloat:
      return 4 * count;
    case Storage::kHalf:
      return 2 * count;
    case Storage::kInt8:
      return count;
    case Storage::kInt4:
      return count / 2;
  }
  return 0;
}

// IEEE 754 binary16, of which every number is one of float32.
static inline float float_of_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t rest = static_cast<std::uint32_t>(half & 0x7fff) << 13;
  // As bits of a float32 number it has an exponent too low by 112: the product corrects that, subnormal numbers too.
  float value;
  std::memcpy(&value, &rest, sizeof value);
  value *= 0x1p112f;
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (rest >= 0x7c00u << 13) bits = 0x7f800000u | rest;  // infinity, NaN
  bits |= sign;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounded to the nearest, of two to the even one.
static inline std::uint16_t half_of_float(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);   // NaN
  if (bits >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // what rounds to 2^16 or is beyond
  if (bits < 0x38800000) {                                                   // subnormal: multiples of 2^-24
    float size;
    std::memcpy(&size, &bits, sizeof size);
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(size * 0x1p24f)));
  }
  bits += 0xfff + (bits >> 13 & 1);
  return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>((bits - (112u << 23)) >> 13));
}

// Stored numbers.
struct Numbers {
  const void* data;
  Storage storage;

  // Those from number n on, which is even for kInt4.
  Numbers operator+(Index n) const { return {static_cast<const char*>(data) + signed_bytes(n), storage}; }
  const float* floats() const { return static_cast<const float*>(data); }

  float operator[](Index n) const {
    switch (storage) {
      case Storage::kFloat:
        return static_cast<const float*>(data)[n];
      case Storage::kHalf:
        return float_of_half(static_cast<const std::uint16_t*>(data)[n]);
      case Storage::kInt8:
        return static_cast<const std::int8_t*>(data)[n];
      case Storage::kInt4:
        return static_cast<float>((static_cast<const std::uint8_t*>(data)[n / 2] >> (n % 2 * 4) & 15) - 8);
    }
    return 0;
  }

 private:
  Index signed_bytes(Index n) const { return n < 0 ? -bytes_of(storage, -n) : bytes_of(storage, n); }
};

static inline void widen(Numbers in, Index count, float* out) {
  if (in.storage == Storage::kFloat) {
    std::memcpy(out, in.data, static_cast<std::size_t>(4 * count));
    return;
  }
  for (Index i = 0; i < count; ++i) out[i] = in[i];
}

// Whole numbers are rounded to the nearest, of two to the even one, and held to what there is.
static inline void narrow(const float* in, Index count, Storage storage, void* out) {
  const auto whole = [in](Index i, float least, float most) {
    const float x = std::nearbyint(in[i]);
    return static_cast<int>(x < least ? least : x > most ? most : x == x ? x : 0.0f);
  };
  switch (storage) {
    case Storage::kFloat:
      std::memcpy(out, in, static_cast<std::size_t>(4 * count));
      break;
    case Storage::kHalf:
      for (Index i = 0; i < count; ++i) static_cast<std::uint16_t*>(out)[i] = half_of_float(in[i]);
      break;
    case Storage::kInt8:
      for (Index i = 0; i < count; ++i)
        static_cast<std::int8_t*>(out)[i] = static_cast<std::int8_t>(whole(i, -128, 127));
      break;
    case Storage::kInt4:
      for (Index i = 0; i < count; i += 2) {
        const int low = whole(i, -8, 7) + 8, high = whole(i + 1, -8, 7) + 8;
        static_cast<std::uint8_t*>(out)[i / 2] = static_cast<std::uint8_t>(low | high << 4);
      }
      break;
  }
}

}  // namespace onnx_attnq

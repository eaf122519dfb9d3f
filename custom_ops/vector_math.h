// Arithmetic on vectors of whatever instruction set `Simd` stands for. Included once by each kernel_<name>.cpp after
// its simd_<name>.h; the anonymous namespace keeps the copies apart.
#pragma once

#include "attention.h"

namespace onnx_attnq {
namespace {

using Float = Simd::Float;
using Int = Simd::Int;
using Mask = Simd::Mask;
constexpr int kLanes = Simd::kLanes;

constexpr float kNaN = __builtin_nanf("");
constexpr float kInfinity = __builtin_inff();
constexpr float kLowest = -3.402823466e38f;
constexpr float kSmallestNormal = 1.17549435e-38f;
constexpr float kLowestUnmasked = 1.6458114e-38f;  // exp(kMaskedNats)

static inline Index round_up(Index n, Index to) { return (n + to - 1) / to * to; }
static inline Index smaller(Index a, Index b) { return a < b ? a : b; }
static inline Index larger(Index a, Index b) { return a > b ? a : b; }
static inline float ratio(float numerator, float denominator) {
  return denominator == 0 ? 0.0f : numerator / denominator;
}

// out = in * factor, for rows whose numbers lie this far apart.
static inline void scale_row(const float* in, Index in_step, Index length, float factor, float* out, Index out_step) {
  Index d = 0;
  if (in_step == 1 && out_step == 1) {
    for (; d + kLanes <= length; d += kLanes) Simd::store(out + d, Simd::mul(Simd::load(in + d), Simd::set1(factor)));
  }
  for (; d < length; ++d) out[d * out_step] = in[d * in_step] * factor;
}

struct ScaledRow {
  const float* numbers;
  float factor;
};

// out = a + b, each times its factor, where numbers of out lie this far apart.
static inline void add_rows(ScaledRow a, ScaledRow b, Index length, float* out, Index out_step) {
  Index d = 0;
  if (out_step == 1) {
    const Float a_factor = Simd::set1(a.factor), b_factor = Simd::set1(b.factor);
    for (; d + kLanes <= length; d += kLanes) {
      const Float scaled = Simd::mul(Simd::load(a.numbers + d), a_factor);
      Simd::store(out + d, Simd::fma(Simd::load(b.numbers + d), b_factor, scaled));
    }
  }
  for (; d < length; ++d) out[d * out_step] = a.numbers[d] * a.factor + b.numbers[d] * b.factor;
}

// exp(x) for x <= 0 within 1 ULP; 0 where the result would not be a normal number.
//
// exp(x) = 2^n exp(r) with n the whole number nearest x / ln 2, so |r| <= ln 2 / 2. ln 2 is subtracted in two parts of
// which the first has few enough bits for n * part to be exact. Added to 1.5 * 2^23, x / ln 2 is rounded to n and
// is in the last bits. The polynomial has the smallest relative error on this interval, 3.1e-9 (fitted by
// reweighted least squares).
static inline Float exp_negative(Float x) {
  const Mask normal = Simd::at_least(x, Simd::set1(-87.3f));
  const Float clamped = Simd::max(x, Simd::set1(-87.3f)), one = Simd::set1(1.0f), round = Simd::set1(12582912.0f);
  const Float shifted = Simd::fma(clamped, Simd::set1(1.44269504f), round);
  const Float n = Simd::sub(shifted, round);
  Float r = Simd::fma(n, Simd::set1(-0.693359375f), clamped);
  r = Simd::fma(n, Simd::set1(2.12194440e-4f), r);
  Float p = Simd::set1(1.3814540580e-3f);
  p = Simd::fma(p, r, Simd::set1(8.3687454462e-3f));
  p = Simd::fma(p, r, Simd::set1(4.1668388993e-2f));
  p = Simd::fma(p, r, Simd::set1(1.6666521132e-1f));
  p = Simd::fma(p, r, Simd::set1(4.9999994040e-1f));
  p = Simd::fma(Simd::fma(p, r, one), r, one);
  return Simd::keep(normal, Simd::times_power_of_two(p, shifted));
}

// cap * tanh(x / cap), by tanh |y| = (1 - e) / (1 + e) with e = exp(-2 |y|): within rounding of 1 times the cap.
static inline Float capped(Float x, float cap) {
  const Float y = Simd::div(x, Simd::set1(cap)), one = Simd::set1(1.0f), zero = Simd::set1(0.0f);
  const Float e = exp_negative(Simd::mul(Simd::abs(y), Simd::set1(-2.0f)));
  const Float size = Simd::mul(Simd::div(Simd::sub(one, e), Simd::add(one, e)), Simd::set1(cap));
  const Float signed_size = Simd::where(Simd::at_least(x, zero), size, Simd::sub(zero, size));
  return Simd::where(Simd::is_nan(x), x, signed_size);
}

// ln(x) within 2 ULP for x >= 0; -inf for 0.
//
// x = 2^e m with m in [1, 2), halved where above sqrt(2) so that ln(m) is near 0. The polynomial is Cephes'.
static inline Float log_positive(Float x) {
  // A number below the normal range is brought into it first.
  const Mask normal = Simd::at_least(x, Simd::set1(kSmallestNormal));
  const Float scaled = Simd::where(normal, x, Simd::mul(x, Simd::set1(16777216.0f)));
  Float e =
      Simd::add(Simd::to_float(Simd::exponent(scaled)), Simd::where(normal, Simd::set1(0.0f), Simd::set1(-24.0f)));
  Float m = Simd::mantissa(scaled);
  const Mask high = Simd::at_least(m, Simd::set1(1.41421356f));
  m = Simd::where(high, Simd::mul(m, Simd::set1(0.5f)), m);
  e = Simd::where(high, Simd::add(e, Simd::set1(1.0f)), e);
  const Float r = Simd::sub(m, Simd::set1(1.0f));
  Float p = Simd::set1(7.0376836292e-2f);
  p = Simd::fma(p, r, Simd::set1(-1.1514610310e-1f));
  p = Simd::fma(p, r, Simd::set1(1.1676998740e-1f));
  p = Simd::fma(p, r, Simd::set1(-1.2420140846e-1f));
  p = Simd::fma(p, r, Simd::set1(1.4249322787e-1f));
  p = Simd::fma(p, r, Simd::set1(-1.6668057665e-1f));
  p = Simd::fma(p, r, Simd::set1(2.0000714765e-1f));
  p = Simd::fma(p, r, Simd::set1(-2.4999993993e-1f));
  p = Simd::fma(p, r, Simd::set1(3.3333331174e-1f));
  const Float square = Simd::mul(r, r);
  Float y = Simd::mul(Simd::mul(p, r), square);
  y = Simd::fma(e, Simd::set1(-2.12194440e-4f), y);
  y = Simd::fma(square, Simd::set1(-0.5f), y);
  const Float result = Simd::fma(e, Simd::set1(0.693359375f), Simd::add(r, y));
  const Mask positive = Simd::at_least(x, Simd::set1(1e-45f));
  return Simd::where(positive, result, Simd::set1(-kInfinity));
}

}  // namespace
}  // namespace onnx_attnq

// Every operation of one instruction set against simd_reference.h. A program for each, compiled with its flags:
// SIMD_HEADER is its simd_<name>.h, SIMD_KERNELS its kernels, which say whether the processor runs it.
#include SIMD_HEADER

#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "kernels.h"
#include "simd_reference.h"

namespace onnx_attnq {
namespace {

constexpr int kLanes = Simd::kLanes;
using Lanes = std::array<float, kLanes>;

// What an operation gave. `exact`: the same number; else sums in another order.
struct Result {
  std::string operation;
  std::vector<double> numbers;
  bool exact;
};

// The results of all operations of S, in an order that is the same for every S.
template <class S>
class Results {
 public:
  static std::vector<Result> of(const Lanes& a, const Lanes& b, const Lanes& c) {
    Results results;
    results.floats(a, b, c);
    results.masks(a, b);
    results.whole_numbers(a);
    results.tables();
    results.lists(a, b);
    results.pairs(a, b);
    return results.results_;
  }

 private:
  using Float = typename S::Float;
  using Int = typename S::Int;
  using Mask = typename S::Mask;

  void note(const char* operation, const Float& v, bool exact = true) {
    float lanes[kLanes];
    S::store(lanes, v);
    results_.push_back({operation, {lanes, lanes + kLanes}, exact});
  }
  void note_int(const char* operation, const Int& v) {
    std::int32_t lanes[kLanes];
    S::store_int(lanes, v);
    results_.push_back({operation, {lanes, lanes + kLanes}, true});
  }
  void note_mask(const char* operation, const Mask& m) {
    results_.push_back({operation, {static_cast<double>(S::bits(m))}, true});
  }
  void note_number(const char* operation, double x, bool exact = true) { results_.push_back({operation, {x}, exact}); }

  void floats(const Lanes& a, const Lanes& b, const Lanes& c) {
    const Float x = S::load(a.data()), y = S::load(b.data()), z = S::load(c.data());
    note("load", x);
    note("set1", S::set1(a[0]));
    // Any bytes are numbers of these, but for infinities and NaN of float16.
    std::uint8_t bytes[2 * kLanes];
    for (int i = 0; i < 2 * kLanes; ++i) bytes[i] = static_cast<std::uint8_t>(i * 37 + 11);
    note("load_int8", S::load_int8(bytes));
    note("load_int4", S::load_int4(bytes));
    for (int i = 1; i < 2 * kLanes; i += 2) bytes[i] &= 0xbb;
    note("load_half", S::load_half(bytes));
    note("add", S::add(x, y));
    note("sub", S::sub(x, y));
    note("mul", S::mul(x, y));
    note("div", S::div(x, y));
    note("fma", S::fma(x, y, z));
    note("sqrt", S::sqrt(S::abs(x)));
    note("abs", S::abs(x));
    note("min", S::min(x, y));
    note("max", S::max(x, y));
    for (int n = 0; n <= kLanes; ++n) {
      note("load_first", S::load_first(a.data(), n));
      Lanes some = b;
      S::store_first(some.data(), x, n);
      note("store_first", S::load(some.data()));
    }
    Float many[kLanes];
    for (int i = 0; i < kLanes; ++i) many[i] = S::mul(S::set1(static_cast<float>(i + 1)), x);
    note_number("sum", S::sum(x), false);
    note("sums", S::sums(many), false);
    if (!std::isnan(S::sum(x))) note_number("largest", S::largest(x));
  }

  void masks(const Lanes& a, const Lanes& b) {
    const Float x = S::load(a.data()), y = S::load(b.data());
    const Mask nan = S::is_nan(x), at_least = S::at_least(x, y);
    note_mask("none", S::none());
    note_mask("is_nan", nan);
    note_mask("at_least", at_least);
    note_mask("either", S::either(nan, at_least));
    note("where", S::where(at_least, x, y));
    note("keep", S::keep(at_least, x));
    note_number("any", S::any(at_least));
    note_number("any of none", S::any(S::none()));
    for (int n = 0; n <= kLanes; ++n) note_mask("first_lanes", S::first_lanes(n));
  }

  void whole_numbers(const Lanes& a) {
    Lanes limited, powers, positive;
    for (int i = 0; i < kLanes; ++i) {
      const bool fits = std::fabs(a[i]) < 2e9f;  // NaN does not
      limited[i] = fits ? a[i] : static_cast<float>(i) - 2.5f;
      powers[i] = 12582912.0f + static_cast<float>(3 * i - 20);  // 1.5 * 2^23 + n
      const float magnitude = std::fabs(a[i]);
      positive[i] = magnitude >= std::numeric_limits<float>::min() && magnitude < 1e30f ? magnitude : 1.0f;
    }
    const Float x = S::load(limited.data());
    note_int("truncate", S::truncate(x));
    note_int("round", S::round(x));
    note("to_float", S::to_float(S::truncate(x)));
    note("times_power_of_two", S::times_power_of_two(S::set1(1.375f), S::load(powers.data())));
    note_int("exponent", S::exponent(S::load(positive.data())));
    note("mantissa", S::mantissa(S::load(positive.data())));
  }

  void tables() {
    float table[256];
    std::int32_t codes[kLanes], in_register[kLanes];
    for (int i = 0; i < 256; ++i) table[i] = static_cast<float>(i * i);
    for (int i = 0; i < kLanes; ++i) {
      codes[i] = (37 * i + 5) % 256;
      in_register[i] = 5 * i + 3;
    }
    note_int("eighth", S::eighth(S::load_int(codes)));
    note("gather", S::gather(table, S::load_int(codes)));
    if (Simd::kPermuted != 0) note("permute", S::permute(S::load(table), S::load_int(in_register)));
  }

  void lists(const Lanes& a, const Lanes& b) {
    const Int indices = S::next_indices(S::first_indices());
    note_int("first_indices", S::first_indices());
    note_int("next_indices", indices);
    note_int("add_int", S::add_int(indices, -7));
    std::int32_t list[2 * kLanes] = {};
    const int count = S::append(list, indices, S::at_least(S::load(a.data()), S::load(b.data())));
    note_number("append", count);
    for (int i = 0; i < count; ++i) note_number("append", list[i]);
  }

  void pairs(const Lanes& a, const Lanes& b) {
    std::int32_t left[kLanes], right[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const auto small = [](float x) { return std::fabs(x) < 30000.0f ? static_cast<std::int32_t>(x) : -30000; };
      left[i] = small(100 * a[i]) + i;
      right[i] = small(-50 * b[i]) - i;
    }
    const Int low = S::load_int(left), high = S::load_int(right), pair = S::pair(low, high);
    note_int("load_int", low);
    note_int("pair", pair);
    note_int("broadcast_pair", S::broadcast_pair(left));
    std::int16_t narrow[kLanes];
    S::store_int16(narrow, low);
    results_.push_back({"store_int16", {narrow, narrow + kLanes}, true});
    const auto twice = S::add_products(S::add_products(typename S::Products{}, pair, S::pair(high, low)), pair, pair);
    note_int("add_products", Int(twice));
  }

  std::vector<Result> results_;
};

bool same(const Result& got, const Result& expected) {
  if (got.operation != expected.operation || got.numbers.size() != expected.numbers.size()) return false;
  for (std::size_t i = 0; i < got.numbers.size(); ++i) {
    const double x = got.numbers[i], y = expected.numbers[i];
    if (std::isnan(x) != std::isnan(y)) return false;
    if (std::isnan(x) || x == y) continue;
    if (expected.exact || !(std::fabs(x - y) <= 1e-5 * (1 + std::fabs(y)))) return false;
  }
  return true;
}

int check_transpose() {
  constexpr int n = kTransposed, in_row = n + 3, out_row = n + 1;
  float in[n * in_row], out[n * out_row] = {};
  for (int i = 0; i < n * in_row; ++i) in[i] = static_cast<float>(i);
  transpose_block(in, in_row, out, out_row);
  int failures = 0;
  for (int row = 0; row < n; ++row) {
    for (int column = 0; column < n; ++column) failures += out[column * out_row + row] != in[row * in_row + column];
  }
  return failures;
}

// Returns how many operations gave something else than the reference.
__attribute__((noinline)) int count_failures() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
  constexpr float kSpecial[] = {0.0f,       1.0f,   -2.5f,           3.5f,   kNaN,       kInfinity,
                                -kInfinity, 1e-39f, 1.17549435e-38f, 12.75f, -87.33654f, 1000.5f,
                                0.5f,       -0.0f,  299.0f,          -1.0f,  2.0f};
  constexpr int kCount = sizeof kSpecial / sizeof *kSpecial;
  int failures = 0;
  for (int first = 0; first < kCount; ++first) {
    for (int step = 1; step < kCount; ++step) {
      Lanes a, b, c, finite;
      for (int i = 0; i < kLanes; ++i) {
        a[i] = kSpecial[(first + i) % kCount];
        b[i] = kSpecial[(first + i * step) % kCount];
        c[i] = kSpecial[(3 * i + step) % kCount];
        finite[i] = std::isfinite(a[i]) ? a[i] : static_cast<float>(step);
      }
      for (const Lanes& x : {a, finite}) {
        const std::vector<Result> got = Results<Simd>::of(x, b, c),
                                  wanted = Results<ReferenceSimd<kLanes>>::of(x, b, c);
        if (got.size() != wanted.size()) ++failures;
        for (std::size_t i = 0; i < got.size() && i < wanted.size(); ++i) {
          if (same(got[i], wanted[i])) continue;
          ++failures;
          std::printf("%s: %s, %d, %d:", SIMD_HEADER, wanted[i].operation.c_str(), first, step);
          for (double number : got[i].numbers) std::printf(" %g", number);
          std::printf(" for");
          for (double number : wanted[i].numbers) std::printf(" %g", number);
          std::printf("\n");
        }
      }
    }
  }
  return failures + check_transpose();
}

}  // namespace
}  // namespace onnx_attnq

int main() {
  if (!onnx_attnq::SIMD_KERNELS.supported()) {
    std::printf("%s: this processor cannot run it\n", SIMD_HEADER);
    return 0;
  }
  const int failures = onnx_attnq::count_failures();
  std::printf("%s: %d failures\n", SIMD_HEADER, failures);
  return failures == 0 ? 0 : 1;
}

// Scores from 16-bit integers, of which one instruction multiplies twice as many as of float32 numbers: queries and
// keys are rounded to whole multiples of a step, each vector to its own, and the sums of their products are exact.
// Where they are asked for (`int16_products`) these are the scores; else, where processor and scheme suit, they are the
// rough ones of screening.h. Everything else is left to float32.
#pragma once

#include "screening.h"

namespace onnx_attnq {
namespace {

// The norm that vectors are brought to before they are rounded. No sum of products of two such overflows 32 bits,
// because it is at most the product of their norms (Cauchy and Schwarz), and the root of 2^31 is 46340: rounding adds
// up to sqrt(depth) / 2 to a norm, and the rest is for float32, in which norms are taken.
static inline float largest_rounded_norm(Index depth) { return 46290.0f - __builtin_sqrtf(static_cast<float>(depth)); }
// A vector that is little more than one large number fits 16 bits with this norm only.
constexpr float kLargestInteger = 32766.0f;
// The norm of a vector of zeros, or nearly: it has a step all the same. Squares of numbers below 1e-22 are lost, so
// such a vector may not fit 16 bits and sums may overflow; times so small a step, whatever they are is negligible.
constexpr float kSmallestNorm = 1e-25f;

// Numbers to whole multiples of a step; notes what that leaves out, squared, in lanes.
struct Rounding {
  Float inverse, minus_step;
  Float left_out = Simd::set1(0.0f);
  Mask too_large = Simd::none();

  void set(Float inverse_step, Float step) {
    inverse = inverse_step;
    minus_step = Simd::sub(Simd::set1(0.0f), step);
  }

  Int operator()(Float x) {
    const Int rounded = Simd::round(Simd::mul(x, inverse));
    const Float multiple = Simd::to_float(rounded);
    too_large = Simd::either(too_large, Simd::at_least(Simd::abs(multiple), Simd::set1(kLargestInteger + 1.5f)));
    const Float left = Simd::fma(multiple, minus_step, x);
    left_out = Simd::fma(left, left, left_out);
    return rounded;
  }
};

// out[r][v] = a[r] x b[v] of rounded vectors, two numbers of them at a time; then as multiply_tile does.
template <int kRows, bool kPeaks>
static inline void multiply_rounded(Index pairs, const std::int32_t* a, Index a_row, const float* a_steps,
                                    const std::int32_t* b, const float* b_steps, float* out, Index out_row,
                                    float* peaks) {
  Simd::Products sums[kRows][kTileVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) sums[r][v] = Simd::Products{};
  }
  for (Index k = 0; k < pairs; ++k) {
    Int right[kTileVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) right[v] = Simd::load_int(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Int left = Simd::broadcast_pair(a + r * a_row);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) sums[r][v] = Simd::add_products(sums[r][v], left, right[v]);
    }
    ++a;
    b += kTileKeys;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Float step = Simd::set1(a_steps[r]);
    Float peak = kPeaks ? Simd::load(peaks + r * kLanes) : Simd::set1(0.0f);
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) {
      const Float sum = Simd::mul(Simd::to_float(Int(sums[r][v])), Simd::load(b_steps + v * kLanes));
      const Float score = Simd::mul(sum, step);
      Simd::store(out + r * out_row + v * kLanes, score);
      if (kPeaks) peak = Simd::max(score, peak);
    }
    if (kPeaks) Simd::store(peaks + r * kLanes, peak);
  }
}

class RoundedProducts : public VectorProducts {
 public:
  static bool screens(const Attention& a) {
    if (a.int16_products || a.depth == 0 || !Screening::suits(a)) return false;
    if (a.rough_scores != RoughScores::kWhereFaster) return a.rough_scores == RoughScores::kAlways;
    constexpr Index kLongVector = 24;  // of shorter ones, products are the lesser part of the work
    const Index fewest = Simd::fewest_rounded();
    return a.depth >= kLongVector && fewest != 0 && is_large(a, fewest);
  }
  static bool rounds(const Attention& a) { return a.int16_products ? is_large(a, kFewestUnscreened) : screens(a); }

  static bool direct(const Task& t) { return VectorProducts::direct(t) && !rounds(t.a); }

  // A panel: the keys as float32 multiplies them and their norms, then the step of each and their rounded numbers.
  static Index panel_steps(const Attention& a) { return VectorProducts::panel_floats(a); }
  static Index panel_pairs(const Attention& a) { return panel_steps(a) + kTileKeys; }
  static Index panel_floats(const Attention& a) {
    return rounds(a) ? panel_pairs(a) + pairs_of(a) * kTileKeys : VectorProducts::panel_floats(a);
  }

  static void pack_panel(const Attention& a, Numbers key, Index panel, float* out) {
    if (!rounds(a)) return VectorProducts::pack_panel(a, key, panel, out);
    pack_key_panel(a, key, panel, out);
    round_panel(a, out);
  }

  static Index scratch(const Attention& a, Index rows) { return layout_of(a, rows).total; }

  RoundedProducts(const Task& task, Index rows, float* scratch)
      : VectorProducts(task, rows, scratch),
        rounds_(rounds(task.a)),
        screens_(screens(task.a)),
        layout_(layout_of(task.a, rows)),
        scratch_(scratch),
        screening_(task, rows, query(0), query_row(), scratch + layout_.screening) {}

  Screening* screening() { return screens_ ? &screening_ : nullptr; }

  void copy_queries() {
    VectorProducts::copy_queries();
    if (!rounds_) return;
    const KeyNorms keys = screens_ ? Screening::largest(t_, panel_floats(a_)) : KeyNorms{};
    for (Index row = 0; row < t_.rows; row += kLanes) {
      const Index count = smaller(kLanes, t_.rows - row);
      if (!round_queries(row, count, keys, largest_rounded_norm(a_.depth))) {
        round_queries(row, count, keys, kLargestInteger);
      }
    }
    for (Index row = 0; row < t_.rows; row += kBand) {
      const Index end = smaller(row + kBand, t_.rows);
      bool rough = true;
      for (Index r = row; r < end; ++r) {
        rough = rough && norms()[r] <= kLargestRough && (!screens_ || screening_.pays(r));
      }
      scratch_[layout_.rounded + row / kBand] = rough ? 1.0f : 0.0f;
      for (Index r = row; screens_ && !rough && r < end; ++r) screening_.errors()[r] = 0;
    }
  }

  bool score(Index row, Index count, Index panel, const float* keys, bool whole, float* out, Index out_row,
             float* peaks) {
    if (!rounds_ || KeyNorms::of(a_, keys).in_range == 0.0f || scratch_[layout_.rounded + row / kBand] == 0.0f) {
      return VectorProducts::score(row, count, panel, keys, whole, out, out_row, peaks);
    }
    const auto* const key_pairs = reinterpret_cast<const std::int32_t*>(keys + panel_pairs(a_));
    with_rows(count, [&](auto n) {
      const auto multiply = whole ? multiply_rounded<n(), true> : multiply_rounded<n(), false>;
      multiply(pairs_of(a_), pairs(row), layout_.pair_row, steps() + row, key_pairs, keys + panel_steps(a_), out,
               out_row, peaks);
    });
    return whole;
  }

 private:
  // Whether rounding each query and key makes the call faster. It is done for all scores that they take part in, so
  // what counts is the harmonic mean of how many rows and keys there are.
  static bool is_large(const Attention& a, Index fewest) {
    const Index rows = a.groups * a.queries;
    return 2 * rows * a.keys >= fewest * (rows + a.keys);
  }
  static constexpr Index kFewestUnscreened = 80;  // without a second look at anything

  struct Layout {
    Index pair_row;
    Index rounded, norms, steps, pairs, screening, total;
  };
  static Layout layout_of(const Attention& a, Index rows) {
    Layout l;
    Room room;
    room.take(VectorProducts::scratch(a, rows));
    // Pad each row by one vector against cache-set conflicts.
    l.pair_row = round_up(pairs_of(a), kLanes) + kLanes;
    l.rounded = room.take(rows / kBand);
    l.norms = room.take(rounds(a) ? round_up(rows, kLanes) : 0);
    l.steps = room.take(rounds(a) ? round_up(rows, kLanes) : 0);
    l.pairs = room.take(rounds(a) ? rows * l.pair_row : 0);
    l.screening = room.take(screens(a) ? Screening::scratch(a, rows) : 0);
    l.total = room.total();
    return l;
  }

  static Index pairs_of(const Attention& a) { return (a.depth + 1) / 2; }

  float* norms() { return scratch_ + layout_.norms; }
  float* steps() { return scratch_ + layout_.steps; }
  std::int32_t* pairs(Index row) {
    return reinterpret_cast<std::int32_t*>(scratch_ + layout_.pairs + row * layout_.pair_row);
  }

  // The keys of a panel, which are in lanes.
  static void round_panel(const Attention& a, float* panel) {
    Float norms[kTileVectors] = {}, whole = Simd::set1(0.0f);
    square_panel(a, panel, norms);
    Mask nan = Simd::none();
    for (Float& norm : norms) {
      nan = Simd::either(nan, Simd::is_nan(norm));
      norm = Simd::max(Simd::sqrt(norm), Simd::set1(kSmallestNorm));
      whole = Simd::max(norm, whole);
    }
    KeyNorms about{Simd::any(nan) ? kNaN : Simd::largest(whole), 0, 0, 0};
    if (about.whole <= kLargestRough) {
      about.in_range = 1;
      Float left_out = Simd::set1(0.0f);
      if (!round_keys(a, panel, norms, largest_rounded_norm(a.depth), left_out)) {
        round_keys(a, panel, norms, kLargestInteger, left_out);
      }
      about.rest = __builtin_sqrtf(Simd::largest(left_out));
    }
    about.store(a, panel);
  }

  // Returns false if a number is too large for this range; `left_out` is the most that is left out of a key.
  static bool round_keys(const Attention& a, float* panel, const Float (&norms)[kTileVectors], float range,
                         Float& left_out) {
    Rounding round[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) {
      const Float step = Simd::mul(norms[v], Simd::set1(1 / range));
      Simd::store(panel + panel_steps(a) + v * kLanes, step);
      round[v].set(Simd::div(Simd::set1(range), norms[v]), step);
    }
    auto* out = reinterpret_cast<std::int32_t*>(panel + panel_pairs(a));
    for (Index d = 0; d < a.depth; d += 2, out += kTileKeys) {
      for (int v = 0; v < kTileVectors; ++v) {
        const float* const in = panel + d * kTileKeys + v * kLanes;
        const Int low = round[v](Simd::load(in));
        const Int high = round[v](d + 1 < a.depth ? Simd::load(in + kTileKeys) : Simd::set1(0.0f));
        Simd::store_int(out + v * kLanes, Simd::pair(low, high));
      }
    }
    left_out = Simd::set1(0.0f);
    Mask too_large = Simd::none();
    for (const Rounding& r : round) {
      left_out = Simd::max(r.left_out, left_out);
      too_large = Simd::either(r.too_large, too_large);
    }
    return !Simd::any(too_large);
  }

  // Rounds up to kLanes queries, so that their norms can be taken together. False if one is too large for this range.
  bool round_queries(Index row, Index count, const KeyNorms& keys, float range) {
    Float squares[kLanes] = {}, left_out[kLanes] = {};
    for (Index i = 0; i < count; ++i) {
      for (Index d = 0; d < a_.depth; d += kLanes) {
        const Float x = query_lanes(row + i, d);
        squares[i] = Simd::fma(x, x, squares[i]);
      }
    }
    const Float own = Simd::sqrt(Simd::sums(squares)), norm = Simd::max(own, Simd::set1(kSmallestNorm));
    alignas(64) float inverse[kLanes];
    Simd::store(inverse, Simd::div(Simd::set1(range), norm));
    Simd::store(norms() + row, own);  // NaN stays
    Simd::store(steps() + row, Simd::mul(norm, Simd::set1(1 / range)));
    Mask too_large = Simd::none();
    for (Index i = 0; i < count; ++i) {
      Rounding round;
      round.set(Simd::set1(inverse[i]), Simd::set1(steps()[row + i]));
      auto* const out = reinterpret_cast<std::int16_t*>(pairs(row + i));
      for (Index d = 0; d < a_.depth; d += kLanes) Simd::store_int16(out + d, round(query_lanes(row + i, d)));
      left_out[i] = round.left_out;
      too_large = Simd::either(too_large, round.too_large);
    }
    if (screens_) {
      // q k - q' k' = q (k - k') + (q - q') k and a product of both differences, for which and for float32 there is the
      // factor (Cauchy and Schwarz); three roundings make a score of a sum.
      Float error = Simd::mul(norm, Simd::set1(keys.rest + 3 * 0x1p-24f * keys.whole));
      error = Simd::fma(Simd::sqrt(Simd::sums(left_out)), Simd::set1(keys.whole), error);
      Simd::store(screening_.errors() + row, Simd::mul(error, Simd::set1(1.02f)));
    }
    return !Simd::any(too_large);
  }

  Float query_lanes(Index row, Index d) {
    const Index rest = a_.depth - d;
    return rest >= kLanes ? Simd::load(query(row) + d) : Simd::load_first(query(row) + d, static_cast<int>(rest));
  }

  const bool rounds_, screens_;
  const Layout layout_;
  float* const scratch_;
  Screening screening_;
};

}  // namespace
}  // namespace onnx_attnq

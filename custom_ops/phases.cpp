// Prints where one thread spends the time of QuantizedAttention, in nanoseconds and in cycles for 8 scores:
//   phases KEYS DEPTH [BITS THRESHOLD SPREAD INT16 SHARED QUERIES MASK CALLS]
// SHARED: pruned values share what they summed to. QUERIES: 0 for as many as keys. MASK: 0 none, 1 causal, 2 a quarter
// of padding. CALLS: only so many, for a program that counts instructions; 0 for as many as time them.
#include "phases.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <limits>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "dispatch.h"
#include "sample.h"

namespace onnx_attnq {

std::uint64_t phase_ticks[static_cast<int>(Phase::kCount)];

// Nanoseconds: where there is such a clock those of this thread alone, since other programs take time too.
std::uint64_t ticks() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000000000u + static_cast<std::uint64_t>(now.tv_nsec);
#else
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}

// Cycles in a nanosecond while this thread computes: an addition takes one, and each waits for the one before.
double cycles_per_ns() {
  constexpr std::uint64_t kAdditions = 10000000;
  double best = 0;
  for (int run = 0; run < 8; ++run) {
    const std::uint64_t start = ticks();
    std::uint64_t x = 0;
    for (std::uint64_t i = 0; i < kAdditions; ++i) {
      x += 1;
      asm volatile("" : "+r"(x));
    }
    best = std::max(best, static_cast<double>(kAdditions) / static_cast<double>(ticks() - start));
  }
  return best;
}

// A mask as exports have it, with the lowest number where nothing is attended to.
void set_mask(Sample& sample, int kind) {
  Attention& a = sample.attention;
  if (kind == 0) return;
  for (Index i = 0; i < (kind == 1 ? a.queries : 1); ++i) {
    for (Index j = 0; j < a.keys; ++j) {
      const bool seen = kind == 1 ? j <= i + a.keys - a.queries : j < a.keys * 3 / 4;
      sample.mask.push_back(seen ? 0.0f : std::numeric_limits<float>::lowest());
    }
  }
  a.mask_strides.row = kind == 1 ? a.keys : 0;
  a.mask_strides.column = 1;
}

}  // namespace onnx_attnq

int main(int argc, char** argv) {
  using namespace onnx_attnq;
#if defined(__GLIBC__)
  // Memory that was used once stays with the process, as in onnxruntime's arena: no page faults in the measurement.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
  const auto argument = [&](int i, double otherwise) { return argc > i ? std::atof(argv[i]) : otherwise; };
  const auto keys = static_cast<Index>(argument(1, 512)), depth = static_cast<Index>(argument(2, 64));
  const int bits = static_cast<int>(argument(3, 3));
  const Form form = bits == 0 ? Form{Reference::kAbsolute, Spacing::kNone, Normalize::kNone}
                              : Form{Reference::kRowMax, Spacing::kLog, Normalize::kUnit, argument(7, 0) != 0};
  const auto threshold = static_cast<float>(argument(4, 0.01));
  const Table table = bits == 0 ? make_table(form, 0, 0, 0, 0) : sample_table(form, threshold, bits);
  const auto given = static_cast<Index>(argument(8, 0)), queries = given == 0 ? keys : given;
  Sample sample = make_sample(form, table, 12, queries, keys, depth, static_cast<float>(argument(5, 3)), false);
  sample.attention.int16_products = argument(6, 0) != 0;
  set_mask(sample, static_cast<int>(argument(9, 0)));

  const Selection selection = select_kernels();
  sample.attention.rough_scores = selection.rough_scores;
  const Kernels& kernels = selection.of(call(sample));
  SampleHost host;
  const auto calls = static_cast<int>(argument(10, 0));
  for (int i = 0; i < calls; ++i) attend(call(sample), kernels, host);
  if (calls != 0) return 0;
  double best[4] = {1e30, 1e30, 1e30, 1e30};
  const std::uint64_t started = ticks();
  for (int run = 0; run < 10 || ticks() - started < 500000000; ++run) {
    for (std::uint64_t& t : phase_ticks) t = 0;
    const std::uint64_t start = ticks();
    attend(call(sample), kernels, host);
    const double whole = static_cast<double>(ticks() - start);
    const double scores8 = 12.0 * static_cast<double>(queries * keys) / 8;
    double rest = whole;
    for (int phase = 0; phase < 3; ++phase) {
      const auto spent = static_cast<double>(phase_ticks[phase]);
      best[phase] = std::min(best[phase], spent / scores8);
      rest -= spent;
    }
    best[3] = std::min(best[3], rest / scores8);
  }
  const double clock = cycles_per_ns();
  std::printf("{\"kernels\": \"%s\", \"keys\": %d, \"depth\": %d, \"ghz\": %.2f", kernels.name, static_cast<int>(keys),
              static_cast<int>(depth), clock);
  const char* const names[] = {"scores", "weights", "context", "packing"};
  for (int phase = 0; phase < 4; ++phase) {
    std::printf(", \"%s_ns\": %.3f, \"%s_cycles\": %.2f", names[phase], best[phase], names[phase], best[phase] * clock);
  }
  // Products of queries and keys in a cycle.
  std::printf(", \"products_per_cycle\": %.2f}\n", static_cast<double>(8 * depth) / (best[0] * clock));
  return 0;
}

// Compares the kernels of this machine with the scalar one. It needs neither Python nor onnxruntime, so it also runs
// under sanitizers (make native-sanitize) and emulators (make native-aarch64, make native-windows).
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "dispatch.h"
#include "kernels.h"
#include "sample.h"

namespace {

using namespace onnx_attnq;

// The share of numbers that differ by more than float32 sums may. Scores near an edge may take the next code.
double share_that_differs(const std::vector<float>& got, const std::vector<float>& expected) {
  std::size_t differ = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const bool same = (std::isnan(got[i]) && std::isnan(expected[i])) || std::fabs(got[i] - expected[i]) < 1e-4f;
    differ += same ? 0 : 1;
  }
  return got.empty() ? 0.0 : static_cast<double>(differ) / static_cast<double>(got.size());
}

// Nothing may throw on a thread of the host, so a task allocates nothing but by the host.
thread_local bool in_task = false;
std::atomic<int> allocations_in_tasks{0};

class StrictHost final : public Host {
 public:
  // Fails at the allocation of this number, counted from 0; negative: at none.
  StrictHost(int threads, int failing) : host_(threads), failing_(failing) {}
  void parallel_for(Index count, void (*task)(void*, std::size_t), void* user) override {
    struct Call {
      void (*task)(void*, std::size_t);
      void* user;
    } call{task, user};
    const auto watched = [](void* user, std::size_t i) {
      const Call& c = *static_cast<Call*>(user);
      in_task = true;
      c.task(c.user, i);
      in_task = false;
    };
    host_.parallel_for(count, watched, &call);
  }
  void* allocate(std::size_t bytes) override { return failing_-- == 0 ? nullptr : host_.allocate(bytes); }
  void release(void* memory) override { host_.release(memory); }

 private:
  SampleHost host_;
  std::atomic<int> failing_;
};

std::vector<float> run(const Kernels& kernels, Sample& sample, int threads) {
  std::fill(sample.context.begin(), sample.context.end(), -1.0f);
  StrictHost host(threads, -1);
  attend(call(sample), kernels, host);
  return sample.context;
}

// What only the attention of decoders has: bounds of the keys, a cap on scores, a sink for each head.
int check_decoders(const Kernels& best, const NamedForm& named) {
  int failures = 0;
  const Table table = sample_table(named.form, 0.01f, 3);
  const float sinks[] = {0.5f, 3.0f};
  for (const Index queries : {1, 7, 129}) {
    const Index depth = queries == 7 ? 34 : 64;
    for (const Index keys : {Index{129}, Index{300}}) {
      for (const Index window : {0, 5, 100}) {
        Sample sample = make_sample(named.form, table, 2, queries, keys, depth, 2.0f, false);
        Attention& a = sample.attention;
        a.bounds = {true, keys - queries, window};
        a.row_length = keys + 1;
        if (window != 5) a.softcap = 2.0f;
        if (window != 100) a.sinks = sinks, a.sink_batch[1] = 1;
        for (const Storage storage : {Storage::kFloat, Storage::kHalf, Storage::kInt8, Storage::kInt4}) {
          store(sample, storage);
          a.rough_scores = storage == Storage::kHalf ? RoughScores::kAlways : RoughScores::kWhereFaster;
          const std::vector<float> expected = run(kScalarKernels, sample, 1);
          const double share = share_that_differs(run(best, sample, 2), expected);
          if (share <= 0.02) continue;
          std::printf("%s%s decoder, %d queries, %d keys, window %d, storage %d: %.3f differ\n", best.name,
                      named.suffix.c_str(), static_cast<int>(queries), static_cast<int>(keys), static_cast<int>(window),
                      static_cast<int>(storage), share);
          ++failures;
        }
      }
    }
  }
  return failures;
}

// One query and many keys, which several tasks share: that they do, and that it changes nothing.
int check_parts(const Kernels& best, const NamedForm& named) {
  const Table table = sample_table(named.form, 0.01f, 3);
  const float sinks[] = {1.0f, 3.0f};
  int failures = 0;
  for (const Index window : {0, 2500}) {
    Sample sample = make_sample(named.form, table, 2, 1, 3210, 64, 2.0f, false);
    sample.attention.bounds = {true, 3200, window};
    sample.attention.row_length = 3300;
    if (window == 0) sample.attention.sinks = sinks, sample.attention.sink_batch[1] = 1;
    const std::vector<float> expected = run(kScalarKernels, sample, 1), got = run(best, sample, 1);
    const bool differ = share_that_differs(got, expected) > 0.02 || run(best, sample, 3) != got;
    const bool by_maximum = named.form.reference == Reference::kRowMax && named.form.normalize == Normalize::kUnit;
    const bool shared = best.parts != nullptr && best.parts(call(sample)) > 1;
    if (!differ && shared == (by_maximum && best.parts != nullptr)) continue;
    std::printf("%s%s parts, window %d\n", best.name, named.suffix.c_str(), static_cast<int>(window));
    ++failures;
  }
  return failures;
}

// Whichever allocation fails, the call says so, and what it had is released (the sanitizers see).
bool survives_little_memory(const Kernels& kernels) {
  const NamedForm named = all_forms().front();
  Sample sample = make_sample(named.form, sample_table(named.form, 0.01f, 3), 3, 300, 300, 33, 2.0f, false);
  for (int failing = 0; failing < 100; ++failing) {
    StrictHost host(3, failing);
    if (attend(call(sample), kernels, host)) return failing > 0;
  }
  return false;
}

}  // namespace

void* operator new(std::size_t size) {
  if (in_task) ++allocations_in_tasks;
  if (void* const memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

int main() {
  const Kernels& best = *select_kernels().best;
  int failures = 0, cases = 0;
  for (const NamedForm& named : all_forms()) {
    const Table table = sample_table(named.form, 0.01f, 3);
    failures += check_decoders(best, named);
    failures += check_parts(best, named);
    for (const Index length : {1, 5, 33, 129, 225, 700}) {
      if (length == 700 && !named.suffix.empty()) continue;  // for what only long calls of the default scheme do
      for (const Index depth : {1, 33, 80}) {
        for (const bool causal : {false, true}) {
          Sample sample = make_sample(named.form, table, 2, length, length, depth, 2.0f, causal);
          const std::vector<float> expected = run(kScalarKernels, sample, 1);
          const std::vector<float> got = run(best, sample, 1);
          const double share = share_that_differs(got, expected);
          ++cases;
          if (share > 0.02) {
            std::printf("%s%s length %d depth %d causal %d: %.3f differ\n", best.name, named.suffix.c_str(),
                        static_cast<int>(length), static_cast<int>(depth), causal, share);
            ++failures;
          }
          if (run(best, sample, 3) != got && !std::isnan(got[0])) {
            std::printf("%s%s: threads change the result\n", best.name, named.suffix.c_str());
            ++failures;
          }
          sample.attention.rough_scores = RoughScores::kAlways;
          if (share_that_differs(run(best, sample, 1), expected) > 0.02) {
            std::printf("%s%s: rough scores\n", best.name, named.suffix.c_str());
            ++failures;
          }
          sample.attention.int16_products = true;
          run(best, sample, 1);  // for the sanitizers
        }
      }
    }
  }
  failures += survives_little_memory(best) ? 0 : 1;
  if (allocations_in_tasks != 0) {
    std::printf("%d allocations on threads of the host\n", allocations_in_tasks.load());
    ++failures;
  }
  std::printf("%s: %d cases, %d failures\n", best.name, cases, failures);
  return failures == 0 ? 0 : 1;
}

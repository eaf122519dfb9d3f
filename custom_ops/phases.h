// Where the time of a call goes, for the program `phases`. It compiles to nothing elsewhere.
#pragma once

#include <cstdint>

namespace onnx_attnq {

enum class Phase { kScores, kWeights, kContext, kCount };

#if defined(ONNX_ATTNQ_PHASES)

extern std::uint64_t phase_ticks[static_cast<int>(Phase::kCount)];
std::uint64_t ticks();

class Timed {
 public:
  explicit Timed(Phase phase) : phase_(phase), start_(ticks()) {}
  ~Timed() { phase_ticks[static_cast<int>(phase_)] += ticks() - start_; }

 private:
  const Phase phase_;
  const std::uint64_t start_;
};

#else

struct Timed {
  explicit Timed(Phase) {}
  ~Timed() {}
};

#endif

}  // namespace onnx_attnq

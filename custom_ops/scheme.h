// A quantization scheme as the kernels see it. onnx_attnq/scheme.py explains the fields, numerics.py the arithmetic.
#pragma once

#include <string>
#include <vector>

namespace onnx_attnq {

enum class Reference { kRowMax, kAbsolute };
enum class Spacing { kLog, kLinear, kNone };  // kNone: prune only, values are kept as they are
enum class Normalize { kUnit, kNone, kMass };

// The fields that decide which arithmetic runs: they are part of the op's name. (Rounding is, too, but it only
// decides how long a step is, and the step is an attribute.)
struct Form {
  Reference reference;
  Spacing spacing;
  Normalize normalize;
  bool shares = false;  // pruned values share what they summed to (`_mean`, README.md)
};

// Functions in headers are static: the linker must not choose a copy compiled for AVX for code that runs on any
// processor.
static inline bool quantizes(const Form& form) { return form.spacing != Spacing::kNone; }

// The numbers of one scheme: one per head where heads differ.
//
// code = the whole part of f(x) * inverse_step + offset, held to [0, levels]; 0 means pruned. The offset is the
// attribute's plus one, so that truncation, which every instruction set has, serves as floor.
struct Table {
  static constexpr int kSize = 256;

  float threshold;      // lowest edge on the scale of x
  float log_threshold;  // its natural logarithm; the lowest finite number for 0
  float inverse_step;
  float offset;
  float levels;                    // n, the number of non-zero levels
  alignas(64) float level[kSize];  // level[0] = 0, level[code]; zero beyond n

  // Of a form that shares: levels continued below the lowest edge, continued[deepest + code] with codes down to
  // -deepest + 1; continued[0] = 0 stands for all below. The same, where `factors` says so, is
  // high[index / 8] * low[index % 8], of numbers that fit in registers; low comes twice, for registers of 16.
  static constexpr int kLow = 8, kHigh = 16;
  int deepest, continued_size;
  alignas(64) float continued[kSize];
  alignas(64) float low[2 * kLow], high[kHigh];
};

// The least ln x, on the scale of x, of a key that is not masked.
constexpr float kMaskedNats = -87.0f;

// Every form that exists, with its fields as the attribute `form` spells them, and the suffix of an op's name.
struct NamedForm {
  std::string fields, suffix;
  Form form;
};
std::vector<NamedForm> all_forms();

// The table that the attributes of an op describe.
Table make_table(const Form& form, float threshold, float step, float offset, float levels);

}  // namespace onnx_attnq

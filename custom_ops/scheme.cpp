#include "scheme.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace onnx_attnq {

std::vector<NamedForm> all_forms() {
  const std::pair<const char*, Reference> references[] = {{"row_max", Reference::kRowMax},
                                                          {"absolute", Reference::kAbsolute}};
  const std::pair<const char*, Spacing> spacings[] = {{"log", Spacing::kLog}, {"linear", Spacing::kLinear}};
  const std::pair<const char*, Normalize> norms[] = {
      {"unit", Normalize::kUnit}, {"none", Normalize::kNone}, {"mass", Normalize::kMass}};
  std::vector<NamedForm> forms;
  for (const auto& [reference_name, reference] : references) {
    for (const auto& [norm_name, norm] : norms) {
      const auto add = [&](const std::string& fields, Spacing spacing) {
        const std::string suffix = fields == "row_max_log_nearest_unit" ? "" : "_" + fields;
        forms.push_back({fields, suffix, {reference, spacing, norm}});
        if (spacing == Spacing::kLinear || norm == Normalize::kMass) return;
        forms.push_back({fields + "_mean", suffix + "_mean", {reference, spacing, norm, true}});
      };
      const std::string head = std::string(reference_name) + "_", tail = std::string("_") + norm_name;
      add(reference_name + tail, Spacing::kNone);
      for (const auto& [spacing_name, spacing] : spacings) {
        for (const char* rounding : {"nearest", "floor"}) add(head + spacing_name + "_" + rounding + tail, spacing);
      }
    }
  }
  return forms;
}

namespace {

// Levels below the threshold: to 25 nats below x = 1, or so deep that all of a long row is within rounding of its sum.
void continue_levels(Table& table, double step, double offset) {
  constexpr double kNats = 25, kEnough = 22;
  const int levels = static_cast<int>(table.levels), whole = static_cast<int>(std::ceil(kNats / step));
  table.deepest = std::min(std::max(whole - levels, 0), Table::kSize - 1 - levels);
  // So many levels are found by two permutations of 8 numbers.
  const int in_registers = Table::kLow * Table::kLow - 1 - levels;
  if (table.deepest > in_registers && (in_registers + levels) * step >= kEnough) table.deepest = in_registers;
  table.continued_size = table.deepest + levels + 1;
  const auto level = [&](int index) {
    return static_cast<float>(std::exp((index - table.deepest - 0.5 - offset) * step));
  };
  for (int i = 1; i < table.continued_size; ++i) table.continued[i] = level(i);
  for (int i = 0; i < 2 * Table::kLow; ++i) table.low[i] = static_cast<float>(std::exp(i % Table::kLow * step));
  for (int i = 0; i < Table::kHigh; ++i) table.high[i] = level(i * Table::kLow);
}

}  // namespace

Table make_table(const Form& form, float threshold, float step, float offset, float levels) {
  Table table{};
  table.threshold = threshold;
  table.log_threshold = threshold > 0 ? std::log(threshold) : std::numeric_limits<float>::lowest();
  if (!quantizes(form)) return table;
  if (form.spacing == Spacing::kLog) table.log_threshold = -offset * step;  // also where a float threshold underflows
  table.inverse_step = static_cast<float>(1.0 / step);
  table.offset = static_cast<float>(static_cast<double>(offset) + 1.0);
  table.levels = levels;
  for (int code = 1; code <= static_cast<int>(levels); ++code) {
    // -offset * step is f(threshold), also where the threshold itself is too small for a float.
    const double middle = (code - 0.5 - offset) * step;
    table.level[code] = static_cast<float>(form.spacing == Spacing::kLog ? std::exp(middle) : middle);
  }
  if (form.shares) continue_levels(table, step, offset);
  return table;
}

}  // namespace onnx_attnq

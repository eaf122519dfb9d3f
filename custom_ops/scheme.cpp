#include "scheme.h"

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
      const std::string tail = std::string("_") + norm_name;
      const std::string head = std::string("_") + reference_name;
      forms.push_back({head + tail, {reference, Spacing::kNone, norm}});
      for (const auto& [spacing_name, spacing] : spacings) {
        for (const char* rounding : {"nearest", "floor"}) {
          const std::string suffix = head + "_" + spacing_name + "_" + rounding + tail;
          const bool is_default = suffix == "_row_max_log_nearest_unit";
          forms.push_back({is_default ? "" : suffix, {reference, spacing, norm}});
        }
      }
    }
  }
  return forms;
}

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
  return table;
}

}  // namespace onnx_attnq

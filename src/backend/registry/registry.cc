// The one place that lists the chips.
#include <array>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "base/error.h"

namespace qiao {
namespace {

struct Chip {
  std::string_view name;
  std::unique_ptr<Backend> (*make)(const BackendOptions&);
};

constexpr std::array kChips = {
    Chip{"cpu", make_cpu_backend},
    Chip{"reference", make_reference_backend},
};

}  // namespace

std::vector<std::string_view> chip_names() {
  std::vector<std::string_view> names;
  for (const Chip& chip : kChips) names.push_back(chip.name);
  return names;
}

std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options) {
  if (device == "auto") device = kChips.front().name;
  for (const Chip& chip : kChips) {
    if (chip.name == device) return chip.make(options);
  }
  throw_error(ErrorKind::kNotFound, "--device {}: no such chip; this program has: auto, cpu, reference",
              device);
}

}  // namespace qiao

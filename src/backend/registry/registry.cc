// The one place that lists the chips.
#include <array>
#include <charconv>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "base/error.h"
#ifdef QIAO_WITH_CUDA
#include "backend/cuda/cuda_backend.h"
#endif

namespace qiao {
namespace {

struct Chip {
  std::string_view name;
  std::unique_ptr<Backend> (*make)(const BackendOptions&);
  bool numbered = false;  // there may be several: "NAME:1"
};

constexpr std::array kChips = {
#ifdef QIAO_WITH_CUDA
    Chip{"cuda", make_cuda_backend, true},
#endif
    Chip{"cpu", make_cpu_backend},
    Chip{"reference", make_reference_backend},
};

// What this program could have been built with.
constexpr std::array<std::string_view, 1> kOptional = {"cuda"};

[[noreturn]] void refuse_name(std::string_view device) {
  std::string known = "auto";
  for (const Chip& chip : kChips) known += fmt::format(", {}{}", chip.name, chip.numbered ? "[:N]" : "");
  for (const std::string_view name : kOptional) {
    if (device.substr(0, device.find(':')) != name) continue;
    throw_error(ErrorKind::kNotFound, "--device {}: this program was built without {}; it has: {}", device,
                name, known);
  }
  throw_error(ErrorKind::kNotFound, "--device {}: no such chip; this program has: {}", device, known);
}

// The first chip that is there; what stands in the way of the others is told by asking for them by name.
std::unique_ptr<Backend> make_best(const BackendOptions& options) {
  for (const Chip& chip : kChips) {
    if (!chip.numbered) return chip.make(options);
    try {
      return chip.make(options);
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::kUnavailable) throw;
    }
  }
  refuse_name("auto");
}

}  // namespace

std::vector<std::string_view> chip_names() {
  std::vector<std::string_view> names;
  for (const Chip& chip : kChips) names.push_back(chip.name);
  return names;
}

std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options) {
  if (device == "auto") return make_best(options);
  const size_t colon = device.find(':');
  for (const Chip& chip : kChips) {
    if (chip.name == device) return chip.make(options);
    if (colon == std::string_view::npos || chip.name != device.substr(0, colon)) continue;
    BackendOptions of_number = options;
    const char* end = device.data() + device.size();
    const auto read = std::from_chars(device.data() + colon + 1, end, of_number.device);
    if (!chip.numbered) {
      throw_error(ErrorKind::kNotFound, "--device {}: {} is one chip and takes no number; use --device {}",
                  device, chip.name, chip.name);
    }
    if (read.ec != std::errc() || read.ptr != end || of_number.device < 0) {
      throw_error(ErrorKind::kNotFound,
                  "--device {}: the number of a device was expected after the colon, as in {}:0", device,
                  chip.name);
    }
    return chip.make(of_number);
  }
  refuse_name(device);
}

}  // namespace qiao

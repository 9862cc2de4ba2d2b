#include "backend/conformance/harness.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "backend/reference/reference_backend.h"
#include "base/error.h"

namespace qiao::conformance {
namespace {

// As F32 and F16 a NaN, as an integer -1: what a kernel wrongly reads shows.
constexpr std::byte kCanary{0xFF};
constexpr size_t kGuardBytes = 256;
constexpr double kBenchSeconds = 1e-3;  // of the calls that are timed as one

}  // namespace

Harness::Harness(Backend& chip, const Options& options, Report* report)
    : chip_(chip),
      law_(make_reference_backend({})),
      options_(options),
      report_(report),
      random_(options.seed) {}

size_t Harness::line(std::string_view op, std::string_view variant) {
  for (size_t i = 0; i < report_->lines.size(); ++i) {
    if (report_->lines[i].op == op && report_->lines[i].variant == variant) return i;
  }
  Line line;
  line.op = op;
  line.variant = variant;
  report_->lines.push_back(std::move(line));
  return report_->lines.size() - 1;
}

void Harness::run_case(size_t line, const std::function<void()>& body) {
  const Line& known = report_->lines[line];
  if (options_.until_failure && (known.failure_count > 0 || known.errors.failures > 0)) return;
  ++report_->lines[line].cases;
  line_ = line;
  try {
    body();
    check_workspace();
  } catch (const Error& e) {
    workspace_bytes_ = 0;
    if (e.kind() == ErrorKind::kUnsupported) {
      report_->lines[line].missing = true;
    } else {
      fail(line, e.what());
    }
  }
}

void Harness::fail(size_t line, std::string what) {
  Line& l = report_->lines[line];
  if (++l.failure_count <= static_cast<int64_t>(kMaxFailures)) l.failures.push_back(std::move(what));
}

void Harness::element(size_t line, double actual, double expected, double bound, int64_t row,
                      int64_t column) {
  compare(actual, expected, bound, row, column, &report_->lines[line].errors);
}

Harness::Rate Harness::measured(Peak peak) const {
  const DevicePeaks& peaks = report_->peaks;
  switch (peak) {
    case Peak::kNone:
      break;
    case Peak::kF32:
      return {peaks.f32_flops, "f32"};
    case Peak::kBF16:
      return {peaks.bf16_flops, "bf16"};
    case Peak::kInt8:
      return {peaks.int8_ops, "int8"};
    case Peak::kF8:  // a chip without such units computes it in F32
      return peaks.f8_flops > 0 ? Rate{peaks.f8_flops, "fp8"} : Rate{peaks.f32_flops, "f32"};
  }
  return {};
}

void Harness::bench(size_t line, std::string shape, double bytes, double flops, Peak peak,
                    const std::function<void()>& call) {
  using Clock = std::chrono::steady_clock;
  Line& l = report_->lines[line];
  if (!options_.bench || l.missing) return;
  if (!peaks_measured_) report_->peaks = chip_.measure_peaks();
  peaks_measured_ = true;
  double best = INFINITY, total = 0;
  try {
    // A chip that is given its work and waited for is timed over some calls in a row, for what the giving and
    // the waiting take.
    int calls = 1;
    for (int run = 0; run < 1000 && (run < 3 || total < 0.15) && total < 2; ++run) {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < calls; ++i) call();
      chip_.synchronize();
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      best = std::min(best, seconds / calls);
      total += seconds;
      calls = static_cast<int>(std::clamp(kBenchSeconds / best, 1.0, 64.0));
    }
  } catch (const Error& e) {
    fail(line, fmt::format("bench {}: {}", shape, e.what()));
    return;
  }
  Bench bench{std::move(shape), best};
  if (report_->peaks.read_bytes_per_second > 0) {
    bench.roofline = bytes / best / report_->peaks.read_bytes_per_second;
    bench.of = "read";
  }
  if (const Rate arithmetic = measured(peak);
      arithmetic.per_second > 0 && flops / best / arithmetic.per_second > bench.roofline) {
    bench.roofline = flops / best / arithmetic.per_second;
    bench.of = arithmetic.of;
  }
  l.benches.push_back(std::move(bench));
}

int64_t Harness::between(int64_t low, int64_t high) {
  const uint64_t count = static_cast<uint64_t>(high) - static_cast<uint64_t>(low) + 1;  // beyond 63 bits too
  return low + static_cast<int64_t>(random_() % count);
}

bool Harness::chance(double probability) {
  return static_cast<double>(random_() >> 11) * 0x1p-53 < probability;
}

float Harness::normal() {
  // Twelve uniforms, as from any standard library alike: std::normal_distribution differs between them.
  float sum = -6;
  for (int i = 0; i < 6; ++i) {
    const uint64_t bits = random_();
    sum += static_cast<float>(bits >> 40) * 0x1p-24f + static_cast<float>(bits & 0xffffff) * 0x1p-24f;
  }
  return sum;
}

Tensor Harness::workspace_of(size_t bytes) {
  check_workspace();
  if (bytes == 0) return {};
  const size_t guarded = bytes + 2 * kGuardBytes;
  if (workspace_.bytes() < guarded) workspace_ = chip_.allocate(guarded);
  const std::vector<std::byte> canary(guarded, kCanary);  // whatever it held before must not matter
  chip_.upload(workspace_.data(), canary.data(), guarded);
  workspace_bytes_ = bytes;
  return Tensor(static_cast<std::byte*>(workspace_.data()) + kGuardBytes, DType::kU8,
                {static_cast<int64_t>(bytes)});
}

void Harness::check_workspace() {
  if (workspace_bytes_ == 0) return;
  std::array<std::byte, kGuardBytes> guard;
  for (const size_t at : {size_t{0}, kGuardBytes + workspace_bytes_}) {
    chip_.download(guard.data(), static_cast<std::byte*>(workspace_.data()) + at, kGuardBytes);
    if (std::ranges::all_of(guard, [](std::byte b) { return b == kCanary; })) continue;
    fail(line_,
         fmt::format("workspace: wrote {} its {} bytes", at == 0 ? "before" : "beyond", workspace_bytes_));
  }
  workspace_bytes_ = 0;
}

Guarded::Guarded(Harness& harness, DType dtype, std::initializer_list<int64_t> shape, int64_t gap)
    : harness_(&harness), host_(nullptr, dtype, shape) {
  int64_t step = host_.shape[static_cast<size_t>(host_.rank - 1)] + gap;
  for (int i = host_.rank - 2; i >= 0; --i) {
    host_.stride[static_cast<size_t>(i)] = step;
    step *= host_.shape[static_cast<size_t>(i)];
  }
  const size_t bytes = static_cast<size_t>(step * traits(dtype).block_bytes) + 2 * kGuardBytes;
  expected_.assign(bytes, kCanary);
  got_ = expected_;
  buffer_ = harness.chip().allocate(bytes);
  device_ = result_ = host_;
  host_.data = expected_.data() + kGuardBytes;
  result_.data = got_.data() + kGuardBytes;
  device_.data = static_cast<std::byte*>(buffer_.data()) + kGuardBytes;
  upload();
}

size_t Guarded::byte_offset(int64_t index) const {
  int64_t offset = 0;
  for (int i = host_.rank - 1; i >= 0; --i) {
    const auto axis = static_cast<size_t>(i);
    offset += index % host_.shape[axis] * host_.stride[axis];
    index /= host_.shape[axis];
  }
  return kGuardBytes + static_cast<size_t>(offset * traits(host_.dtype).block_bytes);
}

void Guarded::upload() { harness_->chip().upload(buffer_.data(), expected_.data(), expected_.size()); }

void Guarded::download(size_t line, std::string_view name, bool changed) {
  harness_->chip().download(got_.data(), buffer_.data(), got_.size());
  if (std::memcmp(got_.data(), expected_.data(), got_.size()) == 0) return;
  if (!changed) {
    harness_->fail(line, fmt::format("{} {}, an input, was changed", name, to_string(host_)));
    return;
  }
  std::vector<bool> owned(got_.size());
  for (int64_t i = 0; i < elements(); ++i) {
    const size_t offset = byte_offset(i);
    for (int b = 0; b < traits(host_.dtype).block_bytes; ++b) owned[offset + static_cast<size_t>(b)] = true;
  }
  for (size_t i = 0; i < got_.size(); ++i) {
    if (!owned[i] && got_[i] != expected_[i]) {
      const auto offset = static_cast<int64_t>(i) - static_cast<int64_t>(kGuardBytes);
      harness_->fail(
          line, fmt::format("{} {}: byte {} from its start was overwritten", name, to_string(host_), offset));
      return;
    }
  }
}

void fill_activations(Harness& harness, Guarded* x, float huge) {
  const Tensor& host = x->host();
  const int64_t width = host.shape[static_cast<size_t>(host.rank - 1)];
  for (int64_t row = 0; width > 0 && row < x->elements() / width; ++row) {
    const int64_t kind = harness.between(0, 15);
    const float scale = kind == 0 ? 0.0f : kind == 1 ? 1e-40f : kind == 2 ? huge : std::exp(harness.normal());
    for (int64_t i = 0; i < width; ++i) x->host_at(row * width + i) = scale * harness.normal();
    if (kind == 3) x->host_at(row * width + harness.between(0, width - 1)) = 500 * scale;
  }
  x->upload();
}

}  // namespace qiao::conformance

#include "train/profile.h"

#include <algorithm>
#include <vector>

#include <fmt/format.h>

namespace qiao::train {
namespace {

std::string rate(double amount, double seconds, double peak, const char* unit) {
  if (amount <= 0 || seconds <= 0) return fmt::format("{:>18}", "-");
  const double per_second = amount / seconds;
  const std::string share = peak > 0 ? fmt::format(" {:>4.0f}%", 100 * per_second / peak) : "     -";
  return fmt::format("{:>7.1f} {}{}", per_second * 1e-9, unit, share);
}

}  // namespace

double product_peak(const DevicePeaks& peaks, Compute compute) {
  if (compute == Compute::kF8 && peaks.f8_flops > 0) return peaks.f8_flops;
  if (compute == Compute::kBF16 && peaks.bf16_flops > 0) return peaks.bf16_flops;
  return peaks.f32_flops;
}

void Profile::on_op(std::string_view op, double seconds, double flops, double bytes) {
  const auto found = costs_.find(op);
  Cost& cost = found != costs_.end() ? found->second : costs_[std::string(op)];
  ++cost.calls;
  cost.seconds += seconds;
  cost.flops += flops;
  cost.bytes += bytes;
}

std::string Profile::table(int64_t steps, double seconds, const DevicePeaks& peaks, Compute compute) const {
  std::vector<std::pair<std::string, Cost>> rows(costs_.begin(), costs_.end());
  std::ranges::sort(rows, std::greater<>(), [](const auto& row) { return row.second.seconds; });
  const double count = static_cast<double>(std::max<int64_t>(steps, 1));
  std::string text = fmt::format("{:<28}{:>11}{:>8}{:>9}{:>21}{:>18}\n", "op", "ms a step", "share", "calls",
                                 "arithmetic", "memory");
  double watched = 0;
  for (const auto& [op, cost] : rows) {
    watched += cost.seconds;
    const bool of_head = op.starts_with("token_logprob") || op == "token_loss";
    const bool multiplies = op.starts_with("linear") || op.starts_with("grouped_linear") || of_head;
    // The head's products are never in FP8.
    const Compute kind = of_head && compute == Compute::kF8 ? Compute::kBF16 : compute;
    const double peak = multiplies ? product_peak(peaks, kind) : peaks.f32_flops;
    text += fmt::format("{:<28}{:>11.2f}{:>7.1f}%{:>9.0f}   {}{}\n", op, 1e3 * cost.seconds / count,
                        100 * cost.seconds / seconds, static_cast<double>(cost.calls) / count,
                        rate(cost.flops, cost.seconds, peak, "GFLOP/s"),
                        rate(cost.bytes, cost.seconds, peaks.read_bytes_per_second, "GB/s"));
  }
  text += fmt::format("{:<28}{:>11.2f}{:>7.1f}%\n", "between ops", 1e3 * (seconds - watched) / count,
                      100 * (seconds - watched) / seconds);
  text += fmt::format("{:<28}{:>11.2f}{:>7.1f}%   over {} step{}\n", "step", 1e3 * seconds / count, 100.0,
                      steps, steps == 1 ? "" : "s");
  return text;
}

}  // namespace qiao::train

// The table that a person reads, and the same as JSON.
#include <fmt/format.h>

#include "backend/conformance/conformance.h"

namespace qiao::conformance {
namespace {

constexpr int kBenchColumn = 94;  // where the first line's bench stands

std::string_view verdict(const Line& line) {
  return line.missing ? "missing" : line.passed() ? "pass" : "FAIL";
}

std::string in_units(double seconds) {
  if (seconds >= 1) return fmt::format("{:.2f} s", seconds);
  if (seconds >= 1e-3) return fmt::format("{:.2f} ms", seconds * 1e3);
  return fmt::format("{:.1f} µs", seconds * 1e6);
}

std::string described(const Bench& bench) {
  std::string text = fmt::format("{:>10}", in_units(bench.seconds));
  if (!bench.of.empty()) text += fmt::format("  {:>3.0f}% of {}", bench.roofline * 100, bench.of);
  return text + "  " + bench.shape;
}

}  // namespace

std::string to_table(const Report& report) {
  std::string text = fmt::format("conformance of {}, seed {}\n", report.chip, report.seed);
  if (report.peaks.read_bytes_per_second > 0) {
    text += fmt::format(
        "measured: reads {:.1f} GB/s, f32 {:.0f} GFLOP/s, bf16 {:.0f} GFLOP/s, int8 {:.0f} GOP/s, fp8 {}\n",
        report.peaks.read_bytes_per_second / 1e9, report.peaks.f32_flops / 1e9, report.peaks.bf16_flops / 1e9,
        report.peaks.int8_ops / 1e9,
        report.peaks.f8_flops > 0 ? fmt::format("{:.0f} GFLOP/s", report.peaks.f8_flops / 1e9) : "-");
  }
  constexpr std::string_view kColumns = "{:<25} {:<12} {:>5} {:>9} {:>8} {:>8} {:>10}  {:<7}";
  text += fmt::format(kColumns, "op", "variant", "cases", "elements", "max/bnd", "mean/bnd", "max error", "");
  text += "        time  share\n";
  for (const Line& line : report.lines) {
    const Errors& e = line.errors;
    text += fmt::format(kColumns, line.op, line.variant, line.cases, e.elements,
                        fmt::format("{:.3f}", e.max_share), fmt::format("{:.4f}", e.mean_share()),
                        fmt::format("{:.2g}", e.max_error), verdict(line));
    for (size_t i = 0; i < line.benches.size(); ++i) {
      text += fmt::format("{}{:{}}{}", i == 0 ? "" : "\n", "", i == 0 ? 2 : kBenchColumn,
                          described(line.benches[i]));
    }
    text += '\n';
    if (e.failures > 0)
      text += fmt::format("    {} elements over their bound; first {}\n", e.failures, e.first_failure);
    for (const std::string& failure : line.failures) text += fmt::format("    {}\n", failure);
  }
  for (const MissingOp& missing : report.missing) {
    text += fmt::format("missing for profile {}: {} ({})\n", missing.profile, missing.op, missing.reason);
  }
  for (const std::string& fault : report.faults) text += fmt::format("fault: {}\n", fault);
  if (report.only_times) return text;
  for (const auto& [profile, green] : {std::pair{"serve", report.green}, {"train", report.green_for_train}}) {
    text += fmt::format("{} {} for profile {}", report.chip, green ? "is green" : "is NOT green", profile);
    text += report.op.empty() ? "\n" : fmt::format(", of {} alone\n", report.op);
  }
  return text;
}

Json to_json(const Report& report) {
  Json json;
  json["chip"] = report.chip;
  json["op"] = report.op;
  json["seed"] = report.seed;
  json["batch_invariant"] = report.batch_invariant;
  json["peaks"] = {{"read_bytes_per_second", report.peaks.read_bytes_per_second},
                   {"f32_flops", report.peaks.f32_flops},
                   {"bf16_flops", report.peaks.bf16_flops},
                   {"int8_ops", report.peaks.int8_ops},
                   {"f8_flops", report.peaks.f8_flops}};
  json["lines"] = Json::array();
  for (const Line& line : report.lines) {
    Json entry = {{"op", line.op},
                  {"variant", line.variant},
                  {"cases", line.cases},
                  {"elements", line.errors.elements},
                  {"max_share_of_bound", line.errors.max_share},
                  {"mean_share_of_bound", line.errors.mean_share()},
                  {"max_error", line.errors.max_error},
                  {"elements_over_bound", line.errors.failures},
                  {"verdict", verdict(line)},
                  {"failures", line.failures},
                  {"benches", Json::array()}};
    if (line.errors.failures > 0) entry["first_failure"] = line.errors.first_failure;
    for (const Bench& bench : line.benches) {
      entry["benches"].push_back({{"shape", bench.shape},
                                  {"seconds", bench.seconds},
                                  {"roofline_share", bench.roofline},
                                  {"roofline_of", bench.of}});
    }
    json["lines"].push_back(std::move(entry));
  }
  json["missing"] = Json::array();
  for (const MissingOp& m : report.missing) {
    json["missing"].push_back({{"op", m.op}, {"profile", m.profile}, {"reason", m.reason}});
  }
  json["faults"] = report.faults;
  json["green_for"] = Json::array();
  if (report.green && report.op.empty()) json["green_for"].push_back("serve");
  if (report.green_for_train && report.op.empty()) json["green_for"].push_back("train");
  return json;
}

}  // namespace qiao::conformance

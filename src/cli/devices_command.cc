#include <cstdio>
#include <memory>

#include "backend/backend.h"
#include "base/error.h"
#include "base/json.h"
#include "cli/commands.h"

namespace qiao::cli {
namespace {

// A chip without a driver is listed as unavailable, not an error.
Json describe_chip(std::string_view name, const BackendOptions& options) {
  Json entry;
  entry["chip"] = name;
  try {
    const std::unique_ptr<Backend> chip = make_backend(name, options);
    const DeviceInfo info = chip->describe();
    const DevicePeaks peaks = chip->measure_peaks();
    entry["name"] = info.name;
    entry["memory_bytes"] = info.memory_bytes;
    entry["free_bytes"] = info.free_bytes;
    entry["threads"] = info.threads;
    entry["read_bytes_per_second"] = peaks.read_bytes_per_second;
    entry["f32_flops"] = peaks.f32_flops;
    entry["bf16_flops"] = peaks.bf16_flops;
    entry["int8_ops"] = peaks.int8_ops;
    entry["f8_flops"] = peaks.f8_flops;
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kUnavailable) throw;
    entry["unavailable"] = e.what();
  }
  return entry;
}

std::string peak(const Json& entry, const char* key, std::string_view unit) {
  const double value = entry.at(key).get<double>() / 1e9;
  return value > 0 ? fmt::format("{:.1f} {}", value, unit) : "-";
}

std::string as_text(const Json& entry) {
  const std::string chip = entry.at("chip").get<std::string>();
  if (entry.contains("unavailable")) {
    return fmt::format("{}\n  not available: {}\n", chip, entry.at("unavailable").get<std::string>());
  }
  const auto gib = [&](const char* key) {
    return static_cast<double>(entry.at(key).get<uint64_t>()) / (1 << 30);
  };
  return fmt::format(
      "{}\n  {}\n  memory {:.1f} GiB, {:.1f} GiB free\n  reads {}; f32 {}, bf16 {}, int8 {}, fp8 {}\n", chip,
      entry.at("name").get<std::string>(), gib("memory_bytes"), gib("free_bytes"),
      peak(entry, "read_bytes_per_second", "GB/s"), peak(entry, "f32_flops", "GFLOP/s"),
      peak(entry, "bf16_flops", "GFLOP/s"), peak(entry, "int8_ops", "GOP/s"),
      peak(entry, "f8_flops", "GFLOP/s"));
}

}  // namespace

void add_devices_command(CLI::App& app) {
  struct Arguments {
    BackendOptions options;
    bool json = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "devices", "The chips of this machine: memory, measured bandwidth and arithmetic peaks");
  command->add_option("-t,--threads", arguments->options.threads, "Threads to measure with; 0: all usable")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Print JSON");
  command->footer("Examples:\n  qiao devices\n  qiao devices --json");
  command->callback([arguments] {
    Json all = Json::array();
    for (const std::string_view name : chip_names()) all.push_back(describe_chip(name, arguments->options));
    std::string text;
    if (arguments->json) {
      text = dump_json(all, 2) + "\n";
    } else {
      for (const Json& entry : all) text += as_text(entry);
    }
    std::fputs(text.c_str(), stdout);
  });
}

}  // namespace qiao::cli

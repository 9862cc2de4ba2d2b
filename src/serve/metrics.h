// Counters in Prometheus' text format. Names are vLLM's where the meaning is the same, so that dashboards
// work.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "infer/engine.h"

namespace qiao::serve {

// Safe from any thread.
class Metrics {
 public:
  explicit Metrics(std::string_view model_name);
  void count_request(std::string_view path, int status);
  void count_generation(const GenerationEvent& last);
  std::string text(const EngineStats& stats) const;

 private:
  // Cumulative buckets, as Prometheus wants them.
  struct Histogram {
    std::array<int64_t, 14> buckets{};
    int64_t count = 0;
    double sum = 0;
    void add(double seconds);
  };
  void write(std::string& out, std::string_view name, std::string_view help,
             const Histogram& histogram) const;

  const std::string labels_;
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, int64_t> requests_;
  std::map<std::string, int64_t> finished_;
  Histogram first_token_, whole_, per_token_, queue_;
};

}  // namespace qiao::serve

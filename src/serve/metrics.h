// Counters in Prometheus' text format. Names are vLLM's where the meaning is the same, so that dashboards
// work.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "infer/engine.h"

namespace qiao::serve {

// Safe from any thread.
class Metrics {
 public:
  explicit Metrics(std::string_view model_name);
  void count_request(std::string_view path, int status);
  using LastToken = std::optional<std::chrono::steady_clock::time_point>;
  void count_token(LastToken& before);  // now, of an answer whose last one came at `before`; which it becomes
  void count_generation(const GenerationEvent& last);
  // `connections`: those of HTTP that are open.
  std::string text(const EngineStats& stats, size_t connections) const;

 private:
  // Cumulative buckets, as Prometheus wants them.
  struct Histogram {
    explicit Histogram(std::span<const double> upper) : bounds(upper), buckets(upper.size()) {}
    std::span<const double> bounds;
    std::vector<int64_t> buckets;
    int64_t count = 0;
    double sum = 0;
    void add(double value);
  };
  void write(std::string& out, std::string_view name, std::string_view help,
             const Histogram& histogram) const;

  const std::string labels_;
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, int64_t> requests_;
  std::map<std::string, int64_t> finished_;
  Histogram first_token_, gaps_, whole_, per_token_, queue_, prefill_, decode_, inference_, prompt_tokens_,
      completion_tokens_;
};

}  // namespace qiao::serve

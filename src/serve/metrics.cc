#include "serve/metrics.h"

#include <fmt/format.h>

namespace qiao::serve {
namespace {

constexpr std::array<double, 14> kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                            0.25,  0.5,    1.0,   2.5,  5.0,   10.0, 60.0};

std::string escape(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

}  // namespace

Metrics::Metrics(std::string_view model_name)
    : labels_(fmt::format("model_name=\"{}\"", escape(model_name))) {}

void Metrics::Histogram::add(double seconds) {
  for (size_t i = 0; i < kBounds.size(); ++i) buckets[i] += seconds <= kBounds[i] ? 1 : 0;
  ++count;
  sum += seconds;
}

void Metrics::count_request(std::string_view path, int status) {
  const std::lock_guard lock(mutex_);
  ++requests_[{std::string(path), status}];
}

void Metrics::count_generation(const GenerationEvent& last) {
  const std::lock_guard lock(mutex_);
  const char* reason = last.finish == FinishReason::kStop     ? "stop"
                       : last.finish == FinishReason::kLength ? "length"
                       : last.finish == FinishReason::kError  ? "error"
                                                              : "abort";
  ++finished_[reason];
  queue_.add(last.queue_seconds);
  if (last.completion_tokens > 0) first_token_.add(last.queue_seconds + last.prefill_seconds);
  if (last.completion_tokens > 1)
    per_token_.add(last.decode_seconds / static_cast<double>(last.completion_tokens - 1));
  whole_.add(last.queue_seconds + last.prefill_seconds + last.decode_seconds);
}

void Metrics::write(std::string& out, std::string_view name, std::string_view help,
                    const Histogram& histogram) const {
  out += fmt::format("# HELP {0} {1}\n# TYPE {0} histogram\n", name, help);
  for (size_t i = 0; i < kBounds.size(); ++i) {
    out += fmt::format("{}_bucket{{{},le=\"{}\"}} {}\n", name, labels_, kBounds[i], histogram.buckets[i]);
  }
  out += fmt::format("{0}_bucket{{{1},le=\"+Inf\"}} {2}\n{0}_sum{{{1}}} {3}\n{0}_count{{{1}}} {2}\n", name,
                     labels_, histogram.count, histogram.sum);
}

std::string Metrics::text(const EngineStats& stats) const {
  const std::lock_guard lock(mutex_);
  std::string out;
  const auto single = [&](std::string_view name, std::string_view type, std::string_view help, auto value) {
    out += fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n{0}{{{3}}} {4}\n", name, help, type, labels_, value);
  };
  single("vllm:num_requests_running", "gauge", "Requests that generate or compute their prompt now.",
         stats.running);
  single("vllm:num_requests_waiting", "gauge", "Requests in the queue.", stats.waiting);
  const double used = stats.pages_total == 0
                          ? 0.0
                          : static_cast<double>(stats.pages_used) / static_cast<double>(stats.pages_total);
  single("vllm:kv_cache_usage_perc", "gauge",
         "Share of the key/value cache that running requests use; 1 is all of it.", used);
  single("vllm:prompt_tokens_total", "counter", "Prompt tokens of finished requests.", stats.prompt_tokens);
  single("vllm:generation_tokens_total", "counter", "Generated tokens of finished requests.",
         stats.completion_tokens);
  single("vllm:prefix_cache_queries_total", "counter", "Prompt tokens that were looked for in the cache.",
         stats.prefix_queries);
  single("vllm:prefix_cache_hits_total", "counter", "Prompt tokens that were found in the cache.",
         stats.prefix_hits);
  single("vllm:num_preemptions_total", "counter",
         "Times a request gave its pages back, to be computed again later.", stats.preemptions);
  single("vllm:spec_decode_num_drafts_total", "counter", "Drafts that were computed.", stats.drafts);
  single("vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens of drafts.", stats.drafted_tokens);
  single("vllm:spec_decode_num_accepted_tokens_total", "counter", "Tokens of drafts that were right.",
         stats.accepted_tokens);
  single("qiao:kv_pages_total", "gauge", "Pages of the key/value cache.", stats.pages_total);
  single("qiao:kv_pages_used", "gauge", "Pages that running requests use.", stats.pages_used);
  single("qiao:kv_pages_cached", "gauge", "Pages in the prefix cache, in use or not.", stats.pages_cached);
  single("qiao:steps_total", "counter", "Steps that the engine has run.", stats.steps);
  single("qiao:prefill_seconds_total", "counter", "Time in steps that had prompt tokens.",
         stats.prefill_seconds);
  single("qiao:decode_seconds_total", "counter", "Time in steps that had none.", stats.decode_seconds);
  out +=
      "# HELP vllm:request_success_total Finished requests by reason.\n# TYPE vllm:request_success_total "
      "counter\n";
  for (const char* reason : {"stop", "length", "abort", "error"}) {
    const auto found = finished_.find(reason);
    out += fmt::format("vllm:request_success_total{{{},finished_reason=\"{}\"}} {}\n", labels_, reason,
                       found == finished_.end() ? 0 : found->second);
  }
  out +=
      "# HELP qiao:http_requests_total Answers by path and status.\n# TYPE qiao:http_requests_total "
      "counter\n";
  for (const auto& [key, count] : requests_) {
    out += fmt::format("qiao:http_requests_total{{{},path=\"{}\",status=\"{}\"}} {}\n", labels_,
                       escape(key.first), key.second, count);
  }
  write(out, "vllm:time_to_first_token_seconds", "From submission to the first token.", first_token_);
  write(out, "vllm:time_per_output_token_seconds", "Mean time between two tokens of a request.", per_token_);
  write(out, "vllm:request_queue_time_seconds", "Time in the queue.", queue_);
  write(out, "vllm:e2e_request_latency_seconds", "From submission to the last token.", whole_);
  return out;
}

}  // namespace qiao::serve

#include "serve/metrics.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace qiao::serve {
namespace {

constexpr auto kSeconds = std::to_array<double>(
    {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0});
constexpr auto kTokens = std::to_array<double>(
    {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000});

std::string escape(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

// What Prometheus' own clients say of their process, under the same names.
void write_process(std::string& out) {
  std::ifstream file("/proc/self/stat");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  std::istringstream fields(
      text.substr(std::min(text.rfind(')') + 1, text.size())));  // a name may hold spaces
  std::vector<std::string> field;                                // field[0] is the third of proc(5)
  for (std::string word; fields >> word;) field.push_back(word);
  if (field.size() < 22) return;
  const auto ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  const auto number = [&](size_t index) { return std::strtod(field[index - 3].c_str(), nullptr); };
  const auto single = [&](std::string_view name, std::string_view type, std::string_view help, double value) {
    out += fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n{0} {3}\n", name, help, type, value);
  };
  single("process_cpu_seconds_total", "counter", "User and system time.", (number(14) + number(15)) / ticks);
  single("process_virtual_memory_bytes", "gauge", "Virtual memory.", number(23));
  single("process_resident_memory_bytes", "gauge", "Resident memory.",
         number(24) * static_cast<double>(::sysconf(_SC_PAGESIZE)));
  std::error_code problem;
  std::filesystem::directory_iterator entry("/proc/self/fd", problem), end;
  double open = 0;
  for (; !problem && entry != end; entry.increment(problem)) ++open;
  single("process_open_fds", "gauge", "Open descriptors.", open);
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0)
    single("process_max_fds", "gauge", "Most descriptors that may be open.",
           static_cast<double>(limit.rlim_cur));
}

}  // namespace

Metrics::Metrics(std::string_view model_name)
    : labels_(fmt::format("model_name=\"{}\"", escape(model_name))),
      first_token_(kSeconds),
      gaps_(kSeconds),
      whole_(kSeconds),
      per_token_(kSeconds),
      queue_(kSeconds),
      prefill_(kSeconds),
      decode_(kSeconds),
      inference_(kSeconds),
      prompt_tokens_(kTokens),
      completion_tokens_(kTokens) {}

void Metrics::Histogram::add(double value) {
  for (size_t i = 0; i < bounds.size(); ++i) buckets[i] += value <= bounds[i] ? 1 : 0;
  ++count;
  sum += value;
}

void Metrics::count_request(std::string_view path, int status) {
  const std::lock_guard lock(mutex_);
  ++requests_[{std::string(path), status}];
}

void Metrics::count_token(LastToken& before) {
  const auto now = std::chrono::steady_clock::now();
  if (before) {
    const std::lock_guard lock(mutex_);
    gaps_.add(std::chrono::duration<double>(now - *before).count());
  }
  before = now;
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
  prefill_.add(last.prefill_seconds);
  decode_.add(last.decode_seconds);
  inference_.add(last.prefill_seconds + last.decode_seconds);
  whole_.add(last.queue_seconds + last.prefill_seconds + last.decode_seconds);
  prompt_tokens_.add(static_cast<double>(last.prompt_tokens));
  completion_tokens_.add(static_cast<double>(last.completion_tokens));
}

void Metrics::write(std::string& out, std::string_view name, std::string_view help,
                    const Histogram& histogram) const {
  out += fmt::format("# HELP {0} {1}\n# TYPE {0} histogram\n", name, help);
  for (size_t i = 0; i < histogram.bounds.size(); ++i) {
    out += fmt::format("{}_bucket{{{},le=\"{}\"}} {}\n", name, labels_, histogram.bounds[i],
                       histogram.buckets[i]);
  }
  out += fmt::format("{0}_bucket{{{1},le=\"+Inf\"}} {2}\n{0}_sum{{{1}}} {3}\n{0}_count{{{1}}} {2}\n", name,
                     labels_, histogram.count, histogram.sum);
}

std::string Metrics::text(const EngineStats& stats, size_t connections) const {
  const std::lock_guard lock(mutex_);
  std::string out;
  const auto single = [&](std::string_view name, std::string_view type, std::string_view help, auto value) {
    out += fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n{0}{{{3}}} {4}\n", name, help, type, labels_, value);
  };
  single("vllm:num_requests_running", "gauge", "Requests that generate or compute their prompt now.",
         stats.running);
  single("vllm:num_requests_waiting", "gauge", "Requests in the queue.", stats.waiting);
  const auto share = [](const EngineStats::Pages& pages) {
    return pages.total == 0 ? 0.0 : static_cast<double>(pages.used) / static_cast<double>(pages.total);
  };
  single("vllm:kv_cache_usage_perc", "gauge",
         "Share of the key/value cache that running requests use; 1 is all of it.",
         std::max(share(stats.pages), share(stats.sliding_pages)));
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
  single("qiao:kv_pages_total", "gauge", "Pages of the key/value cache.", stats.pages.total);
  single("qiao:kv_pages_used", "gauge", "Pages that running requests use.", stats.pages.used);
  single("qiao:kv_pages_cached", "gauge", "Pages in the prefix cache, in use or not.", stats.pages.cached);
  const EngineStats::Pages& sliding = stats.sliding_pages;
  single("qiao:kv_sliding_pages_total", "gauge", "Pages of sliding-window layers; 0: the model has none.",
         sliding.total);
  single("qiao:kv_sliding_pages_used", "gauge", "Sliding-window pages that running requests use.",
         sliding.used);
  single("qiao:kv_sliding_pages_cached", "gauge", "Sliding-window pages in the prefix cache, in use or not.",
         sliding.cached);
  single("qiao:steps_total", "counter", "Steps that the engine has run.", stats.steps);
  single("qiao:ahead_steps_total", "counter", "Steps given to the chip before the one before had come back.",
         stats.ahead_steps);
  single("qiao:prefill_seconds_total", "counter", "Time in steps that had prompt tokens.",
         stats.prefill_seconds);
  single("qiao:decode_seconds_total", "counter", "Time in steps that had none.", stats.decode_seconds);
  single("qiao:device_restarts_total", "counter", "Times that a lost device was had again.",
         stats.device_restarts);
  single("qiao:http_connections", "gauge", "Connections that are open.", connections);
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
  write(out, "vllm:inter_token_latency_seconds", "Between two tokens of a completion.", gaps_);
  write(out, "vllm:request_time_per_output_token_seconds", "Mean time between two tokens of a request.",
        per_token_);
  write(out, "vllm:request_queue_time_seconds", "Time in the queue.", queue_);
  write(out, "vllm:request_prefill_time_seconds", "From the queue's end to the first token.", prefill_);
  write(out, "vllm:request_decode_time_seconds", "From the first token to the last.", decode_);
  write(out, "vllm:request_inference_time_seconds", "From the queue's end to the last token.", inference_);
  write(out, "vllm:request_prompt_tokens", "Prompt tokens of a request.", prompt_tokens_);
  write(out, "vllm:request_generation_tokens", "Generated tokens of a request.", completion_tokens_);
  write(out, "vllm:e2e_request_latency_seconds", "From submission to the last token.", whole_);
  write_process(out);
  return out;
}

}  // namespace qiao::serve

#include "eval/task.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace qiao::eval {

GenerationRequest Task::request(size_t index) const {
  const TaskRequest& one = requests_[index];
  GenerationRequest request;
  request.prompt = one.tokens;
  request.sampling = sampling_;
  request.sampling.temperature = 0;
  if (one.first > 0) {
    request.max_tokens = 0;
    request.prompt_logprobs = true;
    request.prompt_logprobs_from = one.first;
  } else {
    request.max_tokens = max_tokens_;
    request.stop = stop_;
  }
  return request;
}

int64_t Task::longest() const {
  int64_t longest = 0;
  for (const TaskRequest& one : requests_)
    longest = std::max(longest, std::ssize(one.tokens) + (one.first > 0 ? 0 : max_tokens_));
  return longest;
}

Metric mean_of(std::string name, std::span<const double> values) {
  const auto count = static_cast<double>(values.size());
  Metric metric{std::move(name), std::accumulate(values.begin(), values.end(), 0.0) / count, std::nullopt};
  if (values.size() < 2) return metric;
  double squares = 0;
  for (const double value : values) squares += (value - metric.value) * (value - metric.value);
  metric.standard_error = std::sqrt(squares / (count - 1)) / std::sqrt(count);
  return metric;
}

}  // namespace qiao::eval

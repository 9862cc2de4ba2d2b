#include "train/run_log.h"

#include <chrono>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "train/event_file.h"

namespace qiao::train {
namespace {

constexpr size_t kMostLogBytes = size_t{4} << 30;

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// INT64_MAX of a line that is no step's.
int64_t step_of_line(std::string_view line) {
  try {
    const Json json = parse_json(line, "line");
    const auto step = json.is_object() ? json.find("step") : json.end();
    if (step != json.end() && step->is_number_integer()) return step->get<int64_t>();
  } catch (const Error&) {
  }
  return INT64_MAX;
}

// Drops the lines after `step`, which the run makes again, and what a crash has torn.
const std::filesystem::path& cut_lines(const std::filesystem::path& path, int64_t step) {
  if (!std::filesystem::exists(path)) return path;
  const std::string text = read_file(path, kMostLogBytes);
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    if (step_of_line(line) <= step) kept.append(line).append("\n");
  }
  if (kept != text) write_file_atomically(path, kept);
  return path;
}

}  // namespace

RunLog::RunLog(const std::filesystem::path& run, int64_t done, std::function<void(const std::string&)> warn)
    : run_(run), warn_(std::move(warn)), metrics_(cut_lines(run / "metrics.jsonl", done)) {
  cut_lines(run / "samples.jsonl", done);
  const double now = wall_time();
  events_.emplace(run / event_file_name(now));
  append(*events_, tf_record(version_event(now)) + tf_record(start_event(now, done + 1)));
}

void RunLog::append(AppendFile& file, std::string_view record) {
  try {
    file.append(record);
    failing_ = false;
  } catch (const Error& error) {
    if (!failing_) warn_(error.what());
    failing_ = true;
  }
}

void RunLog::step(const StepRecord& record) {
  Json line = {{"step", record.step},
               {"loss", record.loss},
               {"grad_norm", record.gradient_norm},
               {"lr", record.learning_rate},
               {"tokens_per_second", record.tokens_per_second}};
  line.update(record.more);
  append(metrics_, dump_json(line) + "\n");
  std::vector<std::pair<std::string, double>> values;
  for (const auto& [key, value] : line.items())
    if (key != "step" && value.is_number()) values.emplace_back("train/" + key, value.get<double>());
  const std::vector<Scalar> scalars(values.begin(), values.end());
  append(*events_, tf_record(scalars_event(wall_time(), record.step, scalars)));
}

void RunLog::sample(int64_t step, const std::string& prompt, const std::string& text) {
  if (!samples_) samples_.emplace(run_ / "samples.jsonl");
  append(*samples_, dump_json({{"step", step}, {"prompt", prompt}, {"text", text}}) + "\n");
  append(*events_, tf_record(text_event(wall_time(), step, "sample", prompt + text)));
}

}  // namespace qiao::train

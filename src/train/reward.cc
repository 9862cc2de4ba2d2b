#include "train/reward.h"

#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/quote.h"

namespace qiao::train {
namespace {

// Speaks the protocol for a function. What the function prints goes to stderr.
constexpr const char* kPythonDriver = R"(import importlib.util, json, os, sys
path, name = sys.argv[1:3]
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
spec = importlib.util.spec_from_file_location(os.path.splitext(os.path.basename(path))[0], path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
function = getattr(module, name)
for line in sys.stdin.buffer:
    answers.write(json.dumps(function(json.loads(line)), default=float) + "\n")
    answers.flush()
)";

std::chrono::milliseconds milliseconds(double seconds) {
  if (!(seconds > 0) || !(seconds <= 1e6)) {
    throw_error(ErrorKind::kInvalidInput,
                "--reward-timeout is {}; seconds above 0 and up to 10^6 were expected", seconds);
  }
  return std::chrono::milliseconds(static_cast<int64_t>(std::ceil(seconds * 1e3)));
}

LineProgram start_rewarder(const RewardOptions& o) {
  if (o.command.empty() == o.python.empty()) {
    throw_error(ErrorKind::kInvalidInput, "{}: exactly one of --reward and --reward-python was expected",
                o.command.empty() ? "no reward is given" : "two rewards are given");
  }
  if (!o.command.empty()) return {"reward", o.command, milliseconds(o.limit_seconds)};
  std::string file = o.python, name = "reward";
  const size_t colon = o.python.rfind(':');
  if (colon != std::string::npos && o.python.find('/', colon) == std::string::npos) {
    file = o.python.substr(0, colon);
    name = o.python.substr(colon + 1);
  }
  if (!std::filesystem::is_regular_file(file))
    throw_error(ErrorKind::kNotFound, "--reward-python: {} is no file; FILE.py or FILE.py:NAME was expected",
                file);
  return {"reward",
          fmt::format("{}:{}", file, name),
          {"python3", "-c", kPythonDriver, file, name},
          milliseconds(o.limit_seconds)};
}

std::optional<double> finite_number(const Json& value) {
  if (value.is_boolean()) return value.get<bool>() ? 1.0 : 0.0;
  if (!value.is_number() || !std::isfinite(value.get<double>())) return std::nullopt;
  return value.get<double>();
}

}  // namespace

LineProgram::LineProgram(std::string what, std::string how, const std::vector<std::string>& argv,
                         std::chrono::milliseconds limit)
    : what_(std::move(what)), how_(std::move(how)), limit_(limit), process_(argv) {}

LineProgram::LineProgram(std::string what, const std::string& command, std::chrono::milliseconds limit)
    : LineProgram(std::move(what), command, {"/bin/sh", "-c", command}, limit) {}

std::string LineProgram::ask(const Json& question, const std::string& where) {
  try {
    return process_.exchange(dump_json(question), limit_);
  } catch (const Error& error) {
    throw_error(error.kind(), "{}: {} ({}): {}", where, what_, how_, error.what());
  }
}

void LineProgram::refuse(const std::string& where, const std::string& answer,
                         const std::string& expected) const {
  throw_error(ErrorKind::kIo, "{}: {} ({}): it has answered {}; {} was expected", where, what_, how_,
              quote_text(answer.substr(0, 200)), expected);
}

Rewarder::Rewarder(const RewardOptions& options) : program_(start_rewarder(options)) {}

Reward Rewarder::of(const Json& completion, const std::string& where) {
  constexpr const char* kExpected =
      R"(a finite number, or an object of finite numbers with one under "reward",)";
  const std::string answer = program_.ask(completion, where);
  Json json;
  try {
    json = parse_json(answer, "answer");
  } catch (const Error&) {
    program_.refuse(where, answer, kExpected);
  }
  Reward reward;
  if (!json.is_object()) {
    const std::optional<double> value = finite_number(json);
    if (!value) program_.refuse(where, answer, kExpected);
    reward.value = *value;
    return reward;
  }
  if (!json.contains("reward")) program_.refuse(where, answer, kExpected);
  for (const auto& [key, figure] : json.items()) {
    const std::optional<double> value = finite_number(figure);
    if (!value) program_.refuse(where, answer, kExpected);
    if (key == "reward") {
      reward.value = *value;
    } else {
      reward.figures.emplace_back(key, *value);
    }
  }
  return reward;
}

}  // namespace qiao::train

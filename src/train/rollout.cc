#include "train/rollout.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "base/error.h"
#include "base/quote.h"

namespace qiao::train {
namespace {

// SplitMix64's finalizer (Steele et al. 2014): numbers that lie side by side give seeds that do not.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// What the engine's thread tells the one that waits.
struct Progress {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<size_t> begun;  // groups whose first completion has its first token: their prompt is cached
  size_t ended = 0;
  std::string error;
};

}  // namespace

Rollout::Rollout(std::shared_ptr<LanguageModel> model, const ToolTurns& turns, const RolloutOptions& options)
    : model_(std::move(model)), turns_(turns), options_(options) {
  if (!options.tool_command.empty()) {
    tools_ = std::make_unique<LineProgram>(
        "tools", options.tool_command,
        std::chrono::milliseconds(static_cast<int64_t>(options.tool_limit_seconds * 1e3)));
  }
  EngineOptions engine;
  engine.context = options.context;
  engine.slots = options.slots;
  engine.kv_dtype = model_->decoder().packed_kv_dtype();  // as training attends: the same bits
  engine.max_queued = INT32_MAX;
  engine_ = std::make_unique<Engine>(model_, engine);
}

GenerationRequest Rollout::request_of(const Trajectory& trajectory, int64_t step, int64_t first) const {
  GenerationRequest request;
  request.prompt = trajectory.tokens;
  request.sampling.temperature = options_.temperature;
  request.sampling.top_k = 0;
  request.sampling.top_p = 1;
  request.sampling.min_p = 0;
  const auto number = static_cast<uint64_t>(first) + trajectory.prompt;
  request.sampling.seed = mix(mix(mix(options_.seed) ^ static_cast<uint64_t>(step)) ^ number);
  request.choice = static_cast<int32_t>(trajectory.index);
  request.max_tokens = options_.max_tokens - (std::ssize(trajectory.tokens) - trajectory.prompt_tokens);
  request.logprobs = request.logprobs_at_temperature = request.end_token = true;
  // Weights are rewritten between steps: what other steps cached is no longer theirs.
  request.tenant = fmt::format("step {}", step);
  if (!model_->adapters().empty()) request.adapter = model_->adapters().front().name;
  return request;
}

// An answer of each, behind what it has.
void Rollout::draw_answers(std::span<Trajectory* const> open, int64_t step, int64_t first) {
  Progress progress;
  std::vector<std::vector<Trajectory*>> waiting;  // by group: who begins once its prompt is cached
  size_t submitted = 0;
  const auto submit = [&](Trajectory& trajectory, size_t group) {
    engine_->submit(request_of(trajectory, step, first),
                    [&, group, fresh = true](const GenerationEvent& event) mutable {
                      if (event.has_token) {
                        trajectory.tokens.push_back(event.token);
                        trajectory.logprob.push_back(event.logprobs.logprob);
                        trajectory.drawn.push_back(true);
                        ++trajectory.drawn_tokens;
                      }
                      const bool last = event.finish != FinishReason::kNone;
                      if (last) trajectory.finished = event.finish == FinishReason::kStop;
                      if (!last && !fresh) return;
                      const std::lock_guard lock(progress.mutex);
                      if (std::exchange(fresh, false)) progress.begun.push_back(group);
                      if (event.finish == FinishReason::kError || event.finish == FinishReason::kCancelled)
                        progress.error = event.error.empty() ? "it was cancelled" : event.error;
                      progress.ended += last ? 1 : 0;
                      progress.changed.notify_all();
                    });
    ++submitted;
  };
  std::unique_lock lock(progress.mutex, std::defer_lock);
  try {
    for (size_t i = 0; i < open.size(); ++i) {
      // Those of one prompt lie side by side; behind the first answer each has a beginning of its own.
      const bool follows = i > 0 && open[i]->turns == 0 && open[i - 1]->prompt == open[i]->prompt;
      if (!follows) waiting.emplace_back();
      follows ? waiting.back().push_back(open[i]) : submit(*open[i], waiting.size() - 1);
    }
    while (submitted < open.size()) {
      lock.lock();
      progress.changed.wait(lock, [&] { return !progress.begun.empty(); });
      const std::vector<size_t> groups = std::exchange(progress.begun, {});
      lock.unlock();
      for (const size_t group : groups)
        for (Trajectory* trajectory : std::exchange(waiting[group], {})) submit(*trajectory, group);
    }
  } catch (...) {
    lock.lock();
    progress.changed.wait(lock, [&] { return progress.ended == submitted; });
    throw;
  }
  lock.lock();
  progress.changed.wait(lock, [&] { return progress.ended == submitted; });
  if (!progress.error.empty())
    throw_error(ErrorKind::kIo, "step {}: a completion could not be drawn: {}", step, progress.error);
}

// Reads the answer; where it calls tools, lets them answer and returns true: the next one can be drawn.
bool Rollout::go_on(Trajectory& trajectory, const Prompt& prompt, int64_t step) {
  const size_t begin = trajectory.answer;
  std::vector<TokenId> answer(trajectory.tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                              trajectory.tokens.end());
  const TokenId last = answer.back();
  if (trajectory.finished) answer.pop_back();
  StreamDecoder decoder(model_->tokenizer());
  trajectory.completion.clear();
  for (const TokenId id : answer) trajectory.completion += decoder.push(id);
  trajectory.completion += decoder.finish();
  ++trajectory.turns;
  if (prompt.messages.is_null()) return false;

  // Whether its end has opened thoughts is all that is read of it.
  const std::string before =
      trajectory.turns == 1 ? prompt.text
                            : model_->tokenizer().decode(
                                  std::span(trajectory.tokens).first(begin).last(std::min<size_t>(begin, 64)),
                                  /*skip_special=*/false);
  const int64_t calls_before = std::count_if(trajectory.messages.begin(), trajectory.messages.end(),
                                             [](const Json& message) { return message["role"] == "tool"; });
  const ToolTurns::Answer read = turns_.read_answer(answer, before, calls_before);
  const Json so_far = trajectory.messages;
  trajectory.messages.push_back(read.message);
  if (!tools_ || read.calls.empty() || !trajectory.finished || trajectory.turns >= options_.max_turns)
    return false;

  const std::string where =
      fmt::format("step {}, {}, sample {}, turn {}", step, prompt.where, trajectory.index, trajectory.turns);
  const Json question = {{"calls", read.calls},
                         {"row", prompt.row},
                         {"messages", trajectory.messages},
                         {"step", step},
                         {"index", trajectory.index}};
  const std::string line = tools_->ask(question, where);
  Json results;
  try {
    results = parse_json(line, "results");
  } catch (const Error&) {
  }
  if (!results.is_array() || results.size() != read.calls.size())
    tools_->refuse(where, line, fmt::format("a list of {} results", read.calls.size()));
  Json messages = Json::array();
  for (size_t i = 0; i < results.size(); ++i) {
    const Json& call = read.calls[i];
    messages.push_back(
        {{"role", "tool"},
         {"content", results[i].is_string() ? results[i].get<std::string>() : dump_json(results[i])},
         {"tool_call_id", call["id"]},
         {"name", call["name"]}});
  }
  const std::string text = turns_.text_behind(so_far, read.message, messages, last, prompt.variables);
  const std::vector<TokenId> behind = model_->tokenizer().encode(text, {.parse_special = true});
  for (const Json& message : messages) trajectory.messages.push_back(message);
  const int64_t used = std::ssize(trajectory.tokens) - trajectory.prompt_tokens;
  if (used + std::ssize(behind) >= options_.max_tokens) {  // no room for an answer to them
    trajectory.finished = false;
    return false;
  }
  trajectory.tokens.insert(trajectory.tokens.end(), behind.begin(), behind.end());
  trajectory.logprob.resize(trajectory.tokens.size(), 0.0f);
  trajectory.drawn.resize(trajectory.tokens.size(), false);
  trajectory.answer = trajectory.tokens.size();
  return true;
}

std::vector<Trajectory> Rollout::run(int64_t step, std::span<const Prompt> prompts, int64_t first) {
  std::vector<Trajectory> all;
  for (size_t i = 0; i < prompts.size(); ++i) {
    for (int64_t index = 0; index < options_.group; ++index) {
      Trajectory trajectory;
      trajectory.prompt = i;
      trajectory.index = index;
      trajectory.tokens = prompts[i].tokens;
      trajectory.prompt_tokens = std::ssize(trajectory.tokens);
      trajectory.answer = trajectory.tokens.size();
      trajectory.logprob.assign(trajectory.tokens.size(), 0.0f);
      trajectory.drawn.assign(trajectory.tokens.size(), false);
      trajectory.messages = prompts[i].messages;
      all.push_back(std::move(trajectory));
    }
  }
  std::vector<Trajectory*> open;
  for (Trajectory& trajectory : all) open.push_back(&trajectory);
  while (!open.empty()) {
    draw_answers(open, step, first);
    // Turn by turn and in order: a tool with a state of its own sees the same in each run.
    std::erase_if(
        open, [&](Trajectory* trajectory) { return !go_on(*trajectory, prompts[trajectory->prompt], step); });
  }
  return all;
}

}  // namespace qiao::train

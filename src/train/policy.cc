#include "train/policy.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"

namespace qiao::train {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double standard_deviation(std::span<const double> values) {
  double mean = 0, squares = 0;
  for (const double value : values) mean += value / static_cast<double>(values.size());
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

// The log-probabilities of what a sequence's model drew, of a part's in which it begins at `first`.
std::vector<double> of_drawn(const Trajectory& trajectory, std::span<const float> logprob, size_t first) {
  std::vector<double> values;
  for (size_t t = 1; t < trajectory.tokens.size(); ++t)
    if (trajectory.drawn[t]) values.push_back(static_cast<double>(logprob[first + t - 1]));
  return values;
}

}  // namespace

Policy::Policy(Setup setup) : setup_(std::move(setup)), loss_(make_policy_loss(setup_.options)) {
  const PolicyOptions& o = setup_.options;
  model_ = LanguageModel::wrap(setup_.files, setup_.decoder);
  const int64_t context = setup_.decoder->config().max_position_embeddings;
  if (context > 0 && setup_.data.sequence > context) {
    throw_error(ErrorKind::kInvalidInput, "--seq is {}; up to {}, the model's context, was expected",
                setup_.data.sequence, context);
  }
  turns_ = std::make_unique<ToolTurns>(*model_, o.tools.empty() ? Json::array() : read_tools_file(o.tools));
  prompts_ = std::make_unique<Prompts>(setup_.data, *model_, *turns_, setup_.data.sequence - o.max_tokens,
                                       setup_.warn);
  rewarder_ = std::make_unique<Rewarder>(o.reward);
  RolloutOptions rollout;
  rollout.group = o.group;
  rollout.context = setup_.data.sequence;
  rollout.max_tokens = o.max_tokens;
  rollout.temperature = static_cast<float>(o.temperature);
  rollout.seed = setup_.data.seed;
  rollout.slots = std::min(o.slots, setup_.batch * o.group);
  rollout.max_turns = o.max_turns;
  rollout.tool_command = o.tool_command;
  rollout.tool_limit_seconds = o.reward.limit_seconds;
  rollout_ = std::make_unique<Rollout>(model_, *turns_, rollout);
}

int64_t Policy::most_tokens() const {
  const int64_t all = setup_.batch * setup_.options.group, updates = setup_.options.updates;
  const int64_t update = (all + updates - 1) / updates;
  return setup_.data.sequence * (setup_.micro_batch > 0 ? std::min(setup_.micro_batch, update) : update);
}

int64_t Policy::most_documents() const { return most_tokens() / 2 + 1; }  // of two tokens or more

uint64_t Policy::bytes() const { return rollout_->cache_bytes(); }

int64_t Policy::tokens() const {
  int64_t tokens = 0;
  for (const Part& part : parts_) tokens += std::ssize(part.tokens);
  return tokens;
}

bool Policy::at_rest() const { return step_ % setup_.options.updates == 0; }

Reward Policy::reward_of(const Trajectory& trajectory, const Prompt& prompt, int64_t step) {
  const Json completion = {{"prompt", prompt.messages.is_null() ? Json(prompt.text) : prompt.messages},
                           {"completion", trajectory.completion},
                           {"messages", trajectory.messages},
                           {"finished", trajectory.finished},
                           {"row", prompt.row},
                           {"step", step},
                           {"index", trajectory.index}};
  Reward reward =
      rewarder_->of(completion, fmt::format("step {}, {}, sample {}", step, prompt.where, trajectory.index));
  ++drawn_.completions;
  drawn_.finished += trajectory.finished ? 1 : 0;
  drawn_.tokens += trajectory.drawn_tokens;
  drawn_.turns += trajectory.turns;
  drawn_.reward += reward.value;
  for (const float logprob : trajectory.logprob) drawn_.minus_logprob -= static_cast<double>(logprob);
  for (const auto& [name, value] : reward.figures) {
    auto& [sum, count] = drawn_.more[name];
    sum += value;
    ++count;
  }
  const int64_t length = std::ssize(trajectory.tokens) - trajectory.prompt_tokens;
  reward.value += overlong_punishment(length, setup_.options.max_tokens, setup_.options.overlong_buffer);
  return reward;
}

// Rewards a group and keeps it, unless it has nothing to teach (dapo).
void Policy::take_group(std::span<Trajectory> group, const Prompt& prompt, int64_t step) {
  std::vector<double> rewards;
  for (const Trajectory& trajectory : group) rewards.push_back(reward_of(trajectory, prompt, step).value);
  ++drawn_.groups;
  drawn_.reward_std += standard_deviation(rewards);
  const auto [least, most] = std::minmax_element(rewards.begin(), rewards.end());
  if (loss_.kind == PolicyLossKind::kDapo && *least == *most) {
    ++drawn_.dropped;
    return;
  }
  const std::vector<double> advantages = group_advantages(rewards, setup_.options.advantage_std == "on");
  for (size_t i = 0; i < group.size(); ++i)
    rollout_sequences_.push_back({std::move(group[i]), advantages[i], {}});
}

void Policy::draw(int64_t step) {
  using Clock = std::chrono::steady_clock;
  const PolicyOptions& o = setup_.options;
  rollout_sequences_.clear();
  drawn_ = {};
  int64_t asked = 0;
  const int64_t rounds = loss_.kind == PolicyLossKind::kDapo ? 1 + o.resample : 1;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t missing = setup_.batch - std::ssize(rollout_sequences_) / o.group;
    if (missing == 0) break;
    const std::vector<Prompt> prompts = prompts_->next(missing);
    const Clock::time_point begin = Clock::now();
    std::vector<Trajectory> all = rollout_->run(step, prompts, asked);
    drawn_.seconds += seconds_since(begin);
    const Clock::time_point drawn = Clock::now();
    asked += missing;
    for (size_t i = 0; i < prompts.size(); ++i) {
      take_group(std::span(all).subspan(i * static_cast<size_t>(o.group), static_cast<size_t>(o.group)),
                 prompts[i], step);
    }
    drawn_.reward_seconds += seconds_since(drawn);
  }
  if (rollout_sequences_.empty() && setup_.warn) {
    setup_.warn(
        fmt::format("step {}: all rewards of each of {} groups are the same: there is nothing to learn from",
                    step, asked));
  }
  drawn_for_ = step;
}

// Sequences in order, as many as fit in a part.
std::vector<Policy::Part> Policy::pack(std::span<Taught> sequences) const {
  std::vector<Part> parts;
  for (Taught& taught : sequences) {
    const Trajectory& trajectory = taught.trajectory;
    const size_t count = trajectory.tokens.size();
    if (parts.empty() || parts.back().tokens.size() + count > static_cast<size_t>(most_tokens())) {
      parts.emplace_back();
      parts.back().starts.push_back(0);
    }
    Part& part = parts.back();
    for (size_t t = 0; t < count; ++t) {
      part.tokens.push_back(trajectory.tokens[t]);
      part.positions.push_back(static_cast<int32_t>(t));
      part.labels.push_back(t + 1 < count && trajectory.drawn[t + 1] ? trajectory.tokens[t + 1] : -1);
    }
    part.starts.push_back(static_cast<int32_t>(part.tokens.size()));
    part.sequences.push_back(&taught);
  }
  return parts;
}

void Policy::score_reference() {
  if (!reference_) return;
  for (const Part& part : pack(rollout_sequences_)) {
    const std::span<const float> logprob = reference_({part.tokens, part.positions, part.labels, part.starts,
                                                       static_cast<float>(setup_.options.temperature)});
    for (size_t i = 0; i < part.sequences.size(); ++i) {
      part.sequences[i]->reference =
          of_drawn(part.sequences[i]->trajectory, logprob, static_cast<size_t>(part.starts[i]));
    }
  }
}

void Policy::begin_step(int64_t step) {
  const int64_t updates = setup_.options.updates, update = (step - 1) % updates;
  step_ = step;
  if (update == 0) draw(step);
  training_since_ = std::chrono::steady_clock::now();
  if (update == 0) {
    score_reference();
  } else if (drawn_for_ != step - update) {
    throw_error(
        ErrorKind::kInvalidInput,
        "step {} is update {} of a rollout that is not there; --updates is {}: the run began with another",
        step, update + 1, updates);
  }
  const size_t all = rollout_sequences_.size();
  const size_t begin = all * static_cast<size_t>(update) / static_cast<size_t>(updates);
  const size_t end = all * static_cast<size_t>(update + 1) / static_cast<size_t>(updates);
  const std::span<Taught> own = std::span(rollout_sequences_).subspan(begin, end - begin);
  parts_ = pack(own);
  totals_ = {.sequences = std::ssize(own), .tokens = 0};
  for (const Taught& taught : own) totals_.tokens += taught.trajectory.drawn_tokens;
  clipped_ = compared_ = differing_ = 0;
  k3_ = rollout_k3_ = 0;
}

PackedBatch Policy::part(int64_t index) {
  const Part& part = parts_[static_cast<size_t>(index)];
  return {part.tokens, part.positions, part.labels, part.starts,
          static_cast<float>(setup_.options.temperature)};
}

void Policy::check_bits(const Taught& taught, std::span<const float> logprob, size_t first) {
  const Trajectory& trajectory = taught.trajectory;
  int64_t differing = 0;
  size_t where = 0;
  for (size_t t = 1; t < trajectory.tokens.size(); ++t) {
    if (!trajectory.drawn[t]) continue;
    ++compared_;
    const float now = logprob[first + t - 1], then = trajectory.logprob[t];
    if (std::bit_cast<uint32_t>(now) == std::bit_cast<uint32_t>(then)) continue;
    if (differing++ == 0) where = t;
  }
  differing_ += differing;
  if (differing == 0) return;
  throw_error(
      ErrorKind::kInvalidInput,
      "step {}, sequence {} of the rollout (sample {} of prompt {}): token {} (id {}) had the "
      "log-probability "
      "{:.9g} when it was drawn and has {:.9g} in training, before any update; {} of {} tokens differ: the "
      "weights or the numerics are not those of the rollout",
      step_, &taught - rollout_sequences_.data(), trajectory.index, trajectory.prompt, where,
      trajectory.tokens[where], trajectory.logprob[where], logprob[first + where - 1], differing,
      trajectory.drawn_tokens);
}

double Policy::loss(int64_t index, std::span<const float> logprob, std::span<float> dlogprob) {
  const Part& part = parts_[static_cast<size_t>(index)];
  double sum = 0;
  for (size_t i = 0; i < part.sequences.size(); ++i) {
    const Taught& taught = *part.sequences[i];
    const Trajectory& trajectory = taught.trajectory;
    const auto first = static_cast<size_t>(part.starts[i]);
    if (step_ == drawn_for_) check_bits(taught, logprob, first);
    const std::vector<double> now = of_drawn(trajectory, logprob, first);
    const std::vector<double> old = of_drawn(trajectory, trajectory.logprob, 1);
    std::vector<double> gradient(now.size());
    const PolicyLoss::Result result =
        loss_.of({.logprob = now, .old = old, .reference = taught.reference, .advantage = taught.advantage},
                 totals_, gradient);
    sum += result.loss;
    clipped_ += result.clipped;
    k3_ += result.k3;
    rollout_k3_ += k3_sum(now, old);
    size_t drawn = 0;
    for (size_t t = 1; t < trajectory.tokens.size(); ++t)
      if (trajectory.drawn[t]) dlogprob[first + t - 1] = static_cast<float>(gradient[drawn++]);
  }
  return sum;
}

Json Policy::report() const {
  const auto mean = [](double sum, int64_t count) {
    return count > 0 ? sum / static_cast<double>(count) : 0.0;
  };
  Json line = {{"reward", mean(drawn_.reward, drawn_.completions)},
               {"reward_std", mean(drawn_.reward_std, drawn_.groups)},
               {"completion_tokens", mean(static_cast<double>(drawn_.tokens), drawn_.completions)},
               {"finished", mean(static_cast<double>(drawn_.finished), drawn_.completions)},
               {"entropy", mean(drawn_.minus_logprob, drawn_.tokens)},
               {"groups", drawn_.groups},
               {"dropped_groups", drawn_.dropped},
               {"clipped", mean(static_cast<double>(clipped_), totals_.tokens)}};
  for (const auto& [name, figure] : drawn_.more) line["reward/" + name] = mean(figure.first, figure.second);
  if (!setup_.options.tools.empty())
    line["turns"] = mean(static_cast<double>(drawn_.turns), drawn_.completions);
  if (loss_.beta > 0) line["kl"] = mean(k3_, totals_.tokens);
  line["rollout_kl"] = mean(rollout_k3_, totals_.tokens);
  if (step_ == drawn_for_) {
    line["rollout_compared"] = compared_;
    line["rollout_differing"] = differing_;
    line["rollout_seconds"] = drawn_.seconds;
    line["reward_seconds"] = drawn_.reward_seconds;
    line["rollout_tokens_per_second"] = static_cast<double>(drawn_.tokens) / std::max(drawn_.seconds, 1e-9);
  }
  line["training_seconds"] = seconds_since(training_since_);
  return line;
}

Json Policy::state() const { return to_json(prompts_->position()); }

void Policy::set_state(const Json& state) { prompts_->set_position(read_position(state)); }

}  // namespace qiao::train

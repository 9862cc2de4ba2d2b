#include "train/policy.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "parallel/gather_texts.h"
#include "train/clock.h"
#include "train/first_leads.h"

namespace qiao::train {
namespace {

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
  if (const Ranks* ranks = setup_.ranks) {
    shares_ = ranks->shares();
    first_share_ = ranks->first_share();
    own_shares_ = ranks->own_shares();
  }
  sums_.assign(static_cast<size_t>(shares_) * kFigures, 0.0);
  model_ = LanguageModel::wrap(setup_.files, setup_.decoder);
  const int64_t context = setup_.decoder->config().max_position_embeddings;
  if (context > 0 && setup_.data.sequence > context) {
    throw_error(ErrorKind::kInvalidInput, "--seq is {}; up to {}, the model's context, was expected",
                setup_.data.sequence, context);
  }
  turns_ = std::make_unique<ToolTurns>(*model_, o.tools.empty() ? Json::array() : read_tools_file(o.tools));
  prompts_ = std::make_unique<Prompts>(setup_.data, *model_, *turns_, setup_.data.sequence - o.max_tokens,
                                       setup_.warn);
  RolloutOptions rollout;
  rollout.group = o.group;
  rollout.context = setup_.data.sequence;
  rollout.max_tokens = o.max_tokens;
  rollout.temperature = static_cast<float>(o.temperature);
  rollout.seed = setup_.data.seed;
  rollout.slots = std::min(o.slots, setup_.batch / shares_ * own_shares_ * o.group);
  rollout.max_turns = o.max_turns;
  rollout.tool_command = o.tool_command;
  rollout.tool_limit_seconds = o.reward.limit_seconds;
  first_leads(setup_.ranks, *setup_.decoder, [&] {
    rewarder_ = std::make_unique<Rewarder>(o.reward);
    rollout_ = std::make_unique<Rollout>(model_, *turns_, rollout);
    cache_bytes_ = rollout_->cache_bytes();
  });
  // The others have parts of its pages of the same size, or of fewer heads.
  if (setup_.ranks != nullptr && setup_.ranks->group().size() > 1)
    cache_bytes_ = std::stoull(text_of_first(setup_.ranks->group(), fmt::to_string(cache_bytes_)));
}

int64_t Policy::most_tokens() const {
  const int64_t all = setup_.batch / shares_ * setup_.options.group, updates = setup_.options.updates;
  const int64_t update = (all + updates - 1) / updates;
  return setup_.data.sequence * (setup_.micro_batch > 0 ? std::min(setup_.micro_batch, update) : update);
}

int64_t Policy::most_documents() const { return most_tokens() / 2 + 1; }  // of two tokens or more

uint64_t Policy::bytes() const { return cache_bytes_; }

double Policy::total(Figure figure) const {
  std::vector<double> of_shares;
  for (size_t i = figure; i < sums_.size(); i += kFigures) of_shares.push_back(sums_[i]);
  return sum_of_shares(of_shares);
}

void Policy::agree(std::span<double> values) const {
  if (setup_.ranks != nullptr) setup_.ranks->agree_by_share(values);
}

bool Policy::at_rest() const { return step_ % setup_.options.updates == 0; }

Reward Policy::reward_of(const Trajectory& trajectory, const Prompt& prompt, int64_t step, int64_t share) {
  const Json completion = {{"prompt", prompt.messages.is_null() ? Json(prompt.text) : prompt.messages},
                           {"completion", trajectory.completion},
                           {"messages", trajectory.messages},
                           {"finished", trajectory.finished},
                           {"row", prompt.row},
                           {"step", step},
                           {"index", trajectory.index}};
  Reward reward =
      rewarder_->of(completion, fmt::format("step {}, {}, sample {}", step, prompt.where, trajectory.index));
  figure(share, kCompletions) += 1;
  figure(share, kFinished) += trajectory.finished ? 1 : 0;
  figure(share, kTokens) += static_cast<double>(trajectory.drawn_tokens);
  figure(share, kTurns) += static_cast<double>(trajectory.turns);
  figure(share, kReward) += reward.value;
  for (const float logprob : trajectory.logprob) figure(share, kMinusLogprob) -= static_cast<double>(logprob);
  for (const auto& [name, value] : reward.figures) {
    more_[name][0] += value;
    more_[name][1] += 1;
  }
  const int64_t length = std::ssize(trajectory.tokens) - trajectory.prompt_tokens;
  reward.value += overlong_punishment(length, setup_.options.max_tokens, setup_.options.overlong_buffer);
  return reward;
}

// Rewards a group and keeps it, unless it has nothing to teach (dapo).
void Policy::take_group(std::span<Trajectory> group, const Prompt& prompt, int64_t step, int64_t share) {
  std::vector<double> rewards;
  for (const Trajectory& trajectory : group)
    rewards.push_back(reward_of(trajectory, prompt, step, share).value);
  figure(share, kGroups) += 1;
  figure(share, kRewardStd) += standard_deviation(rewards);
  const auto [least, most] = std::minmax_element(rewards.begin(), rewards.end());
  if (loss_.kind == PolicyLossKind::kDapo && *least == *most) {
    figure(share, kDropped) += 1;
    return;
  }
  const std::vector<double> advantages = group_advantages(rewards, setup_.options.advantage_std == "on");
  for (size_t i = 0; i < group.size(); ++i)
    rollout_sequences_[static_cast<size_t>(share)].push_back({std::move(group[i]), advantages[i], {}});
}

// What other processes' rewards say beside the reward itself, to rank 0: texts of one length, as they travel.
void Policy::gather_rewards() {
  if (setup_.ranks == nullptr || setup_.ranks->is_alone()) return;
  Json own = Json::object();
  for (const auto& [name, sum] : more_) own[name] = {sum[0], sum[1]};
  const std::string text = dump_json(own);
  std::vector<double> lengths(static_cast<size_t>(shares_), static_cast<double>(text.size()));
  agree(lengths);
  std::vector<std::string> texts(static_cast<size_t>(shares_));
  for (std::string& each : texts) {
    each = text;
    each.resize(static_cast<size_t>(*std::ranges::max_element(lengths)), ' ');
  }
  setup_.ranks->collect(texts);
  if (!setup_.ranks->leads()) return;
  for (int64_t share = own_shares_; share < shares_; share += own_shares_) {  // one of each other process
    const Json theirs = parse_json(texts[static_cast<size_t>(share)], "rewards");
    for (const auto& [name, sum] : theirs.items()) {
      more_[name][0] += sum.at(0).get<double>();
      more_[name][1] += sum.at(1).get<double>();
    }
  }
}

// What the others of a group train on, too.
void Policy::tell_group() {
  if (setup_.ranks == nullptr || setup_.ranks->group().size() == 1) return;
  const std::string drawn = setup_.ranks->leads_group() ? bytes_of(rollout_sequences_) : "";
  rollout_sequences_ = taught_of(text_of_first(setup_.ranks->group(), drawn));
}

// Draws and rewards groups for this process's prompts. Those of the virtual rank s are begin[s] to
// begin[s + 1] of a round's, whose first is the step's prompt `number`.
void Policy::draw_own(int64_t step, std::span<const Prompt> prompts, int64_t number,
                      std::span<const int64_t> begin) {
  const int64_t first = begin[static_cast<size_t>(first_share_)];
  const auto group = static_cast<size_t>(setup_.options.group);
  const Clock::time_point before = Clock::now();
  std::vector<Trajectory> all = rollout_->run(step, prompts, number + first);
  rollout_seconds_ += seconds_since(before);
  const Clock::time_point drawn = Clock::now();
  int64_t share = first_share_;
  for (size_t i = 0; i < prompts.size(); ++i) {
    while (first + static_cast<int64_t>(i) >= begin[static_cast<size_t>(share + 1)]) ++share;
    take_group(std::span(all).subspan(i * group, group), prompts[i], step, share);
  }
  reward_seconds_ += seconds_since(drawn);
}

void Policy::draw(int64_t step) {
  const PolicyOptions& o = setup_.options;
  rollout_sequences_.assign(static_cast<size_t>(shares_), {});
  std::ranges::fill(sums_, 0.0);
  more_.clear();
  rollout_seconds_ = reward_seconds_ = 0;
  int64_t asked = 0;
  const int64_t rounds = loss_.kind == PolicyLossKind::kDapo ? 1 + o.resample : 1;
  const int64_t wanted = setup_.batch / shares_;  // groups of each virtual rank
  std::vector<double> missing(static_cast<size_t>(shares_), static_cast<double>(wanted));
  for (int64_t round = 0; round < rounds; ++round) {
    // Prompts are dealt out to the virtual ranks in their order, to each as many as it still wants.
    std::vector<int64_t> begin = {0};
    for (const double groups : missing) begin.push_back(begin.back() + static_cast<int64_t>(groups));
    if (begin.back() == 0) break;
    const std::vector<Prompt> prompts = prompts_->next(begin.back());
    const auto first = begin[static_cast<size_t>(first_share_)];
    const std::span<const Prompt> own = std::span(prompts).subspan(
        static_cast<size_t>(first),
        static_cast<size_t>(begin[static_cast<size_t>(first_share_ + own_shares_)] - first));
    first_leads(setup_.ranks, *setup_.decoder, [&] { draw_own(step, own, asked, begin); });
    asked += begin.back();
    for (int64_t s = first_share_; s < first_share_ + own_shares_; ++s) {
      const auto at = static_cast<size_t>(s);
      const int64_t made = std::ssize(rollout_sequences_[at]) / o.group;
      missing[at] = static_cast<double>(wanted - made);
    }
    agree(missing);
  }
  gather_rewards();
  tell_group();
  const auto misses_all = [&](double groups) { return groups == static_cast<double>(wanted); };
  if (std::ranges::all_of(missing, misses_all) && setup_.warn) {
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
  for (std::vector<Taught>& sequences : rollout_sequences_) {
    for (const Part& part : pack(sequences)) {
      const std::span<const float> logprob =
          reference_({part.tokens, part.positions, part.labels, part.starts,
                      static_cast<float>(setup_.options.temperature)});
      for (size_t i = 0; i < part.sequences.size(); ++i) {
        part.sequences[i]->reference =
            of_drawn(part.sequences[i]->trajectory, logprob, static_cast<size_t>(part.starts[i]));
      }
    }
  }
}

// As many parts of each virtual rank as the one with the most has; the rest of the others' are empty.
void Policy::lay_out(std::vector<std::vector<Part>> of_shares) {
  std::vector<double> counts;
  for (const std::vector<Part>& parts : of_shares) counts.push_back(static_cast<double>(parts.size()));
  agree(counts);
  parts_of_share_ = static_cast<int64_t>(*std::ranges::max_element(counts));
  parts_.clear();
  std::vector<double> tokens;
  for (std::vector<Part>& parts : of_shares) {
    parts.resize(static_cast<size_t>(parts_of_share_));
    for (Part& part : parts) {
      tokens.push_back(static_cast<double>(part.tokens.size()));
      parts_.push_back(std::move(part));
    }
  }
  agree(tokens);
  part_tokens_.assign(tokens.begin(), tokens.end());
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
  std::vector<std::vector<Part>> of_shares;
  std::vector<double> sequences, tokens;
  for (std::vector<Taught>& rollout : rollout_sequences_) {
    const size_t all = rollout.size();
    const size_t begin = all * static_cast<size_t>(update) / static_cast<size_t>(updates);
    const size_t end = all * static_cast<size_t>(update + 1) / static_cast<size_t>(updates);
    const std::span<Taught> own = std::span(rollout).subspan(begin, end - begin);
    of_shares.push_back(pack(own));
    sequences.push_back(static_cast<double>(own.size()));
    tokens.push_back(0);
    for (const Taught& taught : own) tokens.back() += static_cast<double>(taught.trajectory.drawn_tokens);
  }
  lay_out(std::move(of_shares));
  agree(sequences);
  agree(tokens);
  totals_ = {.sequences = static_cast<int64_t>(sum_of_shares(sequences)),
             .tokens = static_cast<int64_t>(sum_of_shares(tokens))};
  for (int64_t share = 0; share < shares_; ++share)
    for (size_t each = kOfStep; each < kFigures; ++each) figure(share, static_cast<Figure>(each)) = 0;
}

PackedBatch Policy::part(int64_t index) {
  const Part& part = parts_[static_cast<size_t>(index)];
  return {part.tokens, part.positions, part.labels, part.starts,
          static_cast<float>(setup_.options.temperature)};
}

void Policy::check_bits(const Taught& taught, std::span<const float> logprob, size_t first, int64_t share) {
  const Trajectory& trajectory = taught.trajectory;
  int64_t differing = 0;
  size_t where = 0;
  for (size_t t = 1; t < trajectory.tokens.size(); ++t) {
    if (!trajectory.drawn[t]) continue;
    figure(share, kCompared) += 1;
    const float now = logprob[first + t - 1], then = trajectory.logprob[t];
    if (std::bit_cast<uint32_t>(now) == std::bit_cast<uint32_t>(then)) continue;
    if (differing++ == 0) where = t;
  }
  figure(share, kDiffering) += static_cast<double>(differing);
  if (differing == 0) return;
  throw_error(
      ErrorKind::kInvalidInput,
      "step {}, sequence {} of the rollout (sample {} of prompt {}): token {} (id {}) had the "
      "log-probability "
      "{:.9g} when it was drawn and has {:.9g} in training, before any update; {} of {} tokens differ: the "
      "weights or the numerics are not those of the rollout",
      step_, &taught - rollout_sequences_[static_cast<size_t>(share)].data(), trajectory.index,
      trajectory.prompt, where, trajectory.tokens[where], trajectory.logprob[where],
      logprob[first + where - 1], differing, trajectory.drawn_tokens);
}

double Policy::loss(int64_t index, std::span<const float> logprob, std::span<float> dlogprob) {
  const Part& part = parts_[static_cast<size_t>(index)];
  const int64_t share = share_of(index);
  double sum = 0;
  for (size_t i = 0; i < part.sequences.size(); ++i) {
    const Taught& taught = *part.sequences[i];
    const Trajectory& trajectory = taught.trajectory;
    const auto first = static_cast<size_t>(part.starts[i]);
    if (step_ == drawn_for_) check_bits(taught, logprob, first, share);
    const std::vector<double> now = of_drawn(trajectory, logprob, first);
    const std::vector<double> old = of_drawn(trajectory, trajectory.logprob, 1);
    std::vector<double> gradient(now.size());
    const PolicyLoss::Result result =
        loss_.of({.logprob = now, .old = old, .reference = taught.reference, .advantage = taught.advantage},
                 totals_, gradient);
    sum += result.loss;
    figure(share, kClipped) += static_cast<double>(result.clipped);
    figure(share, kK3) += result.k3;
    figure(share, kRolloutK3) += k3_sum(now, old);
    size_t drawn = 0;
    for (size_t t = 1; t < trajectory.tokens.size(); ++t)
      if (trajectory.drawn[t]) dlogprob[first + t - 1] = static_cast<float>(gradient[drawn++]);
  }
  return sum;
}

Json Policy::report() const {
  const auto mean = [](double sum, double count) { return count > 0 ? sum / count : 0.0; };
  const auto whole = [](double value) { return static_cast<int64_t>(value); };
  const auto tokens = static_cast<double>(totals_.tokens);
  Json line = {{"reward", mean(total(kReward), total(kCompletions))},
               {"reward_std", mean(total(kRewardStd), total(kGroups))},
               {"completion_tokens", mean(total(kTokens), total(kCompletions))},
               {"finished", mean(total(kFinished), total(kCompletions))},
               {"entropy", mean(total(kMinusLogprob), total(kTokens))},
               {"groups", whole(total(kGroups))},
               {"dropped_groups", whole(total(kDropped))},
               {"clipped", mean(total(kClipped), tokens)}};
  for (const auto& [name, sum] : more_) line["reward/" + name] = mean(sum[0], sum[1]);
  if (!setup_.options.tools.empty()) line["turns"] = mean(total(kTurns), total(kCompletions));
  if (loss_.beta > 0) line["kl"] = mean(total(kK3), tokens);
  line["rollout_kl"] = mean(total(kRolloutK3), tokens);
  if (step_ == drawn_for_) {
    line["rollout_compared"] = whole(total(kCompared));
    line["rollout_differing"] = whole(total(kDiffering));
    line["rollout_seconds"] = rollout_seconds_;
    line["reward_seconds"] = reward_seconds_;
    line["rollout_tokens_per_second"] = total(kTokens) / std::max(rollout_seconds_, 1e-9);
  }
  line["training_seconds"] = seconds_since(training_since_);
  return line;
}

Json Policy::state() const { return prompts_->state(); }

void Policy::set_state(const Json& state) { prompts_->set_state(state); }

}  // namespace qiao::train

#include "train/policy_options.h"

#include <cmath>

#include "base/error.h"

namespace qiao::train {

void check_policy_options(const PolicyOptions& o, int64_t batch, int64_t share, int64_t steps,
                          int64_t sequence) {
  const auto need = [](bool right, std::string_view option, auto value, const std::string& expected) {
    if (!right) throw_error(ErrorKind::kInvalidInput, "--{} is {}; {} was expected", option, value, expected);
  };
  need(o.group >= 2 && o.group <= 4096, "group", o.group, "2 to 4096");
  need(o.max_tokens >= 1 && o.max_tokens < sequence, "max-tokens", o.max_tokens,
       fmt::format("1 to {}, so that a prompt fits before it in --seq,", sequence - 1));
  need(o.temperature > 0 && o.temperature <= 100, "temperature", o.temperature,
       "a number above 0 and up to 100");
  need(o.updates >= 1 && o.updates <= share * o.group, "updates", o.updates,
       fmt::format("1 to {}, the completions of a step (--batch times --group{}),", share * o.group,
                   share == batch ? "" : ", of a virtual rank"));
  need(steps % o.updates == 0, "steps", steps, fmt::format("a multiple of --updates, {},", o.updates));
  need(batch * o.group <= INT32_MAX / sequence, "batch", batch, "fewer tokens a step");
  need(std::isfinite(o.beta) && o.beta >= 0, "kl", o.beta, "0 or more");
  need(o.loss == "grpo" || o.loss == "dapo" || o.loss == "gspo", "loss", o.loss, "grpo, dapo or gspo");
  need(o.advantage_std == "on" || o.advantage_std == "off", "advantage-std", o.advantage_std, "on or off");
  const PolicyLoss loss = make_policy_loss(o);
  need(loss.clip_low < 1, "clip-low", loss.clip_low, "a number from 0 to below 1");
  need(std::isfinite(loss.clip_high), "clip-high", loss.clip_high, "0 or more");
  need(o.resample >= 0, "resample", o.resample, "0 or more");
  need(o.overlong_buffer >= 0 && o.overlong_buffer <= o.max_tokens, "overlong-buffer", o.overlong_buffer,
       fmt::format("0 to --max-tokens, {},", o.max_tokens));
  need(o.slots >= 1 && o.slots <= 65536, "slots", o.slots, "1 to 65536");
  need(o.max_turns >= 1, "max-turns", o.max_turns, "1 or more");
  need(o.tools.empty() == o.tool_command.empty(), o.tools.empty() ? "tools" : "tool-command", "not given",
       "both --tools and --tool-command, or neither,");
}

PolicyLoss make_policy_loss(const PolicyOptions& o) {
  PolicyLoss loss;
  const bool gspo = o.loss == "gspo", dapo = o.loss == "dapo";
  loss.kind = gspo ? PolicyLossKind::kGspo : dapo ? PolicyLossKind::kDapo : PolicyLossKind::kGrpo;
  loss.clip_low = gspo ? 3e-4 : 0.2;
  loss.clip_high = gspo ? 4e-4 : dapo ? 0.28 : 0.2;
  if (o.clip_low >= 0) loss.clip_low = o.clip_low;
  if (o.clip_high >= 0) loss.clip_high = o.clip_high;
  loss.beta = o.beta;
  return loss;
}

}  // namespace qiao::train

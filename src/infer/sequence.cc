#include "infer/sequence.h"

#include <algorithm>
#include <utility>

namespace qiao {
namespace {

double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

Sequence::Sequence(GenerationRequest request, Engine::OnEvent on_event, const LanguageModel& model,
                   int64_t context)
    : request_(std::move(request)),
      on_event_(std::move(on_event)),
      model_(model),
      context_(context),
      adapter_(model.adapter_number(request_.adapter)),
      decoder_(model.tokenizer()),
      stops_(request_.stop) {
  tokens = request_.prompt;
  prompt_tokens = static_cast<int64_t>(tokens.size());
  tenant = request_.tenant;
  // An adapter's keys and values are its own. No name holds the separator, and no tenant begins with it.
  if (adapter_ >= 0) tenant = fmt::format("\n{}\n{}", model.adapter_key(adapter_), request_.tenant);
  embedding = request_.embedding;
  if (request_.embedding) outputs_wanted = prompt_tokens;
  if (request_.prompt_logprobs) outputs_wanted = prompt_tokens - 1;
  if (keeps_history()) {
    for (const TokenId id : request_.prompt) history_.emplace(id, 0);
  }
}

bool Sequence::keeps_history() const {
  const SamplingOptions& sampling = request_.sampling;
  return sampling.repetition_penalty != 1.0f || sampling.frequency_penalty != 0.0f ||
         sampling.presence_penalty != 0.0f;
}

void Sequence::propose(int64_t most) {
  const auto size = static_cast<int64_t>(tokens.size());
  most = std::min(most, context_ - size - 1);  // of what is drawn the last token is never computed
  if (request_.max_tokens >= 0) most = std::min(most, request_.max_tokens - completion_tokens_ - 1);
  draft_accepted = 0;
  lookup_.propose(tokens, most, draft);
}

void Sequence::judge_draft() {
  lookup_.judge(static_cast<int64_t>(draft.size()), draft_accepted);
  draft.clear();
}

void Sequence::started() {
  if (started_ == Clock::time_point()) started_ = Clock::now();
}

void Sequence::add_prompt_logprobs(TokenLogprobs logprobs) {
  prompt_logprobs_.push_back(std::move(logprobs));
  ++outputs_had;
}

void Sequence::add_hidden(const float* hidden, int64_t width) {
  hidden_sum_.resize(static_cast<size_t>(width));
  for (int64_t i = 0; i < width; ++i) hidden_sum_[static_cast<size_t>(i)] += hidden[i];
  ++outputs_had;
}

void Sequence::send_prompt_logprobs() {
  if (prompt_logprobs_.empty()) return;
  GenerationEvent event;
  event.prompt_logprobs = std::exchange(prompt_logprobs_, {});
  on_event_(event);
}

void Sequence::accept(TokenId token, TokenLogprobs logprobs) {
  if (!has_first_token_) {
    has_first_token_ = true;
    first_token_ = Clock::now();
    send_prompt_logprobs();
  }
  ++completion_tokens_;
  if (!request_.ignore_eos && model_.ends_generation(token)) {
    finish(FinishReason::kStop);
    return;
  }
  tokens.push_back(token);
  if (keeps_history()) ++history_[token];
  GenerationEvent event;
  event.has_token = true;
  event.token = token;
  event.logprobs = std::move(logprobs);
  event.text = stops_.push(decoder_.push(token));
  on_event_(event);
  if (stops_.stopped()) {
    finish(FinishReason::kStop);
    return;
  }
  const bool full = static_cast<int64_t>(tokens.size()) >= context_;
  if (full || (request_.max_tokens >= 0 && completion_tokens_ >= request_.max_tokens)) {
    finish(FinishReason::kLength);
  }
}

void Sequence::finish_prompt() {
  send_prompt_logprobs();
  if (!request_.embedding) {
    finish(FinishReason::kLength);
    return;
  }
  GenerationEvent event = last_event(FinishReason::kStop);
  event.embedding.reserve(hidden_sum_.size());
  for (const double sum : hidden_sum_) {
    event.embedding.push_back(static_cast<float>(sum / static_cast<double>(request_.prompt.size())));
  }
  finished = true;
  on_event_(event);
}

GenerationEvent Sequence::last_event(FinishReason reason) const {
  GenerationEvent event;
  event.finish = reason;
  event.prompt_tokens = prompt_tokens;
  event.cached_tokens = cached_tokens;
  event.completion_tokens = completion_tokens_;
  const Clock::time_point now = Clock::now();
  const bool has_started = started_ != Clock::time_point();
  event.queue_seconds = seconds(submitted_, has_started ? started_ : now);
  if (has_started) event.prefill_seconds = seconds(started_, has_first_token_ ? first_token_ : now);
  if (has_first_token_) event.decode_seconds = seconds(first_token_, now);
  return event;
}

void Sequence::finish(FinishReason reason, const std::string& error) {
  finished = true;
  GenerationEvent event = last_event(reason);
  event.error = error;
  if (reason == FinishReason::kStop || reason == FinishReason::kLength) {
    event.text = stops_.push(decoder_.finish());
    event.text += stops_.finish();
    if (stops_.stopped()) {
      event.finish = FinishReason::kStop;
      event.stop_text = stops_.matched();
    }
  }
  on_event_(event);
}

}  // namespace qiao

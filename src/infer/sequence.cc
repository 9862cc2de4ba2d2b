#include "infer/sequence.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

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
      decoder_(model.tokenizer(), /*skip_special=*/!request_.special_text),
      stops_(request_.stop),
      sent_(request_.prompt.size()) {
  tokens = request_.prompt;
  prompt_tokens = static_cast<int64_t>(tokens.size());
  tenant = request_.tenant;
  // An adapter's keys and values are its own. No name holds the separator, and no tenant begins with it.
  if (adapter_ >= 0) tenant = fmt::format("\n{}\n{}", model.adapter_key(adapter_), request_.tenant);
  embedding = request_.embedding;
  if (request_.embedding) outputs_wanted = prompt_tokens;
  if (request_.prompt_logprobs) {
    outputs_wanted = prompt_tokens - 1;
    outputs_had = request_.prompt_logprobs_from - 1;
  }
  if (keeps_history()) {
    for (const TokenId id : request_.prompt) history_.emplace(id, 0);
  }
  if (request_.grammar != nullptr && !request_.embedding && request_.max_tokens != 0) {
    constraint_.emplace(request_.grammar, model, request_.ignore_eos);
  }
}

void Sequence::begin() {
  if (!constraint_) return;
  try {
    force();
  } catch (const Error& e) {
    finish(FinishReason::kError, e.what(), e.kind());
    return;
  }
  if (ending_ == FinishReason::kNone || outputs_had < outputs_wanted) return;
  finish_computed();
}

bool Sequence::keeps_history() const {
  const SamplingOptions& sampling = request_.sampling;
  return sampling.repetition_penalty != 1.0f || sampling.frequency_penalty != 0.0f ||
         sampling.presence_penalty != 0.0f;
}

bool Sequence::ends_with_awaited() const {
  const bool full = static_cast<int64_t>(tokens.size()) + awaited >= context_;
  return full || (request_.max_tokens >= 0 && completion_tokens_ + awaited >= request_.max_tokens);
}

int64_t Sequence::draft_room(int64_t most) const {
  // Of what is drawn the last token is never computed.
  most = std::min(most, context_ - static_cast<int64_t>(tokens.size()) - 1);
  if (request_.max_tokens >= 0) most = std::min(most, request_.max_tokens - completion_tokens_ - 1);
  return most;
}

void Sequence::propose(int64_t most) {
  draft_accepted = 0;
  drafted_by_model_ = false;
  lookup_.propose(tokens, draft_room(most), draft);
  cut_draft();
}

int64_t Sequence::wish_of_model(int64_t most, double cost) {
  draft_accepted = 0;
  drafted_by_model_ = true;
  return pace_.wish(static_cast<int64_t>(tokens.size()), draft_room(most), cost);
}

// A token that the grammar refuses is not drawn: what was guessed from it on would be computed for nothing.
void Sequence::cut_draft() {
  guessed_ = std::ssize(draft);
  if (!constraint_) return;
  AnswerConstraint at = *constraint_;
  size_t allowed = 0;
  try {
    while (allowed < draft.size() && at.accept(draft[allowed])) ++allowed;
  } catch (const Error&) {
    // The draft ends here; whoever draws there meets the error again.
  }
  draft.resize(allowed);
  if (draft.empty() && guessed_ > 0 && drafted_by_model_) judge_draft();  // there is nothing to compute
}

void Sequence::mask(int64_t ahead, std::span<uint32_t> words) {
  try {
    AnswerConstraint at = *constraint_;
    for (const TokenId id : std::span(draft).first(static_cast<size_t>(ahead))) at.accept(id);
    at.mask(words);
  } catch (const Error& e) {
    if (!finished) finish(FinishReason::kError, e.what(), e.kind());
    std::fill(words.begin(), words.end(), ~uint32_t{0});
  }
}

void Sequence::judge_draft() {
  if (drafted_by_model_) {
    pace_.judge(guessed_, draft_accepted);
  } else {
    lookup_.judge(std::ssize(draft), draft_accepted);
  }
  draft.clear();
}

void Sequence::started() {
  if (started_ == Clock::time_point()) started_ = Clock::now();
}

void Sequence::add_logprobs(TokenLogprobs logprobs) {
  ++outputs_had;
  if (outputs_had < prompt_tokens) {
    prompt_logprobs_.push_back(std::move(logprobs));
  } else if (!finished) {
    send(tokens[static_cast<size_t>(outputs_had)], std::move(logprobs));
  }
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

// Why the sequence ends with the tokens that it has; kNone: it goes on.
FinishReason Sequence::reason_to_end() const {
  if (constraint_ && constraint_->must_end()) return FinishReason::kStop;
  const bool full = static_cast<int64_t>(tokens.size()) >= context_;
  if (full || (request_.max_tokens >= 0 && completion_tokens_ >= request_.max_tokens)) {
    return FinishReason::kLength;
  }
  return FinishReason::kNone;
}

void Sequence::append(TokenId token) {
  tokens.push_back(token);
  ++completion_tokens_;
  if (keeps_history()) ++history_[token];
}

// Sends the event of the first token that has had none; finishes where it completes a stop string.
void Sequence::send(TokenId token, TokenLogprobs logprobs) {
  if (!has_first_token_) {
    has_first_token_ = true;
    first_token_ = Clock::now();
    send_prompt_logprobs();
  }
  ++sent_;
  GenerationEvent event;
  event.has_token = true;
  event.token = token;
  event.logprobs = std::move(logprobs);
  const bool shows = !request_.special_text || !model_.ends_generation(token);
  event.text = stops_.push(shows ? decoder_.push(token) : std::string());
  on_event_(event);
  if (stops_.stopped()) finish(FinishReason::kStop);
}

void Sequence::send_forced() {
  while (!finished && sent_ < tokens.size()) send(tokens[sent_], {});
}

// Adds the tokens that the grammar leaves no choice about: they are computed as a prompt is.
void Sequence::force() {
  const size_t known = tokens.size();
  int64_t room = context_ - static_cast<int64_t>(known);
  if (request_.max_tokens >= 0) room = std::min(room, request_.max_tokens - completion_tokens_);
  for (const TokenId token : constraint_->forced(tokens, static_cast<size_t>(std::max<int64_t>(room, 0)))) {
    constraint_->accept(token);
    append(token);
    ++forced_tokens_;
  }
  ending_ = reason_to_end();
  if (tokens.size() == known || !request_.logprobs) return;
  if (outputs_had >= outputs_wanted) outputs_had = static_cast<int64_t>(known) - 1;
  outputs_wanted = static_cast<int64_t>(tokens.size()) - 1;
}

void Sequence::accept(TokenId token, TokenLogprobs logprobs) {
  send_forced();  // what the answer begins with
  if (finished) return;
  if (!request_.ignore_eos && model_.ends_generation(token)) {
    if (!has_first_token_) {
      has_first_token_ = true;
      first_token_ = Clock::now();
      send_prompt_logprobs();
    }
    ++completion_tokens_;
    if (request_.end_token) {
      GenerationEvent event;
      event.has_token = true;
      event.token = token;
      event.logprobs = std::move(logprobs);
      on_event_(event);
    }
    finish(FinishReason::kStop);
    return;
  }
  append(token);
  send(token, std::move(logprobs));
  if (finished) return;
  try {
    if (constraint_ && !constraint_->accept(token)) {
      finish(FinishReason::kError, "the token drawn is not one that the grammar allows");
      return;
    }
    ending_ = reason_to_end();
    if (constraint_ && ending_ == FinishReason::kNone) force();
  } catch (const Error& e) {
    finish(FinishReason::kError, e.what(), e.kind());
    return;
  }
  if (outputs_had < outputs_wanted) return;  // forced tokens whose log-probabilities are to be computed
  send_forced();
  if (!finished && ending_ != FinishReason::kNone) finish(ending_);
}

void Sequence::accept_none() {
  // The text is complete, but the token that would say so is not to be drawn.
  const bool complete = constraint_ && request_.ignore_eos && constraint_->can_end();
  if (complete) {
    send_forced();
    if (!finished) finish(FinishReason::kStop);
    return;
  }
  finish(FinishReason::kError, "no token is left to draw: every one is masked, or a logit is not a number");
}

void Sequence::finish_computed() {
  send_prompt_logprobs();
  if (ending_ != FinishReason::kNone) {
    send_forced();
    if (!finished) finish(ending_);
    return;
  }
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
  event.forced_tokens = forced_tokens_;
  const Clock::time_point now = Clock::now();
  const bool has_started = started_ != Clock::time_point();
  event.queue_seconds = seconds(submitted_, has_started ? started_ : now);
  if (has_started) event.prefill_seconds = seconds(started_, has_first_token_ ? first_token_ : now);
  if (has_first_token_) event.decode_seconds = seconds(first_token_, now);
  return event;
}

void Sequence::finish(FinishReason reason, const std::string& error, ErrorKind kind) {
  finished = true;
  const auto unsent = static_cast<int64_t>(tokens.size() - sent_);  // forced, but the client never saw them
  completion_tokens_ -= unsent;
  forced_tokens_ -= unsent;
  GenerationEvent event = last_event(reason);
  event.error = error;
  event.error_kind = kind;
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

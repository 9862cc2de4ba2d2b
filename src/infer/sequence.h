// A request from submission to its last event. Used by the engine's thread alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "infer/answer_constraint.h"
#include "infer/draft_pace.h"
#include "infer/engine.h"
#include "infer/prompt_lookup.h"
#include "infer/scheduler.h"
#include "infer/stop_matcher.h"
#include "text/tokenizer.h"

namespace qiao {

using Clock = std::chrono::steady_clock;

// What a request is beyond its tokens and pages: how it draws, what it says, when it ends.
class Sequence final : public Job {
 public:
  Sequence(GenerationRequest request, Engine::OnEvent on_event, const LanguageModel& model, int64_t context);

  const GenerationRequest& request() const { return request_; }
  const std::shared_ptr<Generation>& generation() const { return generation_; }
  int32_t adapter() const { return adapter_; }  // its number; -1: none

  // Before it is queued: adds the tokens that its grammar begins with. They may be all of the answer: it is
  // finished then.
  void begin();
  // Whether the step that computes the last pending token must draw the next one.
  bool draws() const {
    return !request_.embedding && request_.max_tokens != 0 && ending_ == FinishReason::kNone;
  }
  bool constrained() const { return constraint_.has_value(); }
  // Whether a draw takes more of the host than how many tokens there are: those that came before it.
  bool draws_by_history() const { return constrained() || keeps_history(); }
  // Which tokens may be drawn behind the first `ahead` tokens of the draft: [ceil(V / 32)] words. May finish
  // the sequence with an error.
  void mask(int64_t ahead, std::span<uint32_t> words);

  bool ends_with_awaited() const override;
  // Which row of the last step that was given draws its next token.
  int32_t drawn_row = -1;

  void propose(int64_t most) override;
  int64_t draft_room(int64_t most) const override;
  // How many tokens a draft model should guess, at most `most`; its step costs `cost` of the target's.
  int64_t wish_of_model(int64_t most, double cost);
  // Ends the draft before the first token that the grammar refuses.
  void cut_draft();
  // Leading tokens of the draft that were drawn, in the step that runs.
  int64_t draft_accepted = 0;
  // The step has run: forgets the draft.
  void judge_draft();

  void started();  // its first step begins: the time in the queue ends
  // Times each token occurs: generated ones counted, prompt ones present with count 0. Empty without
  // penalties.
  const std::unordered_map<TokenId, int32_t>& history() const { return history_; }
  bool keeps_history() const;

  // Of the token behind the next position whose output is wanted: one of the prompt, or a forced one, whose
  // event is sent then.
  void add_logprobs(TokenLogprobs logprobs);
  void add_hidden(const float* hidden, int64_t width);
  // Takes a drawn token; sends its event, and the last one where that finishes the sequence.
  void accept(TokenId token, TokenLogprobs logprobs);
  // No token could be drawn.
  void accept_none();
  // All is computed and nothing is drawn (max_tokens 0, embeddings, an answer that ends in forced tokens).
  void finish_computed();
  void finish(FinishReason reason, const std::string& error = {}, ErrorKind kind = ErrorKind::kIo);

 private:
  void send_prompt_logprobs();
  void send(TokenId token, TokenLogprobs logprobs);
  void send_forced();
  void append(TokenId token);
  void force();
  FinishReason reason_to_end() const;
  GenerationEvent last_event(FinishReason reason) const;

  GenerationRequest request_;
  Engine::OnEvent on_event_;
  const LanguageModel& model_;
  int64_t context_;
  int32_t adapter_;
  std::shared_ptr<Generation> generation_ = std::make_shared<Generation>();
  std::unordered_map<TokenId, int32_t> history_;
  PromptLookup lookup_;
  DraftPace pace_;
  bool drafted_by_model_ = false;  // else looked up
  int64_t guessed_ = 0;            // tokens of the draft, before it was cut
  StreamDecoder decoder_;
  StopMatcher stops_;
  std::vector<TokenLogprobs> prompt_logprobs_;
  std::vector<double> hidden_sum_;
  std::optional<AnswerConstraint> constraint_;
  size_t sent_;  // tokens, the prompt's with them; what follows are forced ones whose events are to come
  FinishReason ending_ = FinishReason::kNone;  // with the tokens that it has
  int64_t completion_tokens_ = 0, forced_tokens_ = 0;
  Clock::time_point submitted_ = Clock::now(), started_, first_token_;
  bool has_first_token_ = false;
};

}  // namespace qiao

// A request from submission to its last event. Used by the engine's thread alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

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

  // Whether the step that computes the last pending token must draw the next one.
  bool draws() const { return !request_.embedding && request_.max_tokens != 0; }

  void propose(int64_t most) override;
  // Leading tokens of the draft that were drawn, in the step that runs.
  int64_t draft_accepted = 0;
  // The step has run: forgets the draft.
  void judge_draft();

  void started();  // its first step begins: the time in the queue ends
  // Times each token occurs: generated ones counted, prompt ones present with count 0. Empty without
  // penalties.
  const std::unordered_map<TokenId, int32_t>& history() const { return history_; }
  bool keeps_history() const;

  void add_prompt_logprobs(TokenLogprobs logprobs);
  void add_hidden(const float* hidden, int64_t width);
  // Takes a drawn token; sends its event, and the last one where that finishes the sequence.
  void accept(TokenId token, TokenLogprobs logprobs);
  // The prompt is computed and nothing is drawn (max_tokens 0, embeddings).
  void finish_prompt();
  void finish(FinishReason reason, const std::string& error = {});

 private:
  void send_prompt_logprobs();
  GenerationEvent last_event(FinishReason reason) const;

  GenerationRequest request_;
  Engine::OnEvent on_event_;
  const LanguageModel& model_;
  int64_t context_;
  int32_t adapter_;
  std::shared_ptr<Generation> generation_ = std::make_shared<Generation>();
  std::unordered_map<TokenId, int32_t> history_;
  PromptLookup lookup_;
  StreamDecoder decoder_;
  StopMatcher stops_;
  std::vector<TokenLogprobs> prompt_logprobs_;
  std::vector<double> hidden_sum_;
  int64_t completion_tokens_ = 0;
  Clock::time_point submitted_ = Clock::now(), started_, first_token_;
  bool has_first_token_ = false;
};

}  // namespace qiao

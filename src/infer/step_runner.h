// One step of the engine: packs tokens of several sequences into a batch, runs the decoder, draws tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "infer/sample_batch.h"
#include "infer/sequence.h"
#include "models/decoder.h"

namespace qiao {

class StepRunner {
 public:
  // Memory for steps of at most `sequences` sequences of `pages_per_sequence` pages and `tokens` tokens is
  // planned here.
  StepRunner(const LanguageModel& model, KvCache& cache, int64_t sequences, int64_t pages_per_sequence,
             int64_t tokens, int64_t prompt_logprob_rows);

  // Computes the next pending tokens of each entry's job, which is a Sequence with pages for them, and draws
  // where that reaches the end. Sequences advance (computed, accept) and may finish. All embed, or none.
  // A draft is computed as if it had been drawn, and a token is drawn behind each of its tokens, with the
  // seed, position and history it would have: a drafted token stays if it is the one drawn in its place, and
  // what was drawn behind the first that is not is dropped. So no draft changes any answer. Entries that have
  // finished are left out. Where memory runs out (Error(kTooLarge)) nothing has advanced.
  void run(std::span<const StepEntry> entries);

  int64_t drafts() const { return drafts_; }
  int64_t drafted_tokens() const { return drafted_; }
  int64_t accepted_tokens() const { return accepted_; }

 private:
  struct Output {
    Sequence* sequence;
    int64_t ahead;  // tokens of the draft before what is drawn
    bool draws;     // else: the log-probability of `target`
    TokenId target;
  };
  std::span<const StepEntry> in_order(std::span<const StepEntry> entries);
  void pack(const StepEntry& entry, bool embed);
  void pack_pages(std::span<const int32_t> pages, int64_t begin, int64_t end, std::vector<int32_t>& slots,
                  std::vector<int32_t>& table) const;
  void fill_masks();
  SampleBatch::Draws draw(const Tensor& logits);
  void take_draws(const SampleBatch::Draws& draws);
  void settle_draft(Sequence& sequence);
  void take_hidden(const Tensor& hidden);

  const LanguageModel& model_;
  Backend& backend_;
  KvCache& cache_;
  int64_t pages_per_sequence_, vocabulary_;
  std::unique_ptr<Decoder::Workspace> workspace_;
  int64_t drafts_ = 0, drafted_ = 0, accepted_ = 0;

  std::vector<int32_t> tokens_, positions_, slots_, page_table_, lengths_, query_starts_, output_rows_;
  std::vector<int32_t> sliding_slots_, sliding_table_;  // empty where the cache has one group of layers
  std::vector<int32_t> adapters_;                       // of the sequences; empty where the model has none
  std::vector<StepEntry> entries_;                      // in the order in which they are packed
  std::vector<Output> outputs_;
  std::vector<uint32_t> masks_;  // [outputs, ceil(V / 32)], where one of them is constrained
  std::vector<float> hidden_;
  SampleBatch batch_;
};

}  // namespace qiao

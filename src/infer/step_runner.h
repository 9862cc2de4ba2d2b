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
  // Memory for steps of at most so many sequences, pages of each, tokens and log-probabilities of prompts is
  // planned here.
  struct Limits {
    int64_t sequences = 1, pages_per_sequence = 1, tokens = 1;
    int64_t prompt_logprob_rows = 1;
  };
  StepRunner(const LanguageModel& model, KvCache& cache, const Limits& limits);
  // What that takes, with a cache of any number of pages.
  static size_t planned_bytes(const LanguageModel& model, const KvCache& cache, const Limits& limits);

  // Computes the next pending tokens of each entry's job, which is a Sequence with pages for them, and draws
  // where that reaches the end. Sequences advance (computed, accept) and may finish. All embed, or none.
  // A draft is computed as if it had been drawn, and a token is drawn behind each of its tokens, with the
  // seed, position and history it would have: a drafted token stays if it is the one drawn in its place, and
  // what was drawn behind the first that is not is dropped. So no draft changes any answer. Entries that have
  // finished are left out. Where memory runs out (Error(kTooLarge)) nothing has advanced. No step is under
  // way.
  void run(std::span<const StepEntry> entries);

  // The same in two parts, two steps under way at most: launch gives a step to the chip, land waits for the
  // first one's results. The later one may go on with a prompt where the first one leaves it. In a step that
  // is launched while another one is under way, a job's next token may be one that this one draws: it is put
  // in its place by the chip. Where a draw follows from that token (a grammar, penalties), the later step's
  // forward pass is given before it is known and its draws by land, while the pass runs; where memory for
  // them runs out, that step is taken back. Where the job turns out to have finished before, or a grammar
  // forces what comes next, what the later step drew for it is dropped.
  void launch(std::span<const StepEntry> entries);
  // Returns the entries of the step, valid until the next launch.
  std::span<const StepEntry> land();
  int under_way() const { return count_; }
  // After an error: no step is under way any more. Returns the entries of those that were.
  std::vector<StepEntry> forget();

  int64_t drafts() const { return drafts_; }
  int64_t drafted_tokens() const { return drafted_; }
  int64_t accepted_tokens() const { return accepted_; }
  int64_t ahead_steps() const { return ahead_; }  // given while another was under way

 private:
  struct Output {
    Sequence* sequence;
    int64_t index;                            // of the token
    int64_t drafted;                          // tokens of the draft before it
    enum { kDraws, kKnown, kNothing } wants;  // kKnown: the log-probability of the token that is there
  };
  struct Flight {
    std::vector<StepEntry> entries;  // in the order in which they are packed
    std::vector<Output> outputs;
    std::vector<Sequence*> drawing;
    bool embeds = false;
    bool draws_later = false;         // when what the draws follow from is known
    std::unique_ptr<Landing> hidden;  // of a step that embeds
    Tensor logits;
    SampleBatch::Flight draws;
  };
  void take_entries(std::span<const StepEntry> entries, Flight& flight);
  void pack(const StepEntry& entry, Flight& flight);
  Decoder::Outputs forward(const Flight& flight);
  void pack_pages(std::span<const int32_t> pages, int64_t begin, int64_t end, std::vector<int32_t>& slots,
                  std::vector<int32_t>& table) const;
  void fill_masks(const Flight& flight);
  void draw(Flight& flight);
  void draw_at_last(Flight& flight);
  void take_back(Flight& flight);
  void take_draws(const Flight& flight, const SampleBatch::Draws& draws);
  void settle_draft(Sequence& sequence);
  void take_hidden(const Flight& flight);

  const LanguageModel& model_;
  Backend& backend_;
  KvCache& cache_;
  int64_t pages_per_sequence_, vocabulary_;
  std::unique_ptr<Decoder::Workspace> workspace_;
  int64_t drafts_ = 0, drafted_ = 0, accepted_ = 0, ahead_ = 0;

  std::vector<int32_t> tokens_, positions_, slots_, page_table_, lengths_, query_starts_, output_rows_;
  std::vector<int32_t> sliding_slots_, sliding_table_;  // empty where the cache has one group of layers
  std::vector<int32_t> adapters_;                       // of the sequences; empty where the model has none
  std::vector<int32_t> from_drawn_;                     // empty where every token is known
  Flight flights_[2];
  int first_ = 0, count_ = 0;    // of those under way
  std::vector<uint32_t> masks_;  // [outputs, ceil(V / 32)], where one of them is constrained
  SampleBatch batch_;
};

}  // namespace qiao

// Drafts tokens of several sequences together with a second, smaller model of the same vocabulary (Leviathan
// et al. 2023, Chen et al. 2023). It draws with the counters of the target's own draws (seed, choice,
// position) and the same options: where the two models' logits are close, so are the tokens, at any
// temperature. A draft never decides: see StepRunner.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "infer/sample_batch.h"
#include "infer/scheduler.h"
#include "infer/sequence.h"
#include "models/decoder.h"

namespace qiao {

// Of the engine's thread. The draft's keys and values, of all its layers, lie in the numbers of the target's
// full pages and their slots: what is shared, evicted, preempted or rolled back there needs no second
// bookkeeping here. What a slot holds is told by a hash of every token up to it, so whatever is missing is
// computed when it is next needed.
class DraftModel final : public Drafter {
 public:
  struct Limits {
    int64_t pages = 1, page_tokens = 1;  // of the target's cache
    int64_t sequences = 1, pages_per_sequence = 1;
    int64_t tokens = 1;  // one pass computes at most
  };

  // `target` outlives this.
  DraftModel(std::shared_ptr<LanguageModel> model, const LanguageModel& target, DType kv_dtype,
             const Limits& limits);

  // What its steps take beside its cache; a cache of any number of pages tells it.
  static size_t planned_bytes(const LanguageModel& model, const KvCache& cache, const Limits& limits);

  // Throws Error(kInvalidInput), naming the first difference, where the tokenizers are not the same.
  static void check_vocabulary(const LanguageModel& draft, const LanguageModel& target);

  void propose(std::span<const DraftTask> tasks) override;

 private:
  // A sequence in one pass: positions [from, to) are computed.
  struct Row {
    Sequence* sequence;
    int64_t most;
    int64_t from, to;
    uint64_t hash;  // of the tokens before `from`
    bool draws;     // the token at `to` is wanted
  };
  size_t slot(const Sequence& sequence, int64_t position) const;
  bool can_read(const Sequence& sequence) const;
  Row start(const DraftTask& task) const;
  void compute(std::span<Row> rows);
  void draw(std::span<Row> rows);

  const std::shared_ptr<LanguageModel> model_;
  const LanguageModel& target_;
  const Limits limits_;
  const double cost_;  // of a step, in steps of the target
  const int64_t vocabulary_, context_;
  KvCache cache_;
  std::unique_ptr<Decoder::Workspace> workspace_;
  SampleBatch samples_;
  std::vector<uint64_t> hashes_;  // by slot: of its token and all before it; 0: nothing
  std::vector<Row> rows_;
  std::vector<int32_t> tokens_, positions_, slots_, page_table_, lengths_, query_starts_, output_rows_;
  Decoder::Outputs outputs_;
};

}  // namespace qiao

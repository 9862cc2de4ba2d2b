#include "infer/step_runner.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace qiao {
namespace {

constexpr int64_t kTopLogprobs = 20;

Sequence& sequence_of(const StepEntry& entry) { return static_cast<Sequence&>(*entry.job); }

}  // namespace

StepRunner::StepRunner(const LanguageModel& model, KvCache& cache, int64_t sequences,
                       int64_t pages_per_sequence, int64_t tokens, int64_t prompt_logprob_rows)
    : model_(model),
      backend_(model.backend()),
      cache_(cache),
      pages_per_sequence_(pages_per_sequence),
      vocabulary_(model.decoder().config().vocabulary_size),
      batch_(backend_, vocabulary_) {
  workspace_ = model.decoder().make_workspace({.tokens = tokens,
                                               .sequences = sequences,
                                               .pages_per_sequence = pages_per_sequence,
                                               .outputs = tokens,
                                               .logits = std::min(tokens, sequences + prompt_logprob_rows)},
                                              cache);
}

// Those that have not finished; where there are adapters, those of one side by side: their rows are
// multiplied together. No answer depends on the order.
std::span<const StepEntry> StepRunner::in_order(std::span<const StepEntry> entries) {
  entries_.assign(entries.begin(), entries.end());
  std::erase_if(entries_, [](const StepEntry& entry) { return entry.job->finished; });
  if (model_.adapters().empty()) return entries_;
  for (auto entry = entries_.begin(); entry != entries_.end();
       ++entry) {  // stable, and without memory of its own
    const auto place = std::upper_bound(
        entries_.begin(), entry, sequence_of(*entry).adapter(),
        [](int32_t adapter, const StepEntry& other) { return adapter < sequence_of(other).adapter(); });
    std::rotate(place, entry, entry + 1);
  }
  for (const StepEntry& entry : entries_) adapters_.push_back(sequence_of(entry).adapter());
  return entries_;
}

// The slots of a sequence's positions [begin, end), and its row of the table.
void StepRunner::pack_pages(std::span<const int32_t> pages, int64_t begin, int64_t end,
                            std::vector<int32_t>& slots, std::vector<int32_t>& table) const {
  const int64_t page_tokens = cache_.page_tokens();
  for (int64_t position = begin; position < end; ++position) {
    const int64_t page = pages[static_cast<size_t>(position / page_tokens)];
    slots.push_back(static_cast<int32_t>(page * page_tokens + position % page_tokens));
  }
  const size_t row = table.size();
  table.insert(table.end(), pages.begin(), pages.end());
  table.resize(row + static_cast<size_t>(pages_per_sequence_), 0);
}

void StepRunner::pack(const StepEntry& entry, bool embed) {
  Sequence& sequence = sequence_of(entry);
  const size_t known = sequence.tokens.size();
  QIAO_ASSERT(entry.count >= 1 &&
              entry.count <= sequence.pending() + static_cast<int64_t>(sequence.draft.size()));
  const int64_t end = sequence.computed + entry.count;
  for (int64_t position = sequence.computed; position < end; ++position) {
    const auto row = static_cast<int32_t>(tokens_.size());
    const auto index = static_cast<size_t>(position);
    tokens_.push_back(index < known ? sequence.tokens[index] : sequence.draft[index - known]);
    positions_.push_back(static_cast<int32_t>(position));
    // Positions computed again after a preemption have given their outputs before.
    const bool wanted = position >= sequence.outputs_had && position < sequence.outputs_wanted;
    if (wanted) {
      output_rows_.push_back(row);
      outputs_.push_back({&sequence, 0, false, embed ? 0 : sequence.tokens[index + 1]});
    }
    if (index + 1 >= known && sequence.draws()) {
      output_rows_.push_back(row);
      outputs_.push_back({&sequence, static_cast<int64_t>(index + 1 - known), true, 0});
    }
  }
  lengths_.push_back(static_cast<int32_t>(end));
  query_starts_.push_back(static_cast<int32_t>(tokens_.size()));
  pack_pages(sequence.pages.full, sequence.computed, end, slots_, page_table_);
  if (cache_.sliding_pages() > 0)
    pack_pages(sequence.pages.sliding, sequence.computed, end, sliding_slots_, sliding_table_);
}

void StepRunner::run(std::span<const StepEntry> entries) {
  for (auto* list : {&tokens_, &positions_, &slots_, &page_table_, &lengths_, &query_starts_, &output_rows_,
                     &adapters_, &sliding_slots_, &sliding_table_}) {
    list->clear();
  }
  outputs_.clear();
  query_starts_.push_back(0);
  const bool embed = entries.front().job->embedding;
  entries = in_order(entries);
  if (entries.empty()) return;
  for (const StepEntry& entry : entries) pack(entry, embed);
  const Decoder::Outputs out = model_.decoder().forward({.tokens = tokens_,
                                                         .positions = positions_,
                                                         .slots = slots_,
                                                         .page_table = page_table_,
                                                         .lengths = lengths_,
                                                         .query_starts = query_starts_,
                                                         .output_rows = output_rows_,
                                                         .adapters = adapters_,
                                                         .sliding_slots = sliding_slots_,
                                                         .sliding_table = sliding_table_},
                                                        cache_, *workspace_, !embed);
  const bool draws = !outputs_.empty() && !embed;
  const SampleBatch::Draws drawn = draws ? draw(out.logits) : SampleBatch::Draws();
  if (!outputs_.empty() && embed) take_hidden(out.hidden);
  for (const StepEntry& entry : entries) entry.job->computed += entry.count;
  if (draws) take_draws(drawn);
  for (const StepEntry& entry : entries) {
    Sequence& sequence = sequence_of(entry);
    settle_draft(sequence);
    if (!sequence.finished && !sequence.draws() && sequence.pending() == 0) sequence.finish_computed();
  }
}

void StepRunner::take_hidden(const Tensor& hidden) {
  const int64_t width = hidden.shape[1];
  hidden_.resize(static_cast<size_t>(hidden.elements()));
  backend_.download(hidden_.data(), hidden.data, static_cast<size_t>(hidden.bytes()));
  for (size_t i = 0; i < outputs_.size(); ++i) {
    outputs_[i].sequence->add_hidden(hidden_.data() + static_cast<int64_t>(i) * width, width);
  }
}

// What was computed of the draft beyond its right tokens is not the sequence's.
void StepRunner::settle_draft(Sequence& sequence) {
  const auto drafted = static_cast<int64_t>(sequence.draft.size());
  if (drafted == 0) return;
  sequence.computed -= drafted - sequence.draft_accepted;
  ++drafts_;
  drafted_ += drafted;
  accepted_ += sequence.draft_accepted;
  sequence.judge_draft();
}

// Rows of sequences without a grammar, and of tokens that are known, allow all.
void StepRunner::fill_masks() {
  masks_.clear();
  if (std::none_of(outputs_.begin(), outputs_.end(),
                   [](const Output& output) { return output.draws && output.sequence->constrained(); })) {
    return;
  }
  const auto words = static_cast<size_t>((vocabulary_ + 31) / 32);
  masks_.assign(outputs_.size() * words, ~uint32_t{0});
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const Output& output = outputs_[i];
    if (output.draws && output.sequence->constrained())
      output.sequence->mask(output.ahead, std::span(masks_).subspan(i * words, words));
  }
}

SampleBatch::Draws StepRunner::draw(const Tensor& logits) {
  fill_masks();
  batch_.clear();
  int64_t top = 0;
  for (const Output& output : outputs_) {
    top = std::max<int64_t>(top, output.sequence->request().top_logprobs);
    output.draws ? batch_.add(*output.sequence, output.ahead)
                 : batch_.add_known(*output.sequence, output.target);
  }
  return batch_.draw(logits,
                     {.masks = masks_, .log_probabilities = true, .top = std::min(top, kTopLogprobs)});
}

void StepRunner::take_draws(const SampleBatch::Draws& draws) {
  for (size_t i = 0; i < outputs_.size(); ++i) {
    Sequence& sequence = *outputs_[i].sequence;
    TokenLogprobs logprobs;
    logprobs.logprob = draws.log_probabilities[i];
    const int64_t wanted = std::min<int64_t>(sequence.request().top_logprobs, draws.top);
    for (int64_t j = 0; j < wanted; ++j) {
      const size_t at = i * static_cast<size_t>(draws.top) + static_cast<size_t>(j);
      logprobs.top.emplace_back(draws.top_ids[at], draws.top_log_probabilities[at]);
    }
    const TokenId drawn = draws.ids[i];
    if (!outputs_[i].draws) {
      sequence.add_logprobs(std::move(logprobs));
    } else if (sequence.finished || outputs_[i].ahead > sequence.draft_accepted) {
      continue;  // drawn behind a draft that was wrong
    } else if (drawn < 0) {
      sequence.accept_none();
    } else {
      const size_t known = sequence.tokens.size();
      sequence.accept(drawn, std::move(logprobs));
      const auto next = static_cast<size_t>(outputs_[i].ahead);
      // Where forced tokens follow, what was drawn behind the draft is not what comes next.
      if (!sequence.finished && sequence.tokens.size() == known + 1 && next < sequence.draft.size() &&
          sequence.draft[next] == drawn)
        ++sequence.draft_accepted;
    }
  }
}

}  // namespace qiao

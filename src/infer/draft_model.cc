#include "infer/draft_model.h"

#include <algorithm>

#include "base/error.h"
#include "base/quote.h"

namespace qiao {
namespace {

// Never 0: that is a slot without a token.
uint64_t hash_with(uint64_t hash, TokenId token) {
  hash = (hash ^ static_cast<uint32_t>(token)) * 0x9e3779b97f4a7c15u;
  return (hash ^ hash >> 29) | 1;
}

constexpr uint64_t kNoTokens = 1;

TokenId token_at(const Sequence& sequence, int64_t position) {
  const auto index = static_cast<size_t>(position), known = sequence.tokens.size();
  return index < known ? sequence.tokens[index] : sequence.draft[index - known];
}

Decoder::Limits decoder_limits(const DraftModel::Limits& limits) {
  return {.tokens = limits.tokens,
          .sequences = limits.sequences,
          .pages_per_sequence = limits.pages_per_sequence,
          .outputs = limits.sequences};
}

// By the weights that a step of each reads.
double step_cost(const LanguageModel& draft, const LanguageModel& target) {
  return draft.decoder().work().bytes_per_step / std::max(target.decoder().work().bytes_per_step, 1.0);
}

}  // namespace

void DraftModel::check_vocabulary(const LanguageModel& draft, const LanguageModel& target) {
  const Tokenizer &ours = draft.tokenizer(), &theirs = target.tokenizer();
  const auto refuse = [&](const std::string& what) {
    throw_error(ErrorKind::kInvalidInput,
                "draft model {}: {}; a draft model must have the tokenizer of the model it drafts for ({})",
                draft.path().string(), what, target.path().string());
  };
  if (ours.vocabulary_size() != theirs.vocabulary_size()) {
    refuse(fmt::format("its tokenizer has {} tokens, and {} were expected", ours.vocabulary_size(),
                       theirs.vocabulary_size()));
  }
  for (TokenId id = 0; id < ours.vocabulary_size(); ++id) {
    if (ours.token_bytes(id) != theirs.token_bytes(id)) {
      refuse(fmt::format("its token {} is {}, and {} was expected", id, quote_text(ours.token_bytes(id)),
                         quote_text(theirs.token_bytes(id))));
    }
  }
}

size_t DraftModel::planned_bytes(const LanguageModel& model, const KvCache& cache, const Limits& limits) {
  return model.decoder().workspace_bytes(decoder_limits(limits), cache) +
         SampleBatch::planned_bytes(model.backend(), model.config().vocabulary_size, limits.sequences, 0);
}

DraftModel::DraftModel(std::shared_ptr<LanguageModel> model, const LanguageModel& target, DType kv_dtype,
                       const Limits& limits)
    : model_(std::move(model)),
      target_(target),
      limits_(limits),
      cost_(step_cost(*model_, target)),
      vocabulary_(model_->decoder().config().vocabulary_size),
      context_(model_->decoder().config().max_position_embeddings),
      cache_(model_->backend(), model_->decoder().config(), limits.pages, limits.page_tokens, kv_dtype),
      workspace_(model_->decoder().make_workspace(decoder_limits(limits), cache_)),
      samples_(model_->backend(), vocabulary_, limits.sequences, 0),
      hashes_(static_cast<size_t>(limits.pages * limits.page_tokens)) {}

size_t DraftModel::slot(const Sequence& sequence, int64_t position) const {
  const int64_t page = sequence.pages.full[static_cast<size_t>(position / limits_.page_tokens)];
  return static_cast<size_t>(page * limits_.page_tokens + position % limits_.page_tokens);
}

// Padding of the target's embeddings makes ids that the draft may lack.
bool DraftModel::can_read(const Sequence& sequence) const {
  return vocabulary_ >= target_.decoder().config().vocabulary_size ||
         std::all_of(sequence.tokens.begin(), sequence.tokens.end(),
                     [&](TokenId id) { return id < vocabulary_; });
}

// From the first token on whose keys and values are not there; the last one's logits are needed in any case.
DraftModel::Row DraftModel::start(const DraftTask& task) const {
  auto& sequence = static_cast<Sequence&>(*task.job);
  const auto size = static_cast<int64_t>(sequence.tokens.size());
  Row row{&sequence, task.most, 0, size, kNoTokens, true};
  for (; row.from + 1 < size; ++row.from) {
    const uint64_t next = hash_with(row.hash, sequence.tokens[static_cast<size_t>(row.from)]);
    if (hashes_[slot(sequence, row.from)] != next) break;
    row.hash = next;
  }
  return row;
}

void DraftModel::compute(std::span<Row> rows) {
  for (auto* list :
       {&tokens_, &positions_, &slots_, &page_table_, &lengths_, &query_starts_, &output_rows_}) {
    list->clear();
  }
  query_starts_.push_back(0);
  for (const Row& row : rows) {
    for (int64_t position = row.from; position < row.to; ++position) {
      const size_t at = slot(*row.sequence, position);
      hashes_[at] = 0;  // until the pass has run
      tokens_.push_back(token_at(*row.sequence, position));
      positions_.push_back(static_cast<int32_t>(position));
      slots_.push_back(static_cast<int32_t>(at));
    }
    if (row.draws) output_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
    lengths_.push_back(static_cast<int32_t>(row.to));
    query_starts_.push_back(static_cast<int32_t>(tokens_.size()));
    const size_t begin = page_table_.size();
    const std::vector<int32_t>& pages = row.sequence->pages.full;
    page_table_.insert(page_table_.end(), pages.begin(), pages.end());
    page_table_.resize(begin + static_cast<size_t>(limits_.pages_per_sequence), 0);
  }
  outputs_ = model_->decoder().forward({.tokens = tokens_,
                                        .positions = positions_,
                                        .slots = slots_,
                                        .page_table = page_table_,
                                        .lengths = lengths_,
                                        .query_starts = query_starts_,
                                        .output_rows = output_rows_},
                                       cache_, *workspace_);
  for (Row& row : rows) {
    for (; row.from < row.to; ++row.from) {
      row.hash = hash_with(row.hash, token_at(*row.sequence, row.from));
      hashes_[slot(*row.sequence, row.from)] = row.hash;
    }
  }
}

// Adds to each draft the token drawn behind it, and a row's next position. A draft ends before what the
// target cannot read and before the end of the answer: nothing follows that.
void DraftModel::draw(std::span<Row> rows) {
  samples_.clear();
  for (const Row& row : rows) {
    samples_.add(*row.sequence, std::ssize(row.sequence->tokens) + std::ssize(row.sequence->draft));
  }
  const std::span<const int32_t> drawn = samples_.draw(outputs_.logits, {}).ids;
  for (size_t i = 0; i < rows.size(); ++i) {
    Sequence& sequence = *rows[i].sequence;
    const TokenId id = drawn[i];
    const bool ends = !sequence.request().ignore_eos && target_.ends_generation(id);
    if (id < 0 || id >= target_.decoder().config().vocabulary_size || ends) {
      rows[i].draws = false;
      continue;
    }
    sequence.draft.push_back(id);
    ++rows[i].to;
  }
}

void DraftModel::propose(std::span<const DraftTask> tasks) {
  rows_.clear();
  for (const DraftTask& task : tasks) {
    auto& sequence = static_cast<Sequence&>(*task.job);
    const auto size = static_cast<int64_t>(sequence.tokens.size());
    const int64_t room = context_ > 0 ? std::min(task.most, context_ - size) : task.most;
    const int64_t wish = sequence.wish_of_model(room, cost_);
    if (wish > 0 && can_read(sequence)) rows_.push_back(start({task.job, wish}));
  }
  // Those that lack least first; one that lacks more than a pass computes catches up over several steps.
  std::stable_sort(rows_.begin(), rows_.end(),
                   [](const Row& a, const Row& b) { return a.to - a.from < b.to - b.from; });
  int64_t budget = limits_.tokens;
  for (Row& row : rows_) {
    if (row.to - row.from > budget) {
      row.to = row.from + budget;
      row.draws = false;
    }
    budget -= row.to - row.from;
  }
  std::erase_if(rows_, [](const Row& row) { return row.from == row.to; });
  while (!rows_.empty()) {
    compute(rows_);
    std::erase_if(rows_, [](const Row& row) { return !row.draws; });
    if (rows_.empty()) break;
    draw(rows_);
    std::erase_if(rows_,
                  [](const Row& row) { return !row.draws || std::ssize(row.sequence->draft) >= row.most; });
  }
  for (const DraftTask& task : tasks) static_cast<Sequence&>(*task.job).cut_draft();
}

}  // namespace qiao

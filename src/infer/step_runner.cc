#include "infer/step_runner.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace qiao {
namespace {

constexpr int64_t kTopLogprobs = 20;

enum DeviceIndex {
  kRows,
  kHistoryIds,
  kHistoryCounts,
  kHistoryOffsets,
  kBiasIds,
  kBiasValues,
  kBiasOffsets,
  kIds,
  kLogprobs,
  kTopIds,
  kTopLogprobValues,
  kSampleWorkspace,
  kMasks,
};

Sequence& sequence_of(const StepEntry& entry) { return static_cast<Sequence&>(*entry.job); }

}  // namespace

StepRunner::StepRunner(const LanguageModel& model, KvCache& cache, int64_t sequences,
                       int64_t pages_per_sequence, int64_t tokens)
    : model_(model),
      backend_(model.backend()),
      cache_(cache),
      pages_per_sequence_(pages_per_sequence),
      vocabulary_(model.decoder().config().vocabulary_size) {
  workspace_ = model.decoder().make_workspace({.tokens = tokens,
                                               .sequences = sequences,
                                               .pages_per_sequence = pages_per_sequence,
                                               .outputs = tokens,
                                               .logits = std::min(tokens, sequences + kPromptLogprobRows)},
                                              cache);
}

Tensor StepRunner::device(int index, DType dtype, int64_t rows, int64_t columns) {
  Tensor tensor(nullptr, dtype, {rows, columns});
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(tensor.bytes(), 64));
  if (device_[index].bytes() < bytes) {
    device_[index] = Buffer();  // free first: both need not fit
    device_[index] = backend_.allocate(bytes * 2);
  }
  tensor.data = device_[index].data();
  return tensor;
}

Tensor StepRunner::upload(int index, const void* host, DType dtype, int64_t count) {
  Tensor tensor = device(index, dtype, 1, count);
  if (count > 0) backend_.upload(tensor.data, host, static_cast<size_t>(tensor.bytes()));
  return Tensor(tensor.data, dtype, {count});
}

// Those of one adapter side by side: their rows are multiplied together. No answer depends on the order.
std::span<const StepEntry> StepRunner::by_adapter(std::span<const StepEntry> entries) {
  if (model_.adapters().empty()) return entries;
  entries_.assign(entries.begin(), entries.end());
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

void StepRunner::pack(const StepEntry& entry, bool embed) {
  Sequence& sequence = sequence_of(entry);
  const int64_t page_tokens = cache_.page_tokens();
  const size_t known = sequence.tokens.size();
  QIAO_ASSERT(entry.count >= 1 &&
              entry.count <= sequence.pending() + static_cast<int64_t>(sequence.draft.size()));
  const int64_t end = sequence.computed + entry.count;
  for (int64_t position = sequence.computed; position < end; ++position) {
    const auto row = static_cast<int32_t>(tokens_.size());
    const auto index = static_cast<size_t>(position);
    tokens_.push_back(index < known ? sequence.tokens[index] : sequence.draft[index - known]);
    positions_.push_back(static_cast<int32_t>(position));
    const int64_t page = sequence.pages[static_cast<size_t>(position / page_tokens)];
    slots_.push_back(static_cast<int32_t>(page * page_tokens + position % page_tokens));
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
  const size_t begin = page_table_.size();
  page_table_.insert(page_table_.end(), sequence.pages.begin(), sequence.pages.end());
  page_table_.resize(begin + static_cast<size_t>(pages_per_sequence_), 0);
}

void StepRunner::run(std::span<const StepEntry> entries) {
  for (auto* list :
       {&tokens_, &positions_, &slots_, &page_table_, &lengths_, &query_starts_, &output_rows_, &adapters_}) {
    list->clear();
  }
  outputs_.clear();
  query_starts_.push_back(0);
  const bool embed = entries.front().job->embedding;
  entries = by_adapter(entries);
  for (const StepEntry& entry : entries) pack(entry, embed);
  const Decoder::Outputs out = model_.decoder().forward({.tokens = tokens_,
                                                         .positions = positions_,
                                                         .slots = slots_,
                                                         .page_table = page_table_,
                                                         .lengths = lengths_,
                                                         .query_starts = query_starts_,
                                                         .output_rows = output_rows_,
                                                         .adapters = adapters_},
                                                        cache_, *workspace_, !embed);
  for (const StepEntry& entry : entries) entry.job->computed += entry.count;
  if (!outputs_.empty()) embed ? take_hidden(out.hidden) : draw(out.logits);
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

// Times each token occurs before the one to be drawn; the draft's tokens count as generated.
void StepRunner::add_history(const Output& output) {
  const Sequence& sequence = *output.sequence;
  if (!sequence.keeps_history()) return;
  const auto ahead = std::span(sequence.draft).first(static_cast<size_t>(output.ahead));
  for (const auto& [id, count] : sequence.history()) {
    history_ids_.push_back(id);
    history_counts_.push_back(count + static_cast<int32_t>(std::count(ahead.begin(), ahead.end(), id)));
  }
  for (auto id = ahead.begin(); id != ahead.end(); ++id) {
    if (sequence.history().contains(*id) || std::find(ahead.begin(), id, *id) != id) continue;
    history_ids_.push_back(*id);
    history_counts_.push_back(static_cast<int32_t>(std::count(id, ahead.end(), *id)));
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

void StepRunner::draw(const Tensor& logits) {
  fill_masks();
  rows_.clear();
  history_ids_.clear();
  history_counts_.clear();
  bias_ids_.clear();
  bias_values_.clear();
  history_offsets_.assign(1, 0);
  bias_offsets_.assign(1, 0);
  int64_t top = 0;
  for (const Output& output : outputs_) {
    const Sequence& sequence = *output.sequence;
    const GenerationRequest& request = sequence.request();
    top = std::max<int64_t>(top, std::min<int64_t>(request.top_logprobs, kTopLogprobs));
    if (output.draws) {
      rows_.push_back(sample_row(request.sampling, request.choice,
                                 static_cast<int64_t>(sequence.tokens.size()) + output.ahead));
      add_history(output);
      for (const auto& [id, bias] : request.sampling.logit_bias) {
        bias_ids_.push_back(id);
        bias_values_.push_back(bias);
      }
    } else {
      // A bias that nothing outweighs makes the greedy draw give the target, and so its log-probability.
      rows_.push_back(SampleRow{});
      bias_ids_.push_back(output.target);
      bias_values_.push_back(std::numeric_limits<float>::max());
    }
    history_offsets_.push_back(static_cast<int32_t>(history_ids_.size()));
    bias_offsets_.push_back(static_cast<int32_t>(bias_ids_.size()));
  }
  const auto count = static_cast<int64_t>(rows_.size());
  Sample op;
  op.logits = logits;
  op.rows = upload(kRows, rows_.data(), DType::kU8, count * static_cast<int64_t>(sizeof(SampleRow)));
  op.rows = Tensor(op.rows.data, DType::kU8, {count, static_cast<int64_t>(sizeof(SampleRow))});
  if (!masks_.empty()) {
    const Tensor masks = upload(kMasks, masks_.data(), DType::kI32, static_cast<int64_t>(masks_.size()));
    op.mask = Tensor(masks.data, DType::kI32, {count, (vocabulary_ + 31) / 32});
  }
  if (!history_ids_.empty()) {
    const auto n = static_cast<int64_t>(history_ids_.size());
    op.history_ids = upload(kHistoryIds, history_ids_.data(), DType::kI32, n);
    op.history_counts = upload(kHistoryCounts, history_counts_.data(), DType::kI32, n);
    op.history_offsets = upload(kHistoryOffsets, history_offsets_.data(), DType::kI32, count + 1);
  }
  if (!bias_ids_.empty()) {
    const auto n = static_cast<int64_t>(bias_ids_.size());
    op.bias_ids = upload(kBiasIds, bias_ids_.data(), DType::kI32, n);
    op.bias_values = upload(kBiasValues, bias_values_.data(), DType::kF32, n);
    op.bias_offsets = upload(kBiasOffsets, bias_offsets_.data(), DType::kI32, count + 1);
  }
  op.ids = Tensor(device(kIds, DType::kI32, 1, count).data, DType::kI32, {count});
  op.log_probabilities = Tensor(device(kLogprobs, DType::kF32, 1, count).data, DType::kF32, {count});
  if (top > 0) {
    top = std::min(top, vocabulary_);
    op.top_ids = device(kTopIds, DType::kI32, count, top);
    op.top_log_probabilities = device(kTopLogprobValues, DType::kF32, count, top);
  }
  if (const size_t bytes = backend_.workspace_bytes(op); bytes > 0) {
    op.workspace = Tensor(device(kSampleWorkspace, DType::kU8, 1, static_cast<int64_t>(bytes)).data,
                          DType::kU8, {static_cast<int64_t>(bytes)});
  }
  backend_.sample(op);

  const auto rows = static_cast<size_t>(count);
  drawn_.resize(rows);
  logprobs_.resize(rows);
  backend_.download(drawn_.data(), op.ids.data, rows * sizeof(int32_t));
  backend_.download(logprobs_.data(), op.log_probabilities.data, rows * sizeof(float));
  if (top > 0) {
    top_ids_.resize(rows * static_cast<size_t>(top));
    top_logprobs_.resize(top_ids_.size());
    backend_.download(top_ids_.data(), op.top_ids.data, top_ids_.size() * sizeof(int32_t));
    backend_.download(top_logprobs_.data(), op.top_log_probabilities.data, top_ids_.size() * sizeof(float));
  }
  for (size_t i = 0; i < rows; ++i) {
    Sequence& sequence = *outputs_[i].sequence;
    TokenLogprobs logprobs;
    logprobs.logprob = logprobs_[i];
    const int64_t wanted = std::min<int64_t>(sequence.request().top_logprobs, top);
    for (int64_t j = 0; j < wanted; ++j) {
      const size_t at = i * static_cast<size_t>(top) + static_cast<size_t>(j);
      logprobs.top.emplace_back(top_ids_[at], top_logprobs_[at]);
    }
    if (!outputs_[i].draws) {
      sequence.add_logprobs(std::move(logprobs));
    } else if (sequence.finished || outputs_[i].ahead > sequence.draft_accepted) {
      continue;  // drawn behind a draft that was wrong
    } else if (drawn_[i] < 0) {
      sequence.accept_none();
    } else {
      const size_t known = sequence.tokens.size();
      sequence.accept(drawn_[i], std::move(logprobs));
      const auto next = static_cast<size_t>(outputs_[i].ahead);
      // Where forced tokens follow, what was drawn behind the draft is not what comes next.
      if (!sequence.finished && sequence.tokens.size() == known + 1 && next < sequence.draft.size() &&
          sequence.draft[next] == drawn_[i])
        ++sequence.draft_accepted;
    }
  }
}

}  // namespace qiao

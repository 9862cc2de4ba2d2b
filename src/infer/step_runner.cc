#include "infer/step_runner.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace qiao {
namespace {

constexpr int64_t kTopLogprobs = 20;

Decoder::Limits decoder_limits(const StepRunner::Limits& limits) {
  return {.tokens = limits.tokens,
          .sequences = limits.sequences,
          .pages_per_sequence = limits.pages_per_sequence,
          .outputs = limits.tokens,
          .logits = std::min(limits.tokens, limits.sequences + limits.prompt_logprob_rows)};
}

Sequence& sequence_of(const StepEntry& entry) { return static_cast<Sequence&>(*entry.job); }

}  // namespace

size_t StepRunner::planned_bytes(const LanguageModel& model, const KvCache& cache, const Limits& limits) {
  const Decoder::Limits step = decoder_limits(limits);
  return model.decoder().workspace_bytes(step, cache) +
         SampleBatch::planned_bytes(model.backend(), model.config().vocabulary_size, step.logits,
                                    kTopLogprobs);
}

StepRunner::StepRunner(const LanguageModel& model, KvCache& cache, const Limits& limits)
    : model_(model),
      backend_(model.backend()),
      cache_(cache),
      pages_per_sequence_(limits.pages_per_sequence),
      vocabulary_(model.config().vocabulary_size),
      workspace_(model.decoder().make_workspace(decoder_limits(limits), cache)),
      batch_(backend_, vocabulary_, decoder_limits(limits).logits, kTopLogprobs) {}

// Those that have not finished; where there are adapters, those of one side by side: their rows are
// multiplied together. No answer depends on the order.
void StepRunner::take_entries(std::span<const StepEntry> entries, Flight& flight) {
  std::vector<StepEntry>& taken = flight.entries;
  taken.assign(entries.begin(), entries.end());
  std::erase_if(taken, [](const StepEntry& entry) { return entry.job->finished; });
  if (model_.adapters().empty()) return;
  for (auto entry = taken.begin(); entry != taken.end(); ++entry) {  // stable, and without memory of its own
    const auto place = std::upper_bound(
        taken.begin(), entry, sequence_of(*entry).adapter(),
        [](int32_t adapter, const StepEntry& other) { return adapter < sequence_of(other).adapter(); });
    std::rotate(place, entry, entry + 1);
  }
  for (const StepEntry& entry : taken) adapters_.push_back(sequence_of(entry).adapter());
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

void StepRunner::pack(const StepEntry& entry, Flight& flight) {
  Sequence& sequence = sequence_of(entry);
  const size_t known = sequence.tokens.size();
  QIAO_ASSERT(entry.count >= 1 &&
              entry.count <= sequence.pending() + static_cast<int64_t>(sequence.draft.size()));
  QIAO_ASSERT(sequence.awaited == 0 || (sequence.awaited == 1 && sequence.draft.empty()));
  const int64_t end = sequence.computed + entry.count;
  for (int64_t position = sequence.computed; position < end; ++position) {
    const auto row = static_cast<int32_t>(tokens_.size());
    const auto index = static_cast<size_t>(position);
    const bool awaited = index >= known && sequence.awaited > 0;
    tokens_.push_back(index < known ? sequence.tokens[index] : awaited ? 0 : sequence.draft[index - known]);
    from_drawn_.push_back(awaited ? sequence.drawn_row : -1);
    positions_.push_back(static_cast<int32_t>(position));
    // Positions computed again after a preemption have given their outputs before.
    const bool wanted = position >= sequence.outputs_had && position < sequence.outputs_wanted;
    if (wanted) {
      output_rows_.push_back(row);
      flight.outputs.push_back({&sequence, position + 1, 0, Output::kKnown});
    }
    const int64_t ahead = position + 1 - static_cast<int64_t>(known);
    if (ahead >= sequence.awaited && sequence.draws()) {
      output_rows_.push_back(row);
      if (ahead == sequence.awaited) flight.drawing.push_back(&sequence);
      flight.outputs.push_back({&sequence, position + 1, ahead - sequence.awaited, Output::kDraws});
      flight.draws_later |= sequence.awaited > 0 && sequence.draws_by_history();
    }
  }
  lengths_.push_back(static_cast<int32_t>(end));
  query_starts_.push_back(static_cast<int32_t>(tokens_.size()));
  pack_pages(sequence.pages.full, sequence.computed, end, slots_, page_table_);
  if (cache_.sliding_pages() > 0)
    pack_pages(sequence.pages.sliding, sequence.computed, end, sliding_slots_, sliding_table_);
}

void StepRunner::run(std::span<const StepEntry> entries) {
  launch(entries);
  if (count_ > 0) land();
}

Decoder::Outputs StepRunner::forward(const Flight& flight) {
  const bool none_awaited = std::ranges::all_of(from_drawn_, [](int32_t from) { return from < 0; });
  if (none_awaited) from_drawn_.clear();
  return model_.decoder().forward({.tokens = tokens_,
                                   .positions = positions_,
                                   .slots = slots_,
                                   .page_table = page_table_,
                                   .lengths = lengths_,
                                   .query_starts = query_starts_,
                                   .output_rows = output_rows_,
                                   .adapters = adapters_,
                                   .sliding_slots = sliding_slots_,
                                   .sliding_table = sliding_table_,
                                   .drawn_ids = none_awaited ? Tensor() : flights_[first_].draws.ids,
                                   .from_drawn = from_drawn_},
                                  cache_, *workspace_, !flight.embeds);
}

void StepRunner::launch(std::span<const StepEntry> entries) {
  QIAO_ASSERT(count_ < 2);
  for (auto* list : {&tokens_, &positions_, &slots_, &page_table_, &lengths_, &query_starts_, &output_rows_,
                     &adapters_, &sliding_slots_, &sliding_table_, &from_drawn_}) {
    list->clear();
  }
  query_starts_.push_back(0);
  Flight& flight = flights_[(first_ + count_) % 2];
  flight.outputs.clear();
  flight.drawing.clear();
  flight.draws_later = false;
  flight.embeds = entries.front().job->embedding;
  take_entries(entries, flight);
  if (flight.entries.empty()) return;
  for (const StepEntry& entry : flight.entries) pack(entry, flight);
  const Decoder::Outputs out = forward(flight);
  flight.logits = out.logits;
  if (flight.outputs.empty()) {
    // Nothing comes back.
  } else if (flight.embeds) {
    backend_.start_download(flight.hidden, out.hidden.data, static_cast<size_t>(out.hidden.bytes()));
  } else if (!flight.draws_later) {
    draw(flight);
  }
  // All of it is given: from here on nothing throws.
  for (const StepEntry& entry : flight.entries) {
    entry.job->computed += entry.count;
    entry.job->under_way += entry.count;
  }
  for (size_t i = 0; i < flight.outputs.size(); ++i)
    if (flight.outputs[i].wants == Output::kDraws)
      flight.outputs[i].sequence->drawn_row = static_cast<int32_t>(i);
  for (Sequence* sequence : flight.drawing) ++sequence->awaited;
  ahead_ += count_;
  ++count_;
}

std::span<const StepEntry> StepRunner::land() {
  Flight& flight = flights_[first_];
  const bool draws = !flight.outputs.empty() && !flight.embeds;
  const SampleBatch::Draws drawn = draws ? batch_.finish(flight.draws) : SampleBatch::Draws();
  if (!flight.outputs.empty() && flight.embeds) take_hidden(flight);
  for (const StepEntry& entry : flight.entries) entry.job->under_way -= entry.count;
  for (Sequence* sequence : flight.drawing) --sequence->awaited;
  if (draws) take_draws(flight, drawn);
  for (const StepEntry& entry : flight.entries) {
    Sequence& sequence = sequence_of(entry);
    settle_draft(sequence);
    const bool all_computed = sequence.pending() == 0 && sequence.under_way == 0;
    if (!sequence.finished && !sequence.draws() && all_computed) sequence.finish_computed();
  }
  first_ ^= 1;
  --count_;
  if (count_ > 0 && flights_[first_].draws_later) draw_at_last(flights_[first_]);
  return flight.entries;
}

// What the step before has drawn is known, and its forward pass runs. Where a grammar has forced tokens
// behind one of those, the next is known as well.
void StepRunner::draw_at_last(Flight& flight) {
  for (Output& output : flight.outputs) {
    Sequence& sequence = *output.sequence;
    if (output.wants != Output::kDraws) continue;
    if (sequence.finished) {
      output.wants = Output::kNothing;
    } else if (std::ssize(sequence.tokens) > output.index) {
      const bool wanted = output.index > sequence.outputs_had && output.index <= sequence.outputs_wanted;
      output.wants = wanted ? Output::kKnown : Output::kNothing;
      --sequence.awaited;
      std::erase(flight.drawing, &sequence);
    }
  }
  try {
    draw(flight);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kTooLarge) throw;
    take_back(flight);
  }
}

// The last step that was given has not been: its jobs are where they were before.
void StepRunner::take_back(Flight& flight) {
  for (const StepEntry& entry : flight.entries) {
    entry.job->computed -= entry.count;
    entry.job->under_way -= entry.count;
  }
  for (Sequence* sequence : flight.drawing) --sequence->awaited;
  --count_;
  --ahead_;
}

std::vector<StepEntry> StepRunner::forget() {
  std::vector<StepEntry> entries;
  for (; count_ > 0; --count_, first_ ^= 1)
    entries.insert(entries.end(), flights_[first_].entries.begin(), flights_[first_].entries.end());
  return entries;
}

void StepRunner::take_hidden(const Flight& flight) {
  const auto* hidden = reinterpret_cast<const float*>(backend_.finish_download(*flight.hidden));
  const int64_t width = model_.config().hidden_size;
  for (const Output& output : flight.outputs) {
    output.sequence->add_hidden(hidden, width);
    hidden += width;
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

// Rows of sequences without a grammar, and of tokens that are known, allow all. Made while the chip computes
// the logits, where it runs behind.
void StepRunner::fill_masks(const Flight& flight) {
  masks_.clear();
  const std::vector<Output>& outputs = flight.outputs;
  if (std::none_of(outputs.begin(), outputs.end(), [](const Output& output) {
        return output.wants == Output::kDraws && output.sequence->constrained();
      })) {
    return;
  }
  const auto words = static_cast<size_t>((vocabulary_ + 31) / 32);
  masks_.assign(outputs.size() * words, ~uint32_t{0});
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Output& output = outputs[i];
    if (output.wants == Output::kDraws && output.sequence->constrained())
      output.sequence->mask(output.drafted, std::span(masks_).subspan(i * words, words));
  }
}

void StepRunner::draw(Flight& flight) {
  fill_masks(flight);
  batch_.clear();
  int64_t top = 0;
  for (const Output& output : flight.outputs) {
    top = std::max<int64_t>(top, output.sequence->request().top_logprobs);
    const Sequence& sequence = *output.sequence;
    switch (output.wants) {
      case Output::kDraws:
        batch_.add(sequence, output.index);
        break;
      case Output::kKnown:
        batch_.add_known(sequence, sequence.tokens[static_cast<size_t>(output.index)]);
        break;
      case Output::kNothing:
        batch_.add_nothing();
    }
  }
  batch_.start(flight.logits,
               {.masks = masks_, .log_probabilities = true, .top = std::min(top, kTopLogprobs)},
               flight.draws);
}

void StepRunner::take_draws(const Flight& flight, const SampleBatch::Draws& draws) {
  for (size_t i = 0; i < flight.outputs.size(); ++i) {
    const Output& output = flight.outputs[i];
    if (output.wants == Output::kNothing) continue;
    Sequence& sequence = *output.sequence;
    TokenLogprobs logprobs;
    logprobs.logprob = draws.log_probabilities[i];
    const int64_t wanted = std::min<int64_t>(sequence.request().top_logprobs, draws.top);
    for (int64_t j = 0; j < wanted; ++j) {
      const size_t at = i * static_cast<size_t>(draws.top) + static_cast<size_t>(j);
      logprobs.top.emplace_back(draws.top_ids[at], draws.top_log_probabilities[at]);
    }
    const TokenId drawn = draws.ids[i];
    if (output.wants == Output::kKnown) {
      sequence.add_logprobs(std::move(logprobs));
    } else if (sequence.finished || output.drafted > sequence.draft_accepted) {
      continue;  // drawn behind a draft that was wrong, or behind the end
    } else if (drawn < 0) {
      sequence.accept_none();
    } else {
      const size_t known = sequence.tokens.size();
      sequence.accept(drawn, std::move(logprobs));
      const auto next = static_cast<size_t>(output.drafted);
      // Where forced tokens follow, what was drawn behind the draft is not what comes next.
      if (!sequence.finished && sequence.tokens.size() == known + 1 && next < sequence.draft.size() &&
          sequence.draft[next] == drawn)
        ++sequence.draft_accepted;
    }
  }
}

}  // namespace qiao

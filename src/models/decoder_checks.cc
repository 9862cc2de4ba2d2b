#include "models/decoder_checks.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>

#include "base/error.h"

namespace qiao {
namespace {

[[noreturn]] void refuse_step(const std::string& what) {
  throw_error(ErrorKind::kInvalidInput, "decoder step: {}", what);
}

[[noreturn]] void refuse_packed(const std::string& what) {
  throw_error(ErrorKind::kInvalidInput, "packed batch: {}", what);
}

void check_range(std::span<const int32_t> values, int64_t limit, std::string_view what, int32_t least = 0) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] < least || values[i] >= limit)
      refuse_step(fmt::format("{} {} is {}; {} to {} was expected", what, i, values[i], least, limit - 1));
  }
}

void check_count(size_t count, int64_t limit, std::string_view what) {
  if (static_cast<int64_t>(count) > limit)
    refuse_step(fmt::format("{} {}; the workspace is for {}", count, what, limit));
}

void check_sequences(const StepBatch& batch, const KvCache& cache, int64_t window) {
  const size_t sequences = batch.lengths.size();
  const size_t pages = batch.page_table.size() / sequences;
  for (size_t s = 0; s < sequences; ++s) {
    const int64_t queries = int64_t{batch.query_starts[s + 1]} - batch.query_starts[s];
    const int64_t length = batch.lengths[s];
    if (queries < 0 || queries > length || length > static_cast<int64_t>(pages) * cache.page_tokens()) {
      refuse_step(fmt::format("sequence {}: {} new tokens of {} in {} pages of {}", s, queries, length, pages,
                              cache.page_tokens()));
    }
    const auto used = static_cast<size_t>((length + cache.page_tokens() - 1) / cache.page_tokens());
    check_range(batch.page_table.subspan(s * pages, used), cache.pages(), "page table entry");
    if (batch.sliding_table.empty()) continue;
    const int64_t hidden = std::max<int64_t>(0, length - queries - window + 1);  // tokens before the window
    const auto before = static_cast<size_t>(hidden / cache.page_tokens());
    const std::span<const int32_t> table = batch.sliding_table.subspan(s * pages, used);
    check_range(table.first(before), cache.sliding_pages(), "page before the window", -1);
    check_range(table.subspan(before), cache.sliding_pages(), "page of the window");
  }
}

}  // namespace

void check_packed(const PackedBatch& batch, int64_t tokens, int64_t documents, int64_t vocabulary) {
  const auto count = static_cast<int64_t>(batch.tokens.size());
  if (count == 0 || count > tokens)
    refuse_packed(fmt::format("{} tokens; 1 to {} were expected", count, tokens));
  if (!(batch.temperature > 0) || !std::isfinite(batch.temperature))
    refuse_packed(fmt::format("temperature {}; a number above 0 was expected", batch.temperature));
  if (batch.positions.size() != batch.tokens.size() || batch.labels.size() != batch.tokens.size()) {
    refuse_packed(fmt::format("{} tokens with {} positions and {} labels", count, batch.positions.size(),
                              batch.labels.size()));
  }
  const auto starts = static_cast<int64_t>(batch.starts.size());
  if (starts < 2 || starts > documents + 1 || batch.starts.front() != 0 || batch.starts.back() != count ||
      !std::is_sorted(batch.starts.begin(), batch.starts.end()))
    refuse_packed(
        fmt::format("{} starts; up to {} from 0 to {} in order were expected", starts, documents + 1, count));
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    if (batch.tokens[at] < 0 || batch.tokens[at] >= vocabulary || batch.labels[at] < -1 ||
        batch.labels[at] >= vocabulary || batch.positions[at] < 0) {
      refuse_packed(
          fmt::format("token {} at place {} with position {} and label {}: ids below {} were expected",
                      batch.tokens[at], i, batch.positions[at], batch.labels[at], vocabulary));
    }
  }
}

void check_adapters(const StepBatch& batch, int32_t count) {
  if (!batch.adapters.empty() && batch.adapters.size() != batch.lengths.size())
    refuse_step(fmt::format("{} adapters of {} sequences", batch.adapters.size(), batch.lengths.size()));
  for (size_t s = 0; s < batch.adapters.size(); ++s) {
    if (batch.adapters[s] < -1 || batch.adapters[s] >= count)
      refuse_step(fmt::format("adapter {} is {}; -1 to {} was expected", s, batch.adapters[s], count - 1));
  }
}

void check_step(const StepBatch& batch, const KvCache& cache, const DecoderConfig& config,
                const Decoder::Limits& limits, bool want_logits) {
  const size_t tokens = batch.tokens.size(), sequences = batch.lengths.size();
  if (tokens == 0 || sequences == 0) refuse_step("no tokens");
  check_count(tokens, limits.tokens, "tokens");
  check_count(sequences, limits.sequences, "sequences");
  check_count(batch.output_rows.size(), want_logits ? limits.logits : limits.outputs, "outputs");
  if (batch.positions.size() != tokens || batch.slots.size() != tokens ||
      batch.query_starts.size() != sequences + 1 || batch.page_table.size() % sequences != 0) {
    refuse_step(
        fmt::format("{} tokens with {} positions and {} slots, {} sequences with {} starts and {} table "
                    "entries do not fit",
                    tokens, batch.positions.size(), batch.slots.size(), sequences, batch.query_starts.size(),
                    batch.page_table.size()));
  }
  const bool two_groups = cache.sliding_pages() > 0;
  if (batch.sliding_slots.size() != (two_groups ? tokens : 0) ||
      batch.sliding_table.size() != (two_groups ? batch.page_table.size() : 0)) {
    refuse_step(fmt::format("{} slots and {} table entries of sliding layers, and {} and {} were expected",
                            batch.sliding_slots.size(), batch.sliding_table.size(), two_groups ? tokens : 0,
                            two_groups ? batch.page_table.size() : 0));
  }
  check_count(batch.page_table.size() / sequences, limits.pages_per_sequence, "pages of a sequence");
  check_range(batch.tokens, config.vocabulary_size, "token");
  check_range(batch.positions, INT32_MAX, "position");
  check_range(batch.slots, cache.pages() * cache.page_tokens(), "slot");
  check_range(batch.sliding_slots, cache.sliding_pages() * cache.page_tokens(), "slot of sliding layers");
  check_range(batch.output_rows, static_cast<int64_t>(tokens), "output row");
  if (!batch.from_drawn.empty()) {
    if (batch.from_drawn.size() != tokens || batch.drawn_ids.rank != 1)
      refuse_step(fmt::format("{} places of drawn tokens for {} tokens", batch.from_drawn.size(), tokens));
    check_range(batch.from_drawn, batch.drawn_ids.shape[0], "place of a drawn token", -1);
  }
  for (size_t i = 1; i < batch.output_rows.size(); ++i)
    if (batch.output_rows[i] <= batch.output_rows[i - 1]) refuse_step("output rows do not ascend");
  if (batch.query_starts.front() != 0 || batch.query_starts.back() != static_cast<int32_t>(tokens))
    refuse_step(fmt::format("query starts do not run from 0 to {}", tokens));
  check_sequences(batch, cache, config.sliding_window);
}

}  // namespace qiao

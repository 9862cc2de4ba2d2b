// Runs one sequence through a decoder and gives back the logits of every position.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "models/decoder.h"

namespace qiao::testing {

class StepDriver {
 public:
  // sliding_pages > 0: layers with a window have so many pages of their own, which are used again as soon as
  // the window has left them.
  StepDriver(const Decoder& decoder, int64_t tokens, int64_t page_tokens = 4, int64_t sliding_pages = 0)
      : decoder_(decoder),
        page_tokens_(page_tokens),
        pages_((tokens + page_tokens - 1) / page_tokens + 1),
        cache_(decoder.backend(), decoder.config(), pages_, page_tokens, decoder.packed_kv_dtype(),
               sliding_pages),
        workspace_(decoder.make_workspace({tokens, 1, pages_, tokens}, cache_)),
        table_(static_cast<size_t>(pages_)),
        sliding_table_(sliding_pages > 0 ? table_.size() : 0, -1),
        free_(static_cast<size_t>(sliding_pages)) {
    std::iota(free_.begin(), free_.end(), 0);
    // Pages in no order, so that a slot taken for a position shows.
    for (int64_t i = 0; i < pages_; ++i)
      table_[static_cast<size_t>(i)] = static_cast<int32_t>((i * 7 + 3) % pages_);
    if (pages_ % 7 == 0) std::iota(table_.rbegin(), table_.rend(), 0);
  }

  // Feeds the next tokens; returns logits [count of rows, V], rows being indices into `tokens`.
  std::vector<float> feed(std::span<const int32_t> tokens, std::span<const int32_t> rows) {
    const auto count = static_cast<int32_t>(tokens.size());
    std::vector<int32_t> positions, slots;
    for (int32_t i = 0; i < count; ++i) {
      const int32_t position = length_ + i;
      const auto page = static_cast<size_t>(position / page_tokens_);
      positions.push_back(position);
      slots.push_back(static_cast<int32_t>(table_[page] * page_tokens_ + position % page_tokens_));
    }
    const std::vector<int32_t> sliding_slots = take_sliding(positions);
    length_ += count;
    const int32_t starts[] = {0, count};
    StepBatch batch = {tokens, positions, slots, table_, {&length_, 1}, starts, rows};
    batch.sliding_slots = sliding_slots;
    batch.sliding_table = sliding_table_;
    if (adapter >= 0) batch.adapters = {&adapter, 1};
    const Decoder::Outputs outputs = decoder_.forward(batch, cache_, *workspace_);
    std::vector<float> logits(rows.size() * static_cast<size_t>(decoder_.config().vocabulary_size));
    if (!rows.empty())
      decoder_.backend().download(logits.data(), outputs.logits.data, logits.size() * sizeof(float));
    return logits;
  }

  // The whole prompt in chunks, every row wanted.
  std::vector<float> feed_in_chunks(std::span<const int32_t> tokens, size_t chunk) {
    std::vector<float> all;
    for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
      const auto part = tokens.subspan(begin, std::min(chunk, tokens.size() - begin));
      std::vector<int32_t> rows(part.size());
      std::iota(rows.begin(), rows.end(), 0);
      const std::vector<float> logits = feed(part, rows);
      all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
  }

  int32_t adapter = -1;  // of the sequence

 private:
  std::vector<int32_t> take_sliding(std::span<const int32_t> positions) {
    if (sliding_table_.empty()) return {};
    const int64_t hidden = std::max<int64_t>(0, length_ - decoder_.config().sliding_window + 1);
    for (size_t page = 0; page < static_cast<size_t>(hidden / page_tokens_); ++page) {
      if (sliding_table_[page] >= 0) free_.push_back(sliding_table_[page]);
      sliding_table_[page] = -1;
    }
    std::vector<int32_t> slots;
    for (const int32_t position : positions) {
      int32_t& page = sliding_table_[static_cast<size_t>(position / page_tokens_)];
      if (page < 0) {
        page = free_.at(0);
        free_.erase(free_.begin());
      }
      slots.push_back(static_cast<int32_t>(page * page_tokens_ + position % page_tokens_));
    }
    return slots;
  }

  const Decoder& decoder_;
  int64_t page_tokens_, pages_;
  KvCache cache_;
  std::unique_ptr<Decoder::Workspace> workspace_;
  std::vector<int32_t> table_, sliding_table_, free_;  // free_: sliding pages
  int32_t length_ = 0;
};

}  // namespace qiao::testing

// Where a warp that brings what attention_chunks computes is on its way.
#pragma once

#include "backend/cuda/attention_ring.h"

namespace qiao::cuda {

// A key's page and its row there; page -1: nobody sees it.
struct KeyPlace {
  int page, row;
};

// How many items a sequence has of each key/value head.
struct ChunkItems {
  const AttentionArguments& op;
  __device__ int operator()(int queries, int length) const {
    if (queries == 0) return 0;
    if (is_split(op, queries, length)) return chunks_of(queries, length, op.window).count;
    return op.tiles_follow ? 0 : 1;
  }
};

// Step after step of the keys that 16 rows meet in an item, 16 rows after 16 rows, item after item. An item
// is one key/value head's chunk of a sequence, or all its chunks where a sequence is not split. Each warp
// walks for itself.
template <int kStep>
class ChunkWalk {
 public:
  __device__ explicit ChunkWalk(const AttentionArguments& op)
      : op_(op),
        finder_({op.starts, op.lengths, op.sequences}, {op}),
        item_(static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x)) {
    next_item();
  }

  __device__ bool there() const { return there_; }
  __device__ const AttentionTile& tile() const { return tile_; }
  __device__ const KeySpan& span() const { return span_; }
  // Whether the item has no rows behind these that see any of its keys.
  __device__ bool ends_item() const {
    AttentionTile next = tile_;
    KeySpan span;
    ++next.tile;
    return !find_rows(&next, &span);
  }

  // Goes on to the next step; whether that is of the same rows and item.
  __device__ bool advance() {
    span_.key += kStep;
    if (span_.key < span_.end) return true;
    ++tile_.tile;
    if (!find_rows(&tile_, &span_)) next_item();
    return false;
  }
  // Asks where key `i` of the step lies.
  __device__ KeyPlace look_up(int i) const {
    const int key = span_.key + i;
    if (!there_ || key < span_.first || key >= span_.end) return {-1, 0};
    return {op_.table[tile_.sequence * op_.table_row + key / op_.page_tokens], key % op_.page_tokens};
  }

 private:
  // The first rows of the item, from tile->tile on, that see any of its keys, and these.
  __device__ bool find_rows(AttentionTile* tile, KeySpan* span) const {
    const int rows = tile->queries * op_.share;
    for (int row = tile->tile * kWarpRows; row < rows; row += kWarpRows, ++tile->tile) {
      const SeenKeys keys = seen_keys(op_, *tile, row, min(row + kWarpRows, rows));
      span->first = keys.first;
      span->key = max(keys.first, tile->first_chunk * kChunkKeys) / kStep * kStep;
      span->end = min(keys.end, (tile->first_chunk + tile->chunks) * kChunkKeys);
      if (span->key < span->end) return true;
    }
    return false;
  }

  __device__ void next_item() {
    FoundTile found{};
    do {
      item_ += static_cast<int>(gridDim.x);
      there_ = finder_.find(item_ / op_.kv_heads, &found);
      if (!there_) return;
      tile_.sequence = found.sequence, tile_.kv_head = item_ % op_.kv_heads, tile_.tile = 0;
      tile_.first_query_row = found.first_query, tile_.queries = found.queries, tile_.length = found.length;
      const Chunks chunks = chunks_of(tile_.queries, tile_.length, op_.window);
      const bool split = is_split(op_, tile_.queries, tile_.length);
      tile_.first_chunk = chunks.first + (split ? found.tile : 0);
      tile_.chunks = split ? 1 : chunks.count;
      tile_.slot = split && chunks.count > 1 ? found.tile : -1;
    } while (!find_rows(&tile_, &span_));  // each item has rows that see some of its keys
  }

  const AttentionArguments& op_;
  TileFinder<ChunkItems> finder_;
  AttentionTile tile_{};
  KeySpan span_{};
  int item_;
  bool there_ = false;
};

}  // namespace qiao::cuda

// Where a block of attention_chunks is on its way.
#pragma once

#include "backend/cuda/attention_rows.h"

namespace qiao::cuda {

__device__ inline void describe(const AttentionArguments& op, AttentionTile* tile) {
  tile->first_query_row = op.starts[tile->sequence];
  tile->queries = op.starts[tile->sequence + 1] - tile->first_query_row;
  tile->length = op.lengths == nullptr ? tile->queries : op.lengths[tile->sequence];
}

// Step after step of the keys that 16 rows meet in an item, 16 rows after 16 rows, item after item. An item
// is one key/value head's chunk of a sequence, or all its chunks where a sequence is not split. Each warp
// walks alike, and is a step ahead of what is computed: so the next keys are asked for across all ends.
template <int kStep>
class ChunkWalk {
 public:
  __device__ explicit ChunkWalk(const AttentionArguments& op)
      : op_(op), item_(static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x)) {
    next_item();
  }

  __device__ bool there() const { return there_; }
  // Whether what comes is of the same item as `tile`, which was before.
  __device__ bool same_item(const AttentionTile& tile) const {
    return there_ && tile_.sequence == tile.sequence && tile_.kv_head == tile.kv_head &&
           tile_.first_chunk == tile.first_chunk;
  }
  __device__ const AttentionTile& tile() const { return tile_; }
  __device__ int key() const { return key_; }  // the step's first: a multiple of kStep
  __device__ int end() const { return end_; }  // of the item's keys

  // Goes on to the next step; whether that is of the same rows and item.
  __device__ bool advance() {
    key_ += kStep;
    if (key_ < end_) return true;
    ++tile_.tile;
    if (!find_rows()) next_item();
    return false;
  }
  // Key `i` of the step as its row in a page; null: none of the rows sees it.
  __device__ KeyRow row(int i) const {
    const int key = key_ + i;
    return !there_ || key < first_ || key >= end_ ? KeyRow{nullptr, 0} : page_row(op_, tile_, key);
  }

 private:
  // The first rows of the item, from tile_.tile on, that see any of its keys.
  __device__ bool find_rows() {
    const int rows = tile_.queries * op_.share;
    for (int row = tile_.tile * kWarpRows; row < rows; row += kWarpRows, ++tile_.tile) {
      const SeenKeys keys = seen_keys(op_, tile_, row, min(row + kWarpRows, rows));
      first_ = keys.first;
      key_ = max(first_, tile_.first_chunk * kChunkKeys) / kStep * kStep;
      end_ = min(keys.end, (tile_.first_chunk + tile_.chunks) * kChunkKeys);
      if (key_ < end_) return true;
    }
    return false;
  }

  __device__ void next_item() {
    const auto items = [&](int queries, int length) {
      if (queries == 0) return 0;
      if (is_split(op_, queries, length)) return chunks_of(queries, length, op_.window).count;
      return op_.tiles_follow ? 0 : 1;
    };
    const SequenceSizes sizes{op_.starts, op_.lengths, op_.sequences};
    FoundTile found{};
    do {
      item_ += static_cast<int>(gridDim.x);
      there_ = find_tile(item_ / op_.kv_heads, sizes, items, &found, &passed_);
      if (!there_) return;
      tile_.sequence = found.sequence, tile_.kv_head = item_ % op_.kv_heads, tile_.tile = 0;
      describe(op_, &tile_);
      const Chunks chunks = chunks_of(tile_.queries, tile_.length, op_.window);
      const bool split = is_split(op_, tile_.queries, tile_.length);
      tile_.first_chunk = chunks.first + (split ? found.tile : 0);
      tile_.chunks = split ? 1 : chunks.count;
      tile_.slot = split && chunks.count > 1 ? found.tile : -1;
    } while (!find_rows());  // each item has rows that see some of its keys
  }

  const AttentionArguments& op_;
  TilesBefore passed_;
  AttentionTile tile_{};
  int item_, first_ = 0, key_ = 0, end_ = 0;
  bool there_ = false;
};

}  // namespace qiao::cuda

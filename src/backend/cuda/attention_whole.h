// Which rows a block takes that walks all keys they see.
#pragma once

#include "backend/cuda/attention_rows.h"

namespace qiao::cuda {

// Finds the tile of `wanted`, which walks all its chunks; false where there are fewer.
__device__ inline bool find_whole(const AttentionArguments& op, int wanted, int tile_rows,
                                  AttentionTile* tile) {
  FoundTile found{};
  const auto tiles = [&](int queries, int length) {
    const bool elsewhere = op.slots > 0 && queries > 0 && is_split(op, queries, length);
    return elsewhere ? 0 : tiles_of(queries * op.share, tile_rows);
  };
  if (!find_tile(wanted, {op.starts, op.lengths, op.sequences}, tiles, &found)) return false;
  tile->sequence = found.sequence;
  tile->tile = found.count - 1 - found.tile;  // the last one first: it meets the most keys
  tile->first_query_row = found.first_query, tile->queries = found.queries, tile->length = found.length;
  tile->first_chunk = 0;
  tile->chunks = (tile->length - 1) / kChunkKeys + 1;
  tile->slot = -1;
  return true;
}

}  // namespace qiao::cuda

// Which part of a decoder's weights each of several ranks has, by Megatron's rule (Shoeybi et al. 2019):
// query, key, value, gate and up by rows, a head or a feed-forward unit to one rank; attention's output and
// down by columns, so that a layer takes two sums over the ranks; the head by rows of the vocabulary. Norms,
// routers and the embedding are on all.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/config.h"

namespace qiao {

// [first, first + count)
struct Range {
  int64_t first = 0, count = 0;
};

struct Shards {
  int rank = 0, size = 1;
  // Of this rank. Key/value heads are on several ranks where there are more ranks than heads.
  Range heads, kv_heads, ffn, expert_ffn, shared_ffn;
  std::vector<Range> vocabulary;  // by rank

  const Range& own_vocabulary() const { return vocabulary[static_cast<size_t>(rank)]; }
};

// What may not be cut: elements of a block of the weights whose columns are shared out.
struct ShardBlocks {
  int64_t attention = 1;  // of attention's output
  int64_t ffn = 1, expert_ffn = 1, shared_ffn = 1;
};

// A rank's share; empty where some rank would get nothing, or less than a block. As even as heads and blocks
// allow, the larger shares to the first ranks.
std::optional<Shards> share_out(const DecoderConfig& config, const ShardBlocks& blocks, int rank, int size);

// The same. Throws Error(kUnsupported), naming `model`, what cannot be shared and the numbers of ranks that
// can be.
Shards need_shards(const DecoderConfig& config, const ShardBlocks& blocks, int rank, int size,
                   const std::string& model);

}  // namespace qiao

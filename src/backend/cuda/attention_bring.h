// The warps of attention_chunks that bring what the others compute: attention_kernel.h has the plan.
#pragma once

#include "backend/cuda/attention_walk.h"

namespace qiao::cuda {

// What a lane has of its warp's queries between asking for them and storing them.
template <class Elements>
concept TakesQueries = requires {
  typename Elements::Query;
};
template <class Elements, bool kEarly, int kRows>
struct EarlyQueries {};
template <class Elements, int kRows>
struct EarlyQueries<Elements, true, kRows> {
  typename Elements::Query of[kRows];
};

// One of Shape::kProducers warps, which share each part's blocks and each tile's rows. It looks up where the
// next step's keys lie before it copies the values of this one, and waits for nobody but those who empty
// parts.
template <template <int> class Kind, int kD>
class ChunkBringer {
  using Shape = ChunkShape<Kind, kD>;
  using Elements = typename Shape::Elements;
  static constexpr int kBlock = Shape::kBlock, kWarps = Shape::kProducers;
  static constexpr int kOwnOfPart = Shape::kPartBlocks / kWarps, kOwn = 2 * kOwnOfPart;  // blocks
  // Queries of few rows are asked for before keys, where the kind can: they would wait behind them.
  static constexpr int kRows = kWarpRows / kWarps;
  static constexpr bool kEarly = kRows <= 4 && TakesQueries<Elements>;
  using Queries = EarlyQueries<Elements, kEarly, kRows>;
  static_assert(Shape::kPartBlocks % kWarps == 0 && kWarpRows % kWarps == 0);

 public:
  __device__ ChunkBringer(const AttentionArguments& op, unsigned parts)
      : op_(op),
        walk_(op),
        parts_(parts, true),
        tiles_(true),
        blocks_are_whole_(op.page_tokens % kBlock == 0 && op.row_bytes == 16 * Elements::kVectors),
        lane_(threadIdx.x % 32),
        warp_(static_cast<int>(threadIdx.x / 32) - Shape::kWarps) {}

  // The first step's keys, where the queries' own are not among them, are on their way before this waits for
  // the kernel before.
  __device__ void run() {
    KeyPlace next[kOwn];
    look_up(next);
    bool waits = true;  // has yet to
    for (bool begins = true; walk_.there();) {
      KeyPlace places[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) places[i] = next[i];
      const KeySpan span = walk_.span();
      const int kv_head = walk_.tile().kv_head;
      if (waits && min(span.end, span.key + Shape::kStep) > walk_.tile().length - walk_.tile().queries) {
        wait_for_previous(), waits = false;
      }
      Queries early{};
      if (begins && !waits) take_queries(early);
      bring<false>(span, kv_head, places);
      if (waits) {
        wait_for_previous(), waits = false;
        take_queries(early);
      }
      if (begins) bring_tile(early);
      begins = !walk_.advance();
      look_up(next);
      bring<true>(span, kv_head, places);
    }
    if (waits) wait_for_previous();
    bring_tile({});
    copy_async_commit();
    copy_async_wait<0>();  // a thread does not end before its copies
  }

 private:
  // This warp's i-th block of a step, and of its part.
  __device__ int in_part(int i) const { return i % kOwnOfPart * kWarps + warp_; }
  __device__ int block(int i) const { return i / kOwnOfPart * Shape::kPartBlocks + in_part(i); }

  __device__ void look_up(KeyPlace (&places)[kOwn]) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      places[i] = lane_ < kBlock ? walk_.look_up(block(i) * kBlock + lane_) : KeyPlace{-1, 0};
    }
  }

  // The step's keys or values, which lie at `places`.
  template <bool kValues>
  __device__ void bring(const KeySpan& span, int kv_head, const KeyPlace (&places)[kOwn]) {
    constexpr int kPitch = kValues ? Elements::kValuePitch : Elements::kKeyPitch;
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      if (!span.any(part * Shape::kPartKeys, Shape::kPartKeys)) continue;
      parts_.wait(parts_.empty());
#pragma unroll
      for (int i = 0; i < kOwnOfPart; ++i) {
        const int first = part * Shape::kPartKeys + in_part(i) * kBlock;
        if (!span.any(first, kBlock)) continue;
        const int page = part == 0 ? places[i].page : places[kOwnOfPart + i].page;
        const int in_page = part == 0 ? places[i].row : places[kOwnOfPart + i].row;
        const KeyRow row = page < 0 ? KeyRow{nullptr, 0} : page_row(op_, kv_head, page, in_page);
        copy<kPitch>(parts_.rows() + in_part(i) * kBlock * kPitch, row.at, kValues ? op_.values_offset : 0,
                     row.scale + (kValues ? 4 * op_.page_tokens : 0), span.all(first, kBlock));
      }
      arrive_with_copies(parts_.full());
      parts_.advance();
    }
  }

  // Starts the copies of a block's rows, `offset` bytes behind what each lane names, and their scales,
  // `scale` bytes behind it; zeros for null. `all`: none is null.
  template <int kPitch>
  __device__ void copy(unsigned char* rows, const unsigned char* row, int64_t offset, int64_t scale,
                       bool all) const {
    constexpr int kVectors = Elements::kVectors, kTogether = Elements::kVectorsTogether;
    const int vectors = static_cast<int>(op_.row_bytes / 16);
    const int until = ceil_div(vectors, kTogether) * kTogether;
    const unsigned named = __ballot_sync(kAllLanes, row != nullptr);
    const auto own = static_cast<unsigned long long>(
        reinterpret_cast<uintptr_t>((row != nullptr ? row : op_.pages) + offset));
    // Through a shuffle: else the compiler works out where shared memory lies before each copy.
    rows = reinterpret_cast<unsigned char*>(static_cast<uintptr_t>(
        __shfl_sync(kAllLanes, static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(rows)), 0)));
    if constexpr (Elements::kScales == RowScales::kOne) {
      if (lane_ < kBlock) {
        copy_async<4>(rows + lane_ * kPitch + kD, row != nullptr ? row + scale : op_.pages, row != nullptr);
      }
    }
    if constexpr (32 % kVectors == 0) {  // a lane has the same column of each row
      const int first_row = lane_ / kVectors, vector = lane_ % kVectors;
      rows += first_row * kPitch + 16 * vector;
      if (all && blocks_are_whole_) {  // one run of whole rows
        const auto* from =
            reinterpret_cast<const unsigned char*>(__shfl_sync(kAllLanes, own, 0)) + 16 * lane_;
#pragma unroll
        for (int at = 0; at < kBlock; at += 32 / kVectors) {
          copy_async<16>(rows + at * kPitch, from + at * 16 * kVectors);
        }
        return;
      }
      const unsigned there = vector < vectors ? named >> first_row : 0;
#pragma unroll
      for (int at = 0; at < kBlock; at += 32 / kVectors) {
        const unsigned long long from = __shfl_sync(kAllLanes, own, at + first_row);
        if (vector >= until) continue;
        copy_async<16>(rows + at * kPitch, reinterpret_cast<const unsigned char*>(from) + 16 * vector,
                       (there >> at & 1) != 0);
      }
    } else {
#pragma unroll
      for (int first = 0; first < kBlock * kVectors; first += 32) {
        const int item = first + lane_, vector = item % kVectors, at = item / kVectors;
        const unsigned long long from = __shfl_sync(kAllLanes, own, min(at, kBlock - 1));
        if (item >= kBlock * kVectors || vector >= until) continue;
        const bool scales = Elements::kScales == RowScales::kBlocks && vector == vectors - 1;
        const int to = scales ? kD : 16 * vector;
        copy_async<16>(rows + at * kPitch + to, reinterpret_cast<const unsigned char*>(from) + 16 * vector,
                       (named >> at & 1) != 0 && vector < vectors);
      }
    }
  }

  // Whether the walk's rows, this warp's i-th, is one, and its query. Nobody looks at the scores of others.
  __device__ bool has_query(int i) const {
    const AttentionTile& tile = walk_.tile();
    return walk_.there() && tile.tile * kWarpRows + warp_ + i * kWarps < tile.queries * op_.share;
  }
  __device__ const float* query(int i) const {
    const AttentionTile& tile = walk_.tile();
    const int row = tile.tile * kWarpRows + warp_ + i * kWarps, query = query_of(op_, tile, row);
    return op_.q + (tile.first_query_row + query) * op_.q_token +
           (tile.kv_head * op_.share + row - query * op_.share) * op_.q_head;
  }
  __device__ void take_queries(Queries& early) const {
    if constexpr (kEarly) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (has_query(i)) early.of[i] = Elements::take_query(query(i), op_.dim);
      }
    }
  }

  // The queries of the walk's rows and what they meet; at the walk's end that nothing comes any more.
  __device__ void bring_tile(const Queries& early) {
    tiles_.wait(tiles_.empty());
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (!has_query(i)) break;
      if constexpr (kEarly) {
        Elements::put_query(tiles_.queries(), warp_ + i * kWarps, early.of[i]);
      } else {
        Elements::store_query(tiles_.queries(), warp_ + i * kWarps, query(i), op_.dim);
      }
    }
    if (warp_ == 0 && lane_ == 0) {
      const AttentionTile& tile = walk_.tile();
      *tiles_.tile() =
          walk_.there() ? ChunkTile{tile, walk_.span(), walk_.ends_item()} : ChunkTile{tile, {0, 0, 0}, true};
    }
    arrive_as_warp(tiles_.full());
    tiles_.advance();
  }

  const AttentionArguments& op_;
  ChunkWalk<Shape::kStep> walk_;
  ChunkParts<Shape> parts_;
  ChunkTiles<Shape> tiles_;
  bool blocks_are_whole_;  // each lies in one page, in rows without padding
  int lane_, warp_;
};

}  // namespace qiao::cuda

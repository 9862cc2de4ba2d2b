// Prefill in products of 16 bits on Hopper, by wgmma (FlashAttention-3's plan, Shah et al. 2024, in
// attention_order.h's order). As many blocks as multiprocessors take items (128 rows of one key/value head of
// a sequence) in turn. One warpgroup finds items and brings tiles of 64 keys and values, as far ahead as
// shared memory has room and across the ends of items, to the rows that wgmma reads (128-byte swizzle; what
// comes in 8 bits is unpacked on the way). Two warpgroups of 64 rows each multiply: queries from registers
// with keys, weights from registers with values, whose rows are B's own. The scores of a tile are made before
// the products of the last one's values, and weighed while those are: the tensor cores have work of one
// warpgroup or of the other at any time. A tile has two blocks of the online softmax; where no row of the
// warpgroup is scaled anew between them, its products of values are one batch, else the warpgroup waits in
// between: the same sums. What earlier chunks came to waits in shared memory, where each thread keeps its
// own.
//
// D 128: 225 KB, one block a multiprocessor. Limits: the tensor cores, which a tile of both warpgroups takes
// 1024 cycles; shared memory, of which that is 64 KB read by wgmma, 32 KB written and 32 KB of earlier
// chunks, 125 of its 128 bytes a cycle; instructions, of which a warp has some 400 for a tile (its 64 x 16
// scores each scaled, compared, subtracted, raised, added and half packed, and what surrounds that), and a
// scheduler two warps. Prediction: 55% of what cuBLAS reaches (430 TFLOP/s of an H200) at 8192 tokens, 45% at
// 2048; from pages of FP8 40%, as one warp in three unpacks (480 instructions a tile). Not yet run on a
// device. That wgmma adds like mma.sync was probed for BF16 alone; for F16 `qiao conformance` will tell.
#pragma once

#include "backend/cuda/attention_half_rows.h"
#include "backend/cuda/attention_warp.h"
#include "backend/cuda/attention_whole.h"

namespace qiao::cuda {

// A block, and where things lie in its shared memory: [stages][as they came][earlier
// chunks][items][arrivals].
template <template <int> class Kind, int kD>
struct AttentionWgmmaShape {
  using Elements = Kind<kD>;
  static constexpr int kGroups = 2, kWarps = 4 * kGroups, kRows = kWarps * kWarpRows;
  static constexpr int kConsumers = 32 * kWarps, kThreads = kConsumers + 128;
  static constexpr int kRegisters = 216;
  static constexpr int kKeys = 64, kBlock = AttentionShape<Kind, kD>::kBlock;
  // Keys, or values, of a tile: rows of 64 columns, then the next 64's.
  static constexpr int kColumns = kKeys * 128, kOperand = kD / 64 * kColumns, kStage = 2 * kOperand;
  // What is unpacked waits for it in slots of its own: so many are on their way while one is.
  static constexpr int kAhead = 2;
  static constexpr bool kUnpacks = Elements::kBytes == 1;
  static constexpr int kBringers =
      kUnpacks ? 4 : 128;  // warps that unpacked, or threads whose copies have landed
  static constexpr int kRawKeys = kKeys * Elements::kKeyPitch;
  static constexpr int kRaw = kUnpacks ? kRawKeys + kKeys * Elements::kValuePitch : 0;
  static constexpr int kRawBytes = (kAhead + 1) * kRaw;
  static constexpr int kEarlierBytes = kWarps * earlier_bytes<Kind, kD>();
  static constexpr int kItems = kAhead + 1;  // one of a tile is used only once kAhead more have been told of
  static constexpr int kFixedBytes = kRawBytes + kEarlierBytes + 1024;
  static constexpr int kRoom = (227 * 1024 - kFixedBytes) / kStage, kStages = kRoom < 6 ? kRoom : 6;
  static constexpr int kRawAt = kStages * kStage, kEarlierAt = kRawAt + kRawBytes;
  static constexpr int kItemsAt = kEarlierAt + kEarlierBytes, kItemBytes = sizeof(AttentionTile);
  static constexpr int kArrivalsAt = kItemsAt + (kItems * kItemBytes + 15) / 16 * 16;
  static constexpr int kSharedBytes = kArrivalsAt + (4 * kStages + 2 * kItems) * 8;
  static_assert(kStages >= 3 && kKeys == 2 * kBlock && kChunkKeys % kKeys == 0 && kStage % 1024 == 0 &&
                kSharedBytes <= 227 * 1024);
};

// The stages in turn, as those that bring and those that use them walk them. Keys and values of one are full
// and empty apart.
template <class S>
class AttentionRing {
 public:
  __device__ uint32_t parity() const { return next_ % 2; }
  __device__ static unsigned char* shared() { return shared_memory<unsigned char>(); }
  __device__ unsigned char* keys() const { return shared() + next_ / 2 * S::kStage; }
  __device__ unsigned char* values() const { return keys() + S::kOperand; }
  __device__ uint64_t* full_keys() const {
    return reinterpret_cast<uint64_t*>(shared() + S::kArrivalsAt) + next_ / 2 * 4;
  }
  __device__ uint64_t* empty_keys() const { return full_keys() + 1; }
  __device__ uint64_t* full_values() const { return full_keys() + 2; }
  __device__ uint64_t* empty_values() const { return full_keys() + 3; }
  __device__ void advance() {
    next_ += 2;
    if (next_ / 2 == S::kStages) next_ = next_ % 2 ^ 1;
  }

 private:
  unsigned next_ = 0;  // 2 * stage + parity: one register
};
// The block's items in turn; one whose sequence is -1 is none, and the last.
template <class S>
class AttentionItems {
 public:
  __device__ uint32_t parity() const { return next_ / S::kItems % 2; }
  __device__ AttentionTile* tile() const {
    return reinterpret_cast<AttentionTile*>(shared_memory<unsigned char>() + S::kItemsAt) + next_ % S::kItems;
  }
  __device__ uint64_t* full() const {
    return reinterpret_cast<uint64_t*>(shared_memory<unsigned char>() + S::kArrivalsAt) + 4 * S::kStages +
           next_ % S::kItems * 2;
  }
  __device__ uint64_t* empty() const { return full() + 1; }
  __device__ void advance() { ++next_; }

 private:
  unsigned next_ = 0;
};

// The four warps that bring: each 16 rows of every tile.
template <template <int> class Kind, int kD>
class AttentionBringer {
  using Shape = AttentionWgmmaShape<Kind, kD>;
  using Elements = typename Shape::Elements;
  static constexpr int kRows = Shape::kKeys / 4;  // of a warp
  static constexpr int kVectors = Elements::kVectors, kAtOnce = 32 / kVectors, kCopies = kRows / kAtOnce;

 public:
  __device__ explicit AttentionBringer(const AttentionArguments& op)
      : op_(op), lane_(threadIdx.x % 32), first_row_((threadIdx.x - Shape::kConsumers) / 32 * kRows) {}

  __device__ void run() {
    const int kv_heads = op_.kv_heads;
    const auto blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    for (int round = 0;; ++round) {
      // Items get shorter: who has had the longest of a round has the shortest of the next.
      const int item = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
      AttentionTile tile{};
      const bool there = find_whole(op_, item / kv_heads, Shape::kRows, &tile);
      if (!there) tile.sequence = -1;
      tile.kv_head = item % kv_heads;
      tell(tile);
      if (!there) break;
      const int row = tile.tile * Shape::kRows;
      const SeenKeys seen = seen_keys(op_, tile, row, min(row + Shape::kRows, tile.queries * op_.share));
      const int begin = seen.first / Shape::kKeys * Shape::kKeys;
      KeyRow own = own_row(tile, seen, begin);
      for (int key = begin; key < seen.end; key += Shape::kKeys) {
        bring(own);
        own = own_row(tile, seen, key + Shape::kKeys);
      }
    }
    copy_async_commit();
    copy_async_wait<0>();  // a thread does not end before its copies
    if constexpr (Shape::kUnpacks) {
      while (on_their_way_ > 0) unpack();
    }
  }

 private:
  // To the consumers.
  __device__ void tell(const AttentionTile& tile) {
    if (first_row_ == 0) {
      wait_arrivals(items_.empty(), items_.parity() ^ 1);  // at first each slot is empty
      __syncwarp();  // none waits for a phase that this one's arrival may end
      if (lane_ == 0) {
        *items_.tile() = tile;
        arrive(items_.full());
      }
    }
    items_.advance();
  }

  // Lane l of the first kRows looks up the l-th row of this warp, of the tile from `key` on.
  __device__ KeyRow own_row(const AttentionTile& tile, const SeenKeys& seen, int key) const {
    const int own = key + first_row_ + lane_;
    if (lane_ >= kRows || own < seen.first || own >= seen.end) return {nullptr, 0};
    return row_of(op_, tile, own);
  }

  // Asks for a tile; what is to be unpacked first becomes the consumers' here, once others are on their way.
  __device__ void bring(const KeyRow& row) {
    if constexpr (Shape::kUnpacks) {
      unsigned char* raw = raw_of(raw_);
      if (++raw_ > Shape::kAhead) raw_ = 0;
      copy_raw(raw, row, 0, row.scale);
      copy_raw(raw + Shape::kRawKeys, row, op_.values_offset, row.scale + 4 * op_.page_tokens);
      copy_async_commit();
      if (++on_their_way_ <= Shape::kAhead) return;
      copy_async_wait<Shape::kAhead>();
      unpack();
    } else {
      wait_arrivals(ring_.empty_keys(), ring_.parity() ^ 1);
      copy(ring_.keys(), row, 0);
      arrive_with_copies(ring_.full_keys());
      wait_arrivals(ring_.empty_values(), ring_.parity() ^ 1);
      copy(ring_.values(), row, op_.values_offset);
      arrive_with_copies(ring_.full_values());
      ring_.advance();
    }
  }

  // The row of copy i that this lane has part of, and where that lies; 0: nobody sees it.
  __device__ unsigned long long source_of(const KeyRow& row, int i) const {
    const auto own = static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(row.at));
    return __shfl_sync(kAllLanes, own, i * kAtOnce + lane_ / kVectors);
  }
  __device__ void copy_vector(unsigned char* to, unsigned long long from, int64_t offset) const {
    const int vector = lane_ % kVectors;
    const bool there = from != 0 && vector < static_cast<int>(op_.row_bytes / 16);
    const unsigned char* source = op_.pages;
    if (there) source = reinterpret_cast<const unsigned char*>(from) + offset + 16 * vector;
    copy_async<16>(to, source, there);
  }
  // Where 16 bytes of a row lie for wgmma: `vector`, of 8 numbers each.
  __device__ static unsigned char* place(unsigned char* operand, int row, int vector) {
    return operand + vector / 8 * Shape::kColumns + row * 128 + (vector % 8 ^ row % 8) * 16;
  }
  __device__ void copy(unsigned char* operand, const KeyRow& row, int64_t offset) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int to = first_row_ + i * kAtOnce + lane_ / kVectors;
      copy_vector(place(operand, to, lane_ % kVectors), source_of(row, i), offset);
    }
  }
  __device__ static unsigned char* raw_of(int slot) {
    return shared_memory<unsigned char>() + Shape::kRawAt + slot * Shape::kRaw;
  }
  __device__ void copy_raw(unsigned char* rows, const KeyRow& row, int64_t offset, int64_t scale) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int to = first_row_ + i * kAtOnce + lane_ / kVectors;
      copy_vector(rows + to * Elements::kKeyPitch + 16 * (lane_ % kVectors), source_of(row, i), offset);
    }
    if (lane_ < kRows) {
      const bool there = row.at != nullptr;
      copy_async<4>(rows + (first_row_ + lane_) * Elements::kKeyPitch + kD,
                    there ? row.at + scale : op_.pages, there);
    }
  }

  // The oldest tile, which has come: this warp's rows of it, which nobody else reads or writes before.
  __device__ void unpack() {
    __syncwarp();
    const unsigned char* raw = raw_of(unpacking_);
    if (++unpacking_ > Shape::kAhead) unpacking_ = 0;
    wait_arrivals(ring_.empty_keys(), ring_.parity() ^ 1);
    unpack_rows<true>(raw, ring_.keys());
    multiply_stored();
    arrive_as_warp(ring_.full_keys());
    wait_arrivals(ring_.empty_values(), ring_.parity() ^ 1);
    unpack_rows<false>(raw + Shape::kRawKeys, ring_.values());
    multiply_stored();
    arrive_as_warp(ring_.full_values());
    ring_.advance();
    --on_their_way_;
  }
  template <bool kOfKeys>
  __device__ void unpack_rows(const unsigned char* raw, unsigned char* operand) const {
#pragma unroll 2
    for (int i = 0; i < kCopies; ++i) {
      const int row = first_row_ + i * kAtOnce + lane_ / kVectors, part = lane_ % kVectors;
      uint4 first, second;
      if constexpr (kOfKeys) {
        Elements::unpack_keys(raw + row * Elements::kKeyPitch, part, first, second);
      } else {
        Elements::unpack_values(raw + row * Elements::kValuePitch, part, first, second);
      }
      *reinterpret_cast<uint4*>(place(operand, row, 2 * part)) = first;
      *reinterpret_cast<uint4*>(place(operand, row, 2 * part + 1)) = second;
    }
  }

  const AttentionArguments& op_;
  int lane_, first_row_;
  AttentionRing<Shape> ring_;
  AttentionItems<Shape> items_;
  int on_their_way_ = 0;
  int raw_ = 0, unpacking_ = 0;  // slots
};

// A warp of the two warpgroups that multiply, with its 16 rows of an item.
template <template <int> class Kind, int kD>
class AttentionMultiplier : RoundedRows<Kind, kD> {
  using Shape = AttentionWgmmaShape<Kind, kD>;
  using Rows = RoundedRows<Kind, kD>;
  using Elements = typename Shape::Elements;
  using Products = typename Elements::Tile::Products;
  using Ring = AttentionRing<Shape>;
  static constexpr int kTiles = Shape::kKeys / 8, kBlockTiles = kTiles / 2, kOutTiles = kD / 8;
  using Rows::block_, Rows::out_, Rows::queries_, Rows::largest_, Rows::sum_;
  using Rows::op_, Rows::tile_, Rows::lane_, Rows::warp_, Rows::first_row_;

 public:
  __device__ AttentionMultiplier(const AttentionArguments& op, const AttentionTile& tile, Ring& ring)
      : Rows(op, tile, Shape::kWarps, shared_memory<unsigned char>() + Shape::kEarlierAt), ring_(ring) {}

  __device__ void run() {
    // What any row of the warpgroup sees: all of its warps are at the same instructions.
    const int group_row = first_row_ - warp_ % 4 * kWarpRows;
    const SeenKeys own = Rows::seen(group_row, min(group_row + 4 * kWarpRows, tile_.queries * op_.share));
    const int begin = block_.first / Shape::kKeys * Shape::kKeys;
    const int own_begin = own.first / Shape::kKeys * Shape::kKeys;
    int key = begin;
    while (key < block_.end && (key < own_begin || key >= own.end)) pass(), key += Shape::kKeys;
    if (key >= block_.end) return;
    Rows::load_queries();
    Rows::start_chunk();
    wait_full(ring_.full_keys(), ring_.parity());
    multiply_keys(ring_.keys());
    multiply_wait<0>(flat(scores_));
    arrive_as_warp(ring_.empty_keys());
    weigh(key);
    take_weights();
    for (; key + Shape::kKeys < own.end; key += Shape::kKeys) {
      Ring next = ring_;
      next.advance();
      wait_full(next.full_keys(), next.parity());
      multiply_keys(next.keys());
      wait_full(ring_.full_values(), ring_.parity());
      add_values(ring_.values());
      multiply_wait<1>(flat(scores_));
      arrive_as_warp(next.empty_keys());
      const bool ends = (key + Shape::kKeys) % kChunkKeys == 0;
      typename Rows::Join join{};
      if (ends) {
        join = Rows::join_chunk(key / kChunkKeys);
        largest_[0] = largest_[1] = -INFINITY, sum_[0] = sum_[1] = 0;
      }
      weigh(key + Shape::kKeys);
      multiply_wait<0>(flat(out_));
      arrive_as_warp(ring_.empty_values());
      if (ends) {
        Rows::join_results(join, false);
        clear_results();
      }
      Rows::rescale(factor_[0]);
      take_weights();
      ring_ = next;
    }
    wait_full(ring_.full_values(), ring_.parity());
    add_values(ring_.values());
    multiply_wait<0>(flat(out_));
    arrive_as_warp(ring_.empty_values());
    ring_.advance();
    Rows::join_results(Rows::join_chunk(key / kChunkKeys), true);
    for (key += Shape::kKeys; key < block_.end; key += Shape::kKeys) pass();
  }

 private:
  template <int kCount>
  __device__ static float (&flat(float (&tiles)[kCount][4]))[4 * kCount] {
    return reinterpret_cast<float(&)[4 * kCount]>(tiles);
  }
  // What is there by stores or copies of other threads, for wgmma.
  __device__ static void wait_full(uint64_t* full, uint32_t parity) {
    wait_arrivals(full, parity);
    multiply_stored();
  }
  // A tile of which the warpgroup sees nothing.
  __device__ void pass() {
    wait_arrivals(ring_.full_keys(), ring_.parity());
    arrive_as_warp(ring_.empty_keys());
    wait_arrivals(ring_.full_values(), ring_.parity());
    arrive_as_warp(ring_.empty_values());
    ring_.advance();
  }

  // A group: a tile's scores.
  __device__ void multiply_keys(const unsigned char* keys) {
    const uint64_t first = multiply_operand(keys, 0);
    multiply_begin();
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      const uint64_t step = multiply_operand_behind(first, k / 4 * Shape::kColumns + k % 4 * 32);
      Products::multiply_async(flat(scores_), queries_[k], step, k != 0);
    }
    multiply_commit();
  }

  // Scores to weights, block after block.
  __device__ void weigh(int key) {
    Rows::template shape_scores<kTiles>(key, scores_);
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      Rows::template weigh<kBlockTiles>(
          reinterpret_cast<float(&)[kBlockTiles][4]>(scores_[block * kBlockTiles]), factor_[block]);
    }
    const bool scaled = factor_[1][0] != 1.0f || factor_[1][1] != 1.0f;
    apart_ = barrier_any(1 + warp_ / 4, 128, scaled);
  }
  __device__ void take_weights() {
#pragma unroll
    for (int k = 0; k < kTiles / 2; ++k) {
      Elements::take_weights(scores_[2 * k], scores_[2 * k + 1], weights_[k]);
    }
  }

  // A group, or two with a wait for all between them: a tile's weights times its values.
  __device__ void add_values(const unsigned char* values) {
    const uint64_t first = multiply_operand_of_columns(values, Shape::kColumns);
    // Two ways that meet nowhere between, and a vote: else the compiler waits for every group it sees.
    if (__any_sync(kAllLanes, apart_)) {
      multiply_begin();
      add_block(first, 0);
      multiply_commit();
      multiply_wait<0>(flat(out_));
      Rows::rescale(factor_[1]);
      multiply_begin();
      add_block(first, 1);
      multiply_commit();
    } else {
      multiply_begin();
      add_block(first, 0);
      add_block(first, 1);
      multiply_commit();
    }
  }
  __device__ void add_block(uint64_t first, int block) {
#pragma unroll
    for (int i = 0; i < kTiles / 4; ++i) {
      const int k = block * (kTiles / 4) + i;
      Products::multiply_async_of_columns(flat(out_), weights_[k],
                                          multiply_operand_behind(first, k * 16 * 128));
    }
  }

  __device__ void clear_results() {
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[n][i] = 0;
    }
  }

  Ring& ring_;
  float scores_[kTiles][4] = {};
  float factor_[2][2];
  typename Elements::Weights weights_[kTiles / 2];
  bool apart_ = false;
};

// By all threads of a block, before its warps take their roles.
template <class S>
__device__ inline void open_attention_rings() {
  if (threadIdx.x == 0) {
    for (AttentionRing<S> ring; ring.parity() == 0; ring.advance()) {
      arrivals_init(ring.full_keys(), S::kBringers), arrivals_init(ring.full_values(), S::kBringers);
      arrivals_init(ring.empty_keys(), S::kWarps), arrivals_init(ring.empty_values(), S::kWarps);
    }
    for (AttentionItems<S> items; items.parity() == 0; items.advance()) {
      arrivals_init(items.full(), 1), arrivals_init(items.empty(), S::kWarps);
    }
    arrivals_ready();
  }
  __syncthreads();
}

// The grid is as many blocks as run at once, or as there are items.
template <template <int> class Kind, int kD>
__global__ void __launch_bounds__(AttentionWgmmaShape<Kind, kD>::kThreads, 1)
    attention_wgmma(const __grid_constant__ AttentionArguments op) {
  using Shape = AttentionWgmmaShape<Kind, kD>;
  let_next_begin();
  open_attention_rings<Shape>();
  wait_for_previous();
  if (threadIdx.x >= Shape::kConsumers) {
    set_registers<kWgmmaRegisters - 2 * Shape::kRegisters, false>();
    AttentionBringer<Kind, kD>(op).run();
  } else {
    set_registers<Shape::kRegisters, true>();
    AttentionRing<Shape> ring;
    for (AttentionItems<Shape> items;; items.advance()) {
      wait_arrivals(items.full(), items.parity());
      const AttentionTile& tile = *items.tile();  // stays there: it would take registers
      if (tile.sequence < 0) break;
      AttentionMultiplier<Kind, kD>(op, tile, ring).run();
      arrive_as_warp(items.empty());
    }
  }
}

}  // namespace qiao::cuda

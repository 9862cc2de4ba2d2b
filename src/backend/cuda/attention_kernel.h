// Attention's kernel, over pages and over packed rows, for all who meet keys: decode, prefill, training.
//
// Plan. A warp has 16 rows (queries × the heads that share a key/value head, so that one load of a key serves
// them all) and walks the keys they see in blocks of kBlock, aligned to key 0, with an online softmax of each
// chunk of kChunkKeys. Its 16 × D result stays in registers (D each), the queries and two stages of keys and
// values, filled by cp.async while the other is computed, in shared memory (D 128 of 16 bits: 44 KB for one
// warp, 70 KB for four). Chunks are merged in ascending order. So a row's order of sums is that of its own
// keys, and it does not matter who does what:
//   decode   a block is one warp and one chunk, as many blocks as there are chunks: memory-bound, 16 to 32 KB
//            on their way in each of 5 blocks of an SM. Results of chunks go to the workspace and are merged
//            by another kernel. Expected: the memory's bandwidth with BF16 and F16 pages; Q8_0's arithmetic
//            may be the limit.
//   prefill  a block is four warps that share the loads, and walks all its chunks; between two, the rows of
//            `out` hold what was merged so far. Limited by the tensor cores: two products of TF32 for each
//            one of 16-bit pages (attention_elements.h).
// Skipped blocks and rows that see nothing of a block leave the same bits as masked ones: a weight of 0 adds
// 0, a factor of 1 changes nothing.
// Later, with a device at hand: wgmma (m64nNk8, the same depth a product) with TMA loads and a producer warp;
// the order of blocks, parts and chunks above is what has to stay. Not yet run on a device.
#pragma once

#include "backend/cuda/attention_elements.h"
#include "backend/cuda/kernel.h"
#include "tensor/tensor.h"

namespace qiao::cuda {

inline constexpr int kChunkKeys = 256;  // a multiple of every kBlock
inline constexpr int kWarpRows = 16;
inline constexpr int kMostWarps = 4;

struct AttentionArguments {
  const float* q;
  float* out;
  int64_t q_token, q_head, out_token, out_head;  // strides
  // Pages, or where `table` is null packed rows of floats.
  const unsigned char* pages;
  int64_t row_bytes, page_bytes, values_offset;  // the last: from a key to its value
  int page_tokens;
  const int32_t* table;  // [S, M]
  int64_t table_row;
  const int32_t* lengths;
  const float *k, *v;
  int64_t k_token, k_head, v_token, v_head;
  bool vectors;  // rows are whole vectors of 16 bytes at multiples of 16

  const int32_t* starts;  // of queries; packed rows: of keys too
  int sequences, heads, share, dim;
  int window;  // 0: unlimited
  float scale, soft_cap;
  bool causal;
  const float* bias;  // [H, 2 reach - 1]
  int64_t reach;
  float* log_sum_exp;  // [T, H]

  // Splits: each chunk of a sequence of up to split_queries queries and `slots` chunks is a block's.
  int slots, split_queries;
  bool tiles_follow;                             // a launch of tiles takes the sequences that are not split
  float *split_out, *split_largest, *split_sum;  // [S split_queries H, slots, D to 8s], [.., slots]
};

__host__ __device__ inline int first_key(int position, int window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}

// Chunks of keys that a sequence's queries see.
struct Chunks {
  int first, count;
};
__host__ __device__ inline Chunks chunks_of(int queries, int length, int window) {
  const int first = first_key(length - queries, window) / kChunkKeys;
  return {first, (length - 1) / kChunkKeys + 1 - first};
}

// exp(x) for x <= 0, or NaN.
__device__ inline float exp_of(float x) { return exp2f(x * 1.44269504f); }

// What two runs of keys with these largest scores weigh in what they sum to.
struct Merge {
  float largest, before, after;  // factors of both
};
__device__ inline Merge merge_of(float before, float after) {
  const float largest = fmaxf(before, after);
  const float shift = largest == -INFINITY ? 0.0f : largest;
  return {largest, exp_of(before - shift), exp_of(after - shift)};
}

template <template <int> class Kind, int kD>
struct AttentionShape {
  using Elements = Kind<kD>;
  static constexpr int kRowBytes = kD * Elements::kBytes;
  static constexpr int kBlock = kRowBytes <= 256 && kD <= 128 ? 32 : kRowBytes <= 512 ? 16 : 8;
  static constexpr int kTiles = kBlock / 8;
  static constexpr int kKeyStage = kBlock * Elements::kKeyPitch;
  static constexpr int kStage = kKeyStage + kBlock * Elements::kValuePitch;
  static constexpr int kQueryPitch = kD + 8;  // floats
  static constexpr int shared_bytes(int warps) {
    return 2 * kStage + warps * kWarpRows * kQueryPitch * static_cast<int>(sizeof(float));
  }
};

// The rows of a block and what of the sequence they meet.
struct AttentionTile {
  int sequence, first_query_row, queries, length;
  int tile;                 // rows [tile * 16 * warps, …) of queries × share
  int first_chunk, chunks;  // that it walks
  int slot;                 // in the workspace, or -1: the result is whole
};

template <template <int> class Kind, int kD>
class AttentionWarp {
  using Shape = AttentionShape<Kind, kD>;
  using Elements = typename Shape::Elements;
  static constexpr int kBlock = Shape::kBlock, kTiles = Shape::kTiles, kOutTiles = kD / 8;

 public:
  __device__ AttentionWarp(const AttentionArguments& op, const AttentionTile& tile)
      : op_(op),
        tile_(tile),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        kv_head_(blockIdx.y),
        shared_(shared_memory<unsigned char>()),
        queries_(reinterpret_cast<float*>(shared_ + 2 * Shape::kStage) +
                 warp_ * kWarpRows * Shape::kQueryPitch) {
    const int warps = blockDim.x / 32, rows = tile.queries * op.share;
    const int block_row = tile.tile * warps * kWarpRows;
    first_row_ = block_row + warp_ * kWarpRows;
    const int block_end = min(block_row + warps * kWarpRows, rows);
    const int warp_end = min(first_row_ + kWarpRows, rows);
    block_ = seen(block_row, block_end);
    warp_seen_ = seen(first_row_, warp_end);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row_ + lane_ / 4 + 8 * i;
      valid_[i] = row < rows;
      rows_[i] = seen(row, row < rows ? row + 1 : row);
    }
  }

  __device__ void run() {
    const int begin = max(block_.first, tile_.first_chunk * kChunkKeys) / kBlock * kBlock;
    const int end = min(block_.end, (tile_.first_chunk + tile_.chunks) * kChunkKeys);
    if (begin >= end) return;
    load_queries();
    clear_padding();
    Place place = locate(begin, end);
    issue(0, begin, place);
    place = locate(begin + kBlock, end);
    start_chunk();
    for (int key = begin, stage = 0; key < end; key += kBlock, stage ^= 1) {
      issue(stage ^ 1, key + kBlock < end ? key + kBlock : -1, place);
      place = locate(key + 2 * kBlock, end);
      copy_async_wait<1>();
      __syncthreads();
      if (warp_seen_.first < key + kBlock && warp_seen_.end > key) add_block(stage, key);
      const int next = key + kBlock;
      if (next % kChunkKeys == 0 || next >= end) finish_chunk(key / kChunkKeys, next >= end);
      __syncthreads();
    }
    copy_async_wait<0>();
  }

 private:
  // Keys [first, end) that some rows see; none: first >= end.
  struct Seen {
    int first, end;
  };
  __device__ Seen seen(int row, int end) const {
    if (row >= end) return {0x7fffffff, 0};
    if (!op_.causal) return {0, tile_.length};
    const int before = tile_.length - tile_.queries;
    return {first_key(before + row / op_.share, op_.window), before + (end - 1) / op_.share + 1};
  }
  __device__ int token(int row) const { return tile_.first_query_row + row / op_.share; }
  __device__ int head(int row) const { return kv_head_ * op_.share + row % op_.share; }

  __device__ void load_queries() {
    const int rows = tile_.queries * op_.share, width = (op_.dim + 7) / 8 * 8;
    for (int i = 0; i < kWarpRows; ++i) {
      const int row = first_row_ + i;
      const float* from = op_.q + token(row) * op_.q_token + head(row) * op_.q_head;
      for (int d = lane_; d < width; d += 32) {
        queries_[i * Shape::kQueryPitch + d] = row < rows && d < op_.dim ? from[d] : 0.0f;
      }
    }
    __syncwarp();
  }

  // Of packed rows, whose width may be no multiple of 8. Pages have zeros of their own.
  __device__ void clear_padding() {
    if (op_.table != nullptr || op_.dim % 8 == 0) return;
    if constexpr (Elements::kBytes == 4) {
      const int width = (op_.dim + 7) / 8 * 8 - op_.dim;
      for (int i = threadIdx.x; i < 4 * kBlock * width; i += blockDim.x) {
        const int row = i / width % (2 * kBlock), stage = i / width / (2 * kBlock), d = op_.dim + i % width;
        unsigned char* at = shared_ + stage * Shape::kStage +
                            (row < kBlock ? row * Elements::kKeyPitch
                                          : Shape::kKeyStage + (row - kBlock) * Elements::kValuePitch);
        reinterpret_cast<float*>(at)[d] = 0.0f;
      }
    }
  }

  // Where a lane's key of the block from `key` on lies: page and row in it; or the row; -1: nobody sees it.
  struct Place {
    int page, row;
  };
  __device__ Place locate(int key, int end) const {
    const int own = key + lane_;
    if (lane_ >= kBlock || own < block_.first || own >= end) return {-1, 0};
    if (op_.table == nullptr) return {0, tile_.first_query_row + own};
    const int page = op_.table[tile_.sequence * op_.table_row + own / op_.page_tokens];
    return {page, own % op_.page_tokens};
  }

  // Starts the copies of a block's keys and values; -1: of none. Always a group.
  __device__ void issue(int stage, int key, const Place& place) {
    unsigned char* keys = shared_ + stage * Shape::kStage;
    unsigned char* values = keys + Shape::kKeyStage;
    if (key >= 0) {
      if (op_.table != nullptr) {
        copy_pages(keys, values, place);
      } else if constexpr (Elements::kBytes == 4) {
        op_.vectors ? copy_rows<4>(keys, values, place) : copy_rows<1>(keys, values, place);
      }
    }
    copy_async_commit();
  }

  __device__ void copy_pages(unsigned char* keys, unsigned char* values, const Place& place) {
    const int vectors = static_cast<int>(op_.row_bytes / 16);
    for (int first = 0; first < kBlock * Elements::kVectors; first += blockDim.x) {
      const int item = first + threadIdx.x, row = min(item / Elements::kVectors, kBlock - 1);
      const int vector = item % Elements::kVectors;
      const int page = __shfl_sync(kAllLanes, place.page, row);
      const int in_page = __shfl_sync(kAllLanes, place.row, row);
      if (item >= kBlock * Elements::kVectors || vector >= vectors) continue;
      const bool there = page >= 0;
      const unsigned char* from = op_.pages;
      if (there) {
        from += page * op_.page_bytes + (int64_t{2} * kv_head_ * op_.page_tokens + in_page) * op_.row_bytes +
                16 * vector;
      }
      // Q8_0's scales come behind the numbers.
      const int to = Elements::kBytes == 1 && vector == vectors - 1 ? kD : 16 * vector;
      copy_async<16>(keys + row * Elements::kKeyPitch + to, from, there);
      copy_async<16>(values + row * Elements::kValuePitch + to, there ? from + op_.values_offset : from,
                     there);
    }
  }

  template <int kFloats>
  __device__ void copy_rows(unsigned char* keys, unsigned char* values, const Place& place) {
    constexpr int kRow = kD / kFloats;
    for (int first = 0; first < kBlock * kRow; first += blockDim.x) {
      const int item = first + threadIdx.x, row = min(item / kRow, kBlock - 1), d = item % kRow * kFloats;
      const bool there = __shfl_sync(kAllLanes, place.page, row) >= 0;
      const int64_t source = __shfl_sync(kAllLanes, place.row, row);
      if (item >= kBlock * kRow || d >= op_.dim) continue;
      const int64_t k = there ? source * op_.k_token + kv_head_ * op_.k_head + d : 0;
      const int64_t v = there ? source * op_.v_token + kv_head_ * op_.v_head + d : 0;
      copy_async<4 * kFloats>(keys + row * Elements::kKeyPitch + 4 * d, op_.k + k, there);
      copy_async<4 * kFloats>(values + row * Elements::kValuePitch + 4 * d, op_.v + v, there);
    }
  }

  __device__ void start_chunk() {
#pragma unroll
    for (int i = 0; i < 2; ++i) largest_[i] = -INFINITY, sum_[i] = 0;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[n][i] = 0;
    }
  }

  __device__ void add_block(int stage, int key) {
    const unsigned char* keys = shared_ + stage * Shape::kStage;
    float scores[kTiles][4];
    multiply_keys(keys, scores);
    shape_scores(key, scores);
    weigh(scores);
    add_values(keys + Shape::kKeyStage, scores);
  }

  __device__ void multiply_keys(const unsigned char* keys, float (&scores)[kTiles][4]) {
    float low[kTiles][4];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = low[n][i] = 0;
    }
    const int steps = (op_.dim + 7) / 8;
#pragma unroll 2
    for (int k = 0; k < steps; ++k) {
      uint32_t a[2][4], b[Elements::kParts][kTiles][2];
      load_a<Shape::kQueryPitch>(queries_, k, a);
      Elements::template keys<kTiles>(keys, k, b);
      multiply_parts<kTiles>(scores, low, a, b);
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] += low[n][i];
    }
  }

  // Scales, biases and caps; -infinity where a row does not see the key.
  __device__ void shape_scores(int key, float (&scores)[kTiles][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row_ + lane_ / 4 + 8 * i;
      const float* bias = nullptr;
      if (op_.bias != nullptr)
        bias = op_.bias + head(row) * (2 * op_.reach - 1) + op_.reach - 1 - row / op_.share;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int j = key + 8 * n + 2 * (lane_ % 4) + c;
          float s = scores[n][2 * i + c] * op_.scale;
          if (j < rows_[i].first || j >= rows_[i].end) {
            s = -INFINITY;
          } else {
            if (bias != nullptr) s += bias[j];
            if (op_.soft_cap > 0) s = op_.soft_cap * tanhf(s / op_.soft_cap);
          }
          scores[n][2 * i + c] = s;
        }
      }
    }
  }

  // Scores to weights; what there was is scaled to their largest.
  __device__ void weigh(float (&scores)[kTiles][4]) {
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = largest_[i];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) most = fmaxf(most, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      const float shift = most == -INFINITY ? 0.0f : most;
      factor[i] = most == largest_[i] ? 1.0f : exp_of(largest_[i] - shift);
      largest_[i] = most;
      float sum = sum_[i] * factor[i];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) sum += scores[n][2 * i + c] = exp_of(scores[n][2 * i + c] - shift);
      }
      sum_[i] = sum;  // this lane's keys'
    }
    if (!__any_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[n][i] *= factor[i / 2];
    }
  }

  __device__ void add_values(const unsigned char* values, const float (&weights)[kTiles][4]) {
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
      uint32_t a[2][4];
      split_accumulator(weights[k], a);
#pragma unroll
      for (int n = 0; n < kOutTiles; n += 4) {
        if (8 * n >= op_.dim) break;
        uint32_t b[Elements::kParts][4][2];
        Elements::values(values, k, n, b);
        multiply_parts<4>(out_ + n, out_ + n, a, b);
      }
    }
  }

  __device__ void finish_chunk(int chunk, bool last) {
    float factor_before[2], factor_after[2];
    bool had[2], has[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = sum_[i];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      has[i] = rows_[i].first < (chunk + 1) * kChunkKeys && rows_[i].end > chunk * kChunkKeys;
      had[i] = had_[i];
      factor_before[i] = factor_after[i] = 1;
      if (tile_.slot >= 0) {
        if (has[i]) keep(i, sum);
      } else if (has[i] && !had[i]) {
        total_largest_[i] = largest_[i], total_sum_[i] = sum;
      } else if (has[i]) {
        const Merge merge = merge_of(total_largest_[i], largest_[i]);
        factor_before[i] = merge.before, factor_after[i] = merge.after;
        total_largest_[i] = merge.largest;
        total_sum_[i] = fmaf(sum, merge.after, total_sum_[i] * merge.before);
      }
      had_[i] = had[i] || has[i];
    }
    if (tile_.slot >= 0) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!valid_[i] || !(has[i] || last)) continue;
      const int row = first_row_ + lane_ / 4 + 8 * i;
      float* to = op_.out + token(row) * op_.out_token + head(row) * op_.out_head;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int d = 8 * n + 2 * (lane_ % 4) + c;
          if (d >= op_.dim) continue;
          float x = out_[n][2 * i + c];
          if (had[i]) x = has[i] ? fmaf(x, factor_after[i], to[d] * factor_before[i]) : to[d];
          to[d] = last ? x / total_sum_[i] : x;
        }
      }
      if (last && op_.log_sum_exp != nullptr && lane_ % 4 == 0) {
        op_.log_sum_exp[int64_t{token(row)} * op_.heads + head(row)] =
            total_largest_[i] + logf(total_sum_[i]);
      }
    }
    start_chunk();
  }

  // A chunk's result, for another kernel to merge.
  __device__ void keep(int i, float sum) {
    const int row = first_row_ + lane_ / 4 + 8 * i, width = (op_.dim + 7) / 8 * 8;
    const int64_t at =
        ((int64_t{tile_.sequence} * op_.split_queries + row / op_.share) * op_.heads + head(row)) *
            op_.slots +
        tile_.slot;
    if (lane_ % 4 == 0) op_.split_largest[at] = largest_[i], op_.split_sum[at] = sum;
    float* to = op_.split_out + at * width;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
      if (8 * n >= op_.dim) break;
      *reinterpret_cast<float2*>(to + 8 * n + 2 * (lane_ % 4)) =
          make_float2(out_[n][2 * i], out_[n][2 * i + 1]);
    }
  }

  const AttentionArguments& op_;
  const AttentionTile& tile_;
  int lane_, warp_, kv_head_, first_row_;
  unsigned char* shared_;
  float* queries_;
  Seen block_, warp_seen_, rows_[2];
  bool valid_[2], had_[2] = {false, false};
  float out_[kOutTiles][4];
  float largest_[2], sum_[2], total_largest_[2] = {0, 0}, total_sum_[2] = {0, 0};
};

__device__ inline int tiles_of(int queries, int share) {
  const int rows = kWarpRows * static_cast<int>(blockDim.x / 32);
  return (queries * share + rows - 1) / rows;
}

__device__ inline bool is_split(const AttentionArguments& op, int queries, int length) {
  return queries <= op.split_queries && chunks_of(queries, length, op.window).count <= op.slots;
}

// The sequence of block x among the tiles of all, and which of its `count` tiles it is; false where there are
// fewer. `tiles(s)`: how many sequence s has. Each warp looks for itself.
struct FoundTile {
  int sequence, tile, count;
};
template <class Tiles>
__device__ inline bool find_tile(int sequences, Tiles tiles, FoundTile* found) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int base = 0; base < sequences; base += 32) {
    const int count = base + lane < sequences ? tiles(base + lane) : 0;
    int until = count;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int more = __shfl_up_sync(kAllLanes, until, step);
      if (lane >= step) until += more;
    }
    const int target = static_cast<int>(blockIdx.x) - before;
    const unsigned past = __ballot_sync(kAllLanes, until > target);
    if (past != 0) {
      const int first = __ffs(static_cast<int>(past)) - 1;
      found->sequence = base + first;
      found->count = __shfl_sync(kAllLanes, count, first);
      found->tile = target - __shfl_sync(kAllLanes, until - count, first);
      return true;
    }
    before += __shfl_sync(kAllLanes, until, 31);
  }
  return false;
}

__device__ inline void describe(const AttentionArguments& op, AttentionTile* tile) {
  tile->first_query_row = op.starts[tile->sequence];
  tile->queries = op.starts[tile->sequence + 1] - tile->first_query_row;
  tile->length = op.lengths == nullptr ? tile->queries : op.lengths[tile->sequence];
}

// Blocks: tiles × key/value heads. At most 128 threads, so that each may have 255 registers.
template <template <int> class Kind, int kD>
__global__ void __launch_bounds__(32 * kMostWarps)
    attention_tiles(const __grid_constant__ AttentionArguments op) {
  FoundTile found{};
  const auto tiles = [&](int s) {
    const int queries = op.starts[s + 1] - op.starts[s];
    const bool elsewhere = op.slots > 0 && queries > 0 && is_split(op, queries, op.lengths[s]);
    return elsewhere ? 0 : tiles_of(queries, op.share);
  };
  if (!find_tile(op.sequences, tiles, &found)) return;
  AttentionTile tile{};
  tile.sequence = found.sequence;
  tile.tile = found.count - 1 - found.tile;  // the last one first: it meets the most keys
  describe(op, &tile);
  tile.first_chunk = 0;
  tile.chunks = (tile.length - 1) / kChunkKeys + 1;
  tile.slot = -1;
  AttentionWarp<Kind, kD>(op, tile).run();
}

// Blocks: (sequences × slots) × key/value heads.
template <template <int> class Kind, int kD>
__global__ void __launch_bounds__(32 * kMostWarps)
    attention_chunks(const __grid_constant__ AttentionArguments op) {
  AttentionTile tile{};
  tile.sequence = static_cast<int>(blockIdx.x) / op.slots;
  const int slot = static_cast<int>(blockIdx.x) % op.slots;
  describe(op, &tile);
  if (tile.queries == 0) return;
  const Chunks chunks = chunks_of(tile.queries, tile.length, op.window);
  const bool split = is_split(op, tile.queries, tile.length);
  if (split ? slot >= chunks.count : slot > 0 || op.tiles_follow) return;
  tile.first_chunk = chunks.first + (split ? slot : 0);
  tile.chunks = split ? 1 : chunks.count;
  tile.slot = split && chunks.count > 1 ? slot : -1;
  const int tiles = tiles_of(tile.queries, op.share);
  for (tile.tile = 0; tile.tile < tiles; ++tile.tile) {
    AttentionWarp<Kind, kD>(op, tile).run();
    __syncthreads();  // shared memory is read
  }
}

// How a step is cut into blocks.
struct AttentionLaunch {
  const char* name;
  unsigned tiles, chunks;  // blocks of each kernel for one key/value head; 0: not launched
  int tile_warps, chunk_warps;
};

template <template <int> class Kind, int kD>
void launch_attention(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  using Shape = AttentionShape<Kind, kD>;
  const auto kv_heads = static_cast<unsigned>(op.heads / op.share);
  launch(how.name, stream, attention_chunks<Kind, kD>, dim3(how.chunks, kv_heads),
         static_cast<unsigned>(32 * how.chunk_warps),
         static_cast<size_t>(Shape::shared_bytes(how.chunk_warps)), op);
  launch(how.name, stream, attention_tiles<Kind, kD>, dim3(how.tiles, kv_heads),
         static_cast<unsigned>(32 * how.tile_warps), static_cast<size_t>(Shape::shared_bytes(how.tile_warps)),
         op);
}
template <template <int> class Kind>
void launch_attention(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  if (op.dim <= 64) return launch_attention<Kind, 64>(stream, how, op);
  if (op.dim <= 128) return launch_attention<Kind, 128>(stream, how, op);
  launch_attention<Kind, 256>(stream, how, op);
}

// attention_f32.cu and so on: each compiles by itself.
void launch_attention_f32(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op);
void launch_attention_q8(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op);
void launch_attention_f16(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op);
void launch_attention_bf16(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op);

// Whether rows [T, heads, D] are whole vectors of 16 bytes, each at a multiple of that.
inline bool rows_of_vectors(const Tensor& t) {
  return aligned_16(t.data) && t.shape[2] % 4 == 0 && t.stride[0] % 4 == 0 && t.stride[1] % 4 == 0;
}
// Blocks of so many warps that all tiles of T tokens in S sequences may take.
inline unsigned most_tiles(int64_t tokens, int64_t sequences, int64_t share, int warps) {
  return static_cast<unsigned>(tokens * share / (warps * kWarpRows) + sequences);
}

}  // namespace qiao::cuda

// What a warp of attention does that walks all keys of its own 16 rows, beside others of its block:
// attention_kernel.h has the plan.
#pragma once

#include "backend/cuda/attention_rows.h"

namespace qiao::cuda {

// Sizes of blocks and of shared memory for heads of up to kD.
template <template <int> class Kind, int kD>
struct AttentionShape {
  using Elements = Kind<kD>;
  static constexpr int kRowBytes = kD * Elements::kBytes;
  static constexpr int kBlock = kRowBytes <= 256 && kD <= 128 ? 32 : kRowBytes <= 512 ? 16 : 8;
  static constexpr int kTiles = kBlock / 8;
  static constexpr int kKeyStage = kBlock * Elements::kKeyPitch;
  static constexpr int kStage = kKeyStage + kBlock * Elements::kValuePitch;
  static constexpr int shared_bytes(int warps) { return 2 * kStage + warps * Elements::kQueryBytes; }
};

template <template <int> class Kind, int kD>
class AttentionWarp : AttentionRows<Kind<kD>, kD / 8> {
  using Shape = AttentionShape<Kind, kD>;
  using Elements = typename Shape::Elements;
  using Rows = AttentionRows<Kind<kD>, kD / 8>;
  static constexpr int kBlock = Shape::kBlock, kTiles = Shape::kTiles, kOutTiles = kD / 8;
  using Rows::block_, Rows::warp_seen_, Rows::out_;
  using Rows::op_, Rows::tile_, Rows::lane_, Rows::warp_, Rows::first_row_, Rows::lower_rows_;

 public:
  __device__ AttentionWarp(const AttentionArguments& op, const AttentionTile& tile)
      : Rows(op, tile, threadIdx.x / 32, blockDim.x / 32, 0),
        shared_(shared_memory<unsigned char>()),
        queries_(shared_ + 2 * Shape::kStage + warp_ * Elements::kQueryBytes) {}

  __device__ void run() {
    const int begin = max(block_.first, tile_.first_chunk * kChunkKeys) / kBlock * kBlock;
    const int end = min(block_.end, (tile_.first_chunk + tile_.chunks) * kChunkKeys);
    if (begin >= end) return;
    load_queries();
    clear_padding();
    Place place = locate(begin, end);
    issue(0, begin, place);
    place = locate(begin + kBlock, end);
    Rows::start_chunk();
    for (int key = begin, stage = 0; key < end; key += kBlock, stage ^= 1) {
      issue(stage ^ 1, key + kBlock < end ? key + kBlock : -1, place);
      place = locate(key + 2 * kBlock, end);
      copy_async_wait<1>();
      __syncthreads();
      if (warp_seen_.first < key + kBlock && warp_seen_.end > key) add_block(stage, key);
      const int next = key + kBlock;
      if (next % kChunkKeys == 0 || next >= end) Rows::finish_chunk(key / kChunkKeys, next >= end);
      __syncthreads();
    }
    copy_async_wait<0>();
  }

 private:
  __device__ void load_queries() {
    const int rows = tile_.queries * op_.share;
    for (int i = 0; i < kWarpRows; ++i) {
      const int row = first_row_ + i;
      Elements::store_query(queries_, i, row < rows ? Rows::query(row) : nullptr, op_.dim);
    }
    __syncwarp();
    Rows::set_scale(queries_);
  }

  // Of packed rows of floats, whose width may be no multiple of 8. Pages have zeros of their own.
  __device__ void clear_padding() {
    if (op_.pages != nullptr || op_.dim % 8 == 0) return;
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
      if (op_.pages != nullptr) {
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
        from +=
            page * op_.page_bytes + tile_.kv_head * op_.head_bytes + in_page * op_.row_bytes + 16 * vector;
      }
      const bool scales = Elements::kScales == RowScales::kBlocks && vector == vectors - 1;
      const int to = scales ? kD : 16 * vector;
      copy_async<16>(keys + row * Elements::kKeyPitch + to, from, there);
      copy_async<16>(values + row * Elements::kValuePitch + to, there ? from + op_.values_offset : from,
                     there);
    }
    if constexpr (Elements::kScales == RowScales::kOne) {
      if (warp_ != 0 || lane_ >= kBlock) return;
      const bool there = place.page >= 0;
      const unsigned char* from = op_.pages;
      if (there) {
        from +=
            place.page * op_.page_bytes + tile_.kv_head * op_.head_bytes + op_.scales_offset + 4 * place.row;
      }
      copy_async<4>(keys + lane_ * Elements::kKeyPitch + kD, from, there);
      copy_async<4>(values + lane_ * Elements::kValuePitch + kD, there ? from + 4 * op_.page_tokens : from,
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
      const int64_t k = there ? source * op_.k_token + tile_.kv_head * op_.k_head + d : 0;
      const int64_t v = there ? source * op_.v_token + tile_.kv_head * op_.v_head + d : 0;
      copy_async<4 * kFloats>(keys + row * Elements::kKeyPitch + 4 * d, op_.k + k, there);
      copy_async<4 * kFloats>(values + row * Elements::kValuePitch + 4 * d, op_.v + v, there);
    }
  }

  __device__ void add_block(int stage, int key) {
    const unsigned char* keys = shared_ + stage * Shape::kStage;
    float scores[kTiles][4];
    Elements::template multiply_keys<kTiles>(queries_, keys, op_.dim, lower_rows_, scores);
    Rows::template shape_scores<kTiles>(key, scores);
    float factor[2];
    Rows::template weigh<kTiles>(scores, factor);
    Rows::rescale(factor);
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
      Elements::template add_values<kOutTiles>(keys + Shape::kKeyStage, k, 0, op_.dim, lower_rows_, scores[k],
                                               out_);
    }
  }

  unsigned char* shared_;
  unsigned char* queries_;
};

}  // namespace qiao::cuda

// What a warp of prefill does with its 16 rows in products of 16 bits, whoever multiplies: their queries, and
// what they came to in earlier chunks, which waits in shared memory, where each thread keeps its own.
#pragma once

#include "backend/cuda/attention_half.h"
#include "backend/cuda/attention_rows.h"

namespace qiao::cuda {

// Of a warp, for earlier chunks; its queries come through them.
template <template <int> class Kind, int kD>
constexpr int earlier_bytes() {
  constexpr int kBytes = kWarpRows * kD * 4;
  static_assert(Kind<kD>::kQueryBytes <= kBytes);
  return kBytes;
}

template <template <int> class Kind, int kD>
class RoundedRows : protected AttentionRows<Kind<kD>, kD / 8> {
 protected:
  using Elements = Kind<kD>;
  using Rows = AttentionRows<Elements, kD / 8>;
  static constexpr int kOutTiles = kD / 8;
  using Rows::op_, Rows::tile_, Rows::lane_, Rows::warp_, Rows::first_row_, Rows::out_;

  // `earlier`: earlier_bytes for each of the block's `warps`.
  __device__ RoundedRows(const AttentionArguments& op, const AttentionTile& tile, int warps,
                         unsigned char* earlier)
      : Rows(op, tile, static_cast<int>(threadIdx.x / 32), warps, 0),
        earlier_(earlier + warp_ * earlier_bytes<Kind, kD>()) {}

  __device__ void load_queries() {
    constexpr int kTogether = 8;  // rows that are asked for at once
    const int rows = tile_.queries * op_.share;
    const int query = query_of(op_, tile_, first_row_);
    int head = first_row_ - query * op_.share;  // of the row's group; counted on, as divisions take long
    const float* from = Rows::query(first_row_);
#pragma unroll
    for (int first = 0; first < kWarpRows; first += kTogether) {
      typename Elements::Query queries[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        queries[i] = Elements::take_query(first_row_ + first + i < rows ? from : nullptr, op_.dim);
        from += op_.q_head;
        if (++head == op_.share) head = 0, from += op_.q_token - op_.share * op_.q_head;
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) Elements::put_query(earlier_, first + i, queries[i]);
    }
    __syncwarp();
    Rows::set_scale(earlier_);
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) Elements::load_query(earlier_, k, queries_[k]);
    __syncwarp();  // before what is earlier takes their place
  }

  // The chunk's results join those of the ones before it; `last`: and are all.
  __device__ void finish(int chunk, bool last) {
    join_results(Rows::join_chunk(chunk), last);
    if (!last) Rows::start_chunk();
  }
  __device__ void join_results(const typename Rows::Join& join, bool last) {
    auto* earlier = reinterpret_cast<float4*>(earlier_) + lane_;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
      float4 had = make_float4(0, 0, 0, 0);
      if (join.had[0] || join.had[1]) had = earlier[32 * n];
      const float4 all =
          make_float4(Rows::joined(join, 0, out_[n][0], had.x), Rows::joined(join, 0, out_[n][1], had.y),
                      Rows::joined(join, 1, out_[n][2], had.z), Rows::joined(join, 1, out_[n][3], had.w));
      if (!last) {
        earlier[32 * n] = all;
        continue;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = first_row_ + lane_ / 4 + 8 * i, d = 8 * n + 2 * (lane_ % 4);
        if (!Rows::is_valid(i)) continue;
        float* to = op_.out + Rows::token(row) * op_.out_token + Rows::head(row) * op_.out_head + d;
        if (d < op_.dim) to[0] = (i == 0 ? all.x : all.z) / Rows::total_sum_[i];
        if (d + 1 < op_.dim) to[1] = (i == 0 ? all.y : all.w) / Rows::total_sum_[i];
      }
    }
    if (!last) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (Rows::is_valid(i)) Rows::store_log_sum_exp(i);
    }
  }

  unsigned char* earlier_;
  uint32_t queries_[kD / 16][4];
};

}  // namespace qiao::cuda

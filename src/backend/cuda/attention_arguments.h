// What attention's kernels are given, and who launches them.
#pragma once

#include "backend/cuda/attention_order.h"
#include "tensor/tensor.h"

namespace qiao::cuda {

struct AttentionArguments {
  const float* q;
  float* out;
  int64_t q_token, q_head, out_token, out_head;  // strides
  // Pages, or where `table` is null packed rows: floats at k and v, or, where there are pages, those of one,
  // a row a token.
  const unsigned char* pages;
  int64_t row_bytes, head_bytes, page_bytes;
  int64_t values_offset,
      scales_offset;  // from a key to its value; from a head's first key, where rows have one
  int page_tokens;
  const int32_t* table;  // [S, M]
  int64_t table_row;
  const int32_t* lengths;
  const float *k, *v;
  int64_t k_token, k_head, v_token, v_head;
  bool vectors;  // rows are whole vectors of 16 bytes at multiples of 16

  const int32_t* starts;  // of queries; packed rows: of keys too
  // Table, lengths, starts and the pages' rows, but those of the queries themselves, are there before this
  // kernel begins (CudaKvPages::others_are_there).
  bool early;
  int sequences, heads, kv_heads, share, dim;
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
  unsigned* tickets;                             // [S, key/value heads], zeros between launches
};

__device__ inline bool is_split(const AttentionArguments& op, int queries, int length) {
  return queries <= op.split_queries && chunks_of(queries, length, op.window).count <= op.slots;
}

// How a step is cut into blocks.
struct AttentionLaunch {
  const char* name;
  unsigned chunks;    // at most so many chunks there are, all key/value heads'; 0: none are computed apart
  int64_t tile_rows;  // of one key/value head, which tiles of so many warps take
  int tile_warps;
  int block_shared_bytes;  // the most that the device has
  bool rounded;            // products of 16 bits where pages' numbers have no more
  int multiprocessors;
};

// attention_f32.cu and so on: each compiles by itself.
void launch_attention_f32(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op);
void launch_attention_q8(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op);
void launch_attention_f8(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op);
void launch_attention_f16(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op);
void launch_attention_bf16(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op);

// Whether rows [T, heads, D] are whole vectors of 16 bytes, each at a multiple of that.
inline bool rows_of_vectors(const Tensor& t) {
  return aligned_16(t.data) && t.shape[2] % 4 == 0 && t.stride[0] % 4 == 0 && t.stride[1] % 4 == 0;
}

}  // namespace qiao::cuda

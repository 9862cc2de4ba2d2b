#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace qiao::cpu {

inline constexpr int64_t kBlockKeys = 64;  // the online softmax's step, aligned to key 0
inline constexpr int64_t kBlockGroups = kBlockKeys / 16;

// What attention has so far of some rows (a row: one query of one head). A row without keys yet has sum 0.
struct AttentionRows {
  float* largest;  // [rows]: of its scores
  float* sum;      // [rows]: of exp(score - largest)
  float* out;      // [rows, pitch]: of exp(score - largest) * value, pitch a multiple of 16
};

// Where the groups of 16 keys of a block lie.
struct AttentionGroups {
  const void* keys[kBlockGroups];    // each group's [D][16], with scales as kv_pages.h has them
  const void* values[kBlockGroups];  // each group's [16][pitch], the same
};

// One block of keys, met by some rows that all see its keys [first, end) and no others.
struct AttentionBlock {
  AttentionGroups here;
  AttentionGroups next;  // fetched into L2 meanwhile: those of the next block, or here again
  int64_t first, end;    // in [0, 64]; groups without such a key are not read
  const float* q;        // [rows, D]
  int64_t rows, dim, pitch;
  float scale, soft_cap;
  float* scores;      // scratch: [rows, 64] and one more a row
  const float* bias;  // [rows, 64]: added to the scaled scores; or null
};

// The way back through the softmax of a block of keys, for some queries of one head, one position apart.
struct AttentionSlopes {
  float* scores;             // [rows, 64]: q·k before, p after
  float* products;           // [rows, 64]: dout·v before, the gradient of q·k after
  const float* log_sum_exp;  // of row r at [r * row_step]
  const float* delta;        // the same
  int64_t row_step, rows;
  float scale, soft_cap;
  // Row r sees keys [position + r - window + 1, position + r] of the block's (window 0: from the first), or
  // all `keys` of them where attention is not causal. What it does not see becomes 0 in both.
  int64_t keys, position, window;
  bool causal;
};

struct AttentionKernels {
  // Adds a block to what the rows have.
  void (*add_f32)(const AttentionBlock& block, const AttentionRows& rows);
  void (*add_f16)(const AttentionBlock& block, const AttentionRows& rows);
  void (*add_bf16)(const AttentionBlock& block, const AttentionRows& rows);
  void (*add_q8)(const AttentionBlock& block, const AttentionRows& rows);
  void (*add_f8)(const AttentionBlock& block, const AttentionRows& rows);
  // Adds what later keys gave, `more`, to what earlier ones gave.
  void (*merge)(const AttentionRows& rows, const AttentionRows& more, int64_t count, int64_t pitch);
  // out[0, dim) = rows' row / its sum.
  void (*finish)(const AttentionRows& rows, int64_t row, int64_t pitch, int64_t dim, float* out);
  // For the way back. block.scores = block.q times the keys of block.here, F32: the very sums of add_f32.
  void (*dots)(const AttentionBlock& block);
  float (*dot)(const float* a, const float* b, int64_t count);
  void (*gradients)(const AttentionSlopes& slopes);
};
extern const AttentionKernels kAttentionGeneric, kAttentionAvx2, kAttentionAvx512;

}  // namespace qiao::cpu

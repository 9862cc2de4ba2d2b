// What linear, grouped_linear and gather share: activations brought to the form that the compute policy asks
// for, and the product of some of their rows with a pair of a weight's groups.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "backend/backend.h"
#include "backend/cpu/linear_kernels.h"
#include "backend/cpu/weight_layout.h"
#include "base/thread_pool.h"

namespace qiao::cpu {

inline constexpr int64_t kRowBlock = 256;  // rows of x that a pair of groups is multiplied with at a time

// What one thread needs.
struct MatmulScratch {
  alignas(64) std::array<float, static_cast<size_t>(kRowBlock* kPair * 16)> sums;
  alignas(64) std::array<uint8_t, static_cast<size_t>(kPair* kMaxChunk * 16)> quants;
  alignas(64) std::array<float, static_cast<size_t>(kPair * 64 * kMaxChunk / kTile)> scales;
  alignas(64) std::array<float, static_cast<size_t>(kPair* kMaxChunk * 16)> floats;
  alignas(64) std::array<float, static_cast<size_t>(kRowBlock* kPair * 16)> blocks;  // sums of F8_128
};

// T rows of K activations. What a policy does not need is null.
struct Activations {
  Compute compute = Compute::kF32;
  int64_t columns = 0;
  const float* floats = nullptr;  // as given, or rounded to BF16, or the numbers of kF8
  int64_t floats_stride = 0;
  const uint16_t* pairs = nullptr;  // BF16
  int64_t pairs_stride = 0;         // elements, even
  const int8_t* quants = nullptr;
  int64_t quants_stride = 0;
  const TileMeta* meta = nullptr;
  int64_t meta_stride = 0;
  const float* f8_scales = nullptr;  // [T, K / kF8Block]
};

// Workspace of a product of T rows: the activations, then a scratch a thread.
size_t matmul_workspace_bytes(int64_t rows, int64_t columns, Compute compute, int threads);
Activations prepare(const Tensor& x, const CpuWeight& weight, Compute compute, const LinearKernels& kernels,
                    ThreadPool& pool, std::byte* workspace);
MatmulScratch* scratches(int64_t rows, int64_t columns, Compute compute, std::byte* workspace);

// scratch.sums[t][2][16] = rows [row, row + rows) of x by `groups` (1 or 2) panels; rows <= kRowBlock.
void multiply_pair(const LinearKernels& kernels, const CpuWeight::Panels& panels,
                   std::array<const std::byte*, kPair> panel, int groups, const Activations& activations,
                   int64_t row, int64_t rows, MatmulScratch& scratch);

// F32 [elements][16 rows] of a chunk of a group: in scratch, or the chunk itself where it is F32.
const float* floats_of(const LinearKernels& kernels, const CpuWeight::Panels& panels, const std::byte* chunk,
                       int64_t elements, MatmulScratch& scratch);

// The pairs of groups of one expert, numbered through its segments.
int64_t pair_count(const CpuWeight& weight);
struct PairOfGroups {
  const CpuWeight::Panels* panels;
  int64_t group;  // the first
  int groups;     // 1 or 2
  int64_t column() const { return panels->first_row + group * kGroupRows; }
  int64_t columns() const {
    return std::min<int64_t>(groups * kGroupRows, panels->rows - group * kGroupRows);
  }
};
PairOfGroups find_pair(const CpuWeight& weight, int64_t index);
int64_t pair_of_row(const CpuWeight& weight, int64_t row);  // the pair that holds it
inline std::array<const std::byte*, kPair> panels_of(const CpuWeight& weight, int64_t expert,
                                                     const PairOfGroups& pair) {
  return {weight.panel(expert, *pair.panels, pair.group),
          weight.panel(expert, *pair.panels, pair.group + pair.groups - 1)};
}

// Rows of x that a pair is multiplied with before the next, at most kRowBlock.
int64_t row_block(int64_t rows, int64_t columns, Compute compute);
// Pairs (of so many products of `rows` rows) that a thread takes at a time.
int64_t pair_grain(const CpuWeight& weight, int64_t tasks, int64_t rows, int threads);

// The ops, for a given set of instructions (tests run them for each that the machine has).
size_t linear_workspace_bytes(const Linear& op, int threads);
size_t linear_workspace_bytes(const GroupedLinear& op, int threads);
void run_linear(const Linear& op, const LinearKernels& kernels, ThreadPool& pool);
// Some pairs of op's weight alone: op.y's first column is the product with the weight's row `first_column`. A
// pair that begins before it writes up to 31 columns before op.y's first.
struct RunOfPairs {
  int64_t first, count, first_column;
};
void multiply_pairs(const Linear& op, const Activations& activations, const RunOfPairs& run,
                    MatmulScratch* scratch, const LinearKernels& kernels, ThreadPool& pool);
void run_grouped_linear(const GroupedLinear& op, const LinearKernels& kernels, ThreadPool& pool);
void run_gather(const Gather& op, const LinearKernels& kernels, ThreadPool& pool);

}  // namespace qiao::cpu

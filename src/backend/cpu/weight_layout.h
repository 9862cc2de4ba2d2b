// How the CPU keeps a weight: "interleave 16".
//
// Rows stand in groups of 16 (the last of a segment padded with zeros), one SIMD lane a row, so that a lane
// walks its own row in ascending k whatever the number of activation rows: batch invariance by construction.
// Along k a group is cut into chunks of at most kMaxChunk elements. A chunk is contiguous: for each field of
// the file's block (quants first, scales last) a plane [block][unit][16 rows], a unit being the 4 bytes (2
// for half-precision scales) that are moved whole. So a dword of four 8-bit quants, or of four nibble pairs,
// of 16 rows is one 64-byte vector, and unpacking a format is the same few shifts as for one row of the file.
// Only two fields are changed on the way, both reversibly: 8-bit quants are kept with the sign bit flipped
// (unsigned, as vpdpbusd wants its first operand), and the fifth bits of Q5_0 and Q5_1 are transposed from
// [quad][byte] to [byte][quad]. Memory is the file's, plus the padding of the last group.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/weight.h"
#include "base/thread_pool.h"

namespace qiao::cpu {

inline constexpr int64_t kGroupRows = 16;
inline constexpr int64_t kTile = 32;       // elements of k that share a scale of the activations
inline constexpr int64_t kMaxChunk = 640;  // elements of k unpacked at a time: 2 groups fit the L1 cache

enum class Twist : uint8_t { kNone, kFlipSigns, kTransposeBits };

struct BlockField {
  int offset;  // in the file's block
  int bytes;
  int unit;  // 1, 2 or 4 bytes
  Twist twist = Twist::kNone;
};

// The fields of one block of a format, in the order of their planes.
struct BlockLayout {
  int count;
  int quants;  // of the fields: the first ones; scales follow
  std::array<BlockField, 4> fields;
};

const BlockLayout& block_layout(DType dtype);

// Elements of k in every chunk but the last of a row; a multiple of 64 and of the format's block.
int64_t chunk_elements(DType dtype, int64_t columns);

// Bytes of `elements` elements of a group.
inline int64_t chunk_bytes(DType dtype, int64_t elements) {
  // Odd tails of BF16 are padded to a pair.
  return kGroupRows * (dtype == DType::kBF16 ? (elements + 1) / 2 * 4 : row_bytes(dtype, elements));
}

// Where the scales of a group's chunk of a block format begin.
int64_t scales_offset(DType dtype, int64_t elements);

// Those of a chunk of F8_128: [block][16 rows].
inline const float* f8_scales(const std::byte* chunk, int64_t elements) {
  return reinterpret_cast<const float*>(chunk + elements * kGroupRows);
}

// Bytes from a group to the next: 64-byte aligned.
int64_t panel_bytes(DType dtype, int64_t columns);

// rows in [1, 16] rows of a file, to and from a panel. Unpacking gives one row back.
void pack_panel(DType dtype, int64_t columns, int64_t rows, const std::byte* file_rows, std::byte* panel);
void unpack_row(DType dtype, int64_t columns, int64_t row_in_group, const std::byte* panel,
                std::byte* file_row);

class CpuWeight final : public Weight {
 public:
  struct Panels {
    DType dtype;
    int64_t first_row, rows;  // of an expert
    int64_t groups;
    int64_t panel_bytes;
    int64_t offset;  // of the first panel, in an expert
    int64_t chunk;   // elements
  };
  using Memory = std::shared_ptr<std::byte>;

  // Bytes that a source will take.
  static int64_t bytes_for(const WeightSource& source);
  // Lays the source out in `memory` (bytes_for(source) bytes, 64-byte aligned), in parallel.
  CpuWeight(const WeightSource& source, Memory memory, ThreadPool& pool);

  size_t bytes() const override { return static_cast<size_t>(experts() * expert_bytes_); }
  const std::vector<Panels>& panels() const { return panels_; }
  const std::byte* expert(int64_t e) const { return memory_.get() + e * expert_bytes_; }
  const std::byte* panel(int64_t e, const Panels& p, int64_t group) const {
    return expert(e) + p.offset + group * p.panel_bytes;
  }
  void read(int64_t expert, size_t segment, std::byte* bytes, ThreadPool& pool) const;
  // values [N, K], rounded to each segment's dtype: F32, F16, BF16 or F8_128.
  void write(int64_t expert, const float* values, ThreadPool& pool);

 private:
  // The segment of an expert's group; `group` becomes its index in that segment.
  size_t segment_of(int64_t& group) const;
  void write_f8(int64_t expert, const Panels& panels, const float* values, ThreadPool& pool);
  void pack_group(const WeightSource& source, int64_t expert, int64_t group);
  // Tells the source that up to `most` groups from this one on are laid out; returns how many, all of one
  // part.
  int64_t give_back(const WeightSource& source, int64_t expert, int64_t group, int64_t most) const;

  Memory memory_;
  int64_t expert_bytes_ = 0;
  std::vector<Panels> panels_;
};

}  // namespace qiao::cpu

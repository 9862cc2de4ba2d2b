#include "backend/cpu/weight_layout.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "tensor/fp8.h"
#include "tensor/half.h"

namespace qiao::cpu {
namespace {

// Laid out between two calls of WeightSource::done_with.
constexpr int64_t kBatchBytes = int64_t{16} << 20;

constexpr BlockLayout kNibbles32 = {2, 1, {{{2, 16, 4}, {0, 2, 2}}}};  // Q4_0, IQ4_NL

constexpr BlockLayout layout_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return {1, 1, {{{0, 4, 4}}}};
    case DType::kF16:
      return {1, 1, {{{0, 2, 2}}}};
    case DType::kBF16:  // a pair of k: what vdpbf16ps takes in a lane
      return {1, 1, {{{0, 4, 4}}}};
    case DType::kQ4_0:
    case DType::kIQ4_NL:
      return kNibbles32;
    case DType::kQ4_1:
      return {2, 1, {{{4, 16, 4}, {0, 4, 2}}}};
    case DType::kQ5_0:
      return {3, 2, {{{6, 16, 4}, {2, 4, 4, Twist::kTransposeBits}, {0, 2, 2}}}};
    case DType::kQ5_1:
      return {3, 2, {{{8, 16, 4}, {4, 4, 4, Twist::kTransposeBits}, {0, 4, 2}}}};
    case DType::kQ8_0:
      return {2, 1, {{{2, 32, 4, Twist::kFlipSigns}, {0, 2, 2}}}};
    case DType::kQ2_K:
      return {3, 1, {{{16, 64, 4}, {0, 16, 4}, {80, 4, 2}}}};
    case DType::kQ3_K:
      return {4, 2, {{{32, 64, 4}, {0, 32, 4}, {96, 12, 4}, {108, 2, 2}}}};
    case DType::kQ4_K:
      return {3, 1, {{{16, 128, 4}, {4, 12, 4}, {0, 4, 2}}}};
    case DType::kQ5_K:
      return {4, 2, {{{48, 128, 4}, {16, 32, 4}, {4, 12, 4}, {0, 4, 2}}}};
    case DType::kQ6_K:
      return {4, 2, {{{0, 128, 4}, {128, 64, 4}, {192, 16, 4}, {208, 2, 2}}}};
    case DType::kIQ4_XS:
      return {3, 1, {{{8, 128, 4}, {4, 4, 4}, {0, 4, 2}}}};
    case DType::kMXFP4:
      return {2, 1, {{{1, 16, 4}, {0, 1, 1}}}};
    case DType::kF8_128:
      return {2, 1, {{{0, 128, 4}, {128, 4, 4}}}};
    default:
      return {0, 0, {}};
  }
}

constexpr auto kLayouts = [] {
  std::array<BlockLayout, kDTypeCount> layouts{};
  for (int i = 0; i < kDTypeCount; ++i) layouts[static_cast<size_t>(i)] = layout_of(static_cast<DType>(i));
  return layouts;
}();

// Bit 8 i + v of the result is bit 4 v + i of the word (i < 4, v < 8), and back. Moving bit 4 v + i to 8 i +
// v rotates the five bits of its position by two: two perfect unshuffles.
uint32_t swap_bits(uint32_t x, uint32_t mask, int distance) {
  const uint32_t t = (x ^ (x >> distance)) & mask;
  return x ^ t ^ (t << distance);
}
uint32_t unshuffle(uint32_t x) {
  x = swap_bits(x, 0x22222222u, 1);
  x = swap_bits(x, 0x0c0c0c0cu, 2);
  x = swap_bits(x, 0x00f000f0u, 4);
  return swap_bits(x, 0x0000ff00u, 8);
}
uint32_t shuffle(uint32_t x) {
  x = swap_bits(x, 0x0000ff00u, 8);
  x = swap_bits(x, 0x00f000f0u, 4);
  x = swap_bits(x, 0x0c0c0c0cu, 2);
  return swap_bits(x, 0x22222222u, 1);
}

uint32_t twisted(uint32_t word, Twist twist) {
  if (twist == Twist::kFlipSigns) return word ^ 0x80808080u;
  return twist == Twist::kTransposeBits ? unshuffle(unshuffle(word)) : word;
}
uint32_t untwisted(uint32_t word, Twist twist) {
  if (twist == Twist::kFlipSigns) return word ^ 0x80808080u;
  return twist == Twist::kTransposeBits ? shuffle(shuffle(word)) : word;
}

// The block as the layout sees it: BF16 goes by pairs.
int block_elements(DType dtype) { return dtype == DType::kBF16 ? 2 : traits(dtype).block_elements; }
int block_bytes(DType dtype) { return dtype == DType::kBF16 ? 4 : traits(dtype).block_bytes; }

// One plane of a chunk: to[unit of block][16 rows] from 16 rows, `step` bytes from a block to the next.
template <typename Unit>
void pack_plane(int64_t blocks, int units, int step, const std::array<const std::byte*, kGroupRows>& from,
                Twist twist, std::byte* to) {
  for (int64_t b = 0; b < blocks; ++b) {
    for (int u = 0; u < units; ++u, to += kGroupRows * sizeof(Unit)) {
      const int64_t at = b * step + u * static_cast<int>(sizeof(Unit));
      std::array<Unit, kGroupRows> lanes;
      for (size_t r = 0; r < kGroupRows; ++r) std::memcpy(&lanes[r], from[r] + at, sizeof(Unit));
      if (sizeof(Unit) == 4 && twist != Twist::kNone) {
        for (Unit& lane : lanes) lane = static_cast<Unit>(twisted(static_cast<uint32_t>(lane), twist));
      }
      std::memcpy(to, lanes.data(), sizeof lanes);
    }
  }
}

}  // namespace

const BlockLayout& block_layout(DType dtype) { return kLayouts[static_cast<size_t>(dtype)]; }

int64_t chunk_elements(DType dtype, int64_t columns) {
  const int64_t step = std::max<int64_t>(64, traits(dtype).block_elements);
  const int64_t most = kMaxChunk / step * step;
  const int64_t chunks = (columns + most - 1) / most;
  return ((columns + chunks - 1) / chunks + step - 1) / step * step;
}

int64_t scales_offset(DType dtype, int64_t elements) {
  const BlockLayout& layout = block_layout(dtype);
  int64_t bytes = 0;  // of a block's quants
  for (int f = 0; f < layout.quants; ++f) bytes += layout.fields[static_cast<size_t>(f)].bytes;
  return kGroupRows * bytes * (elements / block_elements(dtype));
}

int64_t panel_bytes(DType dtype, int64_t columns) { return (chunk_bytes(dtype, columns) + 63) / 64 * 64; }

void pack_panel(DType dtype, int64_t columns, int64_t rows, const std::byte* file_rows, std::byte* panel) {
  // Absent rows read from a row of zeros; so does the second half of BF16's odd last pair.
  const bool odd = dtype == DType::kBF16 && columns % 2 != 0;
  const int64_t row = row_bytes(dtype, columns);
  const int64_t padded = row + (odd ? 2 : 0);
  std::vector<std::byte> spare;
  std::array<const std::byte*, kGroupRows> from;
  if (rows < kGroupRows || odd) {
    spare.resize(static_cast<size_t>(kGroupRows * padded));
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(spare.data() + r * padded, file_rows + r * row, static_cast<size_t>(row));
    }
    file_rows = spare.data();
  }
  for (int64_t r = 0; r < kGroupRows; ++r) {
    from[static_cast<size_t>(r)] = file_rows + r * (spare.empty() ? row : padded);
  }

  const int64_t chunk = chunk_elements(dtype, columns);
  const BlockLayout& layout = block_layout(dtype);
  const int step = block_bytes(dtype);
  for (int64_t k = 0; k < columns; k += chunk) {
    const int64_t blocks = (std::min(chunk, columns - k) + block_elements(dtype) - 1) / block_elements(dtype);
    for (int f = 0; f < layout.count; ++f) {
      const BlockField& field = layout.fields[static_cast<size_t>(f)];
      std::array<const std::byte*, kGroupRows> at;
      for (size_t r = 0; r < kGroupRows; ++r) {
        at[r] = from[r] + k / block_elements(dtype) * step + field.offset;
      }
      const int units = field.bytes / field.unit;
      if (field.unit == 4) pack_plane<uint32_t>(blocks, units, step, at, field.twist, panel);
      if (field.unit == 2) pack_plane<uint16_t>(blocks, units, step, at, field.twist, panel);
      if (field.unit == 1) pack_plane<uint8_t>(blocks, units, step, at, field.twist, panel);
      panel += kGroupRows * blocks * field.bytes;
    }
  }
}

void unpack_row(DType dtype, int64_t columns, int64_t row_in_group, const std::byte* panel,
                std::byte* file_row) {
  const int64_t chunk = chunk_elements(dtype, columns);
  const BlockLayout& layout = block_layout(dtype);
  const int64_t row = row_bytes(dtype, columns);
  for (int64_t k = 0; k < columns; k += chunk) {
    const int64_t blocks = (std::min(chunk, columns - k) + block_elements(dtype) - 1) / block_elements(dtype);
    for (int f = 0; f < layout.count; ++f) {
      const BlockField& field = layout.fields[static_cast<size_t>(f)];
      for (int64_t b = 0; b < blocks; ++b) {
        for (int at = 0; at < field.bytes; at += field.unit) {
          uint32_t word = 0;
          std::memcpy(&word, panel + row_in_group * field.unit, static_cast<size_t>(field.unit));
          word = untwisted(word, field.twist);
          const int64_t to = (k / block_elements(dtype) + b) * block_bytes(dtype) + field.offset + at;
          std::memcpy(file_row + to, &word, static_cast<size_t>(std::min<int64_t>(field.unit, row - to)));
          panel += kGroupRows * field.unit;
        }
      }
    }
  }
}

int64_t CpuWeight::bytes_for(const WeightSource& source) {
  int64_t bytes = 0;
  for (const WeightPart& part : source.parts) {
    bytes += (part.rows + kGroupRows - 1) / kGroupRows * panel_bytes(part.dtype, source.columns);
  }
  return bytes;
}

CpuWeight::CpuWeight(const WeightSource& source, Memory memory, ThreadPool& pool)
    : Weight(source), memory_(std::move(memory)) {
  int64_t groups = 0;
  for (const Segment& segment : segments()) {
    const int64_t count = (segment.rows + kGroupRows - 1) / kGroupRows;
    const int64_t panel = cpu::panel_bytes(segment.dtype, columns());
    panels_.push_back({segment.dtype, segment.first_row, segment.rows, count, panel, expert_bytes_,
                       chunk_elements(segment.dtype, columns())});
    expert_bytes_ += count * panel;
    groups += count;
  }
  // In batches, between which source bytes are given back.
  const int64_t all = experts() * groups;
  const int64_t batch = source.done_with ? std::max<int64_t>(1, kBatchBytes * groups / expert_bytes_) : all;
  for (int64_t from = 0; from < all; from += batch) {
    const int64_t to = std::min(from + batch, all);
    pool.parallel_for(to - from, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = from + begin; i < from + end; ++i) pack_group(source, i / groups, i % groups);
    });
    for (int64_t i = from; i < to && source.done_with;)
      i += give_back(source, i / groups, i % groups, to - i);
  }
}

size_t CpuWeight::segment_of(int64_t& group) const {
  size_t s = 0;
  for (; group >= panels_[s].groups; ++s) group -= panels_[s].groups;
  return s;
}

void CpuWeight::pack_group(const WeightSource& source, int64_t expert, int64_t group) {
  const size_t s = segment_of(group);
  const Panels& p = panels_[s];
  const int64_t first = group * kGroupRows;
  const WeightPart& part = source.parts[static_cast<size_t>(expert) * panels_.size() + s];
  pack_panel(p.dtype, columns(), std::min(kGroupRows, p.rows - first),
             part.bytes + first * row_bytes(p.dtype, columns()),
             memory_.get() + expert * expert_bytes_ + p.offset + group * p.panel_bytes);
}

int64_t CpuWeight::give_back(const WeightSource& source, int64_t expert, int64_t group, int64_t most) const {
  const size_t s = segment_of(group);
  const Panels& p = panels_[s];
  const int64_t count = std::min(most, p.groups - group), first = group * kGroupRows;
  const int64_t row = row_bytes(p.dtype, columns());
  const WeightPart& part = source.parts[static_cast<size_t>(expert) * panels_.size() + s];
  source.done_with(part.bytes + first * row, std::min(count * kGroupRows, p.rows - first) * row);
  return count;
}

void CpuWeight::read(int64_t expert, size_t segment, std::byte* bytes, ThreadPool& pool) const {
  const Panels& p = panels_[segment];
  const int64_t row = row_bytes(p.dtype, columns());
  pool.parallel_for(p.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      unpack_row(p.dtype, columns(), r % kGroupRows, panel(expert, p, r / kGroupRows), bytes + r * row);
    }
  });
}

// By the rows that share a scale: eight groups.
void CpuWeight::write_f8(int64_t expert, const Panels& p, const float* values, ThreadPool& pool) {
  const int64_t row = row_bytes(p.dtype, columns());
  pool.parallel_for((p.rows + kF8Block - 1) / kF8Block, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<std::byte> bytes(static_cast<size_t>(kF8Block * row));
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kF8Block, rows = std::min(kF8Block, p.rows - first);
      quantize_f8_of_bf16({values + first * columns(), static_cast<size_t>(rows * columns())}, rows,
                          columns(), bytes.data());
      for (int64_t r = 0; r < rows; r += kGroupRows) {
        pack_panel(
            p.dtype, columns(), std::min(kGroupRows, rows - r), bytes.data() + r * row,
            memory_.get() + expert * expert_bytes_ + p.offset + (first + r) / kGroupRows * p.panel_bytes);
      }
    }
  });
}

void CpuWeight::write(int64_t expert, const float* values, ThreadPool& pool) {
  for (const Panels& p : panels_) {
    if (p.dtype == DType::kF8_128) {
      write_f8(expert, p, values + p.first_row * columns(), pool);
      continue;
    }
    pool.parallel_for(p.groups, 1, [&](int64_t begin, int64_t end, int) {
      std::vector<uint16_t> halves(p.dtype == DType::kF32 ? 0 : static_cast<size_t>(kGroupRows * columns()));
      for (int64_t group = begin; group < end; ++group) {
        const int64_t first = group * kGroupRows, rows = std::min(kGroupRows, p.rows - first);
        const float* from = values + (p.first_row + first) * columns();
        const auto* bytes = reinterpret_cast<const std::byte*>(from);
        if (p.dtype != DType::kF32) {
          const float* end = from + rows * columns();
          if (p.dtype == DType::kF16) {
            std::transform(from, end, halves.begin(), [](float value) { return float_to_f16(value); });
          } else {
            std::transform(from, end, halves.begin(), [](float value) { return float_to_bf16(value); });
          }
          bytes = reinterpret_cast<const std::byte*>(halves.data());
        }
        pack_panel(p.dtype, columns(), rows, bytes,
                   memory_.get() + expert * expert_bytes_ + p.offset + group * p.panel_bytes);
      }
    });
  }
}

}  // namespace qiao::cpu

// Memory of weights that begins on ordinary pages and becomes huge beside the work.
#include "backend/cpu/weight_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>

#include "backend/cpu/memory.h"

namespace qiao::cpu {
namespace {

constexpr size_t kBytes = size_t{48} << 20;

// Bytes on huge pages in the mappings that [begin, begin + bytes) touches, as the kernel counts them.
size_t huge_bytes(const std::byte* begin, size_t bytes) {
  const auto first = reinterpret_cast<uintptr_t>(begin), last = first + bytes;
  std::ifstream smaps("/proc/self/smaps");
  size_t sum = 0;
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long long from = 0, to = 0, kilobytes = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx ", &from, &to) == 2)
      inside = from < last && to > first;
    else if (inside && std::sscanf(line.c_str(), "AnonHugePages: %llu", &kilobytes) == 1)
      sum += kilobytes << 10;
  }
  return sum;
}

// Whether the kernel can make huge pages of ordinary ones, and has as much memory in such pieces now.
bool kernel_collapses(size_t bytes) {
  void* memory = allocate_aligned(bytes + kHugePage);
  ::madvise(memory, bytes, MADV_NOHUGEPAGE);
  std::memset(memory, 1, bytes);
  ::madvise(memory, bytes, MADV_HUGEPAGE);
  const bool can = ::madvise(memory, bytes, 25 /* MADV_COLLAPSE */) == 0;
  free_aligned(memory);
  return can;
}

TEST(CpuWeightMemoryTest, OrdinaryPagesBecomeHugeAndKeepTheirBytes) {
  if (!kernel_collapses(kBytes)) GTEST_SKIP() << "this kernel cannot make huge pages of ordinary ones now";
  WeightMemory memory(std::chrono::microseconds(0));  // every first touch is slow
  const auto piece = memory.take(kBytes);
  for (size_t i = 0; i < kBytes; ++i) piece.get()[i] = static_cast<std::byte>(i % 251);
  memory.settle();
  const size_t huge = huge_bytes(piece.get(), kBytes);
  if (huge < kBytes - kHugePage && !kernel_collapses(kBytes))
    GTEST_SKIP() << "others have taken what memory there was in huge pages";
  EXPECT_GE(huge, kBytes - kHugePage);
  size_t wrong = 0;
  for (size_t i = 0; i < kBytes; ++i) wrong += piece.get()[i] != static_cast<std::byte>(i % 251);
  EXPECT_EQ(wrong, 0u);
}

TEST(CpuWeightMemoryTest, MemoryGoesWhileItIsMadeHuge) {
  WeightMemory memory(std::chrono::microseconds(0));
  for (int i = 0; i < 8; ++i) {
    const auto piece = memory.take(kBytes);
    std::memset(piece.get(), i, kBytes);
    if (i % 2 == 0) memory.settle();
  }
  memory.settle();  // of what is gone nothing is left to do
}

TEST(CpuWeightMemoryTest, SmallPiecesShareASlab) {
  WeightMemory memory;
  const auto first = memory.take(100), second = memory.take(1), third = memory.take(kBytes);
  EXPECT_EQ(second.get() - first.get(), 128);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first.get()) % kHugePage, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(third.get()) % kHugePage, 0u);
  EXPECT_EQ(memory.take(64).get() - first.get(), 192);
}

}  // namespace
}  // namespace qiao::cpu

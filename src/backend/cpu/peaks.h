// The machine's limits, by loops that do nothing else: what every share of a kernel's speed is of.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/backend.h"
#include "backend/cpu/isa.h"
#include "base/thread_pool.h"

namespace qiao::cpu {

// A loop of dependence-free instructions on one thread; returns the operations done (two a multiply-add).
using PeakLoop = double (*)(int64_t iterations);
struct PeakLoops {
  PeakLoop f32 = nullptr, bf16 = nullptr, int8 = nullptr;  // null: no such unit
  // Reads [data, data + bytes), bytes a multiple of 1024; returns something made of it.
  uint64_t (*read)(const std::byte* data, size_t bytes) = nullptr;
};

void add_peak_loops_avx2(PeakLoops& loops);
void add_peak_loops_avx512(PeakLoops& loops);
void add_peak_loops_vnni(PeakLoops& loops);
void add_peak_loops_bf16(PeakLoops& loops);

// Bandwidth is that of reading `buffer` bytes: many times the caches (within a quarter of what is free); 0:
// it is not measured.
DevicePeaks measure_peaks(Isa isa, ThreadPool& pool, size_t buffer = size_t{512} << 20);

}  // namespace qiao::cpu

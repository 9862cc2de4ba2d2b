#pragma once

#include <cstdint>

namespace qiao::cpu {

struct SampleCandidate {
  float value;
  int32_t id;
};

inline constexpr int kMassSteps = 8;

// Which of 64 tokens may still be drawn.
struct GumbelScan {
  const float* z;
  int64_t count;
  float least;  // of z kept; above -infinity
  float best;   // at most the best score so far
  uint64_t seed;
  uint32_t position, choice;
};

// NaN is never the largest, above anything, nor drawn.
struct SampleKernels {
  float (*largest)(const float* x, int64_t count);                           // -infinity where there is none
  int64_t (*find)(const float* x, int64_t count, float value);               // the first equal one, or -1
  double (*exp_sum)(const float* x, int64_t count, float largest);           // of exp(x - largest)
  void (*divide)(const float* x, int64_t count, float divisor, float* out);  // out may be x
  void (*mask)(const int32_t* words, int64_t count, float* x);               // -infinity where the bit is 0
  // How many of x lie in (after, until], appended to out with ids from first_id on.
  int64_t (*between)(const float* x, int64_t count, float after, float until, int32_t first_id,
                     SampleCandidate* out);
  // For each step: the sum of exp(x - largest) over x >= steps[i], and how many those are.
  void (*masses)(const float* x, int64_t count, float largest, const float* steps, double* sums,
                 int64_t* counts);
  // The tokens of [first, first + 64) whose z + Gumbel may reach `best`, as bits; first is a multiple of 64.
  uint64_t (*may_win)(const GumbelScan& scan, int64_t first);
};
extern const SampleKernels kSampleGeneric, kSampleAvx2, kSampleAvx512;

}  // namespace qiao::cpu

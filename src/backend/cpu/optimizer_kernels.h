#pragma once

#include <cstdint>

namespace qiao::cpu {

// AdamW's constants, each rounded once (ops/optimizer.h).
struct AdamWConstants {
  float gradient_scale;
  float beta1, beta1_rest, beta2, beta2_rest;  // rest: 1 - beta
  float decay;                                 // 1 - learning_rate * weight_decay
  float step_size;                             // learning_rate / (1 - beta1^step)
  float root;                                  // 1 / sqrt(1 - beta2^step)
  float epsilon;
};

// DynamicCodes by the upper bits of a number: a bucket of them holds one boundary at most. code_finder.h
// makes them.
struct CodeTables {
  const float* value;     // [256]
  const float* boundary;  // [256], the last infinite
  const uint8_t* first;   // of each bucket the code of its least; of negative numbers' behind the others'
  int32_t least, most;    // buckets below 2^-25 and above 1 are as those
  int32_t negatives;      // where they begin
  bool is_signed;
};

// A moment of one block of codes, at most 256, or of numbers of BF16.
struct KeptMoment {
  void* values;
  float* scale;              // of codes
  const CodeTables* tables;  // null: BF16
};

struct OptimizerKernels {
  double (*squares)(const float* x, int64_t count);  // their sum, in sixteen lanes
  void (*adamw)(const AdamWConstants& constants, const float* gradients, float* parameters,
                float* first_moment, float* second_moment, int64_t count);
  void (*adamw_kept)(const AdamWConstants& constants, const float* gradients, float* parameters,
                     const KeptMoment& first_moment, const KeptMoment& second_moment, int64_t count);
};
extern const OptimizerKernels kOptimizerGeneric, kOptimizerAvx2, kOptimizerAvx512;

}  // namespace qiao::cpu

#pragma once

#include "backend/ops/gated_activation.h"

namespace qiao::cpu {

struct GatedActivationKernels {
  void (*rows)(const GatedActivation& op, int64_t begin, int64_t end);
  void (*backward)(const GatedActivationBackward& op, int64_t begin, int64_t end);
  // x[i] = activation(x[i]): kSilu, kGelu or kGeluTanh, for linear's epilogue.
  void (*activate)(Activation activation, float* x, int64_t count);
};
extern const GatedActivationKernels kGatedActivationGeneric, kGatedActivationAvx2, kGatedActivationAvx512;

}  // namespace qiao::cpu

// Weights of a block format with x in 8 bits, a file for some formats each: matmul_mma.h, matmul_few.h.
#pragma once

#include "backend/cuda/matmul.h"

namespace qiao::cuda {

// False for a format that is not theirs.
bool launch_q8_of_32(const Stream& stream, const MatmulArguments& op, bool few);      // Q4_0 to Q8_0
bool launch_q8_of_tables(const Stream& stream, const MatmulArguments& op, bool few);  // IQ4_NL, IQ4_XS, MXFP4
bool launch_q8_of_256(const Stream& stream, const MatmulArguments& op, bool few);     // Q2_K to Q6_K

#define QIAO_Q8_CASE(type)                                    \
  case DType::type:                                           \
    few ? launch_few<QuantProduct<DType::type>>(stream, op)   \
        : launch_many<QuantProduct<DType::type>>(stream, op); \
    return true;

}  // namespace qiao::cuda

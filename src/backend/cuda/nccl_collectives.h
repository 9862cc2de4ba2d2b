// Collectives between GPUs: NCCL carries, and Qiao adds, for NCCL promises no order of its sums.
#pragma once

#include <memory>

#include "backend/collectives.h"
#include "backend/cuda/cuda_class.h"
#include "backend/cuda/nccl.h"
#include "parallel/communicator.h"

namespace qiao::cuda {

// One rank's, whose GPU is its own; all ranks call it together. All that is passed outlives what is made.
// Throws Error(kUnavailable), with NCCL's words, where the GPUs do not come together.
std::unique_ptr<Collectives> make_nccl_collectives(CudaBackend& backend, Communicator& communicator,
                                                   const Nccl& nccl);

}  // namespace qiao::cuda

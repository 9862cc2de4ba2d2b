// NCCL, looked for when it is first needed: the same program runs where it is missing. What is declared here
// is the C interface that libnccl.so.2 has kept since version 2.7 (NVIDIA's guide to NCCL, "API").
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace qiao::cuda {

struct NcclId {  // of a group of ranks, made by one of them
  char bytes[128];
};
struct NcclGroup;  // a rank's place in it

inline constexpr int kNcclSuccess = 0;  // of its results
inline constexpr int kNcclFloat = 7;    // of its dtypes

struct Nccl {
  int (*get_unique_id)(NcclId* id);
  int (*init_rank)(NcclGroup** group, int size, NcclId id, int rank);
  int (*abort)(NcclGroup* group);
  const char* (*error_string)(int result);
  int (*group_start)();
  int (*group_end)();
  int (*send)(const void* from, size_t count, int dtype, int peer, NcclGroup* group, cudaStream_t stream);
  int (*receive)(void* to, size_t count, int dtype, int peer, NcclGroup* group, cudaStream_t stream);
};

// The library's, once a process. Throws Error(kUnavailable) that says what to install.
const Nccl& find_nccl();

}  // namespace qiao::cuda

// How tests steer the stand-in: which devices there are, which call fails, what it saw.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

namespace qiao::stand_in {

struct Machine {
  int devices = 1;
  cudaError_t no_devices = cudaSuccess;  // what cudaGetDeviceCount says instead
  int major = 9, minor = 0;
  int multiprocessors = 4;
  int block_shared_bytes = 227 * 1024;  // what it says that a block may have
  uint64_t memory_bytes = uint64_t{4} << 30;
  bool pools = true;
  int driver_version = 13000, runtime_version = 13000;
  // Threads of a block in another order each block, so that what lacks a barrier shows, and the blocks of
  // some launches from the last one on; 0: ascending.
  uint64_t schedule_seed = 1;
  // Device memory cannot be touched but by kernels and copies: a host that reads it ends the process.
  bool guard_device_memory = false;
};

// A new machine: as the process had just begun. No Backend of the old one may be left.
void reset(const Machine& machine = {});

// The n-th call from now (1: the next) of the named function fails so, once. "" is any function, and
// "kernel" a kernel as it runs: the error then comes from what waits for it, and, as on a device, from every
// call after that (it is sticky).
void fail_call(const std::string& function, int64_t n, cudaError_t error);

// What kernels did wrong since reset(): "add_rms_norm.cu:41: …".
std::vector<std::string> faults();

struct Use {
  int64_t launches = 0;       // kernels that ran
  int64_t allocations = 0;    // of device memory that live
  uint64_t device_bytes = 0;  // that they take
  int64_t host_waits = 0;     // calls that waited for a stream or event with work left
  int64_t graph_launches = 0;
  int64_t resets = 0;  // of the device
  bool lost = false;   // an error stuck: nothing is given back any more
};
Use use();

}  // namespace qiao::stand_in

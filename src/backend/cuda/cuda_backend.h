// NVIDIA GPUs of compute capability 8.0 and more, made for the H200 (9.0): docs/h200.md.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace qiao {

// Device `options.device`. Error(kUnavailable), in one line with what to do, where there is none to use.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace qiao

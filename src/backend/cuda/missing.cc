#include <array>

#include "backend/cuda/cuda_class.h"

namespace qiao::cuda {
namespace {

constexpr std::string_view kNotYet = "not written yet";
constexpr std::array kMissing = {
    MissingOp{"kv_write", "serve", kNotYet},
    MissingOp{"attention_paged", "serve", kNotYet},
    MissingOp{"attention_varlen", "serve", kNotYet},
    MissingOp{"attention_varlen_backward", "train", kNotYet},
};

}  // namespace

std::span<const MissingOp> CudaBackend::missing() const { return kMissing; }

}  // namespace qiao::cuda

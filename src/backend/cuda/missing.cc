#include <array>

#include "backend/cuda/cuda_class.h"

namespace qiao::cuda {
namespace {

constexpr std::string_view kNotYet = "not written yet";
constexpr std::array kMissing = {
    MissingOp{"gather", "serve", kNotYet},
    MissingOp{"gather_rows", "serve", kNotYet},
    MissingOp{"linear", "serve", kNotYet},
    MissingOp{"grouped_linear", "serve", kNotYet},
    MissingOp{"moe_route", "serve", kNotYet},
    MissingOp{"moe_permute", "serve", kNotYet},
    MissingOp{"moe_combine", "serve", kNotYet},
    MissingOp{"layer_norm", "serve", kNotYet},
    MissingOp{"rope", "serve", kNotYet},
    MissingOp{"gated_activation", "serve", kNotYet},
    MissingOp{"sample", "serve", kNotYet},
    MissingOp{"write_weight", "train", kNotYet},
    MissingOp{"gather_backward", "train", kNotYet},
    MissingOp{"linear_backward", "train", kNotYet},
    MissingOp{"grouped_linear_backward", "train", kNotYet},
    MissingOp{"moe_route_backward", "train", kNotYet},
    MissingOp{"moe_permute_backward", "train", kNotYet},
    MissingOp{"moe_combine_backward", "train", kNotYet},
    MissingOp{"gated_activation_backward", "train", kNotYet},
    MissingOp{"token_logprob", "train", kNotYet},
    MissingOp{"token_logprob_backward", "train", kNotYet},
    MissingOp{"sum_of_squares", "train", kNotYet},
    MissingOp{"accumulate", "train", kNotYet},
    MissingOp{"adamw", "train", kNotYet},
    MissingOp{"muon", "train", kNotYet},
};

}  // namespace

std::span<const MissingOp> CudaBackend::missing() const { return kMissing; }

}  // namespace qiao::cuda

// rope, in place. A block has one token and up to 128 of a head's pairs; each thread has one pair, computes
// its cosine and sine once and turns that pair of every kHeadsAtOnce-th head. Limited by the memory's
// bandwidth where there are many tokens.
#include "backend/ops/rope.h"

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kernel.h"

namespace qiao::cuda {
namespace {

constexpr int kHeadsAtOnce = 8;

struct RopeHeads {
  float* data;  // null: absent
  int64_t token_stride, head_stride;
  int64_t heads;
};

struct RopeArguments {
  RopeHeads q, k;
  const int32_t* positions;
  const float* inverse_frequencies;
  int64_t pairs;
  unsigned tiles;  // blocks a token
  bool halves;
  float scale, turn;  // turn: the sine's scale
};

__device__ void turn_heads(const RopeArguments& op, const RopeHeads& of, int64_t token, int64_t pair,
                           float cosine, float sine) {
  const int64_t first = op.halves ? pair : 2 * pair, second = op.halves ? pair + op.pairs : 2 * pair + 1;
  for (int64_t h = threadIdx.y; h < of.heads; h += kHeadsAtOnce) {
    float* head = of.data + token * of.token_stride + h * of.head_stride;
    const float a = head[first], b = head[second];
    head[first] = fmaf(a, cosine, -(b * sine));
    head[second] = fmaf(b, cosine, a * sine);
  }
}

__global__ void __launch_bounds__(1024) rope_kernel(RopeArguments op) {
  begin_kernel();
  const int64_t token = blockIdx.x / op.tiles;
  const int64_t pair = int64_t{blockIdx.x % op.tiles} * blockDim.x + threadIdx.x;
  if (pair >= op.pairs) return;
  const float angle = static_cast<float>(op.positions[token]) * op.inverse_frequencies[pair];
  float sine = 0, cosine = 0;
  sincosf(angle, &sine, &cosine);
  cosine *= op.scale;
  sine *= op.turn;
  if (op.q.data != nullptr) turn_heads(op, op.q, token, pair, cosine, sine);
  if (op.k.data != nullptr) turn_heads(op, op.k, token, pair, cosine, sine);
}

RopeHeads heads_of(const Tensor& t) {
  if (!t.present()) return {};
  return {t.as<float>(), t.stride[0], t.stride[1], t.shape[1]};
}

}  // namespace

void CudaBackend::do_rope(const Rope& op) {
  RopeArguments a{heads_of(op.q), heads_of(op.k), op.positions.as<int32_t>(),
                  op.inverse_frequencies.as<float>()};
  a.pairs = op.inverse_frequencies.shape[0];
  a.halves = op.layout == Rope::Layout::kHalf;
  a.scale = op.scale, a.turn = op.inverse ? -op.scale : op.scale;
  const auto threads = static_cast<unsigned>(a.pairs > 96 ? 128 : ceil_div(a.pairs, 32) * 32);
  if (threads == 0) return;
  a.tiles = blocks_for(a.pairs, threads);
  launch("rope", stream_, rope_kernel, static_cast<unsigned>(op.positions.shape[0] * a.tiles),
         dim3(threads, kHeadsAtOnce), 0, a);
}

}  // namespace qiao::cuda

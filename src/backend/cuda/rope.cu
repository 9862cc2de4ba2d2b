// rope, in place. A block has one token, up to 128 of a head's pairs and some of the heads, q's and then k's;
// each thread has one pair of kOwn heads, whose loads are all on their way while it computes the pair's
// cosine and sine. One head a thread where there are few tokens, which wait for memory once; four where there
// are many, limited by the memory's bandwidth.
#include "backend/ops/rope.h"

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/rope_turn.h"

namespace qiao::cuda {
namespace {

constexpr int kHeadsAtOnce = 8;  // rows of threads in a block
constexpr int64_t kFewTokens = 64;

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

template <int kOwn>
__global__ void __launch_bounds__(128 * kHeadsAtOnce) rope_kernel(RopeArguments op) {
  begin_kernel();
  const int64_t token = blockIdx.x / op.tiles;
  const int64_t pair = int64_t{blockIdx.x % op.tiles} * blockDim.x + threadIdx.x;
  if (pair >= op.pairs) return;
  const int64_t first = op.halves ? pair : 2 * pair, second = op.halves ? pair + op.pairs : 2 * pair + 1;
  float* heads[kOwn];
  float a[kOwn], b[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t h = (int64_t{blockIdx.y} * kOwn + i) * kHeadsAtOnce + threadIdx.y, of_k = h - op.q.heads;
    heads[i] = of_k < 0            ? op.q.data + token * op.q.token_stride + h * op.q.head_stride
               : of_k < op.k.heads ? op.k.data + token * op.k.token_stride + of_k * op.k.head_stride
                                   : nullptr;
    a[i] = heads[i] == nullptr ? 0.0f : heads[i][first];
    b[i] = heads[i] == nullptr ? 0.0f : heads[i][second];
  }
  const Turn by = turn_of(op.positions[token], op.inverse_frequencies[pair], op.scale, op.turn);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (heads[i] == nullptr) continue;
    heads[i][first] = turned(a[i], b[i], by.cosine, -by.sine);
    heads[i][second] = turned(b[i], a[i], by.cosine, by.sine);
  }
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
  const auto run = [&](auto own) {
    const dim3 grid(static_cast<unsigned>(op.positions.shape[0] * a.tiles),
                    blocks_for(a.q.heads + a.k.heads, own() * kHeadsAtOnce));
    launch("rope", stream_, rope_kernel<own()>, grid, dim3(threads, kHeadsAtOnce), 0, a);
  };
  if (op.positions.shape[0] <= kFewTokens) {
    run(std::integral_constant<int, 1>());
  } else {
    run(std::integral_constant<int, 4>());
  }
}

}  // namespace qiao::cuda

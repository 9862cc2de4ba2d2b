// Routing to experts and back. moe_route has a warp a token, whose logits lie in shared memory; moe_permute
// is a counting sort: experts are counted by chunks of pairs, the chunks' sums give each its first place, and
// a pair's rank inside its chunk is counted. Rows are moved four elements a thread; limited by the memory's
// bandwidth.
#include "backend/ops/moe.h"

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/rows.h"

namespace qiao::cuda {
namespace {

constexpr int kRouteWarps = 4;

// How many warps a block has, and the bytes of its shared memory, for E experts.
struct RouteShape {
  unsigned warps;
  size_t shared_bytes;
  explicit RouteShape(int64_t experts)
      : warps(experts * 4 * kRouteWarps <= 48 * 1024 ? kRouteWarps : 1),
        shared_bytes(static_cast<size_t>(experts) * 4 * warps) {}
};

struct RouteArguments {
  const float* logits;
  int64_t logits_stride;
  int64_t tokens, experts, picks;
  bool sigmoid, normalize;
  float scale;
};

// A logit's part of the softmax before it is divided, or its sigmoid. In float64: picks that lie far below
// the largest logit would all be 0 in float32, and their sum with them.
__device__ double score(const RouteArguments& op, float logit, float largest) {
  const auto x = static_cast<double>(logit);
  return op.sigmoid ? 1.0 / (1.0 + exp(-x)) : exp(x - static_cast<double>(largest));
}
__device__ float largest_of(const RouteArguments& op, const float* logits) {
  float largest = -INFINITY;
  for (int64_t e = threadIdx.x % 32; e < op.experts; e += 32) largest = fmaxf(largest, logits[e]);
  return warp_max(largest);
}

// The lane of the largest logit that is not picked yet gets it; equals: the smaller expert.
struct BestExpert {
  float logit;
  int expert;
};
__device__ BestExpert best_of(BestExpert a, BestExpert b) {
  const bool second =
      b.expert >= 0 && (a.expert < 0 || b.logit > a.logit || (b.logit == a.logit && b.expert < a.expert));
  return second ? b : a;
}

__global__ void __launch_bounds__(32 * kRouteWarps)
    moe_route_kernel(RouteArguments op, int32_t* ids, int64_t ids_stride, float* weights,
                     int64_t weights_stride) {
  begin_kernel();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t token = int64_t{blockIdx.x} * (blockDim.x / 32) + warp;
  if (token >= op.tokens) return;  // a warp for itself
  const float* logits = op.logits + token * op.logits_stride;
  float* left = shared_memory<float>() + warp * op.experts;  // logits; NaN: picked
  const float largest = largest_of(op, logits);
  double divisor = op.sigmoid ? 1 : 0, of_picks = 0;
  for (int64_t e = lane; e < op.experts; e += 32) {
    left[e] = logits[e];
    if (!op.sigmoid && !op.normalize) divisor += score(op, logits[e], largest);
  }
  if (!op.sigmoid && !op.normalize) divisor = warp_sum(divisor);
  __syncwarp();
  for (int64_t j = 0; j < op.picks; ++j) {
    BestExpert best{0, -1};
    for (int64_t e = lane; e < op.experts; e += 32) {
      if (left[e] == left[e]) best = best_of(best, {left[e], static_cast<int>(e)});
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      best = best_of(best, {__shfl_xor_sync(kAllLanes, best.logit, lanes),
                            __shfl_xor_sync(kAllLanes, best.expert, lanes)});
    }
    // Logits that are NaN are picked last, in no order that means anything.
    const int expert = best.expert < 0 ? static_cast<int>(j) : best.expert;
    const float logit = best.expert < 0 ? NAN : best.logit;
    of_picks += score(op, logit, largest);
    if (lane == 0) {
      ids[token * ids_stride + j] = expert;
      weights[token * weights_stride + j] = logit;
      left[expert] = NAN;
    }
    __syncwarp();
  }
  if (op.normalize) divisor = of_picks;
  for (int64_t j = lane; j < op.picks; j += 32) {
    float& weight = weights[token * weights_stride + j];
    weight = static_cast<float>(score(op, weight, largest) / divisor * static_cast<double>(op.scale));
  }
}

__global__ void __launch_bounds__(32 * kRouteWarps)
    moe_route_backward_kernel(RouteArguments op, const int32_t* ids, int64_t ids_stride,
                              const float* dweights, int64_t dweights_stride, float* dlogits,
                              int64_t dlogits_stride) {
  begin_kernel();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t token = int64_t{blockIdx.x} * (blockDim.x / 32) + warp;
  if (token >= op.tokens) return;  // a warp for itself
  const float* logits = op.logits + token * op.logits_stride;
  const int32_t* picked = ids + token * ids_stride;
  const float* gradients = dweights + token * dweights_stride;
  float* out = dlogits + token * dlogits_stride;
  const float largest = largest_of(op, logits);
  const auto of_pick = [&](int64_t j) { return score(op, logits[picked[j]], largest); };
  const auto gradient = [&](int64_t j) {
    return static_cast<double>(op.scale) * static_cast<double>(gradients[j]);
  };
  double divisor = 1, mean = 0;
  if (op.normalize) {
    divisor = 0;
    for (int64_t j = 0; j < op.picks; ++j) divisor += of_pick(j);
  } else if (!op.sigmoid) {
    divisor = 0;
    for (int64_t e = lane; e < op.experts; e += 32) divisor += score(op, logits[e], largest);
    divisor = warp_sum(divisor);
  }
  if (!op.sigmoid || op.normalize) {
    for (int64_t j = 0; j < op.picks; ++j) mean += of_pick(j) / divisor * gradient(j);
  }
  const bool all = !op.sigmoid && !op.normalize;  // experts that are not picked get a gradient too
  for (int64_t e = lane; e < op.experts; e += 32) {
    out[e] = all ? static_cast<float>(score(op, logits[e], largest) / divisor * -mean) : 0.0f;
  }
  __syncwarp();
  for (int64_t j = lane; j < op.picks; j += 32) {
    const double s = of_pick(j), factor = op.sigmoid ? 1.0 - s : 1.0;
    out[picked[j]] = static_cast<float>(s / divisor * factor * (gradient(j) - mean));
  }
}

constexpr int kChunkPairs = 256;

// Pairs (token, pick) of ids [T, k].
struct Pairs {
  const int32_t* ids;
  int64_t stride, picks, count;
  __device__ int32_t expert(int64_t pair) const { return ids[pair / picks * stride + pair % picks]; }
};

// All of moe_permute where the pairs are one chunk, as a step of decoding has them: a block a token, each of
// which finds its own places among all pairs.
__global__ void __launch_bounds__(kChunkPairs)
    moe_permute_few(Pairs pairs, int64_t experts, Rows x, int32_t* totals, int32_t* places,
                    int64_t places_stride, Rows sorted, int64_t width) {
  begin_kernel();
  QIAO_SHARED(int32_t, expert_of, kChunkPairs);
  QIAO_SHARED(int32_t, place_of_pick, kChunkPairs);
  const auto thread = static_cast<int>(threadIdx.x), count = static_cast<int>(pairs.count);
  const int picks = static_cast<int>(pairs.picks);
  const int64_t token = blockIdx.x;
  if (thread < count) expert_of[thread] = pairs.expert(thread);
  __syncthreads();
  if (thread < picks) {
    const int pair = static_cast<int>(token) * picks + thread, expert = expert_of[pair];
    int32_t place = 0;
    for (int i = 0; i < count; ++i) {
      place += expert_of[i] < expert || (expert_of[i] == expert && i < pair) ? 1 : 0;
    }
    place_of_pick[thread] = place;
    places[token * places_stride + thread] = place;
  }
  if (token == 0) {
    for (int64_t e = thread; e < experts; e += kChunkPairs) {
      int32_t total = 0;
      for (int i = 0; i < count; ++i) total += expert_of[i] == e ? 1 : 0;
      totals[e] = total;
    }
  }
  __syncthreads();
  for (int64_t at = 4 * thread; at < width; at += 4 * kChunkPairs) {
    const float4 v = load_four(x.row(token), at, width, x.aligned);
    for (int j = 0; j < picks; ++j) store_four(sorted.row(place_of_pick[j]), at, width, sorted.aligned, v);
  }
}

// counts[chunk, e]: the pairs of a chunk that are expert e's.
__global__ void __launch_bounds__(kChunkPairs) moe_count(Pairs pairs, int64_t experts, int32_t* counts) {
  begin_kernel();
  int32_t* of_chunk = counts + blockIdx.x * experts;
  for (int64_t e = threadIdx.x; e < experts; e += kChunkPairs) of_chunk[e] = 0;
  __syncthreads();
  const int64_t pair = int64_t{blockIdx.x} * kChunkPairs + threadIdx.x;
  if (pair < pairs.count) atomicAdd(of_chunk + pairs.expert(pair), 1);
}

// One block: counts[chunk, e] becomes the first place of the chunk's pairs of e; totals[e] all of e's.
__global__ void __launch_bounds__(1024)
    moe_places(int32_t* counts, int64_t chunks, int64_t experts, int32_t* totals) {
  begin_kernel();
  for (int64_t e = threadIdx.x; e < experts; e += blockDim.x) {
    int32_t sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += counts[chunk * experts + e];
    totals[e] = sum;
  }
  __syncthreads();
  for (int64_t e = threadIdx.x; e < experts; e += blockDim.x) {
    int32_t place = 0;
    for (int64_t before = 0; before < e; ++before) place += totals[before];
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      int32_t& here = counts[chunk * experts + e];
      const int32_t count = here;
      here = place;
      place += count;
    }
  }
}

__global__ void __launch_bounds__(kChunkPairs)
    moe_rank(Pairs pairs, int64_t experts, const int32_t* firsts, int32_t* places, int64_t places_stride) {
  begin_kernel();
  QIAO_SHARED(int32_t, of_chunk, kChunkPairs);
  const int64_t pair = int64_t{blockIdx.x} * kChunkPairs + threadIdx.x;
  const int32_t expert = pair < pairs.count ? pairs.expert(pair) : -1;
  of_chunk[threadIdx.x] = expert;
  __syncthreads();
  if (pair >= pairs.count) return;
  int32_t rank = 0;
  for (unsigned i = 0; i < threadIdx.x; ++i) rank += of_chunk[i] == expert ? 1 : 0;
  places[pair / pairs.picks * places_stride + pair % pairs.picks] =
      firsts[blockIdx.x * experts + expert] + rank;
}

// places [T, k].
struct Picks {
  const int32_t* places;
  int64_t stride, count;
  __device__ int64_t place(int64_t token, int64_t j) const { return places[token * stride + j]; }
};

__global__ void moe_move(Rows x, Picks picks, Rows sorted, int64_t width, unsigned tiles) {
  begin_kernel();
  const Place place = place_of(tiles);
  if (place.at >= width) return;
  const float4 v = load_four(x.row(place.row), place.at, width, x.aligned);
  for (int64_t j = 0; j < picks.count; ++j) {
    store_four(sorted.row(picks.place(place.row, j)), place.at, width, sorted.aligned, v);
  }
}

__global__ void moe_combine_kernel(Rows sorted, Picks picks, const float* weights, int64_t weights_stride,
                                   Rows residual, Rows y, int64_t width, unsigned tiles) {
  begin_kernel();
  const Place place = place_of(tiles);
  if (place.at >= width) return;
  float4 sum = residual.data == nullptr
                   ? make_float4(0, 0, 0, 0)
                   : load_four(residual.row(place.row), place.at, width, residual.aligned);
  for (int64_t j = 0; j < picks.count; ++j) {
    const float4 v = load_four(sorted.row(picks.place(place.row, j)), place.at, width, sorted.aligned);
    sum = add_scaled(weights[place.row * weights_stride + j], v, sum);
  }
  store_four(y.row(place.row), place.at, width, y.aligned, sum);
}

__global__ void moe_permute_backward_kernel(Rows dsorted, Picks picks, bool add_dx, Rows dx, int64_t width,
                                            unsigned tiles) {
  begin_kernel();
  const Place place = place_of(tiles);
  if (place.at >= width) return;
  float* out = dx.row(place.row);
  float4 sum = add_dx ? load_four(out, place.at, width, dx.aligned) : make_float4(0, 0, 0, 0);
  for (int64_t j = 0; j < picks.count; ++j) {
    sum = add(sum, load_four(dsorted.row(picks.place(place.row, j)), place.at, width, dsorted.aligned));
  }
  store_four(out, place.at, width, dx.aligned, sum);
}

constexpr int kCombineWarps = 4;

// A block has one pick of one token: its row of dsorted, and the product of dy and sorted.
__global__ void __launch_bounds__(32 * kCombineWarps)
    moe_combine_backward_kernel(Rows dy, Rows sorted, Picks picks, const float* weights,
                                int64_t weights_stride, Rows dsorted, float* dweights,
                                int64_t dweights_stride, int64_t width) {
  begin_kernel();
  const int64_t token = blockIdx.x / picks.count, j = blockIdx.x % picks.count;
  const int64_t place = picks.place(token, j);
  const float weight = weights[token * weights_stride + j];
  float sum = 0;
  for (int64_t at = 4 * int64_t{threadIdx.x}; at < width; at += 4 * 32 * kCombineWarps) {
    const float4 d = load_four(dy.row(token), at, width, dy.aligned);
    const float4 s = load_four(sorted.row(place), at, width, sorted.aligned);
    sum = fmaf(d.w, s.w, fmaf(d.z, s.z, fmaf(d.y, s.y, fmaf(d.x, s.x, sum))));
    store_four(dsorted.row(place), at, width, dsorted.aligned, scale(weight, d));
  }
  QIAO_SHARED(float, sums, 32);
  sum = block_sum<kCombineWarps>(sum, sums);
  if (threadIdx.x == 0) dweights[token * dweights_stride + j] = sum;
}

Picks picks_of(const Tensor& places) { return {places.as<int32_t>(), places.stride[0], places.shape[1]}; }

template <class Op>
RouteArguments route_of(const Op& op) {
  return {op.logits.template as<float>(),
          op.logits.stride[0],
          op.logits.shape[0],
          op.logits.shape[1],
          op.ids.shape[1],
          op.kind == MoeRoute::Kind::kSigmoid,
          op.normalize,
          op.scale};
}

}  // namespace

void CudaBackend::do_moe_route(const MoeRoute& op) {
  const RouteArguments a = route_of(op);
  const RouteShape shape(a.experts);
  launch("moe_route", stream_, moe_route_kernel, blocks_for(a.tokens, shape.warps), 32 * shape.warps,
         shape.shared_bytes, a, op.ids.as<int32_t>(), op.ids.stride[0], op.weights.as<float>(),
         op.weights.stride[0]);
}

void CudaBackend::do_moe_route_backward(const MoeRouteBackward& op) {
  const RouteArguments a = route_of(op);
  launch("moe_route_backward", stream_, moe_route_backward_kernel, blocks_for(a.tokens, kRouteWarps),
         32 * kRouteWarps, 0, a, op.ids.as<int32_t>(), op.ids.stride[0], op.dweights.as<float>(),
         op.dweights.stride[0], op.dlogits.as<float>(), op.dlogits.stride[0]);
}

size_t CudaBackend::workspace_bytes(const MoePermute& op) const {
  const int64_t chunks = ceil_div(op.ids.elements(), kChunkPairs);
  return chunks <= 1 ? 0 : static_cast<size_t>(chunks * op.counts.shape[0]) * sizeof(int32_t);
}

void CudaBackend::do_moe_permute(const MoePermute& op) {
  const int64_t tokens = op.ids.shape[0], picks = op.ids.shape[1], experts = op.counts.shape[0];
  const Pairs pairs{op.ids.as<int32_t>(), op.ids.stride[0], picks, tokens * picks};
  const int64_t chunks = ceil_div(pairs.count, kChunkPairs), width = op.x.shape[1];
  if (chunks == 1) {
    launch("moe_permute", stream_, moe_permute_few, static_cast<unsigned>(tokens), kChunkPairs, 0, pairs,
           experts, rows_of(op.x), op.counts.as<int32_t>(), op.places.as<int32_t>(), op.places.stride[0],
           rows_of(op.sorted), width);
    return;
  }
  auto* firsts = op.workspace.as<int32_t>();
  launch("moe_permute", stream_, moe_count, static_cast<unsigned>(chunks), kChunkPairs, 0, pairs, experts,
         firsts);
  launch("moe_permute", stream_, moe_places, 1, 1024, 0, firsts, chunks, experts, op.counts.as<int32_t>());
  launch("moe_permute", stream_, moe_rank, static_cast<unsigned>(chunks), kChunkPairs, 0, pairs, experts,
         firsts, op.places.as<int32_t>(), op.places.stride[0]);
  const Tiles tiles(tokens, width);
  launch("moe_permute", stream_, moe_move, tiles.grid, tiles.block, 0, rows_of(op.x), picks_of(op.places),
         rows_of(op.sorted), width, tiles.tiles);
}

void CudaBackend::do_moe_combine(const MoeCombine& op) {
  const int64_t width = op.y.shape[1];
  const Tiles tiles(op.y.shape[0], width);
  launch("moe_combine", stream_, moe_combine_kernel, tiles.grid, tiles.block, 0, rows_of(op.sorted),
         picks_of(op.places), op.weights.as<float>(), op.weights.stride[0], rows_of(op.residual),
         rows_of(op.y), width, tiles.tiles);
}

void CudaBackend::do_moe_permute_backward(const MoePermuteBackward& op) {
  const int64_t width = op.dx.shape[1];
  const Tiles tiles(op.dx.shape[0], width);
  launch("moe_permute_backward", stream_, moe_permute_backward_kernel, tiles.grid, tiles.block, 0,
         rows_of(op.dsorted), picks_of(op.places), op.add_dx, rows_of(op.dx), width, tiles.tiles);
}

void CudaBackend::do_moe_combine_backward(const MoeCombineBackward& op) {
  const Picks picks = picks_of(op.places);
  launch("moe_combine_backward", stream_, moe_combine_backward_kernel,
         static_cast<unsigned>(op.places.shape[0] * picks.count), 32 * kCombineWarps, 0, rows_of(op.dy),
         rows_of(op.sorted), picks, op.weights.as<float>(), op.weights.stride[0], rows_of(op.dsorted),
         op.dweights.as<float>(), op.dweights.stride[0], op.dy.shape[1]);
}

}  // namespace qiao::cuda

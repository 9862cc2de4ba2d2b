// gated_activation and its way back: four elements a thread, one pass over memory, whose bandwidth limits it.
#include "backend/ops/gated_activation.h"

#include "backend/cuda/activation.h"
#include "backend/cuda/cuda_class.h"
#include "backend/cuda/rows.h"

namespace qiao::cuda {
namespace {

template <Activation kKind>
__global__ void gated_activation_kernel(Rows x, Rows y, int64_t width, bool up_aligned, unsigned tiles) {
  begin_kernel();
  const Place place = place_of(tiles);
  if (place.at >= width) return;
  const float* row = x.row(place.row);
  const float4 gate = load_four(row, place.at, width, x.aligned);
  const float4 up = load_four(row + width, place.at, width, up_aligned);
  store_four(y.row(place.row), place.at, width, y.aligned, gated<kKind>(gate, up));
}

template <Activation kKind>
__global__ void gated_activation_backward_kernel(Rows x, Rows dy, Rows dx, int64_t width, bool x_up_aligned,
                                                 bool dx_up_aligned, unsigned tiles) {
  begin_kernel();
  const Place place = place_of(tiles);
  if (place.at >= width) return;
  const float* row = x.row(place.row);
  float* out = dx.row(place.row);
  const float4 gate = load_four(row, place.at, width, x.aligned);
  const float4 up = load_four(row + width, place.at, width, x_up_aligned);
  const float4 d = load_four(dy.row(place.row), place.at, width, dy.aligned);
  const SigmoidSlope a = activated_slope<kKind>(gate.x), b = activated_slope<kKind>(gate.y),
                     c = activated_slope<kKind>(gate.z), e = activated_slope<kKind>(gate.w);
  store_four(
      out, place.at, width, dx.aligned,
      make_float4(d.x * a.slope * up.x, d.y * b.slope * up.y, d.z * c.slope * up.z, d.w * e.slope * up.w));
  store_four(out + width, place.at, width, dx_up_aligned,
             make_float4(d.x * a.value, d.y * b.value, d.z * c.value, d.w * e.value));
}

// Calls run(kind) for the kinds that gate.
template <class Run>
void for_gate(Activation activation, Run run) {
  if (activation == Activation::kSilu) {
    run(std::integral_constant<Activation, Activation::kSilu>());
  } else if (activation == Activation::kGelu) {
    run(std::integral_constant<Activation, Activation::kGelu>());
  } else {
    run(std::integral_constant<Activation, Activation::kGeluTanh>());
  }
}

}  // namespace

void CudaBackend::do_gated_activation(const GatedActivation& op) {
  const int64_t width = op.y.shape[1];
  const Tiles tiles(op.y.shape[0], width);
  const Rows x = rows_of(op.x);
  for_gate(op.activation, [&](auto kind) {
    launch("gated_activation", stream_, gated_activation_kernel<kind()>, tiles.grid, tiles.block, 0, x,
           rows_of(op.y), width, x.aligned && width % 4 == 0, tiles.tiles);
  });
}

void CudaBackend::do_gated_activation_backward(const GatedActivationBackward& op) {
  const int64_t width = op.dy.shape[1];
  const Tiles tiles(op.dy.shape[0], width);
  const Rows x = rows_of(op.x), dx = rows_of(op.dx);
  for_gate(op.activation, [&](auto kind) {
    launch("gated_activation_backward", stream_, gated_activation_backward_kernel<kind()>, tiles.grid,
           tiles.block, 0, x, rows_of(op.dy), dx, width, x.aligned && width % 4 == 0,
           dx.aligned && width % 4 == 0, tiles.tiles);
  });
}

}  // namespace qiao::cuda

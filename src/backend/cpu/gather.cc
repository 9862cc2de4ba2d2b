// Rows of a table: the row's whole group is unpacked chunk by chunk (vectors over 16 rows cost less than
// bytes of one) and its lane picked out.
#include <algorithm>

#include "backend/cpu/cpu_class.h"
#include "backend/cpu/matmul.h"

namespace qiao::cpu {
namespace {

void gather_row(const LinearKernels& kernels, const CpuWeight& weight, int64_t id, float scale, float* out) {
  const CpuWeight::Panels* p = weight.panels().data();
  while (id >= p->first_row + p->rows) ++p;
  const int64_t row = id - p->first_row;
  const std::byte* panel = weight.panel(0, *p, row / kGroupRows);
  const int64_t lane = row % kGroupRows;
  const auto d = static_cast<size_t>(p->dtype);
  alignas(64) float floats[kMaxChunk * 16];
  alignas(64) uint8_t quants[kMaxChunk * 16];
  alignas(64) float scales[kMaxChunk / kTile * 64];
  for (int64_t k = 0; k < weight.columns(); k += p->chunk) {
    const int64_t elements = std::min(p->chunk, weight.columns() - k);
    if (traits(p->dtype).quantized && p->dtype != DType::kF8_128) {
      const FormatForm form = format_form(p->dtype);
      const int stride = scale_floats(form.family);
      const uint8_t* shared = quants;
      if (kernels.quants[d] == nullptr) {
        shared = reinterpret_cast<const uint8_t*>(panel);
      } else {
        kernels.quants[d](panel, elements, quants);
      }
      kernels.scales[d](panel, elements, stride, scales);
      const bool minimum = has_minimum(form.family);
      const int offset = minimum ? 0 : 1 << form.offset_shift;
      const int count = scales_per_tile(form.family);
      for (int64_t i = 0; i < elements; ++i) {
        const float* tile = scales + i / kTile * stride + (count == 2 && i % kTile >= 16 ? 16 : 0) + lane;
        const int quant = shared[i / 4 * 64 + lane * 4 + i % 4];
        float value = *tile * static_cast<float>(quant - offset);
        if (minimum) value += tile[count * 16];
        out[k + i] = scale * value;
      }
    } else {
      const float* values = floats;
      if (p->dtype == DType::kF32) {
        values = reinterpret_cast<const float*>(panel);
      } else if (p->dtype == DType::kF8_128) {
        kernels.f8_to_f32(panel, f8_scales(panel, elements), elements, floats);
      } else {
        (p->dtype == DType::kF16 ? kernels.f16_to_f32 : kernels.bf16_to_f32)(panel, elements, floats);
      }
      for (int64_t i = 0; i < elements; ++i) out[k + i] = scale * values[i * 16 + lane];
    }
    panel += chunk_bytes(p->dtype, elements);
  }
}

}  // namespace

void run_gather(const Gather& op, const LinearKernels& kernels, ThreadPool& pool) {
  const auto& weight = static_cast<const CpuWeight&>(*op.table);
  pool.parallel_for(op.ids.shape[0], 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      gather_row(kernels, weight, op.ids.as<int32_t>()[t * op.ids.stride[0]], op.scale,
                 op.out.as<float>() + t * op.out.stride[0]);
    }
  });
}

void CpuBackend::do_gather(const Gather& op) { run_gather(op, linear_kernels(active_isa()), pool_); }

// Threads own columns, so that each walks the rows in order; memory is the limit.
void CpuBackend::do_gather_backward(const GatherBackward& op) {
  const int64_t tokens = op.ids.shape[0], columns = op.dtable.shape[1];
  if (tokens == 0) return;
  constexpr int64_t kLeastColumns = 64;
  const int64_t share = (columns + 4 * pool_.size() - 1) / (4 * pool_.size());
  pool_.parallel_for(columns, std::max(kLeastColumns, share), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = 0; t < tokens; ++t) {
      const float* from = op.dout.as<float>() + t * op.dout.stride[0];
      float* to = op.dtable.as<float>() + op.ids.as<int32_t>()[t] * columns;
      for (int64_t c = begin; c < end; ++c) to[c] += op.scale * from[c];
    }
  });
}

}  // namespace qiao::cpu

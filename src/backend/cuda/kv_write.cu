// kv_write: eight elements a thread, so that it stores 8 (Q8_0, F8_E4M3), 16 or 32 bytes of a row; a block of
// 32 elements of Q8_0 is four threads', which find its largest together, a row of F8_E4M3 a warp's. Limited
// by launching it: a step's keys and values are a few hundred KB. Measured: docs/h200.md.
#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kv_rows.h"

namespace qiao::cuda {
namespace {

struct KvWriteArguments {
  const float *k, *v;
  int64_t k_token, k_head, v_token, v_head;  // strides
  bool aligned;                              // every row begins at a multiple of 16 bytes
  const int32_t* slots;                      // null: token t's is t
  KvLayout pages;
  int items;  // of a token: heads × 2 × runs of eight elements; F8_E4M3: × 2 alone
  int runs;   // of a row: the last may lie partly or wholly in the padding
};

template <DType kDType>
__global__ void __launch_bounds__(256) kv_write_kernel(KvWriteArguments op) {
  begin_kernel();
  const int64_t token = blockIdx.x;
  const int item = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const bool active = item < op.items;  // all lanes meet in the search for the largest
  const int from = active ? item : 0, run = from % op.runs, rest = from / op.runs, head = rest / 2;
  const bool value = rest % 2 != 0;
  const float* from_row =
      value ? op.v + token * op.v_token + head * op.v_head : op.k + token * op.k_token + head * op.k_head;
  const float4 a = load_four(from_row, 8 * run, op.pages.dim, op.aligned);
  const float4 b = load_four(from_row, 8 * run + 4, op.pages.dim, op.aligned);
  const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  const int slot = op.slots == nullptr ? static_cast<int>(token) : op.slots[token];
  unsigned char* row = kv_place(op.pages, slot, head, value).row;
  if constexpr (kDType == DType::kQ8_0) {
    store_kv_q8(x, 8 * run, op.pages.dim, row, active);
  } else if (active) {
    store_kv<kDType>(x, 8 * run, row);
  }
}

__global__ void __launch_bounds__(256) kv_write_f8_kernel(KvWriteArguments op) {
  begin_kernel();
  const int64_t token = blockIdx.x;
  const int row = static_cast<int>((blockIdx.y * blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
  if (row >= op.items) return;
  const int head = row / 2;
  const bool value = row % 2 != 0;
  const float* from =
      value ? op.v + token * op.v_token + head * op.v_head : op.k + token * op.k_token + head * op.k_head;
  const float4 a = load_four(from, 8 * lane, op.pages.dim, op.aligned);
  const float4 b = load_four(from, 8 * lane + 4, op.pages.dim, op.aligned);
  const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  const float scale = f8_scale(largest_of_lanes(largest_of(x), 32));
  const KvPlace place = kv_place(op.pages, op.slots[token], head, value);
  if (8 * lane < op.pages.dim) store_kv_f8(x, scale, 8 * lane, place.row);
  if (lane == 0) *place.scale = scale;
}

KvWriteArguments arguments_of(const Tensor& k, const Tensor& v, const int32_t* slots, const KvLayout& pages) {
  KvWriteArguments a{k.as<float>(), v.as<float>(), k.stride[0], k.stride[1], v.stride[0],
                     v.stride[1],   false,         slots,       pages};
  const auto rows_aligned = [](const Tensor& t) {
    return aligned_16(t.data) && t.stride[0] % 4 == 0 && t.stride[1] % 4 == 0;
  };
  a.aligned = rows_aligned(k) && rows_aligned(v);
  a.runs = static_cast<int>(ceil_div(a.pages.dim, 8));
  a.items = a.pages.kv_heads * 2 * a.runs;
  return a;
}

unsigned threads_for(int64_t wanted) {
  return static_cast<unsigned>(wanted > 224 ? 256 : ceil_div(wanted, 32) * 32);
}

}  // namespace

void round_kv_rows(const char* name, const Stream& stream, const Tensor& k, const Tensor& v,
                   const KvLayout& rows) {
  const KvWriteArguments a = arguments_of(k, v, nullptr, rows);
  const unsigned threads = threads_for(a.items);
  launch(name, stream, kv_write_kernel<DType::kBF16>,
         dim3(static_cast<unsigned>(k.shape[0]), blocks_for(a.items, threads)), threads, 0, a);
}

void CudaBackend::do_kv_write(const KvWrite& op) {
  auto& pages = static_cast<CudaKvPages&>(*op.pages);
  KvWriteArguments a = arguments_of(op.k, op.v, op.slots.as<int32_t>(), pages.layout());
  pages.wrote(op.slots.shape[0], stream_.holds());
  const bool warps = op.pages->spec().dtype == DType::kF8_E4M3;
  if (warps) a.items = 2 * a.pages.kv_heads;
  const int64_t wanted = warps ? int64_t{32} * a.items : a.items;
  const unsigned threads = threads_for(wanted);
  const auto run = [&](auto kernel) {
    const dim3 grid(static_cast<unsigned>(op.slots.shape[0]), blocks_for(wanted, threads));
    launch("kv_write", stream_, kernel, grid, threads, 0, a);
  };
  switch (op.pages->spec().dtype) {
    case DType::kF32:
      return run(kv_write_kernel<DType::kF32>);
    case DType::kF16:
      return run(kv_write_kernel<DType::kF16>);
    case DType::kBF16:
      return run(kv_write_kernel<DType::kBF16>);
    case DType::kF8_E4M3:
      return run(kv_write_f8_kernel);
    default:
      return run(kv_write_kernel<DType::kQ8_0>);
  }
}

}  // namespace qiao::cuda
